import type { ErrorRequestHandler, Request, Response } from 'express';
import type { ApiError } from '../../protocol/control-plane';
import type { NativeError } from '../../protocol/native';
import { ServiceError, assertNever } from '../errors';
import type { ErrorCode } from '../errors';
import type { Logger } from '../log';
import { teamOf } from './auth';

/** A failure of HTTP itself, which no word of `ErrorCode` is for: 405, 413, 415. */
export class HttpError extends Error {
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.name = 'HttpError';
    this.status = status;
  }
}

/** Marks a request whose failure must not be repeated by the SDK itself: it may have started a machine. */
export function markNotRepeatable(res: Response): void {
  res.locals['notRepeatable'] = true;
}

export interface ErrorHandlerOptions {
  logger: Logger;
  /** When a team may have room for another sandbox, in milliseconds since the epoch. */
  roomAt: (teamId: string) => number | undefined;
}

/** The one place where a failure becomes a status and a body, for the control plane and for `/v1`. */
export function errorHandler({ logger, roomAt }: ErrorHandlerOptions): ErrorRequestHandler {
  // Express tells an error handler by its four parameters.
  return (thrown: unknown, req: Request, res: Response, _next) => {
    const error = fromParser(thrown);
    const status = error instanceof HttpError ? error.status : statusOf(error.code);
    if (status === 500) logger.error({ err: error.cause ?? error, path: req.path }, 'a request failed');
    else if (status > 500) {
      logger.warn({ path: req.path, reason: error.message, err: error.cause }, 'a request failed');
    }
    if (res.headersSent || res.destroyed) {
      res.destroy(); // too late for an answer: an incomplete one must not look complete
      return;
    }
    const limited = status === 429;
    const waitMs = error instanceof ServiceError ? error.retryInMs : undefined;
    // The newest Python SDK repeats 429, 502, 503 and 504 by itself, creates included, unless told not to.
    if (waitMs !== undefined) {
      res.setHeader('Should-Retry', 'true');
      res.setHeader('Retry-After', String(Math.max(1, Math.ceil(waitMs / 1000))));
    } else if (limited || status === 501 || (status >= 500 && res.locals['notRepeatable'] === true)) {
      res.setHeader('Should-Retry', 'false');
    }
    const at = limited && waitMs === undefined ? roomAt(teamOf(res)) : undefined;
    // As a date: the JS SDK takes whole seconds, and only them, for an order to try again while its caller waits.
    if (at !== undefined) res.setHeader('Retry-After', new Date(at).toUTCString());
    const native = req.path === '/v1' || req.path.startsWith('/v1/');
    res.status(status).json(native ? nativeBody(status, error) : apiBody(status, error, res));
  };
}

function apiBody(status: number, error: ServiceError | HttpError, res: Response): ApiError {
  const slug = slugOf(status, res.locals['notRepeatable'] === true);
  return { code: status, message: error.message, ...(slug !== undefined && { error_code: slug }) };
}

function nativeBody(status: number, error: ServiceError | HttpError): NativeError {
  const isService = error instanceof ServiceError;
  return {
    code: status,
    error: isService ? error.code : 'invalid_argument',
    message: error.message,
    ...(isService && error.remedy !== undefined && { remedy: error.remedy }),
  };
}

/** E2B's words for what went wrong, where it has one. */
function slugOf(status: number, starting: boolean): string | undefined {
  if (starting && status === 503) return 'sandbox_capacity_unavailable';
  if (starting && status === 504) return 'sandbox_placement_timeout';
  if (starting && status === 500) return 'sandbox_create_failed';
  return status === 500 ? 'internal_server_error' : undefined;
}

function statusOf(code: ErrorCode): number {
  switch (code) {
    case 'invalid_argument':
      return 400;
    case 'unauthenticated':
      return 401;
    case 'permission_denied':
      return 403;
    case 'not_found':
      return 404;
    case 'already_exists':
    case 'failed_precondition':
      return 409;
    case 'resource_exhausted':
      return 429;
    case 'unimplemented':
      return 501;
    case 'unavailable':
      return 503;
    case 'deadline_exceeded':
      return 504;
    case 'internal':
      return 500;
    default:
      return assertNever(code);
  }
}

/** Express and its body parser throw errors of their own, told by `type` and `status`. */
function fromParser(thrown: unknown): ServiceError | HttpError {
  if (thrown instanceof ServiceError || thrown instanceof HttpError) return thrown;
  const { type, status, limit } = (thrown ?? {}) as { type?: unknown; status?: unknown; limit?: unknown };
  const bad = (message: string) => new ServiceError('invalid_argument', message, { cause: thrown });
  switch (type) {
    case 'entity.parse.failed':
      return bad('Request body is not valid JSON');
    case 'entity.verify.failed':
      return bad('Request body is not valid UTF-8');
    case 'entity.too.large':
      return new HttpError(413, `Request body is larger than the limit of ${String(limit)} bytes`);
    case 'charset.unsupported':
    case 'encoding.unsupported':
      return new HttpError(
        415,
        'Request body must be JSON in UTF-8, plain or compressed with gzip or deflate',
      );
    case 'request.aborted':
    case 'request.size.invalid':
      return bad('Request body is not complete');
  }
  if (thrown instanceof URIError) return bad('Path is not valid percent-encoding');
  if (status === 400) return bad('Request is not valid');
  return ServiceError.from(thrown);
}
