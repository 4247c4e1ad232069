import { execFile } from 'node:child_process';
import fs from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { ServiceError } from '../errors';
import { INSIDE, writeEtc } from './local-bubblewrap';
import type { EnvironmentTemplate } from './local-environment';
import type { LocalHost } from './local-host';

const DISK_USAGE_TIMEOUT_MS = 60_000;

/** Of one sandbox. */
export interface SandboxFiles {
  directory: string;
  /** Whose they are, else this process's. */
  uid: number | undefined;
  network: 'full' | 'none';
}

/** Makes what `Launch.directory` must have: home, `/tmp`, Python environment and, behind a wall, `/etc`. */
export async function makeFiles(
  { layout }: LocalHost,
  environment: EnvironmentTemplate,
  { directory, uid, network }: SandboxFiles,
): Promise<void> {
  const own = (name: string) => path.join(directory, name);
  await allOf([
    makeOwned(own('workspace'), uid),
    fs.mkdir(own('tmp')).then(() => fs.chmod(own('tmp'), 0o1777)),
    environment.write(own('venv'), layout === undefined ? own('venv') : INSIDE.environment, uid),
    layout === undefined ? undefined : writeEtc(own('etc'), uid ?? 1000, network),
  ]);
}

/** As `Promise.all`, but none is still at it when this rejects: whoever hears of a failure removes what they work on. */
export async function allOf<const Work extends readonly unknown[]>(
  work: Work,
): Promise<{ -readonly [Key in keyof Work]: Awaited<Work[Key]> }> {
  await Promise.allSettled(work);
  return Promise.all(work);
}

/** Only over what the service itself has just made: nothing hostile has written there yet. */
async function makeOwned(directory: string, uid: number | undefined): Promise<void> {
  await fs.mkdir(directory, { mode: 0o755 });
  if (uid !== undefined) await fs.chown(directory, uid, uid);
}

/** What the files below the directories take, those left out that may not be looked at. */
export async function bytesIn(directories: readonly string[]): Promise<number> {
  // A program of its own: a walk through very many files would keep this one's threads from all else.
  const args = ['-s', '-k', '-x', '--', ...directories];
  const text = await new Promise<string>((resolve, reject) => {
    execFile('du', args, { timeout: DISK_USAGE_TIMEOUT_MS }, (error, stdout) => {
      // It fails also when a file was removed meanwhile, and tells the rest all the same.
      if (error !== null && (error.killed === true || stdout === '')) reject(error);
      else resolve(stdout);
    });
  });
  const kib = text.split('\n').map((line) => Number.parseInt(line, 10) || 0);
  return kib.reduce((sum, each) => sum + each, 0) * 1024;
}

/** Removes a tree in which programs may have taken their own permissions away. */
export async function removeTree(directory: string): Promise<void> {
  for (let attempt = 0; ; attempt++) {
    try {
      await fs.rm(directory, { recursive: true, force: true });
      return;
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (attempt >= 3 || (code !== 'EACCES' && code !== 'EPERM' && code !== 'ENOTEMPTY'))
        throw new ServiceError('internal', `Could not remove ${directory}`, { cause: error });
      await openUp(directory);
      await delay(10);
    }
  }
}

async function openUp(directory: string): Promise<void> {
  await fs.chmod(directory, 0o700).catch(() => {}); // not ours: the removal will say so
  for (const entry of await fs.readdir(directory, { withFileTypes: true }).catch(() => [])) {
    if (entry.isDirectory()) await openUp(path.join(directory, entry.name));
  }
}
