import { needsNewProcess } from '../../../service/interpreter/start-environment';
import type { FakeExecution } from '../../fakes/fake-gateway';
import { Fixture, main } from './interpreter-fixture';

/** What the machine was made ready with, and what its claimer wants. */
const AHEAD = { E2B_SANDBOX: 'true' };
const WANTED = { E2B_SANDBOX: 'true', A: 'quote " backslash \\ newline \n é 😀' };

let fixture: Fixture;
beforeEach(async () => {
  fixture = await Fixture.start();
});
afterEach(() => fixture.close());

const isWarmUp = (execution: FakeExecution) => execution.code.includes('display_formatter');
const warm = () => fixture.interpreter.warm({ ...fixture.machine, env: AHEAD });
const claim = (env: Record<string, string>) => fixture.interpreter.prepare({ ...fixture.machine, env });
const kernels = () => [...fixture.gateway.kernels.values()];

/** The environment that the kernel was told, read from the code as Python would. */
function toldEnv(execution: FakeExecution): unknown {
  const literal = /\{'env': (".*")\}\)$/.exec(execution.code)?.[1];
  if (literal === undefined) throw new Error(`no environment in ${execution.code}`);
  return JSON.parse(JSON.parse(literal) as string);
}

/** Executions of ours, but for what runs ahead of the claim. */
const silent = () => executions().filter((execution) => execution.silent);
const executions = () => fixture.gateway.executions.filter((execution) => !isWarmUp(execution));

describe('warm', () => {
  it('resolves when the default kernel answers, and tells it from then on', async () => {
    const { id } = fixture.machine;
    expect(fixture.interpreter.isWarm(id)).toBe(false);
    await warm();
    expect(fixture.interpreter.isWarm(id)).toBe(true);
    expect(kernels().map(({ body }) => [body.name, body.env])).toEqual([['python3', AHEAD]]);
    expect(fixture.gateway.executions.map(({ silent }) => silent)).toEqual([true]);
  });

  it('rejects when the kernel does not start', async () => {
    fixture.gateway.refuse = () => ({ status: 500, body: { message: 'no' } });
    await expect(warm()).rejects.toThrow('500');
  });

  it('rejects when the machine is dropped', async () => {
    fixture.gateway.info = () => undefined;
    const warming = warm();
    const failed = expect(warming).rejects.toThrow();
    await fixture.gateway.until(() => kernels()[0]?.sockets.size === 1);
    fixture.interpreter.drop(fixture.machine.id);
    await failed;
  });

  it('is over when the kernel is, until the next one answers', async () => {
    await warm();
    fixture.gateway.info = () => undefined;
    kernels()[0]?.restarting();
    await fixture.gateway.until(() => !fixture.interpreter.isWarm(fixture.machine.id));
  });
});

describe('a claim', () => {
  it('gives the kernel its environment before the first execution, and the user none of it to see', async () => {
    await warm();
    const [kernel] = kernels();
    claim(WANTED);
    expect(await fixture.run({ code: '1+1' })).toEqual([
      { type: 'number_of_executions', execution_count: 1 },
      main('2'),
      { type: 'end_of_execution' },
    ]);
    const [first, second, ...more] = executions();
    expect([first?.silent, second?.code, more]).toEqual([true, '1+1', []]);
    expect(toldEnv(first as FakeExecution)).toEqual(WANTED);
    expect(first?.code).toMatch(/^[\x20-\x7e]+$/);
    expect(kernels()).toEqual([kernel]);
  });

  it('holds the first execution back until the kernel has its environment', async () => {
    await warm();
    const requests: FakeExecution[] = [];
    const { script } = fixture.gateway;
    fixture.gateway.script = (execution) => void requests.push(execution);
    claim(WANTED);
    const running = fixture.run({ code: '1+1' });
    await fixture.gateway.until(() => requests.length === 1);
    fixture.gateway.script = script;
    script(requests[0] as FakeExecution);
    await running;
    expect(executions().map(({ code }) => code === '1+1')).toEqual([false, true]);
  });

  it('happens once: later requests change nothing', async () => {
    await warm();
    claim(WANTED);
    claim({ A: 'other' });
    await fixture.run({ code: '1+1' });
    await fixture.run({ code: '1+1' });
    expect(silent()).toHaveLength(1);
  });

  it('asks nothing of a kernel that has the environment already', async () => {
    await warm();
    claim({ ...AHEAD });
    await fixture.run({ code: '1+1' });
    expect(executions().map(({ code }) => code)).toEqual(['1+1']);
  });

  it('reaches a kernel that is just being started', async () => {
    let open: () => void = () => undefined;
    fixture.gateway.gate = new Promise((resolve) => (open = resolve));
    const warming = warm();
    await fixture.gateway.until(() => fixture.gateway.rest('POST', /kernels$/).length === 1);
    claim(WANTED);
    open();
    await fixture.run({ code: '1+1' });
    await warming;
    expect(silent().map(toldEnv)).toEqual([WANTED]);
  });

  it('starts the kernel anew for what only a new process can have', async () => {
    await warm();
    const [before] = kernels();
    claim({ ...WANTED, PYTHONPATH: '/x' });
    await fixture.run({ code: '1+1' });
    await fixture.gateway.until(() => !kernels().includes(before as never));
    expect(kernels().map(({ body }) => body.env)).toEqual([{ ...WANTED, PYTHONPATH: '/x' }]);
    expect(silent()).toEqual([]);
    expect(await fixture.json('GET', '/contexts')).toHaveLength(2);
  });

  it('is repeated for the process that a restart makes', async () => {
    await warm();
    claim(WANTED);
    const [context] = (await fixture.json('GET', '/contexts')) as Array<{ id: string }>;
    await fixture.request('POST', `/contexts/${context?.id ?? ''}/restart`);
    await fixture.run({ code: '1+1' });
    expect(silent().map(toldEnv)).toEqual([WANTED, WANTED]);
  });

  it('is repeated on a connection that broke under it', async () => {
    await warm();
    const { script } = fixture.gateway;
    fixture.gateway.script = (execution) => {
      fixture.gateway.script = script;
      execution.kernel.restarting();
    };
    claim(WANTED);
    await fixture.run({ code: '1+1' });
    expect(silent().map(toldEnv)).toEqual([WANTED, WANTED]);
  });

  it('gives later contexts the environment from their start', async () => {
    await warm();
    claim(WANTED);
    await fixture.json('POST', '/contexts', {});
    expect(kernels().map(({ body }) => body.env)).toEqual([AHEAD, WANTED]);
  });
});

describe('a machine that nobody made ready', () => {
  it('is sent no environment by code', async () => {
    fixture.interpreter.prepare({ ...fixture.machine, env: WANTED });
    await fixture.run({ code: '1+1' });
    expect(silent()).toEqual([]);
    expect(kernels().map(({ body }) => body.env)).toEqual([WANTED]);
  });
});

describe('needsNewProcess', () => {
  it.each([
    [{}, { A: '1', PATH: '/x', E2B_X: '1' }, false],
    [{}, { PYTHONHASHSEED: '1' }, true],
    [{}, { OMP_NUM_THREADS: '1' }, true],
    [{}, { TZ: 'Asia/Tokyo' }, true],
    [{}, { LC_ALL: 'C' }, true],
    [{ TZ: 'UTC' }, { TZ: 'UTC', A: '1' }, false],
  ])('from %j to %j is %j', (before, after, expected) => {
    expect(needsNewProcess(before, after as Record<string, string>)).toBe(expected);
  });
});
