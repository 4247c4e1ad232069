import type { Cell, Mark } from './cells';
import type { Log } from './log';
import { now } from './log';
import type { Outcome } from './executions';

/** What ends a kernel while nothing runs in it, so that there is no end to tell it by: the next execution does. */
const SILENT_LOSSES: readonly string[] = ['kernel', 'gateway', 'restart', 'oom'];

/**
 * What the variable that each cell leaves may be when the next one looks: one generation, or null after a loss that was
 * told. Cells of one context are given to it in their order.
 */
export class Variables {
  private expected = new Set<string | null>([null]);
  /** When it was last known. */
  private since = now();

  constructor(
    private readonly log: Log,
    private readonly sandboxId: string,
    private readonly contextId: string,
  ) {}

  /** One cell has ended, whichever way. Returns what is wrong. */
  take(cell: Cell, mark: Mark | undefined, { end, ending, events, detail }: Outcome): string | undefined {
    const isTold = events.some(({ type }) => type === 'state_lost');
    if (isTold && mark !== undefined) this.expected = new Set([null]);
    else if (isTold) this.expected.add(null);
    const wrong = mark === undefined ? undefined : this.look(mark, events.length > 0);
    if (isTold && wrong === undefined) this.log.count('variables lost while nothing ran, and told');
    if (mark === undefined) {
      // It may have got as far as that, also when nobody was told that it was accepted.
      if (end !== 'refused' || !/^4/.test(detail)) this.expected.add(cell.generation);
    } else this.expected = new Set([cell.generation]);
    if (mark !== undefined) this.since = mark.t * 1000;
    if (ending?.state_survived === false) this.expected = new Set([null]);
    else if (ending?.state_survived === null) this.expected.add(null);
    return wrong;
  }

  /** Nothing is known of one but that it was asked for: it may have begun all the same. */
  suppose(cell: Cell): void {
    this.expected.add(cell.generation);
  }

  /** `hasEvents`: what the execution was told is known. */
  private look({ old, t }: Mark, hasEvents: boolean): string | undefined {
    if (this.expected.has(old)) {
      this.log.count('variables found as they were left');
      return undefined;
    }
    const told = [...this.expected].map((value) => JSON.stringify(value)).join(' or ');
    if (old !== null) return `its variable is ${JSON.stringify(old)}, not ${told}`;
    const { sandboxId, contextId } = this;
    const causes = this.log.touching({ sandboxId, contextId }, this.since, t * 1000);
    if (!causes.some(({ kind }) => SILENT_LOSSES.includes(kind)))
      return `its variable is gone, not ${told}, and nobody was told`;
    const asked = causes.some(({ kind }) => kind === 'restart');
    if (!asked && hasEvents) return 'its variable is gone, and no `state_lost` has told it';
    this.log.count(
      asked
        ? 'variables gone after a restart that was asked for'
        : 'variables lost, told where nobody looked',
    );
    return undefined;
  }
}
