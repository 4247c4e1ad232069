import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { cleanEnv, prepared, ROOT } from '../started-service';
import { until, within } from './world';

/** A first start may have to build an image or a Python environment. */
const START_DEADLINE_MS = 900_000;
const SELF_CHECK_DEADLINE_MS = 120_000;
const STOP_DEADLINE_MS = 60_000;
const KEPT_OUTPUT = 64 * 1024;
/** It is given up at every restart, so not one that the system gives to whoever asks for any. */
const PORT = 20_000 + (process.pid % 1000);
const API_KEY = 'e2b_c4a05';

/**
 * The service as a user starts it, on one port and one data directory for the whole run, so that it can be killed and
 * started again under its clients. The owner calls `stop`.
 */
export class ChaosService {
  readonly apiKey = API_KEY;
  readonly dataDir = fs.mkdtempSync(path.join(os.tmpdir(), 'cbx-chaos-'));
  readonly residentBytes: number[] = [];
  private child: ChildProcess | undefined;
  private exited: Promise<unknown> = Promise.resolve();
  private up: Promise<void> = Promise.resolve();
  private restarting: Promise<void> = Promise.resolve();
  private printed = '';
  private expectingExit = false;
  /** Called when it ends and nobody wanted it to. */
  onCrash: (what: string) => void = () => {};

  private constructor(
    readonly port: number,
    private readonly settings: Record<string, string>,
  ) {}

  static async start(runtime: 'local' | 'docker', memoryMb: number): Promise<ChaosService> {
    const service = new ChaosService(PORT, {
      CELLBOX_RUNTIME: runtime,
      CELLBOX_MEMORY_MB: String(memoryMb),
      CELLBOX_POOL_SIZE: '1',
      // Generous, as everything is that only a busy machine would need.
      CELLBOX_INTERRUPT_GRACE_MS: '6000',
      CELLBOX_KERNEL_TIMEOUT_MS: '120000',
      CELLBOX_START_TIMEOUT_MS: '120000',
      CELLBOX_LOG_LEVEL: process.env['CELLBOX_TEST_LOG_LEVEL'] ?? 'info',
    });
    await service.launch();
    // It proves itself with a cell first: nobody should have to wait for the other.
    await until(SELF_CHECK_DEADLINE_MS, () => (/^Self-check: /m.test(service.printed) ? true : undefined));
    return service;
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  get pid(): number {
    return this.child?.pid ?? -1;
  }

  /** The end of what it printed, of all its lives. */
  get output(): string {
    return this.printed;
  }

  /** Resolves when it answers; at once most of the time. Rejects when it did not come up again. */
  whenUp(): Promise<void> {
    return this.up;
  }

  /** Ends it without a word and starts it again; resolves when it answers. A second call waits for the first. */
  killAndRestart(on: { onKill: () => void; onKilled: () => void }): Promise<void> {
    const restarted = this.restarting.then(() => this.restart(on));
    this.restarting = restarted.catch(() => undefined); // told to whoever asked for it
    return restarted;
  }

  private async restart({ onKill, onKilled }: { onKill: () => void; onKilled: () => void }): Promise<void> {
    let isUp!: (outcome: Promise<void>) => void;
    this.up = new Promise((resolve) => (isUp = resolve));
    this.up.catch(() => undefined); // told by whoever waits
    this.expectingExit = true;
    onKill();
    this.child?.kill('SIGKILL');
    await within(STOP_DEADLINE_MS, 'the end of a killed service', this.exited);
    onKilled();
    const launched = this.launch();
    isUp(launched);
    await launched;
  }

  /** Ends service and sandboxes; the data directory stays until `remove`. */
  async stop(): Promise<number | null> {
    this.expectingExit = true;
    const { child } = this;
    if (child === undefined) return null;
    child.kill('SIGINT');
    await within(STOP_DEADLINE_MS, 'the end of the service', this.exited).catch((error: unknown) => {
      child.kill('SIGKILL');
      throw error;
    });
    return child.exitCode;
  }

  remove(): void {
    fs.rmSync(this.dataDir, { recursive: true, force: true });
  }

  /** Takes a sample of its resident memory; undefined while there is none. */
  sampleMemory(): number | undefined {
    try {
      const status = fs.readFileSync(`/proc/${this.pid}/status`, 'utf8');
      const bytes = Number(/VmRSS:\s+(\d+)/.exec(status)?.[1] ?? Number.NaN) * 1024;
      if (!Number.isFinite(bytes)) return undefined;
      this.residentBytes.push(bytes);
      return bytes;
    } catch {
      return undefined; // just being killed
    }
  }

  private async launch(): Promise<void> {
    const child = spawn(process.execPath, ['start.js'], {
      cwd: ROOT,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: cleanEnv({
        ...this.settings,
        CELLBOX_HOST: '127.0.0.1',
        CELLBOX_PORT: String(this.port),
        CELLBOX_API_KEY: API_KEY,
        CELLBOX_DATA_DIR: this.dataDir,
        CELLBOX_PYTHON_DIR: pythonDir(),
        CELLBOX_ON_STOP: 'kill',
      }),
    });
    this.child = child;
    this.expectingExit = false;
    this.exited = once(child, 'exit');
    child.once('exit', (code, signal) => {
      if (!this.expectingExit)
        this.onCrash(`${signal ?? `exit code ${code}`}:\n${this.printed.slice(-4000)}`);
    });
    for (const stream of [child.stdout, child.stderr]) {
      stream.on('data', (chunk: Buffer) => {
        this.printed = (this.printed + chunk.toString()).slice(-KEPT_OUTPUT);
      });
    }
    const answered = await until(START_DEADLINE_MS, async () => {
      if (child.exitCode !== null || child.signalCode !== null)
        throw new Error(`the service ended at its start:\n${this.printed}`);
      const response = await fetch(`${this.url}/health`, { signal: AbortSignal.timeout(5_000) }).catch(
        () => undefined, // not listening yet
      );
      return response?.ok === true ? true : undefined;
    });
    if (answered === undefined) throw new Error(`the service was not ready in time:\n${this.printed}`);
  }
}

/** The environment that tests share, where it was made; else one that stays for the next run. */
function pythonDir(): string {
  try {
    return prepared().pythonDir;
  } catch {
    return path.join(ROOT, '.cellbox', 'chaos'); // `node test/prepare.js` was never run here
  }
}
