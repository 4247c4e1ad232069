import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';

export const ROOT = path.join(__dirname, '..');

/** Made by `test/prepare.js`, once for all suites that need real kernels. */
export interface Prepared {
  /** Python of the local runtime's environment. */
  python: string;
  /** Where the local runtime's environment is kept between test runs. */
  pythonDir: string;
  /** Kernel images by flavour, and the proxy's, when a container engine answers. */
  images: { slim?: string; full?: string; proxy?: string };
  /** Interpreters that have the official Python SDKs, by generation. */
  sdkPython: { a: string; b: string };
  /** The program of the official CLI, for Node. */
  cli: string;
}

export function prepared(): Prepared {
  const file = path.join(ROOT, '.cellbox', 'test', 'prepared.json');
  if (!fs.existsSync(file)) throw new Error('run `node test/prepare.js` first (`npm test` does)');
  return JSON.parse(fs.readFileSync(file, 'utf8')) as Prepared; // written by prepare.js in this shape
}

/** A service started as a user starts it, with a data directory of its own. */
export interface StartedService {
  url: string;
  apiKey: string;
  dataDir: string;
  /** Everything the service printed so far, both streams. */
  output(): string;
  /** The three variables that it told the user to export. */
  exported: Record<string, string>;
  signal(signal: NodeJS.Signals): Promise<number | null>;
  /** Ends service and sandboxes and removes the data directory. */
  stop(): Promise<void>;
}

export interface StartOptions {
  runtime: 'local' | 'docker';
  env?: Record<string, string>;
  dataDir?: string;
  /** What it must have printed to count as started; by default the self-check's line. */
  until?: RegExp;
  /** A program with arguments that becomes Node with the arguments given after its own: to start it in a namespace. */
  within?: readonly [string, ...string[]];
}

const START_DEADLINE_MS = 120_000;

/** Environment of this process without settings of Cellbox or the SDKs that the machine may carry. */
export function cleanEnv(extra: Record<string, string> = {}): Record<string, string> {
  const kept = Object.entries(process.env).filter(
    (entry): entry is [string, string] => entry[1] !== undefined && !/^(CELLBOX_|E2B_)/.test(entry[0]),
  );
  return { ...Object.fromEntries(kept), ...extra };
}

/** Starts `npm start`'s program and resolves when it has printed that it is ready, self-check included. */
export async function startService(options: StartOptions): Promise<StartedService> {
  const ready = prepared();
  const dataDir = options.dataDir ?? fs.mkdtempSync(path.join(os.tmpdir(), 'cbx-'));
  const env = cleanEnv({
    CELLBOX_PORT: '0',
    CELLBOX_RUNTIME: options.runtime,
    CELLBOX_DATA_DIR: dataDir,
    CELLBOX_PYTHON_DIR: ready.pythonDir,
    CELLBOX_LOG_LEVEL: process.env['CELLBOX_TEST_LOG_LEVEL'] ?? 'warn',
    // Filling pools would take processors from what is tested; set it to have everything tested on pooled sandboxes.
    CELLBOX_POOL_SIZE: process.env['CELLBOX_TEST_POOL_SIZE'] ?? '0',
    // Set it to have everything on docker tested behind another wall, as far as the engine has it.
    ...(options.runtime === 'docker' && { CELLBOX_ISOLATION: process.env['CELLBOX_TEST_ISOLATION'] ?? '' }),
    ...options.env,
  });
  const [program, ...argv] = [...(options.within ?? []), process.execPath, 'start.js'];
  const child: ChildProcess = spawn(program ?? process.execPath, argv, {
    cwd: ROOT,
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let output = '';
  const exited = once(child, 'exit');
  await new Promise<void>((resolve, reject) => {
    const timer = setTimeout(
      () => reject(new Error(`the service was not ready in time:\n${output}`)),
      START_DEADLINE_MS,
    );
    const settle = (finish: () => void) => {
      clearTimeout(timer);
      finish();
    };
    for (const stream of [child.stdout, child.stderr]) {
      stream?.on('data', (chunk: Buffer) => {
        output += chunk.toString();
        if ((options.until ?? /^Self-check: /m).test(output) && /E2B_API_KEY=\S+\n/.test(output))
          settle(resolve);
      });
    }
    child.on('exit', (code) =>
      settle(() => reject(new Error(`the service ended with code ${code}:\n${output}`))),
    );
  }).catch((error: unknown) => {
    child.kill('SIGKILL');
    throw error;
  });
  const exported = Object.fromEntries(
    [...output.matchAll(/^\s*export (E2B_\w+)=(\S+)$/gm)].map((match) => [match[1] ?? '', match[2] ?? '']),
  );
  const signal = async (name: NodeJS.Signals): Promise<number | null> => {
    if (child.exitCode !== null) return child.exitCode;
    child.kill(name);
    const [code] = (await exited) as [number | null];
    return code;
  };
  return {
    url: exported['E2B_API_URL'] ?? '',
    apiKey: exported['E2B_API_KEY'] ?? '',
    dataDir,
    output: () => output,
    exported,
    signal,
    stop: async () => {
      await signal('SIGINT');
      fs.rmSync(dataDir, { recursive: true, force: true });
    },
  };
}

/** Which runtimes the suites can use here. Docker that is demanded and absent is a failing test, not a skip. */
export function runtimesUnderTest(): Array<{ runtime: 'local' | 'docker'; skip?: string }> {
  const required = process.env['CELLBOX_REQUIRE_DOCKER'] === '1';
  const hasDocker =
    fs.existsSync(path.join(ROOT, '.cellbox', 'test', 'prepared.json')) &&
    prepared().images.slim !== undefined;
  return [
    { runtime: 'local' },
    { runtime: 'docker', ...(hasDocker || required ? {} : { skip: 'no container engine answers' }) },
  ];
}
