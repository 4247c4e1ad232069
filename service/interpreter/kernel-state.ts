import type { KernelDeath } from './endings';

/**
 * Whether the variables that executions have left in a context's kernel are still there, as far as anybody was told. A
 * process that ends while nothing runs takes them with it unheard: the next execution to begin has to tell it.
 */
export class KernelState {
  /** How the process ended that had them, until somebody is told. */
  private loss: KernelDeath | undefined;

  /** `usedAt`: when the last execution began in the process (milliseconds since the epoch); undefined: none did. */
  constructor(private usedAt?: number) {}

  /** There may be something to lose. */
  get isUsed(): boolean {
    return this.usedAt !== undefined;
  }

  /** When the process ends now, somebody has to be told: of that, or of an earlier end. */
  get hasToTell(): boolean {
    return this.isUsed || this.loss !== undefined;
  }

  /** An execution begins in the process. Returns what it has to tell of an earlier one, to nobody else. */
  use(now = Date.now()): KernelDeath | undefined {
    const { loss } = this;
    this.loss = undefined;
    this.usedAt = now;
    return loss;
  }

  /** The process has ended, as is heard now; `at`: when that was, where it may be long ago. */
  end(death: KernelDeath, at = Number.POSITIVE_INFINITY): void {
    if (this.usedAt === undefined || at <= this.usedAt) return;
    this.usedAt = undefined;
    this.loss = death;
  }

  /** Nothing is there, and whoever uses the context knows: by the end of an execution, or since it was asked for. */
  clear(): void {
    this.usedAt = undefined;
    this.loss = undefined;
  }
}
