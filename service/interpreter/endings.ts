import type { Accounting, Ending, OutputEvent, Termination } from '../../protocol/interpreter';
import { assertNever } from '../errors';

export type ErrorEvent = Extract<OutputEvent, { type: 'error' }>;

/** What a gateway tells of the end of a kernel's process; everything is missing when nobody saw it. */
export interface KernelDeath {
  exitCode?: number;
  /** As `SIGSEGV`. */
  signal?: string;
  /** The sandbox had no memory left. */
  oom?: boolean;
  memoryPeakBytes?: number;
  memoryLimitBytes?: number;
  /** It went with all else that ran, when the sandbox was paused without its memory. */
  halted?: boolean;
}

/** Every way in which an execution ends. */
export type Outcome =
  /** The kernel is through with it, with whatever result. */
  | { type: 'done' }
  /** The kernel process ended while it ran; `asked`: the cell wanted it to. */
  | { type: 'died'; death: KernelDeath; asked?: boolean }
  /** The context was restarted or removed through the API. */
  | { type: 'restarted' }
  /** The channel was lost for good. */
  | { type: 'lost' }
  /** It never got as far as the kernel. */
  | { type: 'failed'; name: string; value: string }
  /** Cancelled before it got as far as the kernel. */
  | { type: 'cancelled' }
  /** The time limit passed, and the grace after the interrupt. */
  | { type: 'timeout_killed' }
  | { type: 'client_gone' }
  | { type: 'sandbox_ended' }
  /** The sandbox is being paused without its memory: kernels go, files stay. */
  | { type: 'halted' }
  /** The sandbox is being paused, and the connection to the client lost by it. The cell goes on afterwards. */
  | { type: 'paused' };

/** Why a running execution was interrupted. */
export type Stop = 'interrupt' | 'timeout';

/** What decides, beside the outcome, how an end is told. */
export interface EndFacts {
  /** Of the kernel's reply; jupyterlab's types know `aborted` only, bash_kernel says `abort`. */
  replyStatus: string | undefined;
  sawError: boolean;
  stop: Stop | undefined;
  /** Where not, an interrupt ends the kernel. */
  interruptKeepsState: boolean;
  /** The kernel's traceback of an error that was told otherwise. */
  traceback: string;
  timeoutMs: number;
  graceMs: number;
}

/** An end as it is told: to readers of the record, and to E2B's clients, who have words of their own for some. */
export interface Told {
  errors: ErrorEvent[];
  plainErrors: ErrorEvent[];
  ending: Omit<Ending, 'accounting'>;
}

const GONE = 'The variables of the context are lost.';
const AGAIN = 'Run the cells that set the variables again; the context itself works.';

/** How an end is told. Pure; names are those of the native API's table. */
export function tell(outcome: Outcome, facts: EndFacts): Told {
  switch (outcome.type) {
    case 'done':
      return tellDone(facts);
    case 'died':
      return tellDeath(outcome.death, outcome.asked === true, facts);
    case 'restarted': {
      const event = error('ContextRestarting', `The context was restarted or removed. ${GONE}`);
      return told('restarted', false, [event], LOST, { remedy: AGAIN });
    }
    case 'lost':
      return told('transport_lost', null, LOST.slice(0, 1), LOST, {
        remedy: 'Run a cell that looks whether the variables are there, then this one again.',
      });
    case 'failed':
      return told('error', true, [error(outcome.name, outcome.value)]);
    case 'cancelled':
      return told('interrupted', true, [error('KeyboardInterrupt', 'Cancelled before it began')]);
    case 'timeout_killed':
      return killedForTime(facts);
    case 'client_gone':
      return told('client_gone', true, []);
    case 'sandbox_ended':
    case 'paused':
      return told('sandbox_ended', null, []);
    case 'halted':
      return told('sandbox_ended', false, [], [], { remedy: AGAIN });
    default:
      return assertNever(outcome);
  }
}

/** Of one that waited when the service ended: nobody has its code any more. */
export function tellUnstarted(): Told {
  const value = 'The service was started again before this execution began: it never ran';
  return told('error', true, [error('NeverStarted', value)], undefined, { remedy: 'Send it again.' });
}

/** Of one of an earlier service whose kernel was not there any more, could not be asked, or is being ended unasked. */
export function tellLost(
  outcome: { type: 'lost' } | { type: 'halted' } | { type: 'died'; death: KernelDeath },
): Told {
  return tell(outcome, {
    replyStatus: undefined,
    sawError: false,
    stop: undefined,
    interruptKeepsState: true,
    traceback: '',
    timeoutMs: 0,
    graceMs: 0,
  });
}

/** To the next execution of a context: its kernel ended while nothing ran there. */
export function tellStateLost(death: KernelDeath): Extract<OutputEvent, { type: 'state_lost' }> {
  const outcome = death.halted === true ? ({ type: 'halted' } as const) : ({ type: 'died', death } as const);
  const { state_survived: _false, ...cause } = tellLost(outcome).ending;
  return { type: 'state_lost', ...cause };
}

function tellDone({ replyStatus, sawError, stop, traceback, timeoutMs }: EndFacts): Told {
  if (stop === 'timeout') {
    const value = `The execution ran longer than its limit of ${timeoutMs} ms and was interrupted`;
    return told('timeout_interrupted', true, [error('TimeoutError', value, traceback)], undefined, {
      remedy: 'Give it more time with timeout_ms, or do less at a time.',
    });
  }
  const aborted = replyStatus === 'abort' || replyStatus === 'aborted';
  const failed = aborted || sawError || replyStatus === 'error';
  const termination = !failed ? 'ok' : stop === 'interrupt' ? 'interrupted' : 'error';
  return told(termination, true, aborted ? [error('ExecutionAborted', 'Execution was aborted')] : []);
}

function tellDeath(death: KernelDeath, asked: boolean, facts: EndFacts): Told {
  const { exitCode, signal, oom, memoryPeakBytes, memoryLimitBytes } = death;
  if (!facts.interruptKeepsState && oom !== true) {
    if (facts.stop === 'timeout') return killedForTime(facts);
    if (facts.stop === 'interrupt') {
      const event = error('KeyboardInterrupt', `Interrupted, which ends kernels of this language. ${GONE}`);
      return told('interrupted', false, [event], undefined, { remedy: AGAIN });
    }
  }
  const cause = {
    ...(signal !== undefined && { signal }),
    ...(exitCode !== undefined && { exit_code: exitCode }),
  };
  if (oom === true) {
    const event = error('OutOfMemoryError', `The kernel was killed for memory: ${memory(death)}. ${GONE}`);
    // E2B tells this as a restart, too; that hides the one thing to know.
    return told('oom', false, [event], undefined, {
      ...cause,
      ...(memoryPeakBytes !== undefined && { memory_peak_bytes: memoryPeakBytes }),
      ...(memoryLimitBytes !== undefined && { memory_limit_bytes: memoryLimitBytes }),
      remedy: 'Work on less data at a time, or give the sandbox more memory.',
    });
  }
  if (signal !== undefined) {
    const value = `The kernel was killed by ${signal}. ${GONE}`;
    const plain = error('ContextRestarting', 'Context was restarted', value);
    return told('crashed', false, [error('KernelCrashed', value)], [plain], { ...cause, remedy: AGAIN });
  }
  const exited = asked || exitCode !== undefined;
  const value = exited
    ? `The cell ended the kernel${exitCode === undefined ? '' : ` with exit code ${exitCode}`}. ${GONE}`
    : `The kernel ended and was started again. ${GONE}`;
  const plain = error('ContextRestarting', 'Context was restarted', exited ? value : '');
  const native = error('ContextRestarting', value);
  return told(exited ? 'exited' : 'crashed', false, [native], [plain], { ...cause, remedy: AGAIN });
}

function killedForTime({ timeoutMs, graceMs }: EndFacts): Told {
  const value =
    `The execution ran longer than its limit of ${timeoutMs} ms and did not obey the interrupt within ${graceMs} ms: ` +
    `its kernel was killed. ${GONE}`;
  return told('timeout_killed', false, [error('TimeoutError', value)], undefined, {
    remedy: 'Give it more time with timeout_ms, or do less at a time.',
  });
}

/** E2B's words for a channel that is gone; its clients hear them after a restart through the API, too. */
const LOST = [
  error('WebSocketError', 'The connections was lost, rerun the code to get the results'),
  error(
    'UnexpectedEndOfExecution',
    'Connection to the execution was closed before the execution was finished',
  ),
];

function told(
  termination: Termination,
  stateSurvived: boolean | null,
  errors: ErrorEvent[],
  plainErrors = errors,
  fields: Partial<Ending> = {},
): Told {
  return { errors, plainErrors, ending: { termination, ...fields, state_survived: stateSurvived } };
}

function error(name: string, value: string, traceback = ''): ErrorEvent {
  return { type: 'error', name, value, traceback };
}

function memory({ memoryPeakBytes, memoryLimitBytes }: KernelDeath): string {
  const peak =
    memoryPeakBytes === undefined ? 'its peak is unknown' : `it reached ${mebibytes(memoryPeakBytes)}`;
  const limit =
    memoryLimitBytes === undefined ? 'the limit is the host' : `the limit is ${mebibytes(memoryLimitBytes)}`;
  return `${peak}, ${limit}`;
}

function mebibytes(bytes: number): string {
  return `${Math.round(bytes / 1_048_576)} MiB`;
}

/** What an execution's accounting is made of. */
export interface Usage {
  createdAt: number;
  startedAt: number | undefined;
  endedAt: number;
  cpuMs: number | undefined;
  memoryPeakBytes: number | undefined;
  outputBytes: number;
  results: number;
}

export function accountingOf(usage: Usage): Accounting {
  const { createdAt, startedAt, endedAt } = usage;
  return {
    wall_ms: startedAt === undefined ? 0 : Math.round(endedAt - startedAt),
    queued_ms: Math.round((startedAt ?? endedAt) - createdAt),
    cpu_ms: usage.cpuMs ?? null,
    memory_peak_bytes: usage.memoryPeakBytes ?? null,
    output_bytes: usage.outputBytes,
    results: usage.results,
  };
}
