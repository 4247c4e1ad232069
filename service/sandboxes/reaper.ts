/** Longest delay that a Node timer keeps; a later deadline is looked at again when it has passed. */
const MAX_DELAY_MS = 2_147_483_647;

/**
 * Calls back when deadlines pass. One timer waits for the next one, whatever their number; nothing polls.
 * `due` is called once per deadline, in their order, and must not throw. `close` forgets all.
 */
export class Reaper {
  private readonly deadlines = new Map<string, number>();
  private readonly due: (id: string) => void;
  private readonly now: () => number;
  private timer: NodeJS.Timeout | undefined;
  private armedFor = Infinity;
  private closed = false;

  constructor(due: (id: string) => void, now: () => number = Date.now) {
    this.due = due;
    this.now = now;
  }

  /** The soonest deadline, in milliseconds since the epoch. */
  get next(): number | undefined {
    return this.deadlines.size === 0 ? undefined : Math.min(...this.deadlines.values());
  }

  /** Sets or moves a deadline. One in the past is due at once, though never before this returns. */
  set(id: string, at: number): void {
    if (this.closed) return;
    this.deadlines.set(id, at);
    this.arm();
  }

  clear(id: string): void {
    this.deadlines.delete(id);
    this.arm();
  }

  private arm(): void {
    const next = this.next ?? Infinity;
    if (next === this.armedFor) return;
    clearTimeout(this.timer);
    this.armedFor = next;
    if (next === Infinity) return;
    const delay = Math.min(Math.max(next - this.now(), 0), MAX_DELAY_MS);
    this.timer = setTimeout(() => this.sweep(), delay);
  }

  private sweep(): void {
    this.armedFor = Infinity;
    const now = this.now();
    const due = [...this.deadlines].filter(([, at]) => at <= now).sort(([, a], [, b]) => a - b);
    for (const [id] of due) this.deadlines.delete(id);
    this.arm(); // a timer may fire a moment early: what is not due yet is armed again
    for (const [id] of due) this.due(id);
  }

  close(): void {
    this.closed = true;
    this.deadlines.clear();
    this.arm();
  }
}
