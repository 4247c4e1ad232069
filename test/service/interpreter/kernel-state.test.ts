import type { OutputEvent } from '../../../protocol/interpreter';
import { decodeLines } from '../../../protocol/ndjson';
import type { ExecutionRecord } from '../../../service/interpreter/execution-record';
import { KernelState } from '../../../service/interpreter/kernel-state';
import { obedient } from '../../fakes/fake-gateway';
import type { FakeKernel } from '../../fakes/fake-gateway';
import { count, END, Fixture } from './interpreter-fixture';

const OOM = {
  signal: 'SIGKILL',
  oom: true,
  memory_peak_bytes: 9,
  memory_limit_bytes: 10,
};

let fixture: Fixture;
beforeEach(async () => {
  fixture = await Fixture.start({ executions: { interruptGraceMs: 20 } });
});
afterEach(() => fixture.close());

function submit(code: string, more: object = {}): Promise<ExecutionRecord> {
  return fixture.interpreter.submit(fixture.machine, { code, ...more }, true);
}

async function read(record: ExecutionRecord): Promise<OutputEvent[]> {
  const events: OutputEvent[] = [];
  for await (const line of decodeLines(record.log.read(0, new AbortController().signal)))
    events.push(line as OutputEvent);
  return events;
}

/** Runs a cell, and says whether it was told of a loss, and how; nothing else may come before its own events. */
async function lossToldTo(code: string, more: object = {}): Promise<object | undefined> {
  const [first, ...others] = await read(await submit(code, more));
  expect(others.map(({ type }) => type)).not.toContain('state_lost');
  return first?.type === 'state_lost' ? first : undefined;
}

/** The default kernel, in which something has run. */
async function used(): Promise<FakeKernel> {
  await read(await submit('x = 1'));
  const [kernel] = fixture.gateway.kernels.values();
  if (kernel === undefined) throw new Error('there is no kernel');
  return kernel;
}

/** Dies, and is heard by the service: it is connected to the next process. */
async function dieIdle(kernel: FakeKernel, cellbox: object = {}): Promise<void> {
  const connections = kernel.sessions.length;
  kernel.restarting(cellbox);
  await fixture.gateway.until(() => kernel.sessions.length > connections);
}

describe('a kernel that ends while nothing runs', () => {
  it.each([
    ['an exit code', { exit_code: 3 }, { termination: 'exited', exit_code: 3 }],
    ['a signal', { signal: 'SIGKILL' }, { termination: 'crashed', signal: 'SIGKILL' }],
    ['nothing', {}, { termination: 'crashed' }],
    ['memory', OOM, { termination: 'oom', signal: 'SIGKILL', memory_peak_bytes: 9, memory_limit_bytes: 10 }],
  ])('is told to the next execution, by %s, and to no other', async (_title, death, fields) => {
    await dieIdle(await used(), death);
    const remedy = expect.any(String) as string;
    expect(await lossToldTo('a')).toEqual({ type: 'state_lost', seq: 0, remedy, ...fields });
    expect(await lossToldTo('b')).toBeUndefined();
  });

  it('is told when it is not started again', async () => {
    const kernel = await used();
    kernel.dead({ signal: 'SIGABRT' });
    await fixture.gateway.until(() => kernel.sockets.size === 0);
    fixture.gateway.kernels.clear();
    expect(await lossToldTo('a')).toMatchObject({ termination: 'crashed', signal: 'SIGABRT' });
    expect(await lossToldTo('b')).toBeUndefined();
  });

  it('is told when its gateway ends with it', async () => {
    const kernel = await used();
    fixture.gateway.crash();
    await fixture.gateway.until(() => [...fixture.gateway.kernels.values()].some((each) => each !== kernel));
    expect(await lossToldTo('a')).toMatchObject({ termination: 'crashed' });
    expect(await lossToldTo('b')).toBeUndefined();
  });

  it('is told by its first end when it ends again before anything ran', async () => {
    const kernel = await used();
    await dieIdle(kernel, OOM);
    await dieIdle(kernel, { exit_code: 1 });
    expect(await lossToldTo('a')).toMatchObject({ termination: 'oom' });
    expect(await lossToldTo('b')).toBeUndefined();
  });

  it('is told when nobody heard of it, as the channel was lost for good', async () => {
    const kernel = await used();
    fixture.gateway.up = false;
    kernel.cut();
    kernel.lastEnding = { at: Date.now() + 1, signal: 'SIGKILL' };
    // One client gives up after its grace; the next one is of another session.
    const { dials } = fixture.gateway;
    const since = Date.now();
    await fixture.gateway.until(() => fixture.gateway.dials > dials && Date.now() - since > 6_500);
    fixture.gateway.up = true;
    await fixture.gateway.until(() => new Set(kernel.sessions).size === 2);
    expect(await lossToldTo('a')).toMatchObject({ signal: 'SIGKILL' });
    expect(await lossToldTo('b')).toBeUndefined();
  });

  it('is told in its own context alone', async () => {
    const kernel = await used();
    const { id } = (await fixture.json('POST', '/contexts', {})) as { id: string };
    await read(await submit('y = 1', { context_id: id }));
    await dieIdle(kernel, OOM);
    expect(await lossToldTo('y', { context_id: id })).toBeUndefined();
    expect(await lossToldTo('x')).toMatchObject({ termination: 'oom' });
  });

  it('is told to one that begins, not to one that was cancelled before', async () => {
    const kernel = await used();
    let open!: () => void;
    fixture.gateway.gate = new Promise((resolve) => (open = resolve));
    kernel.dead(OOM);
    await fixture.gateway.until(() => kernel.sockets.size === 0);
    const waiting = await submit('never');
    await waiting.cancel();
    expect((await read(waiting)).map(({ type }) => type)).toEqual(['error', 'end_of_execution']);
    open();
    expect(await lossToldTo('a')).toMatchObject({ termination: 'oom' });
  });

  it('is told when it ends under a cell whose client has left', async () => {
    fixture.gateway.script = (execution) => {
      if (execution.code !== 'loop') obedient(execution);
    };
    fixture.gateway.onInterrupt = (kernel) => kernel.restarting({ signal: 'SIGINT' });
    const stream = await fixture.open({ code: 'loop' });
    await fixture.gateway.execution('loop');
    stream.leave();
    expect(await lossToldTo('a')).toMatchObject({ signal: 'SIGINT' });
    expect(await lossToldTo('b')).toBeUndefined();
  });

  it("is told in the record of what a client of E2B's API runs, but not to that client", async () => {
    await dieIdle(await used(), OOM);
    expect(await fixture.run({ code: 'a' })).toEqual([count(1), END]);
    const [record] = fixture.interpreter.listExecutions(fixture.machine.id);
    expect((await read(record as ExecutionRecord)).map(({ type }) => type)).toEqual([
      'state_lost',
      'number_of_executions',
      'end_of_execution',
    ]);
    expect(await lossToldTo('b')).toBeUndefined();
  });
});

describe('a loss is not told', () => {
  it('by a new context, and where nothing had run', async () => {
    expect(await lossToldTo('a')).toBeUndefined();
    await fixture.json('POST', '/contexts', {});
    const kernel = [...fixture.gateway.kernels.values()][1] as FakeKernel;
    await fixture.gateway.until(() => kernel.sockets.size === 1);
    await dieIdle(kernel, OOM);
    const record = kernel.body.metadata?.['cellbox'] as { id: string };
    expect(await lossToldTo('b', { context_id: record.id })).toBeUndefined();
  });

  it('when a cell has told it', async () => {
    await used();
    fixture.gateway.script = (execution) => {
      if (execution.code === 'die') execution.kernel.restarting({ signal: 'SIGSEGV' });
      else obedient(execution);
    };
    expect((await read(await submit('die'))).at(-1)).toMatchObject({ state_survived: false });
    expect(await lossToldTo('a')).toBeUndefined();
  });

  it('when a cell was killed for its time', async () => {
    await used();
    fixture.gateway.script = (execution) => {
      if (execution.code !== 'loop') obedient(execution);
    };
    const killed = await read(await submit('loop', { timeout_ms: 20 }));
    expect(killed.at(-1)).toMatchObject({ termination: 'timeout_killed' });
    expect(await lossToldTo('a')).toBeUndefined();
  });

  it.each([
    ['of a kernel that lived', false],
    ['after a death that nobody was told of', true],
  ])('when it was asked for: a restart %s', async (_title, dead) => {
    const kernel = await used();
    if (dead) await dieIdle(kernel, OOM);
    const [python] = (await fixture.json('GET', '/contexts')) as Array<{ id: string }>;
    expect((await fixture.request('POST', `/contexts/${python?.id}/restart`)).status).toBe(200);
    expect(await lossToldTo('a')).toBeUndefined();
    await dieIdle(kernel, OOM); // what was left after the restart is lost like anything else
    expect(await lossToldTo('b')).toMatchObject({ termination: 'oom' });
  });

  it('when the channel was lost and the kernel lives', async () => {
    const kernel = await used();
    kernel.cut();
    await fixture.gateway.until(() => kernel.sessions.length === 2);
    expect(await lossToldTo('a')).toBeUndefined();
  });
});

it('leaves an end that was before the last use out of account', () => {
  const state = new KernelState(1_000);
  state.end({ signal: 'SIGKILL' }, 1_000);
  expect(state.isUsed).toBe(true);
  state.end({ signal: 'SIGTERM' }, 1_001);
  expect(state.isUsed).toBe(false);
  expect(state.use()).toEqual({ signal: 'SIGTERM' });
});

describe('a sandbox that is halted and started again', () => {
  /** All that runs goes, and what comes up is new. */
  function reboot(): void {
    fixture.interpreter.halt(fixture.machine.id);
    fixture.gateway.crash();
    fixture.interpreter.boot(fixture.machine);
  }

  it('tells the next execution of each default context that had variables, and no other', async () => {
    await used();
    await read(await submit('y <- 1', { language: 'r' }));
    reboot();
    const told = { type: 'state_lost', seq: 0, termination: 'sandbox_ended', remedy: expect.any(String) };
    expect(await lossToldTo('a')).toEqual(told);
    expect(await lossToldTo('b')).toBeUndefined();
    expect(await lossToldTo('c', { language: 'r' })).toEqual(told);
    expect(await lossToldTo('d', { language: 'javascript' })).toBeUndefined();
  });

  it('tells what nobody had heard before the next halt', async () => {
    await used();
    reboot();
    reboot();
    expect(await lossToldTo('a')).toMatchObject({ termination: 'sandbox_ended' });
    reboot();
    expect(await lossToldTo('b')).toMatchObject({ termination: 'sandbox_ended' });
    expect(await lossToldTo('c')).toBeUndefined();
  });

  it('ends what runs and waits, which is all that is told of it', async () => {
    await used();
    fixture.gateway.script = (execution) => void execution.busy().input().stdout('first\n');
    const running = await submit('loop()');
    const waiting = await submit('later()');
    for await (const line of decodeLines(running.log.read(0, new AbortController().signal)))
      if ((line as OutputEvent).type === 'stdout') break;
    reboot();
    for (const { ending } of [running, waiting]) {
      expect(ending).toMatchObject({ termination: 'sandbox_ended', state_survived: false });
    }
    expect(await read(running)).toContainEqual(expect.objectContaining({ type: 'stdout', text: 'first\n' }));
    fixture.gateway.script = obedient;
    expect(await lossToldTo('a')).toBeUndefined();
  });

  it('ends what a pause with memory had kept', async () => {
    fixture.gateway.script = (execution) => void execution.busy().input();
    const running = await submit('loop()');
    await fixture.gateway.execution('loop()');
    fixture.interpreter.suspend(fixture.machine.id);
    expect(running.ending).toBeUndefined();
    reboot();
    expect(running.ending).toMatchObject({ termination: 'sandbox_ended', state_survived: false });
  });

  it('has the default contexts under their ids, and no other', async () => {
    const list = async () => (await fixture.json('GET', '/contexts')) as Array<{ id: string }>;
    await used();
    const defaults = await list();
    const { id } = (await fixture.json('POST', '/contexts', { language: 'python' })) as { id: string };
    reboot();
    expect(await list()).toEqual(defaults);
    expect((await fixture.request('POST', '/execute', { code: '1', context_id: id })).status).toBe(404);
  });
});
