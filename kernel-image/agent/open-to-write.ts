import { constants } from 'node:fs';
import fs from 'node:fs/promises';
import type { FileHandle } from 'node:fs/promises';
import path from 'node:path';
import type { AgentContext } from './app';
import { makeDirectories } from './filesystem/directories';
import { errorCode, systemReason } from './filesystem/failure';
import { HttpError } from './http-error';
import type { SandboxUser } from './users';

const { O_WRONLY, O_CREAT, O_EXCL, O_TRUNC, O_NONBLOCK } = constants;
/** Somebody may remove a directory just made, or the file just found; not time after time. */
const MAX_ATTEMPTS = 3;

/**
 * Opens a regular file to write it from its start, empty and the user's; makes missing parents. Whoever watches sees
 * `CREATE, CHMOD` of a new file, whether or not files can be given to others here. The caller closes it.
 */
export async function openToWrite(
  context: AgentContext,
  user: SandboxUser,
  apiPath: string,
): Promise<{ file: FileHandle; isNew: boolean }> {
  const diskPath = context.users.toDisk(apiPath);
  for (let attempt = 1; ; attempt++) {
    try {
      return await createFile(context, user, diskPath, O_EXCL);
    } catch (error) {
      const code = errorCode(error);
      if (code === 'EEXIST') {
        const file = await openExisting(context, user, diskPath, apiPath);
        // A link that leads nowhere: the file is made where it leads.
        return file === undefined ? await createFile(context, user, diskPath, 0) : { file, isNew: false };
      }
      if (code !== 'ENOENT' || attempt === MAX_ATTEMPTS) throw error;
    }
    await makeDirectories(context, user, path.posix.dirname(diskPath));
  }
}

async function createFile(
  { users }: AgentContext,
  user: SandboxUser,
  diskPath: string,
  exclusive: number,
): Promise<{ file: FileHandle; isNew: boolean }> {
  const file = await fs.open(diskPath, O_WRONLY | O_CREAT | O_NONBLOCK | exclusive, 0o666);
  try {
    const owner = users.canChown ? user : { uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0 };
    await file.chown(owner.uid, owner.gid);
  } catch (error) {
    await file.close();
    throw error;
  }
  return { file, isNew: true };
}

/** `undefined` when there is none after all. */
async function openExisting(
  { users }: AgentContext,
  user: SandboxUser,
  diskPath: string,
  apiPath: string,
): Promise<FileHandle | undefined> {
  try {
    const found = await fs.stat(diskPath);
    if (found.isDirectory()) throw new HttpError(400, `path '${apiPath}' is a directory`);
    if (!found.isFile()) throw new HttpError(400, `path '${apiPath}' is not a regular file`);
    if (users.canChown && (found.uid !== user.uid || found.gid !== user.gid)) {
      await fs.chown(diskPath, user.uid, user.gid);
    }
    // Non-blocking, for the case that a FIFO took the file's place since: opening one waits for its reader.
    return await fs.open(diskPath, O_WRONLY | O_TRUNC | O_NONBLOCK);
  } catch (error) {
    if (errorCode(error) === 'ENOENT') return undefined;
    throw error;
  }
}

/** A failed write as its caller is told; what has no answer of its own stays as it is. */
export function writeFailure(error: unknown, apiPath: string, announcedBytes: number | undefined): unknown {
  const code = errorCode(error);
  // The last: larger than any file may be here, which is the sandbox's whole disk.
  if (code === 'ENOSPC' || code === 'EDQUOT' || code === 'EFBIG') {
    const size = announcedBytes === undefined ? '' : ` for ${announcedBytes} bytes`;
    return new HttpError(507, `not enough disk space available${size}: '${apiPath}'`, { cause: error });
  }
  if (code === 'EISDIR') return new HttpError(400, `path '${apiPath}' is a directory`, { cause: error });
  if (code === 'ENXIO')
    return new HttpError(400, `path '${apiPath}' is not a regular file`, { cause: error });
  const status = STATUS[code ?? ''];
  return status === undefined
    ? error
    : new HttpError(status, `path '${apiPath}': ${systemReason(error)}`, { cause: error });
}

const STATUS: Record<string, number> = {
  EACCES: 403,
  ELOOP: 500,
  ENAMETOOLONG: 400,
  ENOENT: 500,
  ENOTDIR: 500,
  EPERM: 403,
  EROFS: 500,
};
