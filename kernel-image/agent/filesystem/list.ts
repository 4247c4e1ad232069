import type { Stats } from 'node:fs';
import fs from 'node:fs/promises';
import path from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { Code, ConnectError } from '@connectrpc/connect';
import { FileType } from '../../../protocol/envd/gen/filesystem_pb';
import type { EntryInfo } from '../../../protocol/envd/gen/filesystem_pb';
import type { DiskPath } from '../xattr';
import { childPath } from './disk-path';
import { describe } from './entry';
import type { EntryView } from './entry';
import { errorCode, fileFailure } from './failure';

/** Entries are read synchronously for so long; then other requests get their turn. */
const SLICE_MS = 8;

/** Gives way to other work once a slice is used up. */
class Slices {
  private startedAt = performance.now();

  async turn(): Promise<void> {
    if (performance.now() - this.startedAt < SLICE_MS) return;
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
 * @throws ConnectError
 */
export async function listDirectory(
  view: EntryView,
  apiRoot: string,
  diskRoot: string,
  depth: number,
): Promise<EntryInfo[]> {
  await requireDirectory(apiRoot, diskRoot);
  const entries: EntryInfo[] = [];
  const slices = new Slices();

  const walk = async (apiPrefix: string, diskPath: DiskPath, level: number): Promise<void> => {
    for (const name of await namesIn(diskPath)) {
      await slices.turn();
      const place = childPath(diskPath, name);
      let entry: EntryInfo;
      try {
        entry = describe(view, apiPrefix + name.toString(), place);
      } catch (error) {
        if (errorCode(error) === 'ENOENT') continue;
        throw error;
      }
      entries.push(entry);
      if (level >= depth || entry.type !== FileType.DIRECTORY || entry.symlinkTarget !== undefined) continue;
      try {
        await walk(`${entry.path}/`, place, level + 1);
      } catch (error) {
        // Gone, or another kind of file by now. Only its own directory: deeper ones were dealt with deeper.
        if (errorCode(error) !== 'ENOENT' && errorCode(error) !== 'ENOTDIR') throw error;
      }
    }
  };

  try {
    // Cleaned, as everything below it is told.
    await walk(path.posix.join(apiRoot, '/'), diskRoot, 1);
  } catch (error) {
    throw fileFailure(error, apiRoot);
  }
  return entries;
}

async function namesIn(directory: DiskPath): Promise<Buffer[]> {
  return (await fs.readdir(directory, { encoding: 'buffer' })).sort((one, other) =>
    Buffer.compare(one, other),
  );
}

/** @throws ConnectError in the words and codes of the directory methods */
export async function requireDirectory(apiPath: string, diskPath: string): Promise<void> {
  let found: Stats;
  try {
    found = await fs.stat(diskPath);
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
