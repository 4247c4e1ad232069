import { Code, ConnectError } from '@connectrpc/connect';
import { HttpError } from './http-error';
import { log, reason } from './log';

/** A call that was broken off fails for that reason, whichever of its parts noticed it first. */
export function told(error: unknown, signal: AbortSignal): ConnectError {
  return toConnectError(signal.aborted && !(error instanceof ConnectError) ? signal.reason : error);
}

const CODES: Record<number, Code> = {
  400: Code.InvalidArgument,
  401: Code.Unauthenticated,
  403: Code.PermissionDenied,
  404: Code.NotFound,
  409: Code.AlreadyExists,
  501: Code.Unimplemented,
  507: Code.ResourceExhausted,
};

/** Any failure as the protocol's; one that nobody foresaw is `internal` and says what happened. */
export function toConnectError(error: unknown): ConnectError {
  if (error instanceof ConnectError) return error;
  if (error instanceof HttpError)
    return new ConnectError(error.message, CODES[error.status] ?? Code.Internal);
  if ((error as Error | undefined)?.name === 'AbortError') {
    return new ConnectError('the client left', Code.Canceled, undefined, undefined, error);
  }
  log(`agent: internal: ${reason(error)}`);
  return new ConnectError(reason(error), Code.Internal);
}
