import fs from 'node:fs/promises';
import path from 'node:path';
import { INSIDE, writeEtc } from './local-bubblewrap';
import type { EnvironmentTemplate } from './local-environment';
import type { LocalHost } from './local-host';

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
