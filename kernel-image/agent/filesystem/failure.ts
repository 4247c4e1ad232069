import { Code, ConnectError } from '@connectrpc/connect';
import { reason } from '../log';

const CODES: Record<string, Code> = {
  EACCES: Code.PermissionDenied,
  EPERM: Code.PermissionDenied,
  ENAMETOOLONG: Code.InvalidArgument,
  ENOENT: Code.NotFound,
};

/** Node's error code, as in `ENOENT`, when it is a failed system call. */
export function errorCode(error: unknown): string | undefined {
  return (error as NodeJS.ErrnoException | undefined)?.code;
}

/** A failure about one file, as its caller is told: in the caller's spelling, never with the place on disk. */
export function fileFailure(error: unknown, apiPath: string): ConnectError {
  if (error instanceof ConnectError) return error;
  const code = errorCode(error);
  if (code === 'ENOENT') return new ConnectError(`path '${apiPath}' does not exist`, Code.NotFound);
  return new ConnectError(`path '${apiPath}': ${systemReason(error)}`, CODES[code ?? ''] ?? Code.Internal);
}

/** What the system said, without call and place: `ENOTDIR: not a directory`. */
export function systemReason(error: unknown): string {
  const text = reason(error);
  return /^E[A-Z0-9]+: [^,:]+/.exec(text)?.[0] ?? text;
}
