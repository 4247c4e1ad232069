import fs from 'node:fs';
import type { Stats } from 'node:fs';
import { readdir } from 'node:fs/promises';
import path from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { Code, ConnectError } from '@connectrpc/connect';
import { FileType } from '../../../protocol/envd/gen/filesystem_pb';
import type { DiskPath } from '../xattr';
import { childPath } from './disk-path';
import { describe } from './entry';
import type { EntryView, FileEntry } from './entry';
import { errorCode, fileFailure } from './failure';

/** Entries are read synchronously for so long; then other requests get their turn. */
const SLICE_MS = 8;

/** Gives way to other work when a slice is used up. */
class Slices {
  private startedAt = performance.now();

  isUsedUp(): boolean {
    return performance.now() - this.startedAt >= SLICE_MS;
  }

  async turn(): Promise<void> {
    await setImmediate();
    this.startedAt = performance.now();
  }
}

/** Entries that are told together: a client reads the first ones while the rest is looked at. */
const TOLD_TOGETHER = 200;

/**
 * The entries below a directory, `depth` levels of them, in groups: each directory just before what is in it, siblings
 * in the order of their bytes. A linked root is followed, links below it are not. What vanishes meanwhile is left out.
 *
 * A name that is not UTF-8 is told with U+FFFD in its place; everything else about its entry is right.
 *
 * `tell` makes of each at once what is kept of it.
 *
 * @throws ConnectError before the first group, for all that a caller can cause with one level: whoever may look at one
 *   entry of a directory may look at all of them. With more levels later ones may be closed to the caller.
 */
export async function* listDirectory<T>(
  view: EntryView,
  apiRoot: string,
  diskRoot: string,
  depth: number,
  tell: (entry: FileEntry) => T,
): AsyncGenerator<T[], void> {
  requireDirectory(apiRoot, diskRoot);
  let told: T[] = [];
  const slices = new Slices();

  const walk = async function* (
    apiPrefix: string,
    diskPath: DiskPath,
    level: number,
  ): AsyncGenerator<T[], void> {
    const names = await namesIn(diskPath);
    // Deeper ones by their paths: a tree of a thousand levels would take a thousand descriptors.
    const directory = level === 1 ? openDirectory(diskPath) : undefined;
    try {
      for (const latin1 of names) {
        if (slices.isUsedUp()) await slices.turn();
        const bytes = ASCII.test(latin1) ? latin1 : Buffer.from(latin1, 'latin1');
        const place = childPath(diskPath, bytes);
        const name = bytes.toString();
        let entry: FileEntry;
        try {
          const within = directory === undefined ? undefined : { directory, name: bytes };
          entry = describe(view, apiPrefix + name, place, name, within);
        } catch (error) {
          if (errorCode(error) === 'ENOENT') continue;
          throw error;
        }
        told.push(tell(entry));
        if (told.length === TOLD_TOGETHER) {
          yield told;
          told = [];
          await slices.turn(); // so that it leaves
        }
        if (level >= depth || entry.type !== FileType.DIRECTORY || entry.symlinkTarget !== undefined)
          continue;
        try {
          yield* walk(`${entry.path}/`, place, level + 1);
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
    yield* walk(path.posix.join(apiRoot, '/'), diskRoot, 1);
  } catch (error) {
    throw fileFailure(error, apiRoot);
  }
  if (told.length > 0) yield told;
}

const ASCII = /^[\0-\x7f]*$/;

/** In the order of their bytes, one character for each: text sorts several times as fast as buffers do. */
async function namesIn(directory: DiskPath): Promise<string[]> {
  return (await readdir(directory, { encoding: 'latin1' })).sort();
}

/** Names are looked up from here: the whole path for each of them takes half as long again. */
function openDirectory(directory: DiskPath): number {
  return fs.openSync(directory, fs.constants.O_RDONLY | fs.constants.O_DIRECTORY);
}

/** @throws ConnectError in the words and codes of the directory methods */
export function requireDirectory(apiPath: string, diskPath: string): void {
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
