import type { Socket } from 'node:net';
import { ServiceError } from '../errors';
import type { DialOptions, Instance, InstanceEnd } from './runtime';
import type { TunnelServer } from './tunnel';

/** The handle. The runtime settles `ended`, by the engine's word. */
export class DockerInstance implements Instance {
  readonly ended: Promise<InstanceEnd>;
  isEndExpected = false;
  ranOutOfMemory = false;
  /** What the container's end means: nothing while it is halted, a failure while it boots, else the machine's end. */
  life: 'running' | 'halted' | 'booting' = 'running';
  /** It has been halted and has come back. */
  hasBooted = false;
  /** The container has ended while it booted. */
  onBootEnd: (() => void) | undefined;
  private isGone = false;
  private settle: (end: InstanceEnd) => void = () => undefined;

  constructor(
    readonly id: string,
    readonly containerId: string,
    readonly gatewayToken: string,
    readonly tunnel: TunnelServer,
  ) {
    this.ended = new Promise((resolve) => (this.settle = resolve));
  }

  async dial(port: number, options?: DialOptions): Promise<Socket> {
    if (this.isGone || this.isEndExpected) throw new ServiceError('unavailable', 'The sandbox is gone');
    if (this.life === 'halted') throw new ServiceError('unavailable', 'The sandbox is halted');
    return this.tunnel.dial(port, options);
  }

  async setDeadline(deadlineAt: number): Promise<void> {
    if (this.isGone || this.isEndExpected) throw new ServiceError('unavailable', 'The sandbox is gone');
    if (this.life === 'halted') throw new ServiceError('unavailable', 'The sandbox is halted');
    await this.tunnel.setDeadline(deadlineAt);
  }

  /** What happens to the machine from now on is our doing. */
  expectEnd(): void {
    this.isEndExpected = true;
  }

  /** The tunnel is closed by then. The first end counts. */
  finish(end: InstanceEnd): void {
    this.isGone = true;
    this.settle(end);
  }

  /** Lets go of a machine that goes on running; `ended` stays open. */
  async release(): Promise<void> {
    this.isGone = true;
    await this.tunnel.close();
  }
}
