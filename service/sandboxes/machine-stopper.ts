import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from '../log';
import type { Runtime } from '../runtime/runtime';
import { deadline } from './waiting';

/** Pauses between attempts to end a machine that would not end. The next start of the service tries again, too. */
const RETRIES_MS = [1_000, 5_000, 30_000];
const STOP_TIMEOUT_MS = 60_000;

/** Ends machines in the background, again and again until they are gone. `close` gives up those that resist. */
export class MachineStopper {
  private readonly stopping = new Map<string, Promise<void>>();
  private readonly closing = new AbortController();

  constructor(
    private readonly runtime: Pick<Runtime, 'stop'>,
    private readonly logger: Logger,
  ) {}

  /** Machines that are not gone yet. */
  get pending(): string[] {
    return [...this.stopping.keys()];
  }

  /** Begins when `after` has settled. Twice for one machine is harmless. */
  stop(id: string, after?: Promise<void>): void {
    const done = this.tryToStop(id, after).finally(() => {
      if (this.stopping.get(id) === done) this.stopping.delete(id);
    });
    this.stopping.set(id, done);
  }

  /** Resolves when all of them are gone or given up. Never rejects. */
  async settled(): Promise<void> {
    await Promise.all(this.stopping.values());
  }

  /** No further attempts: the next start of the service ends what is left. */
  close(): void {
    this.closing.abort();
  }

  private async tryToStop(id: string, after: Promise<void> | undefined): Promise<void> {
    await after;
    for (const pauseMs of [...RETRIES_MS, undefined]) {
      try {
        return await deadline(this.runtime.stop(id), STOP_TIMEOUT_MS, 'Ending the machine');
      } catch (error) {
        this.logger.error({ sandboxId: id, err: error }, 'a machine could not be ended');
      }
      if (pauseMs === undefined) return;
      try {
        await delay(pauseMs, undefined, { signal: this.closing.signal });
      } catch {
        return; // shutting down
      }
    }
  }
}
