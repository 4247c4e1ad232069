import type { ChildProcess } from 'node:child_process';
import type { Socket } from 'node:net';
import { ServiceError } from '../errors';
import type { DialOptions, Instance, InstanceEnd } from './runtime';
import type { TunnelServer } from './tunnel';

const WATCH_EVERY_MS = 1_000;

/** The handle of a local sandbox. Whoever made it (start, adopt) watches the process behind it and settles `ended`. */
export class LocalInstance implements Instance {
  readonly ended: Promise<InstanceEnd>;
  isFinished = false;
  private settle!: (end: InstanceEnd) => void; // set in the constructor, by the promise
  private timer: NodeJS.Timeout | undefined;
  private isEndExpected = false;
  private isHalted = false;
  /** Of the process that is watched; the end of an earlier one means nothing. */
  private round = 0;

  constructor(
    readonly id: string,
    readonly gatewayToken: string,
    readonly tunnel: TunnelServer,
  ) {
    this.ended = new Promise((resolve) => (this.settle = resolve));
  }

  async dial(port: number, options?: DialOptions): Promise<Socket> {
    this.throwUnlessUp();
    return this.tunnel.dial(port, options);
  }

  async setDeadline(deadlineAt: number): Promise<void> {
    this.throwUnlessUp();
    await this.tunnel.setDeadline(deadlineAt);
  }

  private throwUnlessUp(): void {
    if (this.isFinished) throw new ServiceError('unavailable', 'The sandbox is gone');
    if (this.isHalted) throw new ServiceError('unavailable', 'The sandbox is halted');
  }

  /** Its process may go: that is no end. Streams are destroyed. Twice is harmless. */
  halt(): void {
    this.isHalted = true;
    this.round++;
    clearInterval(this.timer);
    this.tunnel.reset();
  }

  /** Another process is coming up, and `watch` is going to be told of it. */
  boot(): void {
    this.isHalted = false;
  }

  /** Looks every second; a process that is our child tells at once. Stops when the handle is finished or released. */
  watch(
    child: ChildProcess | undefined,
    isAliveNow: () => Promise<boolean>,
    onGone: (detail: string) => Promise<InstanceEnd>,
  ): void {
    const round = ++this.round;
    const gone = (detail: string) => {
      if (round !== this.round) return;
      clearInterval(this.timer);
      if (this.isEndExpected || this.isFinished) return;
      this.isEndExpected = true;
      void onGone(detail).then((end) => this.finish(end));
    };
    child?.once('exit', (code, signal) =>
      gone(`the supervisor ended (${signal ?? `exit ${code ?? 'unknown'}`})`),
    );
    this.timer = setInterval(() => {
      void isAliveNow().then((alive) => {
        if (!alive) gone('the process is gone');
      });
    }, WATCH_EVERY_MS);
    this.timer.unref();
    if (child !== undefined && (child.exitCode !== null || child.signalCode !== null))
      gone('the supervisor ended');
  }

  /** What happens to the process from now on is our doing. */
  expectEnd(): void {
    this.isEndExpected = true;
  }

  async finish(end: InstanceEnd): Promise<void> {
    this.isFinished = true;
    clearInterval(this.timer);
    await this.tunnel.close();
    this.settle(end); // the first one counts
  }

  /** Lets go of a machine that goes on running; `ended` stays open. */
  async release(): Promise<void> {
    this.isFinished = true;
    clearInterval(this.timer);
    await this.tunnel.close();
  }
}
