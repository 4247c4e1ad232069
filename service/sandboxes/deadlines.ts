import { ServiceError } from '../errors';
import type { Logger } from '../log';
import { outsideScope } from '../observability/scope';
import type { Entry } from './entry';
import { Reaper } from './reaper';
import type { Store } from './store';
import { deadline } from './waiting';

export interface DeadlinesOptions {
  store: Store;
  logger: Logger;
  maxTimeoutSeconds: number;
  now: () => number;
  /** The deadline of this sandbox has passed; must not throw. */
  due: (id: string) => void;
}

/** How long a machine may take to hear of its deadline; a hostile one may never answer. */
const TELL_TIMEOUT_MS = 5_000;

/**
 * Until when sandboxes run: in memory, in the timer here, in the dead-man timer of the machine, and for what callers
 * move also in the store. `close` forgets all.
 */
export class Deadlines {
  private readonly reaper: Reaper;

  constructor(private readonly options: DeadlinesOptions) {
    this.reaper = new Reaper((id) => outsideScope(() => options.due(id)), options.now);
  }

  /** @throws ServiceError `invalid_argument` for a time-out that nobody may have. */
  check(timeoutSeconds: number): void {
    const max = this.options.maxTimeoutSeconds;
    if (timeoutSeconds <= max) return;
    const text = max % 3600 === 0 ? `${max / 3600} hours` : `${max} seconds`;
    throw new ServiceError('invalid_argument', `Timeout cannot be greater than ${text}`);
  }

  /** As a caller wants it: cut in silence at the longest time-out of the current run, refused once that has passed. */
  async move(entry: Entry, wanted: number): Promise<void> {
    const { maxTimeoutSeconds, now, store } = this.options;
    const latest = entry.sandbox.runStartedAt + maxTimeoutSeconds * 1000;
    if (latest <= now()) {
      throw new ServiceError('invalid_argument', `The sandbox has reached its longest time-out`);
    }
    this.set(entry, Math.min(wanted, latest));
    await store.updateSandbox(entry.sandbox.id, { endAt: entry.sandbox.endAt });
  }

  set(entry: Entry, endAt: number): void {
    entry.sandbox.endAt = endAt;
    this.reaper.set(entry.sandbox.id, endAt);
    // Only the dead-man timer inside hears of it late when this fails, and the next change tells it again.
    void this.tellMachine(entry, endAt);
  }

  /** It has none any more. */
  clear(id: string): void {
    this.reaper.clear(id);
  }

  /** For the dead-man timer alone; never rejects. */
  async tellMachine(entry: Entry, endAt: number): Promise<void> {
    const { id, instance } = entry.sandbox;
    try {
      await deadline(instance.setDeadline(endAt), TELL_TIMEOUT_MS, 'Telling the deadline');
    } catch (error) {
      this.options.logger.debug({ sandboxId: id, err: error }, 'a machine was not told its deadline');
    }
  }

  close(): void {
    this.reaper.close();
  }
}
