import { Code, ConnectError } from '@connectrpc/connect';
import { reason } from '../../log';

const LOST = 'some events are lost; list the directory and watch it again';

/** Errors of directories that went meanwhile, or that can't be watched while others can. */
const UNWATCHABLE = new Set(['ENOENT', 'ENOTDIR', 'ELOOP', 'EACCES', 'EPERM', 'ENAMETOOLONG', 'ESTALE']);

export function unwatchable(error: unknown): boolean {
  return UNWATCHABLE.has(codeOf(error));
}

/** The kernel's queue, or ours, was full. */
export function overflowError(): ConnectError {
  return new ConnectError(`too many changes at once: ${LOST}`, Code.Internal);
}

/** More events were waiting to be fetched than a watcher may hold. */
export function unreadError(limit: number): ConnectError {
  return new ConnectError(`more than ${limit} events wait to be read: ${LOST}`, Code.Internal);
}

/** Any failure of watching as callers see it; limits are told with the setting that raises them. */
export function watchFailure(error: unknown): ConnectError {
  if (error instanceof ConnectError) return error;
  const text = reason(error);
  switch (codeOf(error)) {
    case 'ENOENT':
      return new ConnectError(text, Code.NotFound);
    case 'ENOTDIR':
      return new ConnectError(text, Code.InvalidArgument);
    case 'ENOSPC':
      return new ConnectError(
        "no more directories can be watched: the machine's limit fs.inotify.max_user_watches is reached",
        Code.Internal,
      );
    case 'EMFILE':
      return new ConnectError(
        "nothing more can be watched: the machine's limit fs.inotify.max_user_instances, or the limit of open files, is reached",
        Code.Internal,
      );
    default:
      return new ConnectError(`watching failed: ${text}`, Code.Internal);
  }
}

function codeOf(error: unknown): string {
  return String((error as NodeJS.ErrnoException | undefined)?.code ?? '');
}
