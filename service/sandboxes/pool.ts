import { ServiceError } from '../errors';
import type { Logger } from '../log';
import type { Instance } from '../runtime/runtime';

/** How many machines a pool keeps. `min` ≤ `target` ≤ `max`. */
export interface PoolSize {
  /** Started also when the host is short of memory. */
  readonly min: number;
  /** Kept while nothing is asked for. */
  readonly target: number;
  /** Kept at most, after creates that came faster than machines were made ready. 0 switches the pool off. */
  readonly max: number;
}

export interface PoolStatus extends PoolSize {
  readonly ready: number;
  /** Being started or made ready. */
  readonly starting: number;
  /** Creates that got a machine of this pool, and those that could have had one if there had been any. */
  readonly claimedTotal: number;
  readonly missesTotal: number;
  /** Why the pool is not as full as it should be. */
  readonly lastError: string | undefined;
  /** When a machine failed last, in milliseconds since the epoch, also when all is well again. */
  readonly lastErrorAt: number | undefined;
}

/** What a pool needs of the world. */
export interface PoolHost {
  /** A fresh machine whose agent is connected. Leaves nothing behind when it rejects. */
  start(signal: AbortSignal): Promise<Instance>;
  /** Resolves when a first cell would run at once; rejects when it won't. Bounded by itself. */
  warm(instance: Instance): Promise<void>;
  /** Whether that holds now, as far as it is known without asking. */
  isWarm(instance: Instance): boolean;
  /** Asks the machine itself; rejects when it is of no use any more. Bounded by itself. */
  check(instance: Instance): Promise<void>;
  /** Ends a machine that nobody claimed, in the background. */
  end(instance: Instance): void;
  /** Whether a start would now get in the way of what matters more. */
  isBusy(): boolean;
  /** The pool has changed, and with it what others may start: whoever shares its limits calls `adjust` soon. */
  changed(): void;
  /** How many machines there may be in addition to those there are; negative when there are too many. */
  room(): number;
  isMemoryShort(): boolean;
  now(): number;
  readonly logger: Logger;
}

interface Member {
  state: 'starting' | 'warming' | 'ready';
  instance: Instance | undefined;
  readonly abort: AbortController;
}

interface Waiter {
  resolve(instance: Instance | undefined): void;
}

const FIRST_BACKOFF_MS = 1_000;
const MAX_BACKOFF_MS = 60_000;
/** After the last create that found nothing ready, the pool is as small as before. */
const GROWN_FOR_MS = 60_000;

/**
 * Machines of one template that are ready before anyone asks for them, oldest first. Each is given away once or ended.
 *
 * `adjust` brings their number to where it should be; whoever takes one, or changes what it depends on, calls it.
 * Failures make the pauses between attempts longer until a machine was claimed or has passed a check. A create that
 * comes too early may get a machine whose kernel still starts, or wait for one whose start is under way: either is
 * further than a start of its own would be.
 */
export class Pool {
  private readonly members = new Set<Member>();
  private readonly waiters = new Set<Waiter>();
  private readonly fills = new Set<Promise<void>>();
  private claimed = 0;
  private misses = 0;
  private failures = 0;
  private notBefore = 0;
  private lastError: string | undefined;
  private lastErrorAt: number | undefined;
  private extra = 0;
  private grownUntil = 0;
  private retry: NodeJS.Timeout | undefined;
  private closed = false;

  constructor(
    private size: PoolSize,
    private readonly host: PoolHost,
  ) {}

  get status(): PoolStatus {
    const ready = this.count('ready');
    const short =
      this.size.target > this.size.min && this.members.size < this.size.target && this.host.isMemoryShort();
    return {
      ...this.size,
      ready,
      starting: this.members.size - ready,
      claimedTotal: this.claimed,
      missesTotal: this.misses,
      lastError: this.lastError ?? (short ? 'The host is short of memory' : undefined),
      lastErrorAt: this.lastErrorAt,
    };
  }

  /** Machines it holds, whatever their state. */
  get held(): number {
    return this.members.size;
  }

  /** Machines on their way. */
  get underWay(): number {
    return this.members.size - this.count('ready');
  }

  /** Takes effect with the next `adjust`, which tries at once also after failures. */
  setSize(size: PoolSize): void {
    this.size = size;
    this.notBefore = 0;
  }

  /**
   * A machine that from now on is the caller's to use and to end, or undefined: then the caller starts its own. The
   * caller calls `adjust` when it has done what it is in a hurry for.
   */
  async claim(signal: AbortSignal): Promise<Instance | undefined> {
    if (this.closed || this.size.max === 0) return undefined;
    const usable = [...this.members].filter((member) => member.instance !== undefined);
    const ready = usable.find(
      ({ state, instance }) => state === 'ready' && instance && this.host.isWarm(instance),
    );
    const member = ready ?? usable[0];
    if (ready === undefined) this.grow();
    if (member?.instance !== undefined) {
      this.members.delete(member);
      this.claimed++;
      if (member === ready) this.succeeded();
      return member.instance;
    }
    const promised = this.count('starting') > this.waiters.size;
    const instance = promised ? await this.nextStarted(signal) : undefined;
    if (instance === undefined) this.misses++;
    else this.claimed++;
    return instance;
  }

  /** A machine that was claimed could not be used: starts are paused as after any failure. */
  reportFailure(error: unknown): void {
    this.failed(error);
  }

  /** Starts what is missing, as far as it may now, and ends what is too much. */
  adjust(): void {
    if (this.closed) return;
    const goal = this.goal();
    const affordable = this.host.isMemoryShort() ? Math.min(goal, this.size.min) : goal;
    // Newest first, and none whose start somebody waits for.
    for (const member of [...this.members].reverse()) {
      if (this.members.size - this.waiters.size <= goal) break;
      if (member.state === 'starting' && this.count('starting') <= this.waiters.size) continue;
      this.dismiss(member);
    }
    const wait = this.notBefore - this.host.now();
    while (this.members.size - this.waiters.size < affordable && wait <= 0 && !this.host.isBusy()) {
      const fill = this.fill().finally(() => this.fills.delete(fill));
      this.fills.add(fill);
    }
    clearTimeout(this.retry);
    if (wait > 0) this.retry = setTimeout(() => this.adjust(), wait).unref();
  }

  /** Ends those that are of no use any more, and comes back to its size in quiet times. Never rejects. */
  async check(): Promise<void> {
    if (this.host.now() >= this.grownUntil) this.extra = 0;
    const ready = [...this.members].filter(({ state }) => state === 'ready');
    const results = await Promise.all(ready.map((member) => this.isFit(member)));
    if (results.includes(true) && !results.includes(false)) this.succeeded();
    this.adjust();
  }

  /** Undefined when it was claimed or ended meanwhile. One that is not fit is ended. */
  private async isFit(member: Member): Promise<boolean | undefined> {
    if (member.instance === undefined) return undefined;
    try {
      await this.host.check(member.instance);
      return this.members.has(member) || undefined;
    } catch (cause) {
      if (!this.members.has(member)) return undefined;
      this.dismiss(member);
      this.failed(new ServiceError('unavailable', 'A machine kept ready was no longer fit', { cause }));
      return false;
    }
  }

  /** Ends all of them, and the starts under way. Idempotent; the machines end in the background. */
  async close(): Promise<void> {
    this.closed = true;
    clearTimeout(this.retry);
    for (const waiter of this.waiters) waiter.resolve(undefined);
    for (const member of this.members) this.dismiss(member);
    await Promise.all(this.fills);
  }

  private goal(): number {
    const wanted = Math.min(this.size.max, this.size.target + this.extra);
    return Math.max(0, Math.min(wanted, this.members.size + this.host.room()));
  }

  /** Resolves when the machine is up or failed to come up. Never rejects. */
  private async fill(): Promise<void> {
    const member: Member = { state: 'starting', instance: undefined, abort: new AbortController() };
    this.members.add(member);
    try {
      const instance = await this.host.start(member.abort.signal);
      if (!this.members.has(member)) {
        this.host.end(instance); // dismissed, and it came up all the same
        return;
      }
      member.instance = instance;
      member.state = 'warming';
      void instance.ended.then(() => this.lost(member));
      void this.warm(member, instance);
      const [waiter] = this.waiters;
      if (waiter === undefined) return;
      this.members.delete(member);
      waiter.resolve(instance);
    } catch (error) {
      if (!this.members.delete(member)) return; // dismissed, which is what it ended of
      this.failed(error);
      // The last one: those before it get what is still coming.
      if (this.count('starting') < this.waiters.size) [...this.waiters].at(-1)?.resolve(undefined);
    } finally {
      this.host.changed();
    }
  }

  /** Never rejects. */
  private async warm(member: Member, instance: Instance): Promise<void> {
    try {
      await this.host.warm(instance);
      member.state = 'ready';
    } catch (error) {
      // Whoever claimed it meanwhile meets the failure himself; whoever dismissed it knows.
      if (!this.members.has(member)) return;
      this.dismiss(member);
      this.failed(error);
    } finally {
      this.host.changed();
    }
  }

  /** The next machine that comes up without an owner; undefined when none is going to, or the caller gives up. */
  private nextStarted(signal: AbortSignal): Promise<Instance | undefined> {
    if (signal.aborted) return Promise.resolve(undefined);
    return new Promise((resolve) => {
      const settle = (instance: Instance | undefined) => {
        this.waiters.delete(waiter);
        signal.removeEventListener('abort', onAbort);
        resolve(instance);
      };
      const onAbort = () => settle(undefined);
      const waiter: Waiter = { resolve: settle };
      signal.addEventListener('abort', onAbort, { once: true });
      this.waiters.add(waiter);
    });
  }

  /** It ended by itself. */
  private lost(member: Member): void {
    if (!this.members.has(member)) return;
    this.dismiss(member);
    this.failed(new ServiceError('unavailable', 'A machine ended while it was kept ready'));
    this.host.changed();
  }

  private dismiss(member: Member): void {
    this.members.delete(member);
    member.abort.abort(new ServiceError('unavailable', 'The pool does not need it any more'));
    if (member.instance !== undefined) this.host.end(member.instance);
  }

  private grow(): void {
    this.extra = Math.min(this.extra + 1, this.size.max - this.size.target);
    this.grownUntil = this.host.now() + GROWN_FOR_MS;
  }

  private failed(error: unknown): void {
    const known = ServiceError.from(error);
    const pauseMs = Math.min(FIRST_BACKOFF_MS * 2 ** this.failures, MAX_BACKOFF_MS);
    this.failures++;
    this.notBefore = this.host.now() + pauseMs;
    this.lastError = known.message;
    this.lastErrorAt = this.host.now();
    this.host.logger.warn({ err: error, pauseMs }, 'a machine could not be kept ready');
  }

  private succeeded(): void {
    this.failures = 0;
    this.lastError = undefined;
  }

  private count(state: Member['state']): number {
    let count = 0;
    for (const member of this.members) if (member.state === state) count++;
    return count;
  }
}
