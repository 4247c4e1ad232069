/**
 * A timeout whose time can be made to stand still. One at a time: a new start takes the place of the last one. What has
 * arrived at the process by the time it elapses is read first, which may clear it.
 */
export class PausableTimer {
  private isPaused = false;
  private onElapsed: (() => void) | undefined;
  private remainingMs = 0;
  private since = 0;
  private handle: NodeJS.Timeout | undefined;

  /** While it is paused, the time begins with `resume`. */
  start(ms: number, onElapsed: () => void): void {
    this.clear();
    this.remainingMs = Math.max(0, ms);
    this.onElapsed = onElapsed;
    this.arm();
  }

  /** Also before there is anything to be timed. Idempotent, as `resume` is. */
  pause(): void {
    if (this.isPaused) return;
    this.isPaused = true;
    if (this.handle === undefined) return;
    clearTimeout(this.handle);
    this.handle = undefined;
    this.remainingMs = Math.max(0, this.remainingMs - (performance.now() - this.since));
  }

  resume(): void {
    this.isPaused = false;
    this.arm();
  }

  /** Forgets what was started. */
  clear(): void {
    clearTimeout(this.handle);
    this.handle = undefined;
    this.onElapsed = undefined;
  }

  private arm(): void {
    if (this.isPaused || this.handle !== undefined || this.onElapsed === undefined) return;
    this.since = performance.now();
    const handle = setTimeout(() => {
      // In a busy process timers come before what has arrived long since.
      setImmediate(() => setImmediate(() => this.elapse(handle)));
    }, this.remainingMs);
    this.handle = handle;
  }

  private elapse(handle: NodeJS.Timeout): void {
    if (this.handle !== handle) return; // paused or cleared meanwhile
    const { onElapsed } = this;
    this.clear();
    onElapsed?.();
  }
}
