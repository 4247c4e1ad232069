import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { Backoff } from './backoff';
import { log, reason } from './log';

/** A child that lived this long was healthy; its end says nothing about the next one. */
const HEALTHY_MS = 10_000;
const STOP_TIMEOUT_MS = 2_000;
const LAST_MESSAGES_MS = 100;

/**
 * One child process that is started again whenever it ends: the first time at once, then after pauses of up to a
 * second. `stop` ends it for good.
 *
 * The child leads a process group of its own; what it leaves in there when it dies is killed with it.
 */
export class Child {
  private readonly name: string;
  private readonly spawn: () => ChildProcess;
  private readonly onGone: () => void;
  private readonly backoff = new Backoff({ firstMs: 100, capMs: 1_000, quick: 0 });
  private process: ChildProcess | undefined;
  private failures = 0;
  private retry: NodeJS.Timeout | undefined;
  private stopping: Promise<void> | undefined;

  /** `spawn` must start the process detached. `onGone` is called at each end, before the next start. */
  constructor(name: string, spawn: () => ChildProcess, onGone: () => void) {
    this.name = name;
    this.spawn = spawn;
    this.onGone = onGone;
  }

  start(): void {
    if (this.stopping !== undefined) return;
    const startedAt = performance.now();
    let ended = false;
    const onEnd = (what: string) => {
      if (ended) return;
      ended = true;
      this.process = undefined;
      if (child.pid !== undefined) killGroup(child.pid, 'SIGKILL');
      this.onGone();
      if (this.stopping !== undefined) return;
      if (performance.now() - startedAt > HEALTHY_MS) {
        this.failures = 0;
        this.backoff.reset();
      }
      log(`supervisor: ${this.name} ended (${what}), starting it again`);
      // At once the first time: being killed once is an accident, dying at each start is not.
      const pause = this.failures === 0 ? 0 : this.backoff.nextMs();
      this.failures += 1;
      this.retry = setTimeout(() => this.start(), pause);
    };
    const child = this.spawn();
    this.process = child;
    child.once('error', (error) => {
      // Also emitted when a signal or a message can't be sent; only one that never started has no pid.
      if (child.pid === undefined) onEnd(reason(error));
    });
    child.once('exit', (code, signal) => {
      void lastMessages(child).then(() => onEnd(signal ?? `exit code ${code}`));
    });
  }

  /** The running process, if there is one at the moment. */
  get current(): ChildProcess | undefined {
    return this.process;
  }

  /** SIGTERM, and after two seconds SIGKILL to the whole group. Idempotent. */
  stop(): Promise<void> {
    this.stopping ??= this.end();
    return this.stopping;
  }

  private async end(): Promise<void> {
    clearTimeout(this.retry);
    const child = this.process;
    if (child?.pid === undefined) return;
    const { pid } = child;
    const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()));
    child.kill('SIGTERM');
    const timer = setTimeout(() => killGroup(pid, 'SIGKILL'), STOP_TIMEOUT_MS);
    await gone;
    clearTimeout(timer);
  }
}

/** What a child said just before its end may still be on its way. */
async function lastMessages(child: ChildProcess): Promise<void> {
  if (!child.connected) return;
  // Late only if somebody else holds the channel; then nothing more will come.
  await once(child, 'disconnect', { signal: AbortSignal.timeout(LAST_MESSAGES_MS) }).catch(() => {});
}

/** Signals a process group; one that is empty by now is what we wanted. */
function killGroup(leader: number, signal: NodeJS.Signals): void {
  try {
    process.kill(-leader, signal);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code !== 'ESRCH') log(`supervisor: can't signal group ${leader}: ${reason(error)}`);
  }
}
