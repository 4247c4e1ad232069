import { ServiceError } from '../../../service/errors';
import { Sandboxes } from '../../../service/sandboxes/sandboxes';
import type { SandboxesOptions } from '../../../service/sandboxes/sandboxes';
import { Store } from '../../../service/sandboxes/store';
import { DEFAULT_TEAM_ID as TEAM } from '../../../service/sandboxes/store-teams';
import { FakeEngine, FakeRuntime, gate } from '../../fakes/fake-runtime';
import { createOptions } from './create-options';
import { sandboxesOptions } from './sandboxes-options';

const FAILED = { code: 'unavailable' };
const failure = () => Promise.reject(new ServiceError('unavailable', 'not today'));

describe('a pause that keeps files alone', () => {
  let engine: FakeEngine;
  let store: Store;
  let sandboxes: Sandboxes;
  let told: string[];

  function make(overrides: Partial<SandboxesOptions> = {}): Sandboxes {
    return new Sandboxes({
      ...sandboxesOptions(engine, store),
      events: {
        onPaused: (_id, keeps) => told.push(`paused ${keeps}`),
        onResumed: () => told.push('resumed'),
        onBooted: () => told.push('booted'),
        onAdopted: () => told.push('adopted'),
        onEnded: () => told.push('ended'),
      },
      ...overrides,
    });
  }
  /** As a service that was killed leaves it, and the next one finds it. */
  async function restarted(): Promise<{ adopted: number; removed: number }> {
    void sandboxes.close({ onStop: 'keep' });
    told = [];
    sandboxes = make();
    return sandboxes.adopt();
  }
  const connect = (id: string, more: object = {}) =>
    sandboxes.connect(TEAM, id, { timeoutSeconds: 60, ...more });
  const row = async () => (await store.listSandboxes())[0];

  beforeEach(async () => {
    engine = new FakeEngine();
    store = await Store.open(':memory:');
    told = [];
    sandboxes = make();
  });

  afterEach(async () => {
    await sandboxes.close({ onStop: 'kill' });
    await store.close();
  });

  it('ends what runs, and the next connect starts it with all that the sandbox is', async () => {
    const created = await sandboxes.create(
      TEAM,
      createOptions({ env: { A: '1' }, allowInternetAccess: false, metadata: { m: '1' } }),
    );
    const { id, accessToken, startedAt, env } = created;
    const machine = engine.machine(id);
    await sandboxes.pause(TEAM, id, 'filesystem');
    expect(sandboxes.get(TEAM, id)).toMatchObject({ state: 'paused', pauseMode: 'filesystem' });
    expect([machine.state, sandboxes.find(id), sandboxes.nextDeadlineOf(TEAM)]).toEqual([
      'halted',
      undefined,
      undefined,
    ]);
    expect(await row()).toMatchObject({ state: 'paused', pauseMode: 'filesystem' });
    await expect(sandboxes.pause(TEAM, id)).rejects.toMatchObject({ code: 'failed_precondition' });
    await expect(sandboxes.setTimeout(TEAM, id, 5)).rejects.toMatchObject({ code: 'not_found' });

    const { sandbox, resumed } = await connect(id);
    expect(resumed).toBe(true);
    expect(sandbox).toMatchObject({ id, accessToken, startedAt, state: 'running', pauseMode: undefined });
    expect(machine).toMatchObject({
      ...{ state: 'running', boots: 1, env, accessToken, network: 'none' },
      deadlineAt: sandbox.endAt,
    });
    expect(await row()).toMatchObject({ state: 'running', pauseMode: undefined, endAt: sandbox.endAt });
    expect(told).toEqual(['paused filesystem', 'booted']);
  });

  it('is written down before the machine ends: a service that is killed in between ends it', async () => {
    const { id } = await sandboxes.create(TEAM, createOptions());
    const halting = gate();
    engine.beforeHalt = () => halting.opened;
    const pausing = sandboxes.pause(TEAM, id, 'filesystem');
    while ((await row())?.state !== 'paused') await Promise.resolve();
    engine.beforeHalt = () => Promise.resolve();
    expect(await restarted()).toEqual({ adopted: 1, removed: 0 });
    expect([engine.machine(id).state, sandboxes.get(TEAM, id).pauseMode]).toEqual(['halted', 'filesystem']);
    expect(told).toEqual(['paused filesystem']);
    halting.open();
    await pausing;
    expect((await connect(id)).resumed).toBe(true);
    expect(told).toEqual(['paused filesystem', 'booted']);
  });

  it('outlives the service, and a start that was not written down', async () => {
    const { id } = await sandboxes.create(TEAM, createOptions());
    await sandboxes.pause(TEAM, id, 'filesystem');
    engine.machine(id).boot(engine.machine(id).spec);
    expect(await restarted()).toEqual({ adopted: 1, removed: 0 });
    expect(engine.machine(id).state).toBe('halted');
    expect(sandboxes.list(TEAM)).toMatchObject([{ id, state: 'paused', pauseMode: 'filesystem' }]);
    expect((await connect(id)).resumed).toBe(true);
  });

  it('is what a restart of the host leaves of a pause with memory, and nothing of what ran', async () => {
    const paused = await sandboxes.create(TEAM, createOptions());
    const running = await sandboxes.create(TEAM, createOptions());
    await sandboxes.pause(TEAM, paused.id);
    for (const { id } of [paused, running]) engine.machine(id).halt();
    expect(await restarted()).toEqual({ adopted: 1, removed: 1 });
    expect(sandboxes.list(TEAM)).toMatchObject([{ id: paused.id, pauseMode: 'filesystem' }]);
    expect(await row()).toMatchObject({ id: paused.id, state: 'paused', pauseMode: 'filesystem' });
    expect((await connect(paused.id)).resumed).toBe(true);
  });

  it('leaves a sandbox that runs, as new, where the machine does not end', async () => {
    const { id, endAt } = await sandboxes.create(TEAM, createOptions());
    engine.beforeHalt = failure;
    await expect(sandboxes.pause(TEAM, id, 'filesystem')).rejects.toMatchObject(FAILED);
    expect(sandboxes.find(id)).toMatchObject({ state: 'running', endAt });
    expect(engine.machine(id)).toMatchObject({ state: 'running', boots: 1, deadlineAt: endAt });
    expect(await row()).toMatchObject({ state: 'running', endAt });
    expect(told).toEqual(['paused filesystem', 'booted']);
  });

  it('changes nothing where it can not be written down', async () => {
    const { id, endAt } = await sandboxes.create(TEAM, createOptions());
    const update = store.updateSandbox.bind(store);
    store.updateSandbox = failure;
    await expect(sandboxes.pause(TEAM, id, 'filesystem')).rejects.toMatchObject(FAILED);
    store.updateSandbox = update;
    expect(sandboxes.find(id)).toMatchObject({ state: 'running', endAt });
    expect([engine.machine(id).boots, told]).toEqual([0, []]);
  });

  it('holds when neither the end nor a new start of the machine succeeds, and the next connect starts it', async () => {
    const { id } = await sandboxes.create(TEAM, createOptions());
    engine.beforeHalt = failure;
    engine.beforeBoot = failure;
    await expect(sandboxes.pause(TEAM, id, 'filesystem')).rejects.toMatchObject(FAILED);
    expect(sandboxes.get(TEAM, id)).toMatchObject({ state: 'paused', pauseMode: 'filesystem' });
    engine.beforeBoot = () => Promise.resolve();
    expect((await connect(id)).resumed).toBe(true);
    expect(engine.machine(id).state).toBe('running');
  });

  it('stays when the start fails or is not written down', async () => {
    const { id } = await sandboxes.create(TEAM, createOptions());
    await sandboxes.pause(TEAM, id, 'filesystem');
    engine.beforeBoot = failure;
    await expect(connect(id)).rejects.toMatchObject(FAILED);
    engine.beforeBoot = () => Promise.resolve();
    const update = store.updateSandbox.bind(store);
    store.updateSandbox = failure;
    await expect(connect(id)).rejects.toMatchObject(FAILED);
    store.updateSandbox = update;
    expect([engine.machine(id).state, sandboxes.get(TEAM, id).pauseMode]).toEqual(['halted', 'filesystem']);
    expect(await row()).toMatchObject({ state: 'paused', pauseMode: 'filesystem' });
    expect((await connect(id)).resumed).toBe(true);
  });

  it('can be killed at any moment', async () => {
    for (const moment of ['halting', 'halted', 'booting']) {
      const { id } = await sandboxes.create(TEAM, createOptions());
      const { ended } = engine.machine(id);
      const slow = gate();
      if (moment === 'halting') engine.beforeHalt = () => slow.opened;
      const pausing = sandboxes.pause(TEAM, id, 'filesystem');
      let last: Promise<unknown> = pausing;
      if (moment !== 'halting') await pausing;
      if (moment === 'booting') {
        engine.beforeBoot = () => slow.opened;
        last = connect(id);
      }
      const settled = last.then(
        () => 'done',
        (error: unknown) => ServiceError.from(error).code,
      );
      await sandboxes.kill(TEAM, id);
      slow.open();
      expect([moment, await settled]).toEqual([
        moment,
        { halting: 'not_found', halted: 'done', booting: 'failed_precondition' }[moment],
      ]);
      await ended;
      expect([sandboxes.list(TEAM), await store.listSandboxes()]).toEqual([[], []]);
      engine.beforeHalt = engine.beforeBoot = () => Promise.resolve();
    }
  });

  it('comes at the deadline where the create asked for that, and ends the sandbox when it fails', async () => {
    const options = createOptions({ timeoutSeconds: 0.05, autoPause: true, autoPauseMode: 'filesystem' });
    const one = await sandboxes.create(TEAM, options);
    const until = async (holds: () => boolean) => {
      for (const end = Date.now() + 5_000; !holds(); await new Promise(setImmediate))
        if (Date.now() > end) throw new Error('it never came to be');
    };
    await until(() => engine.machine(one.id).state === 'halted');
    await until(() => sandboxes.get(TEAM, one.id).pauseMode === 'filesystem');
    engine.beforeHalt = failure;
    const two = await sandboxes.create(TEAM, options);
    const { ended } = engine.machine(two.id);
    await ended;
    expect(sandboxes.list(TEAM).map(({ id }) => id)).toEqual([one.id]);
    engine.beforeHalt = () => Promise.resolve();
  });

  it('is ended by traffic where that was asked for', async () => {
    const { id } = await sandboxes.create(TEAM, createOptions({ autoResume: true }));
    await sandboxes.pause(TEAM, id, 'filesystem');
    expect(sandboxes.findSleeping(id)).toBeDefined();
    await Promise.all([sandboxes.wake(id), sandboxes.wake(id)]);
    expect([sandboxes.get(TEAM, id).state, engine.machine(id).boots]).toEqual(['running', 1]);
  });

  it('is what a connect makes of a pause with memory that it does not want, and leaves alone what runs', async () => {
    const { id } = await sandboxes.create(TEAM, createOptions());
    expect((await connect(id, { reboot: true })).resumed).toBe(false);
    expect(engine.machine(id).boots).toBe(0);
    await sandboxes.pause(TEAM, id);
    expect((await connect(id, { reboot: true })).resumed).toBe(true);
    expect(engine.machine(id)).toMatchObject({ state: 'running', boots: 1 });
    expect(told).toEqual(['paused full', 'paused filesystem', 'booted']);
  });

  it('is not what is left when the wish for a new start can not be written down', async () => {
    const { id } = await sandboxes.create(TEAM, createOptions());
    await sandboxes.pause(TEAM, id);
    const update = store.updateSandbox.bind(store);
    store.updateSandbox = failure;
    await expect(connect(id, { reboot: true })).rejects.toMatchObject(FAILED);
    store.updateSandbox = update;
    expect(sandboxes.get(TEAM, id).pauseMode).toBe('full');
    await connect(id);
    expect(told).toEqual(['paused full', 'resumed']);
  });

  it('counts as a sandbox of its team', async () => {
    sandboxes = make({ maxSandboxes: 1 });
    const { id } = await sandboxes.create(TEAM, createOptions());
    await sandboxes.pause(TEAM, id, 'filesystem');
    await expect(sandboxes.create(TEAM, createOptions())).rejects.toMatchObject({
      code: 'resource_exhausted',
    });
  });

  it('waits for a change of the network that is under way', async () => {
    const { id } = await sandboxes.create(TEAM, createOptions());
    const slow = gate();
    engine.beforeSetNetwork = () => slow.opened;
    const closed = { allowInternetAccess: false, allowOut: [], denyOut: [] };
    const changing = sandboxes.setNetwork(TEAM, id, closed);
    const pausing = sandboxes.pause(TEAM, id, 'filesystem');
    slow.open();
    await Promise.all([changing, pausing]);
    await connect(id);
    expect(engine.machine(id).network).toBe('none');
  });
});

describe('the network of a paused sandbox', () => {
  const closed = { allowInternetAccess: false, allowOut: [], denyOut: [] };

  it.each(['full', 'filesystem'] as const)('is changed before anything runs there (%s)', async (mode) => {
    const engine = new FakeEngine();
    const store = await Store.open(':memory:');
    const sandboxes = new Sandboxes(sandboxesOptions(engine, store));
    const { id } = await sandboxes.create(TEAM, createOptions());
    await sandboxes.pause(TEAM, id, mode);
    const slow = gate();
    const reached = gate();
    engine.beforeSetNetwork = () => {
      reached.open();
      return slow.opened;
    };
    const changing = sandboxes.setNetwork(TEAM, id, closed);
    await reached.opened;
    const connecting = sandboxes.connect(TEAM, id, { timeoutSeconds: 60 });
    expect(sandboxes.get(TEAM, id).state).toBe('paused');
    const seen: unknown[] = [];
    engine.beforeResume = async () => void seen.push(engine.machine(id).network);
    engine.beforeBoot = async (spec) => void seen.push(spec.network);
    slow.open();
    await Promise.all([changing, connecting]);
    expect(seen).toEqual(['none']);
    expect([engine.machine(id).network, await store.listSandboxes()]).toMatchObject(['none', [closed]]);
    await sandboxes.close({ onStop: 'kill' });
    await store.close();
  });

  it('waits for a pause or resume under way, and is not found for one that ends in it', async () => {
    const engine = new FakeEngine();
    const store = await Store.open(':memory:');
    const sandboxes = new Sandboxes({
      ...sandboxesOptions(engine, store),
      runtime: new FakeRuntime(engine),
    });
    for (const isKilled of [false, true]) {
      const { id } = await sandboxes.create(TEAM, createOptions());
      const slow = gate();
      engine.beforePause = () => slow.opened;
      const pausing = sandboxes.pause(TEAM, id).catch(() => undefined);
      const changing = sandboxes.setNetwork(TEAM, id, closed).then(
        () => 'ok',
        (error: unknown) => ServiceError.from(error).code,
      );
      if (isKilled) await sandboxes.kill(TEAM, id);
      slow.open();
      await pausing;
      expect(await changing).toBe(isKilled ? 'not_found' : 'ok');
      if (!isKilled) expect(sandboxes.get(TEAM, id)).toMatchObject({ state: 'paused', ...closed });
    }
    await sandboxes.close({ onStop: 'kill' });
    await store.close();
  });
});
