import type { Accounting, Termination } from '../../protocol/interpreter';
import { TERMINATIONS } from '../../protocol/interpreter';

/** What all executions since the service started come to. */
export class ExecutionTotals {
  readonly byTermination = new Map<Termination, number>(TERMINATIONS.map((each) => [each, 0]));
  wallMs = 0;
  queuedMs = 0;
  cpuMs = 0;
  outputBytes = 0;
  /** Told of each, for whoever wants more than sums. */
  onExecution: ((termination: Termination, accounting: Accounting) => void) | undefined;

  add(termination: Termination, accounting: Accounting): void {
    this.byTermination.set(termination, (this.byTermination.get(termination) ?? 0) + 1);
    this.wallMs += accounting.wall_ms;
    this.queuedMs += accounting.queued_ms;
    this.cpuMs += accounting.cpu_ms ?? 0;
    this.outputBytes += accounting.output_bytes;
    this.onExecution?.(termination, accounting);
  }
}
