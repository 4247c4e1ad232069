import type { EndFacts, Outcome } from '../../../service/interpreter/endings';
import { accountingOf, tell } from '../../../service/interpreter/endings';

const FACTS: EndFacts = {
  replyStatus: 'ok',
  sawError: false,
  stop: undefined,
  interruptKeepsState: true,
  traceback: '',
  timeoutMs: 1000,
  graceMs: 2000,
};
const MIB = 1_048_576;

/** Outcome, facts, and what must come of them: termination, error's name here and for E2B, state, more fields. */
type Row = [
  title: string,
  outcome: Outcome,
  facts: Partial<EndFacts>,
  termination: string,
  name: string | undefined,
  plainName: string | undefined,
  survived: boolean | null,
  fields?: object,
];

const died = (death: object, asked = false): Outcome => ({ type: 'died', death, asked });

const ROWS: Row[] = [
  ['reply ok', { type: 'done' }, {}, 'ok', undefined, undefined, true],
  ['an error told already', { type: 'done' }, { sawError: true }, 'error', undefined, undefined, true],
  [
    'an abort',
    { type: 'done' },
    { replyStatus: 'abort' },
    'error',
    'ExecutionAborted',
    'ExecutionAborted',
    true,
  ],
  [
    'an abort after an interrupt',
    { type: 'done' },
    { replyStatus: 'aborted', stop: 'interrupt' },
    'interrupted',
    'ExecutionAborted',
    'ExecutionAborted',
    true,
  ],
  [
    'an error after an interrupt',
    { type: 'done' },
    { sawError: true, stop: 'interrupt' },
    'interrupted',
    undefined,
    undefined,
    true,
  ],
  [
    'reply ok after an interrupt that came too late',
    { type: 'done' },
    { stop: 'interrupt' },
    'ok',
    undefined,
    undefined,
    true,
  ],
  [
    'the limit, obeyed',
    { type: 'done' },
    { sawError: true, stop: 'timeout' },
    'timeout_interrupted',
    'TimeoutError',
    'TimeoutError',
    true,
  ],
  [
    'the limit, not obeyed',
    { type: 'timeout_killed' },
    { stop: 'timeout' },
    'timeout_killed',
    'TimeoutError',
    'TimeoutError',
    false,
  ],
  [
    'os._exit(3)',
    died({ exitCode: 3, oom: false }),
    {},
    'exited',
    'ContextRestarting',
    'ContextRestarting',
    false,
    { exit_code: 3 },
  ],
  [
    'exit()',
    died({ exitCode: 0 }, true),
    {},
    'exited',
    'ContextRestarting',
    'ContextRestarting',
    false,
    { exit_code: 0 },
  ],
  [
    'exit() of a kernel nobody watched',
    died({}, true),
    {},
    'exited',
    'ContextRestarting',
    'ContextRestarting',
    false,
  ],
  [
    'a signal',
    died({ signal: 'SIGSEGV' }),
    {},
    'crashed',
    'KernelCrashed',
    'ContextRestarting',
    false,
    { signal: 'SIGSEGV' },
  ],
  ['an end that nobody saw', died({}), {}, 'crashed', 'ContextRestarting', 'ContextRestarting', false],
  [
    'no memory left',
    died({ signal: 'SIGKILL', oom: true, memoryPeakBytes: 256 * MIB, memoryLimitBytes: 300 * MIB }),
    { stop: 'interrupt' },
    'oom',
    'OutOfMemoryError',
    'OutOfMemoryError',
    false,
    { signal: 'SIGKILL', memory_peak_bytes: 256 * MIB, memory_limit_bytes: 300 * MIB },
  ],
  [
    'an interrupt that ends the kernel',
    died({ signal: 'SIGINT' }),
    { stop: 'interrupt', interruptKeepsState: false },
    'interrupted',
    'KeyboardInterrupt',
    'KeyboardInterrupt',
    false,
  ],
  [
    'a limit that ends the kernel',
    died({ signal: 'SIGINT' }),
    { stop: 'timeout', interruptKeepsState: false },
    'timeout_killed',
    'TimeoutError',
    'TimeoutError',
    false,
  ],
  [
    'a crash under an interrupt',
    died({ signal: 'SIGSEGV' }),
    { stop: 'interrupt' },
    'crashed',
    'KernelCrashed',
    'ContextRestarting',
    false,
  ],
  [
    'a restart through the API',
    { type: 'restarted' },
    {},
    'restarted',
    'ContextRestarting',
    'WebSocketError',
    false,
  ],
  ['a lost channel', { type: 'lost' }, {}, 'transport_lost', 'WebSocketError', 'WebSocketError', null],
  [
    'cancelled in the queue',
    { type: 'cancelled' },
    {},
    'interrupted',
    'KeyboardInterrupt',
    'KeyboardInterrupt',
    true,
  ],
  [
    'no kernel',
    { type: 'failed', name: 'ContextError', value: 'v' },
    {},
    'error',
    'ContextError',
    'ContextError',
    true,
  ],
  ['a client that left', { type: 'client_gone' }, {}, 'client_gone', undefined, undefined, true],
  ['the end of the sandbox', { type: 'sandbox_ended' }, {}, 'sandbox_ended', undefined, undefined, null],
];

it.each(ROWS)('tells %s', (_title, outcome, facts, termination, name, plainName, survived, fields = {}) => {
  const { errors, plainErrors, ending } = tell(outcome, { ...FACTS, ...facts });
  expect(ending).toMatchObject({ termination, state_survived: survived, ...fields });
  expect(errors[0]?.name).toBe(name);
  expect(plainErrors[0]?.name).toBe(plainName);
});

it('names peak and limit of memory, the signal, the exit code and the time limit', () => {
  const value = (outcome: Outcome): string | undefined => tell(outcome, FACTS).errors[0]?.value;
  expect(value(died({ oom: true, memoryPeakBytes: 256 * MIB, memoryLimitBytes: 300 * MIB }))).toMatch(
    /256 MiB.*300 MiB.*variables.*lost/,
  );
  expect(value(died({ signal: 'SIGBUS' }))).toMatch(/SIGBUS.*variables.*lost/);
  expect(value(died({ exitCode: 7 }))).toMatch(/exit code 7.*variables.*lost/);
  expect(value({ type: 'timeout_killed' })).toMatch(/1000 ms.*2000 ms.*killed.*variables.*lost/);
});

it("keeps E2B's own words to the letter, with the cause beside them", () => {
  expect(tell(died({ signal: 'SIGKILL' }), FACTS).plainErrors).toEqual([
    {
      type: 'error',
      name: 'ContextRestarting',
      value: 'Context was restarted',
      traceback: 'The kernel was killed by SIGKILL. The variables of the context are lost.',
    },
  ]);
});

it('counts waiting apart from running, and all of it as waiting when it never ran', () => {
  const usage = {
    createdAt: 100,
    endedAt: 500,
    cpuMs: 3,
    memoryPeakBytes: undefined,
    outputBytes: 7,
    results: 1,
  };
  expect(accountingOf({ ...usage, startedAt: 150 })).toEqual({
    wall_ms: 350,
    queued_ms: 50,
    cpu_ms: 3,
    memory_peak_bytes: null,
    output_bytes: 7,
    results: 1,
  });
  expect(accountingOf({ ...usage, startedAt: undefined })).toMatchObject({ wall_ms: 0, queued_ms: 400 });
});
