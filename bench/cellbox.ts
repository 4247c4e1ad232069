import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { performance } from 'node:perf_hooks';
import { createInterface } from 'node:readline';
import { Sandbox } from '@e2b/code-interpreter';
import type { Execution } from '@e2b/code-interpreter';
import { endChild, freePort, untilAnswers } from './child';
import type { Service } from './creates';
import { within } from './subject';
import type { Sample, Subject } from './subject';

export interface CellboxOptions {
  root: string;
  runtime: 'local' | 'docker';
  /** Where the local runtime's Python environment is kept; all other state is the run's own. */
  pythonDir: string;
  /** A first start may have to build an image or a Python environment. */
  startSeconds: number;
}

/** The service, and one sandbox of it in which everything but creates is measured. */
export type Cellbox = Subject & Service & { readonly sandbox: Sandbox };

/** This service as a user starts it, used through the official SDK. */
export async function startCellbox(options: CellboxOptions): Promise<Cellbox> {
  const port = await freePort();
  const dataDir = await fs.mkdtemp(path.join(os.tmpdir(), 'cbx-'));
  const apiKey = `e2b_${randomBytes(20).toString('hex')}`;
  const child = spawn(process.execPath, ['start.js'], {
    cwd: options.root,
    stdio: ['ignore', 'pipe', 'pipe'],
    env: {
      ...process.env,
      CELLBOX_HOST: '127.0.0.1',
      CELLBOX_PORT: String(port),
      CELLBOX_API_KEY: apiKey,
      CELLBOX_DATA_DIR: dataDir,
      CELLBOX_PYTHON_DIR: options.pythonDir,
      CELLBOX_RUNTIME: options.runtime,
      CELLBOX_ON_STOP: 'kill',
      // Sandboxes being made ready would take processors from what is measured; rows about them set a size of their own.
      CELLBOX_POOL_SIZE: '0',
      CELLBOX_LOG_LEVEL: 'warn',
    },
  });
  const url = `http://127.0.0.1:${port}`;
  // The service proves itself with a cell of its own after the start; measuring must not overlap with it.
  const proven = new Promise<void>((resolve) => {
    createInterface({ input: child.stdout }).on('line', (line) => {
      if (line.startsWith('Self-check')) resolve();
    });
  });
  const close = async (): Promise<void> => {
    await endChild(child); // ends its sandboxes, too
    await fs.rm(dataDir, { recursive: true, force: true });
  };
  try {
    await untilAnswers(child, `${url}/health`, {}, options.startSeconds);
    await within(120, 'self-check of the service', proven);
    const sandbox = await Sandbox.create({ apiKey, apiUrl: url, sandboxUrl: url, timeoutMs: 3_600_000 });
    return {
      url,
      apiKey,
      sandbox,
      name: 'Cellbox',
      description: `this service, ${options.runtime} runtime, official JavaScript SDK over HTTP`,
      run: async (code) => {
        const started = performance.now();
        const execution = await sandbox.runCode(code, { timeoutMs: 180_000 });
        return toSample(execution, performance.now() - started);
      },
      newContext: async (code) => {
        const started = performance.now();
        const context = await sandbox.createCodeContext({ language: 'python' });
        try {
          const execution = await sandbox.runCode(code, { context, timeoutMs: 180_000 });
          return toSample(execution, performance.now() - started);
        } finally {
          await sandbox.removeCodeContext(context);
        }
      },
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
}

function toSample(execution: Execution, ms: number): Sample {
  if (execution.error) throw new Error(`Cellbox: ${execution.error.name}: ${execution.error.value}`);
  return {
    ms,
    stdout: execution.logs.stdout.join(''),
    // `formats()` leaves out the text.
    types: execution.results.flatMap((result) => [
      ...(result.text === undefined ? [] : ['text']),
      ...result.formats(),
    ]),
  };
}
