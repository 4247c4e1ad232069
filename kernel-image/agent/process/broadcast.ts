import type { EventSource } from '../rpc';

export interface Source {
  pause(): void;
  resume(): void;
}

/** Events that wait for one reader before the source has to wait for it. */
const MAX_QUEUED = 64;

/**
 * Gives each event to everybody who subscribed before it. Nothing is dropped and nothing piles up: while a queue is
 * full, the source is told to pause. Without subscribers events go nowhere and the source never waits.
 */
export class Broadcast<T> {
  private readonly subscriptions = new Set<Subscription<T>>();
  private source: Source | undefined;
  private paused = false;
  private last: { event: T } | undefined;

  /** Names what is to wait while a queue is full. */
  regulate(source: Source): void {
    this.source = source;
    this.balance();
  }

  publish(event: T): void {
    for (const subscription of this.subscriptions) subscription.push(event);
    this.balance();
  }

  /** The last event, for those who are here and for whoever subscribes later. */
  end(event: T): void {
    if (this.last !== undefined) return;
    this.last = { event };
    for (const subscription of this.subscriptions) subscription.push(event, true);
    this.subscriptions.clear();
  }

  subscribe(): Subscription<T> {
    const subscription: Subscription<T> = new Subscription(
      () => this.balance(),
      () => {
        this.subscriptions.delete(subscription);
        this.balance();
      },
    );
    if (this.last === undefined) this.subscriptions.add(subscription);
    else subscription.push(this.last.event, true);
    return subscription;
  }

  private balance(): void {
    let longest = 0;
    for (const { queued } of this.subscriptions) longest = Math.max(longest, queued);
    if (this.source === undefined) return;
    if (!this.paused && longest >= MAX_QUEUED) {
      this.paused = true;
      this.source.pause();
    } else if (this.paused && longest <= MAX_QUEUED / 2) {
      this.paused = false;
      this.source.resume();
    }
  }
}

/** One reader's place. Whoever subscribed closes it, or it holds up the source for ever. */
export class Subscription<T> implements EventSource<T> {
  private queue: T[] = [];
  private isLast = false;
  private wake: (() => void) | undefined;
  private readonly onTaken: () => void;
  private readonly onClose: () => void;

  constructor(onTaken: () => void, onClose: () => void) {
    this.onTaken = onTaken;
    this.onClose = onClose;
  }

  get queued(): number {
    return this.queue.length;
  }

  push(event: T, isLast = false): void {
    if (this.isLast) return;
    this.queue.push(event);
    this.isLast = isLast;
    this.wake?.();
  }

  /** The next event, or `undefined` after the last one or once closed. One call at a time. */
  async next(): Promise<T | undefined> {
    while (this.queue.length === 0 && !this.isLast) {
      await new Promise<void>((resolve) => (this.wake = resolve));
    }
    this.wake = undefined;
    const event = this.queue.shift();
    this.onTaken();
    return event;
  }

  /** Idempotent. */
  close(): void {
    this.queue = [];
    this.isLast = true;
    this.wake?.();
    this.onClose();
  }
}
