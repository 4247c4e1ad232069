import type { FakeExecution } from '../../fakes/fake-gateway';
import { obedient } from '../../fakes/fake-gateway';
import { ExecutionsHarness } from './executions-harness';

let harness: ExecutionsHarness;
beforeEach(async () => {
  harness = await ExecutionsHarness.open({ interruptGraceMs: 30_000 });
});
afterEach(() => harness.close());

/** One cell that goes on until the test ends it; all other code is obeyed. */
function scriptLoop(): void {
  harness.gateway.script = (execution) => {
    if (execution.code === 'loop') execution.busy().input();
    else obedient(execution);
  };
}

/** The cell, once the kernel has it. */
function loop(): Promise<FakeExecution> {
  return harness.gateway.execution('loop');
}

function suspend(): void {
  harness.interpreter.suspend(harness.sandboxId);
}

/** As a kernel ends a cell when it is interrupted. */
function interrupted(cell: FakeExecution): void {
  cell
    .error('KeyboardInterrupt', '', ['at line 1'])
    .reply({ status: 'error', ename: 'KeyboardInterrupt', evalue: '', traceback: [] })
    .idle();
}

const terminationOf = async (id: string): Promise<string | undefined> =>
  (await harness.events(id)).at(-1)?.type === 'end_of_execution'
    ? ((await harness.info(id)).termination ?? undefined)
    : undefined;

describe('executions of the native API, when their sandbox is paused and resumed,', () => {
  it('go on, those that wait as well, and readers come back for the rest', async () => {
    scriptLoop();
    const stream = await harness.stream('POST', harness.path, { code: 'loop' });
    await stream.next();
    const id = String(stream.headers['x-execution-id']);
    const waiting = await harness.detach({ code: '1+1' });
    suspend();
    await expect(stream.rest()).rejects.toMatchObject({ code: 'ECONNRESET' });
    expect([(await harness.info(id)).state, (await harness.info(waiting)).state]).toEqual([
      'running',
      'queued',
    ]);
    await harness.interpreter.resume(harness.machine);
    (await loop()).stdout('afterwards').reply().idle();
    expect(await harness.events(id, 1)).toMatchObject([
      { type: 'stdout', text: 'afterwards' },
      { type: 'end_of_execution', termination: 'ok', state_survived: true },
    ]);
    expect(await terminationOf(waiting)).toBe('ok');
    expect(harness.gateway.rest('POST', /interrupt/)).toEqual([]);
  });

  it('are not timed while they stand still', async () => {
    scriptLoop();
    const limitMs = 1_500; // time enough to get there
    const id = await harness.detach({ code: 'loop', timeout_ms: limitMs });
    const other = await harness.detach({ code: '1+1' });
    harness.gateway.onInterrupt = () => void loop().then(interrupted);
    await loop();
    suspend();
    await new Promise((resolve) => setTimeout(resolve, limitMs + 100)); // what is tested is that this time does not count
    expect((await harness.info(id)).state).toBe('running');
    expect(harness.gateway.rest('POST', /interrupt/)).toEqual([]);
    await harness.interpreter.resume(harness.machine);
    expect(await terminationOf(id)).toBe('timeout_interrupted');
    expect(await terminationOf(other)).toBe('ok');
  });

  it('can not be cancelled while they run and stand still, but while they wait', async () => {
    scriptLoop();
    const running = await harness.detach({ code: 'loop' });
    const waiting = await harness.detach({ code: 'never' });
    await loop();
    expect((await harness.api.ask('POST', `/sandboxes/${harness.sandboxId}/pause`)).status).toBe(204);
    expect(await harness.api.ask('POST', `${harness.path}/${running}/cancel`)).toMatchObject({
      status: 409,
      body: { remedy: expect.stringContaining('connect') as string },
    });
    expect((await harness.api.ask('POST', `${harness.path}/${waiting}/cancel`)).status).toBe(202);
    expect(await terminationOf(waiting)).toBe('interrupted');
    expect(harness.gateway.executions.map(({ code }) => code)).toEqual(['loop']);
  });

  it('end as ended by their sandbox when that is killed meanwhile', async () => {
    scriptLoop();
    const id = await harness.detach({ code: 'loop' });
    await loop();
    const following = await harness.stream('GET', `${harness.path}/${id}/events`);
    await following.next();
    suspend();
    harness.interpreter.drop(harness.sandboxId);
    await expect(following.rest()).rejects.toMatchObject({ code: 'ECONNRESET' });
    expect(harness.interpreter.listExecutions(harness.sandboxId)).toEqual([]);
  });

  it('that come to a kernel on its way are told that the sandbox ended, and the kernel is found again', async () => {
    harness.gateway.up = false;
    const submitted = harness.detach({ code: '1+1' });
    const id = await submitted;
    suspend();
    harness.gateway.up = true;
    expect(await terminationOf(id)).toBe('sandbox_ended');
    await harness.interpreter.resume(harness.machine);
    expect((await harness.run({ code: '1+1' })).at(-1)).toMatchObject({ termination: 'ok' });
  });
});

describe('executions of E2B, when their sandbox is paused and resumed,', () => {
  it('are lost with their connection, but the cell goes on and the next one comes after it', async () => {
    scriptLoop();
    const stream = await harness.plainly({ code: 'loop' });
    await stream.next();
    const id = String(stream.headers['x-execution-id']);
    suspend();
    await expect(stream.rest()).rejects.toMatchObject({ code: 'ECONNRESET' });
    expect((await harness.info(id)).termination).toBe('sandbox_ended');
    await harness.interpreter.resume(harness.machine);
    const next = await harness.plainly({ code: '1+1' });
    const cell = await loop();
    expect(harness.gateway.executions.map(({ code }) => code)).toEqual(['loop']);
    cell.stdout('afterwards').reply().idle();
    expect((await next.rest()).map(({ type }) => type)).toContain('result');
    expect(await harness.events(id)).toContainEqual(
      expect.objectContaining({ type: 'late_output', text: 'afterwards' }),
    );
    expect(harness.gateway.rest('POST', /interrupt/)).toEqual([]);
  });

  it('do not keep the next one waiting when the kernel loses the end of the cell', async () => {
    scriptLoop();
    const stream = await harness.plainly({ code: 'loop' });
    await stream.next();
    suspend();
    await harness.interpreter.resume(harness.machine);
    const next = await harness.plainly({ code: '1+1' });
    const { kernel } = await loop();
    for (const socket of kernel.sockets) socket.terminate();
    expect((await next.rest()).map(({ type }) => type)).toContain('result');
  });

  it('leave a cell that keeps to its time limit', async () => {
    await harness.close();
    harness = await ExecutionsHarness.open({ interruptGraceMs: 30_000, timeoutMs: 200 });
    scriptLoop();
    const told = new Promise<void>((resolve) => {
      harness.gateway.onInterrupt = () => {
        resolve();
        void loop().then(interrupted);
      };
    });
    const stream = await harness.plainly({ code: 'loop' });
    await stream.next();
    suspend();
    await harness.interpreter.resume(harness.machine);
    await told;
    expect((await (await harness.plainly({ code: '1+1' })).rest()).map(({ type }) => type)).toContain(
      'result',
    );
  });

  it('leave a cell that a restart of its context ends', async () => {
    scriptLoop();
    const stream = await harness.plainly({ code: 'loop' });
    await stream.next();
    suspend();
    await harness.interpreter.resume(harness.machine);
    const contexts = await harness.plainRequest('GET', '/contexts');
    const [first] = (await contexts.rest()) as unknown as Array<Array<{ id: string }>>;
    const restarted = await harness.plainRequest('POST', `/contexts/${first?.[0]?.id}/restart`);
    expect(restarted.status).toBe(200);
    expect((await (await harness.plainly({ code: '1+1' })).rest()).map(({ type }) => type)).toContain(
      'result',
    );
  });
});

it('leaves a busy kernel alone when the service was started again during the pause', async () => {
  scriptLoop();
  const stream = await harness.plainly({ code: 'loop' });
  await stream.next();
  const { kernel } = await loop();
  suspend();
  harness.interpreter.drop(harness.sandboxId);
  kernel.state = 'busy';
  await harness.interpreter.adopt(harness.machine, Date.now() - 1000);
  expect(harness.gateway.rest('POST', /interrupt/)).toEqual([]);
});
