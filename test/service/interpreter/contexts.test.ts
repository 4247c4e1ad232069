import type { Context } from '../../../protocol/interpreter';
import { obedient } from '../../fakes/fake-gateway';
import { count, END, Fixture, main } from './interpreter-fixture';

let fixture: Fixture;
beforeEach(async () => {
  fixture = await Fixture.start({}, { GLOBAL: 'value' });
});
afterEach(() => fixture.close());

const UUID = expect.stringMatching(/^[0-9a-f-]{36}$/) as string;
const list = (): Promise<Context[]> => fixture.json('GET', '/contexts') as Promise<Context[]>;
const create = (body: object): Promise<Context> =>
  fixture.json('POST', '/contexts', body) as Promise<Context>;

describe('default contexts', () => {
  it('are listed from the start, Python first', async () => {
    expect(await list()).toEqual([
      { id: UUID, language: 'python', cwd: '/home/user' },
      { id: UUID, language: 'javascript', cwd: '/home/user' },
    ]);
  });

  it('start one kernel under a stampede, in the order of arrival', async () => {
    const codes = Array.from({ length: 20 }, (_, index) => `cell ${index}`);
    const streams = [];
    for (const code of codes) streams.push(await fixture.open({ code, language: 'Bash ' }));
    await Promise.all(streams.map((stream) => stream.rest()));
    const started = fixture.gateway.rest('POST', /^\/api\/kernels$/);
    expect(started.filter(({ body }) => (body as { name: string }).name === 'bash')).toHaveLength(1);
    expect(fixture.gateway.executions.map(({ code }) => code)).toEqual(codes);
    expect((await list()).map(({ language }) => language)).toEqual(['python', 'javascript', 'bash']);
  });

  it('give their kernels the environment of the sandbox, and the home as directory', async () => {
    await fixture.run({ code: 'x' });
    expect(fixture.gateway.rest('POST', /^\/api\/kernels$/)[0]?.body).toEqual({
      name: 'python3',
      env: { GLOBAL: 'value' },
      metadata: {
        cellbox: {
          id: UUID,
          language: 'python',
          cwd: '/home/user',
          is_default: true,
          created_at: expect.any(Number) as number,
        },
      },
    });
  });

  it('are made anew when they were deleted, at the next use', async () => {
    await fixture.run({ code: 'x' });
    const [python] = await list();
    expect((await fixture.request('DELETE', `/contexts/${python?.id}`)).text).toBe('null');
    expect((await list()).map(({ language }) => language)).toEqual(['javascript']);
    expect(await fixture.run({ code: '1+1' })).toEqual([count(1), main('2'), END]);
    expect(await fixture.run({ code: '1+1', language: 'python' })).toEqual([count(2), main('2'), END]);
    expect((await list()).map(({ language }) => language)).toEqual(['javascript', 'python']);
  });

  it('run TypeScript apart from JavaScript', async () => {
    await fixture.run({ code: 'a', language: 'js' });
    await fixture.run({ code: 'b', language: 'ts' });
    expect((await list()).map(({ language }) => language)).toEqual(['python', 'javascript', 'typescript']);
  });
});

describe('contexts of the caller', () => {
  it('are listed last, with the language normalised and the directory as asked for', async () => {
    const context = await create({ language: ' PYTHON ', cwd: '/root' });
    expect(context).toEqual({ id: UUID, language: 'python', cwd: '/root' });
    expect((await list()).at(-1)).toEqual(context);
  });

  it.each([
    ['/data', '/data'],
    ['sub/../other', '/home/user/other'],
    ['~/x', '/home/user/x'],
    ['/home/user/', undefined],
    ['', undefined],
  ])('start in %j as %j', async (cwd, directory) => {
    const { id } = await create({ cwd });
    expect(fixture.gateway.kernelOf(id)?.body.cwd).toBe(directory);
  });

  it('in a directory that is missing are refused with 400, and not listed', async () => {
    await list();
    fixture.gateway.refuse = () => ({
      status: 400,
      body: { message: 'The directory /nope does not exist.' },
    });
    const answer = await fixture.request('POST', '/contexts', { cwd: '/nope' });
    expect(answer).toMatchObject({
      status: 400,
      text: 'Failed to create context: The directory /nope does not exist.',
    });
    expect(await list()).toHaveLength(2);
  });

  it('wait for a gateway that is just coming up', async () => {
    fixture.gateway.up = false;
    const creating = create({});
    const { dials } = fixture.gateway;
    await fixture.gateway.until(() => fixture.gateway.dials > dials + 1);
    fixture.gateway.up = true;
    expect(await creating).toMatchObject({ language: 'python' });
  });

  it('keep their kernel and id over a restart, and start counting again', async () => {
    const { id } = await create({ cwd: '/data' });
    await fixture.run({ code: 'x = 1', context_id: id });
    const kernel = fixture.gateway.kernelOf(id);
    const answer = await fixture.request('POST', `/contexts/${id}/restart`);
    expect(answer).toMatchObject({ status: 200, text: 'null' });
    expect(await fixture.run({ code: '1+1', context_id: id })).toEqual([count(1), main('2'), END]);
    expect(fixture.gateway.kernelOf(id)).toBe(kernel);
  });

  it('let what waits run on the new kernel after a restart', async () => {
    const { id } = await create({});
    fixture.gateway.script = (execution) => {
      if (execution.code !== 'loop') obedient(execution);
    };
    const running = await fixture.open({ code: 'loop', context_id: id });
    await fixture.gateway.execution('loop');
    const queued = await fixture.open({ code: '1+1', context_id: id });
    await fixture.request('POST', `/contexts/${id}/restart`);
    expect(await queued.rest()).toEqual([count(1), main('2'), END]);
    await running.rest();
  });

  it('get a new kernel on restart when theirs is gone', async () => {
    const { id } = await create({});
    fixture.gateway.kernels.clear();
    expect((await fixture.request('POST', `/contexts/${id}/restart`)).status).toBe(200);
    expect(await fixture.run({ code: '1+1', context_id: id })).toEqual([count(1), main('2'), END]);
  });

  it('have a kernel again after their gateway was killed, so that a later service finds them', async () => {
    const { id } = await create({});
    await fixture.run({ code: 'x', context_id: id });
    fixture.gateway.crash();
    await fixture.gateway.until(() => fixture.gateway.kernelOf(id));
  });

  it('end their kernel when removed, and are unknown then', async () => {
    const { id } = await create({});
    expect((await fixture.request('DELETE', `/contexts/${id}`)).status).toBe(200);
    expect(fixture.gateway.kernelOf(id)).toBeUndefined();
    for (const [method, path] of [
      ['DELETE', `/contexts/${id}`],
      ['POST', `/contexts/${id}/restart`],
    ] as const) {
      expect(await fixture.request(method, path)).toMatchObject({
        status: 404,
        text: `Context ${id} not found`,
      });
    }
  });

  it('run the start-up code of their language once, and again in a new process', async () => {
    const { id } = await create({ language: 'js' });
    await fixture.run({ code: 'a', context_id: id });
    await fixture.run({ code: 'b', context_id: id });
    const startups = () => fixture.gateway.executions.filter(({ code }) => code.includes('createRequire'));
    expect(startups()).toHaveLength(1);
    expect(fixture.gateway.executions[0]?.silent).toBe(true);
    await fixture.request('POST', `/contexts/${id}/restart`);
    await fixture.run({ code: 'c', context_id: id });
    expect(startups()).toHaveLength(2);
  });
});

describe('adopt', () => {
  it('finds contexts with id, language and directory, and the kernels with them', async () => {
    const { id } = await create({ language: 'bash', cwd: '/data' });
    await fixture.run({ code: 'x', context_id: id });
    await fixture.run({ code: 'x' });
    const { id: last } = await create({});
    const before = await list();
    expect(before.map((context) => context.id).slice(2)).toEqual([id, last]);
    const kernels = [...fixture.gateway.kernels.keys()];
    fixture.interpreter.drop(fixture.machine.id);
    await fixture.interpreter.adopt(fixture.machine);
    expect(await list()).toEqual(before);
    expect(await fixture.run({ code: '1+1', context_id: id })).toEqual([count(2), main('2'), END]);
    expect(await fixture.run({ code: '1+1' })).toEqual([count(2), main('2'), END]);
    expect([...fixture.gateway.kernels.keys()]).toEqual(kernels);
  });

  it('interrupts what the last service left running', async () => {
    await fixture.run({ code: 'x' });
    fixture.interpreter.drop(fixture.machine.id);
    for (const kernel of fixture.gateway.kernels.values()) kernel.state = 'busy';
    await fixture.interpreter.adopt(fixture.machine);
    expect(fixture.gateway.rest('POST', /\/interrupt$/)).toHaveLength(1);
  });

  it('sets what a kernel lacks that died while no service was there, before the first execution', async () => {
    await fixture.run({ code: 'x' });
    fixture.interpreter.drop(fixture.machine.id);
    await fixture.interpreter.adopt(fixture.machine);
    const before = fixture.gateway.executions.length;
    await fixture.run({ code: 'y' });
    await fixture.run({ code: 'z' });
    const after = fixture.gateway.executions.slice(before);
    expect(after.map(({ silent }) => silent)).toEqual([true, false, false]);
    expect(after[0]?.code).toMatch(/setdefault.*GLOBAL.*value/s);
  });

  it('makes requests wait until it is done', async () => {
    fixture.gateway.up = false;
    const adopting = fixture.interpreter.adopt(fixture.machine);
    const listed = list();
    fixture.gateway.up = true;
    expect((await listed).map(({ language }) => language)).toEqual(['python', 'javascript']);
    await adopting;
  });

  it('takes kernels without a record for what their name says', async () => {
    await fixture.run({ code: 'x' });
    fixture.interpreter.drop(fixture.machine.id);
    for (const kernel of fixture.gateway.kernels.values()) delete kernel.body.metadata;
    await fixture.interpreter.adopt(fixture.machine);
    const [kernel] = fixture.gateway.kernels.values();
    expect((await list())[0]).toEqual({ id: kernel?.id, language: 'python', cwd: '/home/user' });
  });
});
