import type { SandboxMemory } from '../sandbox-memory';
import { afterAwake } from './awake-timer';
import { Broadcast } from './broadcast';
import type { Subscription } from './broadcast';
import { toEnd } from './end-event';
import type { End } from './end-event';
import { watchMemory } from './out-of-memory';
import type { OutOfMemory } from './out-of-memory';
import type { Channel, OnOutput, Started } from './started';

/** What a process tells those who follow it. */
export type Happening = { type: 'output'; channel: Channel; bytes: Buffer } | { type: 'end'; end: End };

/** Output that was written before a process was killed, and not read yet, gets this long to arrive. */
const LAST_OUTPUT_MS = 50;
/** One input may be larger than a pipe; written in pieces, a caller who leaves takes the rest along. */
const INPUT_PIECE_BYTES = 65_536;

/**
 * One process from its start to its `end`, which comes after the process was reaped and its output is complete. Once
 * somebody has ended it, the output of descendants who hold its pipes is not waited for.
 */
export class RunningProcess {
  readonly pid: number;
  readonly isTerminal: boolean;
  /** Resolves when the process is dead and reaped; its output may go on. */
  readonly exited: Promise<void>;
  /** Resolves with the `end`, which everybody who follows it gets as well. Never rejects. */
  readonly ended: Promise<End>;
  /** Its time ran out; who started it is told so instead of how it ended. */
  timedOut = false;
  private readonly started: Started;
  private readonly broadcast: Broadcast<Happening>;
  private readonly hurried: Promise<void>;
  private hurry: () => void = () => {};
  private hasExited = false;
  /** By one of those who may here, so memory did not. */
  private wasKilled = false;
  private inputClosed = false;
  private inputTurn: Promise<void> = Promise.resolve();
  private cancelDeadline: (() => void) | undefined;

  /**
   * `begin` is given where output goes. Whoever follows the process within the same turn of the event loop misses none.
   */
  static async start(
    memory: SandboxMemory,
    begin: (onOutput: OnOutput) => Started | Promise<Started>,
  ): Promise<RunningProcess> {
    const outOfMemory = watchMemory(memory);
    const broadcast = new Broadcast<Happening>();
    const started = await begin((channel, bytes) => broadcast.publish({ type: 'output', channel, bytes }));
    broadcast.regulate({ pause: () => started.pauseOutput(), resume: () => started.resumeOutput() });
    return new RunningProcess(started, broadcast, outOfMemory);
  }

  private constructor(started: Started, broadcast: Broadcast<Happening>, outOfMemory: OutOfMemory) {
    this.started = started;
    this.broadcast = broadcast;
    this.pid = started.pid;
    this.isTerminal = started.isTerminal;
    this.hurried = new Promise((resolve) => (this.hurry = resolve));
    this.exited = started.exit.then(() => {
      this.hasExited = true;
    });
    this.ended = this.run(outOfMemory);
  }

  /** Whether the process itself still exists. */
  get isAlive(): boolean {
    return !this.hasExited;
  }

  /** Follows the process from now on. The caller closes the subscription. */
  follow(): Subscription<Happening> {
    return this.broadcast.subscribe();
  }

  /** To this one process, not its children. Its end then no longer waits for its output's. */
  signal(signal: NodeJS.Signals): void {
    if (!this.hasExited) {
      this.started.signal(signal);
      this.wasKilled ||= signal === 'SIGKILL';
    }
    this.hurry();
  }

  /** Ends the process when the time is up, whoever is there to see it. A pause of the sandbox does not count. */
  endAfter(ms: number): void {
    this.cancelDeadline = afterAwake(ms, () => {
      this.timedOut = true;
      this.signal('SIGKILL');
    });
  }

  /**
   * Writes in the order of the calls, as fast as the process reads. Given up, without the rest, when `signal` aborts.
   */
  write(bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    const turn = this.inputTurn.then(async () => {
      for (let offset = 0; offset < bytes.length; offset += INPUT_PIECE_BYTES) {
        signal.throwIfAborted();
        if (!this.hasInput) throw new Error(`process ${this.pid} has no open stdin`);
        await this.started.write(bytes.subarray(offset, offset + INPUT_PIECE_BYTES));
      }
    });
    this.inputTurn = turn.catch(() => {}); // its caller is told
    return turn;
  }

  get hasInput(): boolean {
    return !this.inputClosed && this.started.hasInput;
  }

  /** After what was given to `write` so far. Idempotent. */
  closeInput(): void {
    void this.inputTurn.then(() => {
      this.inputClosed = true;
      this.started.closeInput();
    });
  }

  resize(cols: number, rows: number): void {
    this.started.resize(cols, rows);
  }

  private async run(outOfMemory: OutOfMemory): Promise<End> {
    const { started } = this;
    const exit = await started.exit;
    // Counted now: whatever is killed while the output is read to its end is somebody else.
    const figures = this.wasKilled ? undefined : outOfMemory(exit);
    const ended = await Promise.race([started.outputEnd.then(() => true), this.hurried.then(() => false)]);
    if (!ended) await Promise.race([started.outputEnd, pollAfter(LAST_OUTPUT_MS)]);
    this.cancelDeadline?.();
    started.closeOutput();
    started.closeInput();
    const end = toEnd(exit, figures);
    this.broadcast.end({ type: 'end', end });
    return end;
  }
}

/** A while, and after it one more look of the event loop at what can be read. */
function pollAfter(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(() => setImmediate(resolve), ms));
}
