import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { endChild, freePort, untilAnswers } from './child';
import { within } from './subject';

/** Where a service is, and the key for it. */
export interface Service {
  readonly url: string;
  readonly apiKey: string;
}

/** What a service needed since it was last told to begin anew. */
export interface Usage {
  rssPeakBytes: number;
  rssBytes: number;
  /** How late the event loop's timers were. */
  loopDelayP99Ms: number;
  loopDelayMaxMs: number;
}

/** A service of ours under measurement, with a data directory of its own. */
export interface MeasuredService extends Service {
  readonly dataDir: string;
  readonly pid: number;
  resetUsage(): Promise<void>;
  usage(): Promise<Usage>;
  /** Ends the process and leaves its sandboxes to the next one, as a deploy does. */
  stop(): Promise<void>;
  /** Starts it again after `stop`: resolves when it answers requests. */
  startAgain(): Promise<void>;
  /** Ends sandboxes, process and data. */
  close(): Promise<void>;
}

export interface ServiceOptions {
  root: string;
  runtime: 'local' | 'docker';
  /** Where the local runtime's Python environment is kept; all other state is the run's own. */
  pythonDir: string;
  /** A first start may have to build an image or a Python environment. */
  startSeconds: number;
}

const SELF_CHECK_SECONDS = 120;
const RESTART_SECONDS = 60;
const PROBE_SECONDS = 10;
/** Above the service's own deadline: killed, it would leave sandboxes behind. */
const SHUTDOWN_DEADLINE_MS = 60_000;

/** Starts the service as a user does, with a probe in it that tells what it needs. */
export async function startService(options: ServiceOptions): Promise<MeasuredService> {
  const port = await freePort();
  const dataDir = await fs.mkdtemp(path.join(os.tmpdir(), 'cbx-'));
  const apiKey = `e2b_${randomBytes(20).toString('hex')}`;
  const url = `http://127.0.0.1:${port}`;
  let child = spawnService(options, { port, dataDir, apiKey });
  // The service proves itself with a cell of its own after the start; measuring must not overlap with it.
  const start = async (seconds: number): Promise<void> => {
    const proven = selfCheckOf(child);
    await untilAnswers(child, `${url}/health`, {}, seconds);
    await within(SELF_CHECK_SECONDS, 'self-check of the service', proven);
  };
  const close = async (): Promise<void> => {
    await endChild(child, 'SIGINT', SHUTDOWN_DEADLINE_MS); // ends its sandboxes, too
    await fs.rm(dataDir, { recursive: true, force: true });
  };
  try {
    await start(options.startSeconds);
  } catch (error) {
    await close();
    throw error;
  }
  return {
    url,
    apiKey,
    dataDir,
    get pid() {
      return child.pid ?? 0;
    },
    resetUsage: async () => void (await askProbe(child, 'reset')),
    usage: async () => (await askProbe(child, 'read')) as Usage, // our own program's answer
    stop: () => endChild(child, 'SIGTERM', SHUTDOWN_DEADLINE_MS),
    startAgain: async () => {
      child = spawnService(options, { port, dataDir, apiKey });
      child.stdout?.resume();
      await untilAnswers(child, `${url}/health`, {}, RESTART_SECONDS, 5);
    },
    close,
  };
}

function spawnService(
  { root, runtime, pythonDir }: ServiceOptions,
  own: { port: number; dataDir: string; apiKey: string },
): ChildProcess {
  const child = spawn(process.execPath, ['start.js'], {
    cwd: root,
    stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
    env: {
      ...process.env,
      NODE_OPTIONS: `--require ${JSON.stringify(path.join(root, 'bench', 'service-probe.js'))}`,
      CELLBOX_HOST: '127.0.0.1',
      CELLBOX_PORT: String(own.port),
      CELLBOX_API_KEY: own.apiKey,
      CELLBOX_DATA_DIR: own.dataDir,
      CELLBOX_PYTHON_DIR: pythonDir,
      CELLBOX_RUNTIME: runtime,
      // Sandboxes being made ready would take processors from what is measured; rows about them set a size of their own.
      CELLBOX_POOL_SIZE: '0',
      CELLBOX_MAX_SANDBOXES: '1000',
      CELLBOX_LOG_LEVEL: 'warn',
    },
  });
  // A bench that is broken off must not leave it behind: it then ends its sandboxes by itself.
  const end = (): void => void child.kill('SIGINT');
  process.once('exit', end);
  child.once('exit', () => process.off('exit', end));
  return child;
}

function selfCheckOf(child: ChildProcess): Promise<void> {
  return new Promise((resolve) => {
    if (child.stdout === null) return;
    createInterface({ input: child.stdout }).on('line', (line) => {
      if (line.startsWith('Self-check')) resolve();
    });
  });
}

async function askProbe(child: ChildProcess, question: 'reset' | 'read'): Promise<unknown> {
  const answered = once(child, 'message');
  child.send(question);
  const [answer] = (await within(PROBE_SECONDS, 'probe in the service', answered)) as [unknown];
  return answer;
}
