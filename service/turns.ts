/**
 * Lets only so many pieces of work go on at a time, in the order in which they were asked for. Forty machines that start
 * together share the processors, so that all are ready when the last one is; in turns, the first one is ready at once.
 */
export class Turns {
  private free: number;
  /** In order; each of them takes the turn that it is called with. */
  private readonly waiting = new Set<() => void>();

  constructor(private readonly atATime: number) {
    this.free = atATime;
  }

  /** Pieces of work under way and waiting. */
  get length(): number {
    return this.atATime - this.free + this.waiting.size;
  }

  /**
   * Does the work in its turn, and gives the turn to the next when it has settled or after `longestMs`, whichever is
   * first: the work goes on then.
   *
   * @throws the signal's reason when that comes before the turn
   */
  async run<T>(signal: AbortSignal, longestMs: number, work: () => Promise<T>): Promise<T> {
    signal.throwIfAborted();
    if (this.free > 0) this.free--;
    else await this.wait(signal);
    let isOver = false;
    const end = (): void => {
      if (!isOver) this.pass();
      isOver = true;
    };
    const timer = setTimeout(end, longestMs);
    try {
      return await work();
    } finally {
      clearTimeout(timer);
      end();
    }
  }

  private wait(signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const onTurn = (): void => {
        signal.removeEventListener('abort', onAbort);
        resolve();
      };
      const onAbort = (): void => {
        this.waiting.delete(onTurn);
        reject(signal.reason as Error);
      };
      this.waiting.add(onTurn);
      signal.addEventListener('abort', onAbort, { once: true });
    });
  }

  /** To the one that has waited longest. */
  private pass(): void {
    const [next] = this.waiting;
    if (next === undefined) {
      this.free++;
      return;
    }
    this.waiting.delete(next);
    next();
  }
}
