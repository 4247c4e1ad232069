import { performance } from 'node:perf_hooks';
import { EFFECTS, touches } from './faults';
import type { CauseKind, Fault } from './faults';

/** Milliseconds since the epoch, from a clock that never steps while this process lives. */
export function now(): number {
  return performance.timeOrigin + performance.now();
}

export interface Violation {
  invariant: string;
  /** Seconds since the run began. */
  seconds: number;
  text: string;
  faults: string[];
  /** Of the execution, where it is about one. */
  events: string[];
}

const SHOWN_FAULTS = 20;
const SHOWN_EVENTS = 60;

/** Everything that was done to the service and its sandboxes, and everything that came out other than it must. */
export class Log {
  readonly began = now();
  readonly faults: Fault[] = [];
  readonly violations: Violation[] = [];
  readonly counts = new Map<string, number>();

  constructor(private readonly seed: number) {}

  count(what: string, by = 1): void {
    this.counts.set(what, (this.counts.get(what) ?? 0) + by);
  }

  /** Writes down that something is about to be done. */
  begin(
    kind: CauseKind,
    target: Partial<Pick<Fault, 'sandboxId' | 'contextId' | 'executionId' | 'pid'>>,
    detail = '',
  ): Fault {
    const fault: Fault = {
      number: this.faults.length,
      kind,
      sandboxId: target.sandboxId,
      contextId: target.contextId,
      executionId: target.executionId,
      pid: target.pid,
      detail,
      at: now(),
      doneAt: undefined,
      overAt: undefined,
      missed: false,
    };
    this.faults.push(fault);
    return fault;
  }

  /** Faults that something of a sandbox may have felt between two moments. */
  touching(where: { sandboxId?: string; contextId?: string }, from: number, to = now()): Fault[] {
    return this.faults.filter((fault) => touches(fault, where, from, to));
  }

  fail(invariant: string, text: string, events: readonly string[] = []): void {
    const violation: Violation = {
      invariant,
      seconds: this.seconds(now()),
      text,
      faults: this.faults.slice(-SHOWN_FAULTS).map((fault) => this.describe(fault)),
      events: events.slice(-SHOWN_EVENTS).map((event) => event.slice(0, 400)),
    };
    this.violations.push(violation);
    process.stderr.write(`${this.tell(violation)}\n`);
  }

  tell({ invariant, seconds, text, faults, events }: Violation): string {
    return [
      `VIOLATION of “${invariant}” (seed ${this.seed}, after ${seconds} s): ${text}`,
      '  last entries of the injector:',
      ...faults.map((line) => `    ${line}`),
      ...(events.length > 0 ? ['  events:', ...events.map((line) => `    ${line}`)] : []),
    ].join('\n');
  }

  describe(fault: Fault): string {
    const { number, kind, sandboxId, contextId, executionId, detail, at, doneAt, overAt, missed } = fault;
    const where = [
      sandboxId ?? 'service',
      contextId?.slice(0, 8),
      executionId === undefined ? undefined : `execution ${executionId.slice(0, 8)}`,
    ].filter((part) => part !== undefined);
    const times = [at, doneAt, overAt].map((time) => (time === undefined ? '–' : this.seconds(time)));
    const must = missed ? 'missed: nothing was done' : `must cause: ${EFFECTS[kind].mustCause}`;
    return `#${number} ${kind}${detail === '' ? '' : ` (${detail})`} of ${where.join(' / ')} at ${times.join(' / ')} s; ${must}`;
  }

  seconds(time: number): number {
    return Number(((time - this.began) / 1000).toFixed(2));
  }
}
