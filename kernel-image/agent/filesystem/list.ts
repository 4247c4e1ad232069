import fs from 'node:fs';
import type { Stats } from 'node:fs';
import path from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { Code, ConnectError } from '@connectrpc/connect';
import { FileType } from '../../../protocol/envd/gen/filesystem_pb';
import type { DiskPath } from '../xattr';
import { childPath } from './disk-path';
import { describe } from './entry';
import type { EntryView, FileEntry } from './entry';
import { errorCode, fileFailure } from './failure';

const { O_RDONLY, O_DIRECTORY } = fs.constants;
/** Entries are read synchronously for so long; then other requests get their turn. */
const SLICE_MS = 8;
/** So many entries, a fraction of a slice, take longer than looking at the clock. */
const LOOK_EVERY = 16;

/** Gives way to other work when a slice is used up. */
class Slices {
  private startedAt = performance.now();
  private entries = 0;

  /** Asked before each entry. */
  isUsedUp(): boolean {
    return ++this.entries % LOOK_EVERY === 0 && performance.now() - this.startedAt >= SLICE_MS;
  }

  async turn(): Promise<void> {
    await setImmediate();
    this.startedAt = performance.now();
  }
}

/**
 * The entries below a directory, `depth` levels of them: each directory just before what is in it, siblings in the
 * order of their bytes. A linked root is followed, links below it are not. What vanishes meanwhile is left out.
 *
 * A name that is not UTF-8 is told with U+FFFD in its place; everything else about its entry is right.
 *
 * `tell` is given each as soon as it is known.
 *
 * @throws ConnectError
 */
export async function listDirectory(
  view: EntryView,
  apiRoot: string,
  diskRoot: string,
  depth: number,
  tell: (entry: FileEntry) => void,
): Promise<void> {
  requireDirectory(apiRoot, diskRoot);
  const slices = new Slices();

  const walk = async (apiPrefix: string, diskPath: DiskPath, level: number): Promise<void> => {
    const isLast = level >= depth;
    const names = namesIn(diskPath);
    // Never more than one: a deep tree would take all that there may be.
    const directory = isLast ? fs.openSync(diskPath, O_RDONLY | O_DIRECTORY) : undefined;
    try {
      for (const latin1 of names) {
        if (slices.isUsedUp()) await slices.turn();
        const bytes = ASCII.test(latin1) ? latin1 : Buffer.from(latin1, 'latin1');
        const place = childPath(diskPath, bytes);
        const name = bytes.toString();
        const within = directory === undefined ? undefined : { directory, name: bytes };
        let entry: FileEntry;
        try {
          entry = describe(view, apiPrefix + name, place, name, within);
        } catch (error) {
          if (errorCode(error) === 'ENOENT') continue;
          throw error;
        }
        tell(entry);
        if (isLast || entry.type !== FileType.DIRECTORY || entry.symlinkTarget !== undefined) continue;
        try {
          await walk(`${entry.path}/`, place, level + 1);
        } catch (error) {
          // Gone, or another kind of file by now. Only its own directory: deeper ones were dealt with deeper.
          if (errorCode(error) !== 'ENOENT' && errorCode(error) !== 'ENOTDIR') throw error;
        }
      }
    } finally {
      if (directory !== undefined) fs.closeSync(directory);
    }
  };

  try {
    // Cleaned, as everything below it is told.
    await walk(path.posix.join(apiRoot, '/'), diskRoot, 1);
  } catch (error) {
    throw fileFailure(error, apiRoot);
  }
}

const ASCII = /^[\0-\x7f]*$/;

/**
 * In the order of their bytes, one character for each: text sorts several times as fast as buffers do. Synchronous: for
 * 10,000 names this takes as long as a slice, and the thread pool's detour a quarter of the time.
 */
function namesIn(directory: DiskPath): string[] {
  return fs.readdirSync(directory, { encoding: 'latin1' }).sort();
}

/** @throws ConnectError in the words and codes of the directory methods */
function requireDirectory(apiPath: string, diskPath: string): void {
  let found: Stats;
  try {
    found = fs.statSync(diskPath);
  } catch (error) {
    const code = errorCode(error);
    if (code === 'ELOOP')
      throw new ConnectError(`path '${apiPath}' is a loop of links`, Code.FailedPrecondition);
    if (code === 'ENOTDIR') throw notDirectory(apiPath);
    throw fileFailure(error, apiPath);
  }
  if (!found.isDirectory()) throw notDirectory(apiPath);
}

function notDirectory(apiPath: string): ConnectError {
  return new ConnectError(`path '${apiPath}' is not a directory`, Code.InvalidArgument);
}
