import fs from 'node:fs/promises';
import type { DiskPath } from '../xattr';
import { childPath } from './disk-path';
import { errorCode } from './failure';

/** So many files of one directory are being removed at a time. */
const AT_ONCE = 16;
/** A directory that somebody else keeps filling is given up after so many sweeps. */
const MAX_SWEEPS = 5;

/**
 * Removes a file, or a directory with all that is in it. Links are removed, never followed. What is already gone is
 * no failure. Rejects with Node's error; what was removed until then stays removed.
 */
export async function removeTree(diskPath: DiskPath): Promise<void> {
  const found = await orGone(fs.lstat(diskPath));
  if (found === undefined) return;
  if (found.isDirectory()) await removeDirectory(diskPath);
  else await orGone(fs.unlink(diskPath));
}

async function removeDirectory(directory: DiskPath): Promise<void> {
  for (let sweep = 1; ; sweep++) {
    try {
      await orGone(fs.rmdir(directory));
      return;
    } catch (error) {
      const code = errorCode(error);
      if ((code !== 'ENOTEMPTY' && code !== 'EEXIST') || sweep > MAX_SWEEPS) throw error;
    }
    await orGone(removeChildren(directory));
  }
}

async function removeChildren(directory: DiskPath): Promise<void> {
  // Read in portions: a directory may hold millions of names. Node gives bytes, as asked; its types know text only.
  const entries = await fs.opendir(directory as string, {
    encoding: 'buffer' as BufferEncoding,
    bufferSize: 256,
  });
  let files: Array<Promise<unknown>> = [];
  try {
    for await (const entry of entries) {
      const place = childPath(directory, entry.name as unknown as Buffer);
      // Directories one after another: all at once would have as many open as the tree has.
      if (entry.isDirectory()) await removeDirectory(place);
      else files.push(orGone(fs.unlink(place)));
      if (files.length < AT_ONCE) continue;
      await Promise.all(files);
      files = [];
    }
  } finally {
    // None of them may fail unheard, or go on behind the answer.
    await Promise.allSettled(files);
  }
  await Promise.all(files);
}

async function orGone<T>(call: Promise<T>): Promise<T | undefined> {
  try {
    return await call;
  } catch (error) {
    if (errorCode(error) === 'ENOENT') return undefined;
    throw error;
  }
}
