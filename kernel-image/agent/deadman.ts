/** Checks per grace period. Several, so that a machine that was frozen has time to reconnect when it thaws. */
const CHECKS = 4;
const MAX_INTERVAL_MS = 15_000;

/**
 * Ends a machine that nobody would end otherwise: its deadline passed a grace period ago, and no service is in contact.
 *
 * A service that is in contact decides itself. Without a known deadline nothing ever happens. Absence counts by
 * checks made, not by the clock: time passes while a machine is frozen, and it comes back with its connections closed.
 */
export class DeadMan {
  private readonly graceMs: number;
  private readonly onDead: () => void;
  private readonly timer: NodeJS.Timeout;
  private deadlineAt: number | undefined;
  private connected = false;
  private absent = 0;

  constructor(graceMs: number, deadlineAt: number | undefined, onDead: () => void) {
    this.graceMs = graceMs;
    this.deadlineAt = deadlineAt;
    this.onDead = onDead;
    const interval = Math.max(10, Math.min(MAX_INTERVAL_MS, graceMs / CHECKS));
    this.timer = setInterval(() => this.check(), interval).unref();
  }

  setDeadline(at: number): void {
    this.deadlineAt = at;
  }

  setContact(connected: boolean): void {
    this.connected = connected;
    if (connected) this.absent = 0;
  }

  close(): void {
    clearInterval(this.timer);
  }

  private check(): void {
    this.absent = this.connected ? 0 : this.absent + 1;
    if (this.deadlineAt === undefined || this.absent < CHECKS) return;
    if (Date.now() <= this.deadlineAt + this.graceMs) return;
    this.close();
    this.onDead();
  }
}
