import { execFile } from 'node:child_process';
import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);
const START_DEADLINE_MS = 60_000;
const CALL_DEADLINE_MS = 120_000;

/** What people use without a service: the engine's own command, on a container of the same image. */
export interface DockerRival {
  exec(command: string): Promise<string>;
  upload(name: string, data: Uint8Array): Promise<void>;
  /** Gives the number of bytes that arrived. */
  download(name: string): Promise<number>;
  close(): Promise<void>;
}

export async function startDockerRival(image: string): Promise<DockerRival> {
  const directory = await fs.mkdtemp(path.join(os.tmpdir(), 'cbx-docker-'));
  const { stdout } = await run(
    'docker',
    ['run', '--detach', '--rm', '--entrypoint', 'sleep', image, 'infinity'],
    {
      timeout: START_DEADLINE_MS,
    },
  );
  const container = stdout.trim();
  const docker = async (...args: string[]): Promise<string> =>
    (await run('docker', args, { timeout: CALL_DEADLINE_MS, maxBuffer: 64 * 1024 * 1024 })).stdout;
  return {
    exec: (command) => docker('exec', '--user', 'user', container, '/bin/bash', '-l', '-c', command),
    upload: async (name, data) => {
      const file = path.join(directory, name);
      await fs.writeFile(file, data);
      await docker('cp', file, `${container}:/home/user/${name}`);
    },
    download: async (name) => {
      const file = path.join(directory, `${name}.down`);
      await docker('cp', `${container}:/home/user/${name}`, file);
      return (await fs.readFile(file)).length;
    },
    close: async () => {
      await docker('rm', '--force', container);
      await fs.rm(directory, { recursive: true, force: true });
    },
  };
}
