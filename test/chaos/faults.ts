import type { Cell, Mark } from './cells';
import type { FaultKind } from './plan';

/** What clients do themselves that ends executions of theirs: in the same log, since it is a cause like any other. */
export type CauseKind = FaultKind | 'remove-context' | 'kill-sandbox' | 'pause-sandbox' | 'oom';

/** One entry of the log: what was done to whom, and when. Times in milliseconds since the epoch, from a clock that never steps. */
export interface Fault {
  number: number;
  kind: CauseKind;
  /** Undefined: the whole service. */
  sandboxId: string | undefined;
  /** Undefined: the whole sandbox. */
  contextId: string | undefined;
  /** Undefined: whatever runs. */
  executionId: string | undefined;
  /** Of the kernel that was killed, as the sandbox counts. */
  pid: number | undefined;
  detail: string;
  /** Before it was done. */
  at: number;
  /** When it was done; undefined while it is under way. */
  doneAt: number | undefined;
  /** When what it broke worked again, as far as somebody looked. */
  overAt: number | undefined;
  /** Nothing was done after all: the target had gone by itself. */
  missed: boolean;
}

interface Effect {
  /** Terminations of an execution that certainly ran then; undefined: it goes on. */
  hit: readonly string[] | undefined;
  /** What else may become of one that may have run, or began, then. */
  near: readonly string[];
  /** How long after it was over it may still be felt. Generous: a busy machine notices late. */
  tailMs: number;
  /** What readers of the log are told. */
  mustCause: string;
}

/**
 * What each cause leads to: the row of docs/FAILURES.md as data. Beside terminations: `gone` (404 of the sandbox or a
 * reset with that after it), `forgotten` (404 of the execution in a live sandbox: never right), `refused` (it was not
 * accepted), `never_started` (`error` before the kernel got it: it waited when the service was killed, or its kernel could
 * not be reached).
 */
export const EFFECTS: Readonly<Record<CauseKind, Effect>> = {
  kernel: {
    hit: ['crashed'],
    near: ['crashed'],
    tailMs: 6_000,
    mustCause: 'crashed, with the signal; the context works again, variables lost',
  },
  gateway: {
    hit: ['crashed'],
    near: ['crashed', 'transport_lost', 'refused', 'never_started'],
    tailMs: 8_000,
    mustCause: 'crashed in every context that runs; variables lost',
  },
  agent: {
    hit: undefined,
    near: ['transport_lost', 'refused', 'never_started'],
    tailMs: 6_000,
    mustCause: 'nothing to cells; commands end',
  },
  machine: {
    hit: ['gone', 'sandbox_ended'],
    near: ['gone', 'sandbox_ended', 'refused'],
    tailMs: 30_000,
    mustCause: 'the sandbox is gone: 404',
  },
  service: {
    // Cells of the native API go on; E2B's clients went away with it; what waited is told as never started.
    hit: undefined,
    near: ['never_started', 'client_gone', 'refused', 'transport_lost'],
    tailMs: 6_000,
    mustCause:
      'native cells go on, E2B’s are client_gone, queued ones never start; all else is there after the start',
  },
  interrupt: {
    hit: ['interrupted'],
    near: ['interrupted'],
    tailMs: 0,
    mustCause: 'interrupted; variables kept',
  },
  cancel: {
    hit: ['interrupted'],
    near: ['interrupted'],
    tailMs: 0,
    mustCause: 'interrupted; variables kept',
  },
  restart: {
    hit: ['restarted'],
    near: ['restarted', 'refused'],
    tailMs: 0,
    mustCause: 'restarted; what waits runs on the new kernel',
  },
  'remove-context': {
    hit: ['restarted'],
    near: ['restarted', 'refused'],
    tailMs: 0,
    mustCause: 'restarted, and the context is gone',
  },
  'kill-sandbox': {
    hit: ['gone', 'sandbox_ended'],
    near: ['gone', 'sandbox_ended', 'refused'],
    tailMs: 0,
    mustCause: 'the sandbox is gone: 404',
  },
  'pause-sandbox': {
    // E2B's clients lose theirs with the connection; those of the native API go on.
    hit: undefined,
    near: ['sandbox_ended', 'refused'],
    tailMs: 0,
    mustCause: 'E2B’s are sandbox_ended, native cells go on; variables are there after the resume',
  },
  oom: {
    hit: undefined,
    near: ['oom', 'transport_lost', 'crashed', 'refused', 'never_started'],
    tailMs: 10_000,
    mustCause: 'oom in the cell that took the memory; others of the sandbox may die with it',
  },
};

/** Two faults race for an execution when the second was begun so soon after the first was done. */
export const RACE_MS = 3_000;
/** A channel that is not back within 6 s is given up: what took this long, on a busy machine, may have been told so. */
const SLOW_MS = 4_500;
/** Clocks of two processes on one machine, and the time to write down that something was done. */
const MARGIN_MS = 200;

/** What is known of one execution when it has ended. */
export interface Observed {
  sandboxId: string;
  contextId: string;
  /** Undefined when nobody has told it. */
  executionId: string | undefined;
  cell: Cell;
  /** By E2B's API, where a client that is gone has its cell interrupted. */
  isPlain: boolean;
  /** Just before it was asked for. */
  sentAt: number;
  mark: Mark | undefined;
  /** When its end was known to us. */
  seenAt: number;
  /** A termination, or one of the words at `EFFECTS`. */
  end: string;
}

export interface Verdict {
  allowed: string[];
  /** The faults that decide, in the order of the log. */
  causes: Fault[];
}

/** Whether a fault can have been felt between two moments, by something of this sandbox (and context). */
export function touches(
  fault: Fault,
  where: { sandboxId?: string | undefined; contextId?: string | undefined; executionId?: string | undefined },
  from: number,
  to: number,
): boolean {
  if (fault.missed) return false;
  if (fault.sandboxId !== undefined && fault.sandboxId !== where.sandboxId) return false;
  if (fault.contextId !== undefined && where.contextId !== undefined && fault.contextId !== where.contextId)
    return false;
  if (
    fault.executionId !== undefined &&
    where.executionId !== undefined &&
    fault.executionId !== where.executionId
  )
    return false;
  const until = (fault.overAt ?? fault.doneAt ?? Number.POSITIVE_INFINITY) + EFFECTS[fault.kind].tailMs;
  return fault.at <= to && until + MARGIN_MS >= from;
}

/**
 * Which ends an execution may have, by the log alone. Pure.
 *
 * - No fault touched it: exactly what its code says.
 * - It certainly ran when a fault was done (it had told its mark, and lasts longer): that fault's end and no other.
 *   When two such faults race (`RACE_MS`), either's.
 * - It may have run: its code's end, or that of any fault that touched it.
 * - It obeys no interrupt, but has told no mark: its time limit may have come before it said so.
 */
export function judge(observed: Observed, faults: readonly Fault[]): Verdict {
  const { cell, mark, sentAt, seenAt } = observed;
  const near = faults.filter((fault) => touches(fault, observed, sentAt, seenAt));
  const certain = near.filter((fault) => isCertain(fault, observed, near));
  const [first] = certain;
  if (first !== undefined) {
    const raceEnd = (first.doneAt ?? first.at) + RACE_MS;
    const racing = near.filter(
      (fault) => certain.includes(fault) || (fault.at <= raceEnd && fault.number !== first.number),
    );
    const causes = [first, ...racing.filter((fault) => fault !== first && fault.at <= raceEnd)];
    const allowed = causes.flatMap((fault) => [
      ...(certain.includes(fault) ? (EFFECTS[fault.kind].hit ?? []) : EFFECTS[fault.kind].near),
      ...(fault.kind === 'gateway' && wasSlow(fault) ? ['transport_lost'] : []),
    ]);
    return { allowed: [...new Set(allowed)], causes };
  }
  const allowed = near.flatMap((fault) => {
    const { near: words } = EFFECTS[fault.kind];
    if (!cell.obeys && (fault.kind === 'interrupt' || fault.kind === 'cancel') && mark !== undefined) {
      return []; // it ignores the signal; before it does, it may be hit
    }
    // An agent or service that is gone keeps the interrupt at the time limit from arriving.
    const late =
      (fault.kind === 'agent' || fault.kind === 'service') && cell.timeoutMs > 0 ? ['timeout_killed'] : [];
    // It ran before and after: what breaks and comes back must not be felt. What ended just then may have lost its reply.
    const spared =
      ranThrough(fault, observed) &&
      ((fault.kind === 'agent' && !wasSlow(fault)) || fault.kind === 'service');
    const left = fault.kind === 'service' && observed.isPlain ? ['client_gone'] : [];
    return [...(spared ? left : words), ...late];
  });
  const early = !cell.obeys && mark === undefined ? ['timeout_interrupted'] : [];
  return { allowed: [...new Set([cell.nominal, ...early, ...allowed])], causes: near };
}

function wasSlow({ doneAt, overAt }: Fault): boolean {
  return doneAt !== undefined && (overAt === undefined || overAt - doneAt > SLOW_MS);
}

/** What the service can't carry out while something between it and the kernel is broken. */
const ASKED_FOR: readonly CauseKind[] = ['interrupt', 'cancel', 'restart', 'remove-context'];
const IN_THE_WAY: readonly CauseKind[] = ['agent', 'gateway', 'service', 'oom'];

function isCertain(fault: Fault, observed: Observed, near: readonly Fault[]): boolean {
  const { cell, mark } = observed;
  const { hit } = EFFECTS[fault.kind];
  if (hit === undefined || mark === undefined || fault.doneAt === undefined) return false;
  if (ASKED_FOR.includes(fault.kind) && near.some(({ kind }) => IN_THE_WAY.includes(kind))) return false;
  if (fault.pid !== undefined && fault.pid !== mark.pid) return false;
  if (!cell.obeys && (fault.kind === 'interrupt' || fault.kind === 'cancel')) return false;
  return ranThrough(fault, observed);
}

/** By its own word it ran before the fault, and by its code it still did after it. */
function ranThrough({ at, doneAt }: Fault, { cell, mark, sentAt }: Observed): boolean {
  if (mark === undefined || doneAt === undefined) return false;
  // A time limit counts from when the kernel got the cell, which is not before it was sent.
  const endsNotBefore = cell.timeoutMs > 0 ? sentAt + cell.timeoutMs : mark.t * 1000 + cell.lastsMs;
  return mark.t * 1000 + MARGIN_MS < at && doneAt + MARGIN_MS < endsNotBefore;
}
