/**
 * Pauses between attempts, doubling from `firstMs` to `capMs`. The first `quick` attempts after a `reset` stay at
 * `firstMs`. Each pause is shortened at random by up to a half, so that many sandboxes don't come back in step.
 */
export class Backoff {
  private attempts = 0;
  private readonly firstMs: number;
  private readonly capMs: number;
  private readonly quick: number;

  constructor(options: { firstMs: number; capMs: number; quick: number }) {
    this.firstMs = options.firstMs;
    this.capMs = options.capMs;
    this.quick = options.quick;
  }

  nextMs(): number {
    const doublings = Math.max(0, this.attempts - this.quick);
    this.attempts += 1;
    return Math.min(this.capMs, this.firstMs * 2 ** Math.min(doublings, 20)) * (1 - Math.random() / 2);
  }

  reset(): void {
    this.attempts = 0;
  }
}
