import os from 'node:os';
import { Fixture, newInterpreter } from './interpreter-fixture';

let fixture: Fixture;
beforeEach(async () => {
  fixture = await Fixture.start();
});
afterEach(() => fixture.close());

describe('prepare', () => {
  it('starts the kernel of Python and no other', async () => {
    fixture.interpreter.prepare(fixture.machine);
    await fixture.gateway.until(() => fixture.gateway.kernels.size > 0);
    await fixture.request('GET', '/health');
    expect([...fixture.gateway.kernels.values()].map(({ name }) => name)).toEqual(['python3']);
  });

  it('starts kernels that are to wait in turns, one for each processor', async () => {
    const { interpreter, gateway } = fixture;
    const atATime = os.availableParallelism();
    let open: () => void = () => undefined;
    gateway.gate = new Promise((resolve) => (open = resolve));
    const asked = (): number => gateway.rest('POST', /kernels$/).length;
    for (let index = 0; index <= atATime; index++) interpreter.prepare(gateway.machine(), true);
    interpreter.prepare(fixture.machine); // in nobody's turn
    await gateway.until(() => asked() === atATime + 1);
    expect(interpreter.kernelsUnderWay).toBe(atATime + 1);

    open();
    await gateway.until(() => gateway.kernels.size === atATime + 2);
    expect(asked()).toBe(atATime + 2);
  });

  it('runs what is asked of a kernel that waits when it has had its turn', async () => {
    fixture.interpreter.prepare(fixture.machine, true);
    expect(await fixture.run({ code: 'x' })).toContainEqual(
      expect.objectContaining({ type: 'end_of_execution' }),
    );
    expect(fixture.gateway.rest('POST', /kernels$/)).toHaveLength(1);
  });

  it('does nothing the second time', async () => {
    fixture.interpreter.prepare(fixture.machine);
    fixture.interpreter.prepare(fixture.machine);
    await fixture.request('GET', '/health');
    expect(fixture.gateway.rest('POST', /kernels$/)).toHaveLength(1);
  });
});

describe('drop', () => {
  it('resets what is under way and closes the connections to kernels, which run on', async () => {
    await fixture.run({ code: 'x' });
    const [kernel] = fixture.gateway.kernels.values();
    fixture.gateway.script = (execution) => execution.busy().input();
    const running = await fixture.open({ code: 'running' });
    const queued = await fixture.open({ code: 'queued' });
    fixture.gateway.gate = new Promise(() => undefined);
    const creating = fixture.request('POST', '/contexts', {});
    await fixture.gateway.until(() => fixture.gateway.rest('POST', /kernels$/).length > 1);
    const ends = Promise.allSettled([running.rest(), queued.rest(), creating]);
    fixture.interpreter.drop(fixture.machine.id);
    const reset = { status: 'rejected', reason: { code: 'ECONNRESET' } };
    expect(await ends).toMatchObject([reset, reset, reset]);
    await fixture.gateway.until(() => kernel?.sockets.size === 0);
    expect(fixture.gateway.kernels.size).toBe(1);
  });

  it('of an unknown machine does nothing', () => {
    fixture.interpreter.drop('nobody');
  });
});

it('answers with 502 after close', async () => {
  await fixture.interpreter.close();
  await fixture.interpreter.close();
  expect(await fixture.request('GET', '/contexts')).toMatchObject({
    status: 502,
    text: 'The service is shutting down',
  });
});

it('keeps machines apart', async () => {
  const other = await Fixture.start();
  try {
    await fixture.run({ code: 'x' });
    const mine = (await fixture.json('GET', '/contexts')) as Array<{ id: string }>;
    expect(await other.request('POST', '/execute', { code: 'x', context_id: mine[0]?.id })).toMatchObject({
      status: 404,
    });
  } finally {
    await other.close();
  }
});

it('gives up on a kernel that never answers, in the words of the stream', async () => {
  const interpreter = newInterpreter({ kernelTimeoutMs: 300 });
  const impatient = await Fixture.start({ kernelTimeoutMs: 300 });
  try {
    impatient.gateway.info = () => undefined;
    expect(await impatient.run({ code: 'x' })).toMatchObject([
      { type: 'error', name: 'ContextError', value: 'The kernel did not answer in time' },
      { type: 'end_of_execution' },
    ]);
  } finally {
    await impatient.close();
    await interpreter.close();
  }
});

it('runs code on a kernel that answers kernel_info with an error', async () => {
  fixture.gateway.info = () => ({ status: 'error', ename: 'E', evalue: 'v', traceback: [] });
  expect(await fixture.run({ code: '1+1' })).toMatchObject([{}, { type: 'result', text: '2' }, {}]);
});
