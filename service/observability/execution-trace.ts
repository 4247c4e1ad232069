import { currentScope, inScope } from './scope';
import type { Attributes, Scope, Span } from './scope';

/**
 * One execution as part of its request's trace: the time in the queue, and the time in the kernel. It takes its
 * request's scope along, as it runs when others before it have ended.
 */
export class ExecutionTrace {
  private readonly scope: Scope | undefined;
  private readonly span: Span | undefined;
  private queued: Span | undefined;
  private running: Span | undefined;

  constructor(attributes: Attributes) {
    const scope = currentScope();
    this.span = scope?.span?.child('execution', attributes);
    this.queued = this.span?.child('execution.queued');
    this.scope = scope && { ...scope, span: this.span };
  }

  run<Result>(work: () => Result): Result {
    return inScope(this.scope, work);
  }

  /** The kernel has it. */
  begin(kernelId: string): void {
    this.queued?.end();
    this.queued = undefined;
    this.running = this.span?.child('execution.running', { 'cellbox.kernel.id': kernelId });
  }

  /** Once; later calls change nothing. */
  end(termination: string): void {
    this.queued?.end();
    this.running?.end();
    this.span?.set({ 'cellbox.execution.termination': termination });
    this.span?.end();
  }
}
