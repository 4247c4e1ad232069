import os from 'node:os';
import { fileSignature } from '../../../protocol/signature';
import { ServiceError } from '../../../service/errors';
import { Sandboxes } from '../../../service/sandboxes/sandboxes';
import type { SandboxesOptions } from '../../../service/sandboxes/sandboxes';
import { Store } from '../../../service/sandboxes/store';
import { DEFAULT_TEAM_ID as TEAM } from '../../../service/sandboxes/store-teams';
import { FakeEngine, FakeRuntime, gate } from '../../fakes/fake-runtime';
import { createOptions } from './create-options';
import { RESOURCES, sandboxesOptions } from './sandboxes-options';

/** What the listeners were told, and a way to wait for it. */
class Told {
  readonly events: string[] = [];
  private readonly waiting = new Set<() => void>();

  add(event: string): void {
    this.events.push(event);
    for (const check of this.waiting) check();
  }

  until(event: string): Promise<void> {
    return new Promise((resolve) => {
      const check = () => {
        if (!this.events.includes(event)) return;
        this.waiting.delete(check);
        resolve();
      };
      this.waiting.add(check);
      check();
    });
  }
}

describe('Sandboxes', () => {
  let engine: FakeEngine;
  let store: Store;
  let told: Told;
  let sandboxes: Sandboxes;

  function make(overrides: Partial<SandboxesOptions> = {}): Sandboxes {
    return new Sandboxes({
      ...sandboxesOptions(engine, store),
      events: {
        onReady: (sandbox) => told.add(`ready ${sandbox.id}`),
        onAdopted: (sandbox) => told.add(`adopted ${sandbox.id}`),
        onPaused: (id) => told.add(`paused ${id}`),
        onResumed: (sandbox) => told.add(`resumed ${sandbox.id}`),
        onEnded: (id) => told.add(`ended ${id}`),
      },
      ...overrides,
    });
  }

  /** A new process on the same store and machines; the one before hears and does nothing more. */
  function restarted(): Sandboxes {
    void sandboxes.close({ onStop: 'keep' });
    told = new Told();
    sandboxes = make();
    return sandboxes;
  }

  beforeEach(async () => {
    engine = new FakeEngine();
    store = await Store.open(':memory:');
    told = new Told();
    sandboxes = make();
  });

  afterEach(async () => {
    engine.beforeStop = () => Promise.resolve();
    await sandboxes.close({ onStop: 'kill' });
    await store.close();
  });

  describe('create', () => {
    it('starts a machine with what was asked for', async () => {
      const sandbox = await sandboxes.create(
        TEAM,
        createOptions({
          env: { A: '1' },
          metadata: { m: 'x' },
          allowInternetAccess: false,
          allowPublicTraffic: false,
        }),
      );
      expect(sandbox.id).toMatch(/^i[a-z0-9]{20}$/);
      expect(engine.machine(sandbox.id).spec).toEqual({
        id: sandbox.id,
        env: {
          A: '1',
          E2B_SANDBOX: 'true',
          E2B_SANDBOX_ID: sandbox.id,
          E2B_TEMPLATE_ID: 'cellboxbase0template',
        },
        resources: RESOURCES,
        network: 'none',
        labels: { team: TEAM, template: 'cellboxbase0template' },
        accessToken: sandbox.accessToken,
        deadlineAt: expect.any(Number),
      });
      expect(sandbox.accessToken).toMatch(/^[0-9a-f]{64}$/);
      expect(sandbox.trafficToken).toMatch(/^[0-9a-f]{64}$/);
      expect(sandbox.accessToken).not.toBe(sandbox.trafficToken);
      expect(sandboxes.find(sandbox.id)?.instance.id).toBe(sandbox.id);
      expect(told.events).toEqual([`ready ${sandbox.id}`]);
      const rows = await store.listSandboxes();
      expect(rows.map((row) => [row.id, row.state, row.endAt])).toEqual([
        [sandbox.id, 'running', sandbox.endAt],
      ]);
    });

    it('never stores settings that only ride along with the resources', async () => {
      await sandboxes.close({ onStop: 'kill' });
      sandboxes = make({ resources: { ...RESOURCES, apiKey: 'e2b_secret' } as typeof RESOURCES });
      await sandboxes.create(TEAM, createOptions());
      expect((await store.listSandboxes())[0]?.resources).toEqual(RESOURCES);
    });

    it('starts the clock when the machine is up', async () => {
      const slow = gate();
      engine.beforeStart = () => slow.opened;
      let clock = 1_000_000;
      await sandboxes.close({ onStop: 'kill' });
      sandboxes = make({ now: () => clock });
      const creating = sandboxes.create(TEAM, createOptions({ timeoutSeconds: 10 }));
      clock += 4_000;
      slow.open();
      const sandbox = await creating;
      expect([sandbox.startedAt, sandbox.endAt]).toEqual([1_004_000, 1_014_000]);
      expect(engine.machine(sandbox.id).deadlineAt).toBe(1_014_000);
    });

    it.each([
      [{ template: 'x' }, 'not_found', "template 'x' not found"],
      [{ timeoutSeconds: 0 }, 'invalid_argument', 'Timeout must be greater than 0'],
      [{ timeoutSeconds: 3601 }, 'invalid_argument', 'Timeout cannot be greater than 1 hours'],
      [{ secure: false, allowPublicTraffic: false }, 'invalid_argument', expect.stringContaining('secure')],
    ])('refuses %j and starts nothing', async (overrides, code, message) => {
      await expect(sandboxes.create(TEAM, createOptions(overrides))).rejects.toMatchObject({ code, message });
      expect(engine.started).toEqual([]);
      expect(await store.listSandboxes()).toEqual([]);
    });

    it('counts sandboxes that are still starting against the limit', async () => {
      const slow = gate();
      engine.beforeStart = () => slow.opened;
      const creating = [1, 2, 3].map(() => sandboxes.create(TEAM, createOptions()));
      await expect(sandboxes.create(TEAM, createOptions())).rejects.toMatchObject({
        code: 'resource_exhausted',
        message: 'The limit of 3 concurrent sandboxes is reached',
      });
      slow.open();
      const [first] = await Promise.all(creating);
      await sandboxes.kill(TEAM, first?.id ?? '');
      await sandboxes.create(TEAM, createOptions());
    });

    it('lets few machines start at a time, and their gateways wait where many are on their way', async () => {
      sandboxes = make({ maxSandboxes: 1_000 });
      const atATime = 2 * os.availableParallelism();
      const slow = gate();
      const full = gate();
      let starting = 0;
      let most = 0;
      engine.beforeStart = async () => {
        most = Math.max(most, ++starting);
        if (starting === atATime) full.open();
        await slow.opened;
        starting--;
      };
      const creating = Array.from({ length: 3 * atATime }, () => sandboxes.create(TEAM, createOptions()));
      await full.opened;
      slow.open();
      const created = await Promise.all(creating);
      expect(most).toBe(atATime);
      const waits = created.map(({ id }) => engine.machine(id).spec.gatewayWaits === true);
      expect(waits[0]).toBe(false);
      expect(waits.slice(atATime, 2 * atATime)).not.toContain(false);

      const { id } = await sandboxes.create(TEAM, createOptions());
      expect(engine.machine(id).spec.gatewayWaits).toBeUndefined();
    });

    it.each([
      ['a reason', new ServiceError('unavailable', 'no engine'), 'unavailable', 'no engine'],
      ['no reason', new Error('secret detail'), 'internal', 'The sandbox could not be started'],
    ])('leaves nothing when the start fails with %s', async (_kind, failure, code, message) => {
      engine.beforeStart = () => Promise.reject(failure);
      await expect(sandboxes.create(TEAM, createOptions())).rejects.toMatchObject({ code, message });
      expect(engine.machines.size).toBe(0);
      expect(await store.listSandboxes()).toEqual([]);
      expect(sandboxes.list(TEAM)).toEqual([]);
      expect(told.events).toEqual([]);
    });

    it('leaves nothing when the caller goes away', async () => {
      const slow = gate();
      const reached = gate();
      engine.beforeStart = () => {
        reached.open();
        return slow.opened;
      };
      const caller = new AbortController();
      const creating = sandboxes.create(TEAM, createOptions(), caller.signal);
      const failed = expect(creating).rejects.toBeInstanceOf(ServiceError);
      await reached.opened;
      caller.abort();
      slow.open();
      await failed;
      expect(engine.machines.size).toBe(0);
      expect(await store.listSandboxes()).toEqual([]);
    });

    it('gives up after the start time-out, also on a runtime that does not listen, and ends what comes up late', async () => {
      await sandboxes.close({ onStop: 'kill' });
      sandboxes = make({ startTimeoutMs: 50 });
      const stuck = gate();
      engine.beforeStart = () => stuck.opened;
      await expect(sandboxes.create(TEAM, createOptions())).rejects.toMatchObject({
        code: 'deadline_exceeded',
        message: 'The sandbox did not start within 0.05 s',
      });
      expect(await store.listSandboxes()).toEqual([]);
      stuck.open();
      await sandboxes.close({ onStop: 'keep' });
      expect(engine.machines.size).toBe(0);
    });

    it('gives the same sandbox to a replay, also while it starts, and refuses other options', async () => {
      const slow = gate();
      engine.beforeStart = () => slow.opened;
      const keyed = createOptions({ idempotencyKey: 'k1' });
      const both = [sandboxes.create(TEAM, keyed), sandboxes.create(TEAM, keyed)];
      await expect(sandboxes.create(TEAM, { ...keyed, timeoutSeconds: 1 })).rejects.toMatchObject({
        code: 'failed_precondition',
      });
      slow.open();
      const [one, two] = await Promise.all(both);
      expect(two?.id).toBe(one?.id);
      expect((await sandboxes.create(TEAM, keyed)).id).toBe(one?.id);
      await expect(sandboxes.create(TEAM, { ...keyed, metadata: { a: '1' } })).rejects.toMatchObject({
        code: 'failed_precondition',
      });
      expect(engine.started).toHaveLength(1);
      await sandboxes.kill(TEAM, one?.id ?? '');
      await expect(sandboxes.create(TEAM, keyed)).rejects.toMatchObject({ code: 'failed_precondition' });
    });

    it('frees the key of a create that failed', async () => {
      engine.beforeStart = () => Promise.reject(new ServiceError('unavailable', 'no'));
      const keyed = createOptions({ idempotencyKey: 'k1' });
      await expect(sandboxes.create(TEAM, keyed)).rejects.toMatchObject({ code: 'unavailable' });
      engine.beforeStart = () => Promise.resolve();
      await sandboxes.create(TEAM, keyed);
    });

    it('survives a listener that throws', async () => {
      await sandboxes.close({ onStop: 'kill' });
      sandboxes = make({
        events: {
          onReady: () => {
            throw new Error('listener');
          },
        },
      });
      await sandboxes.create(TEAM, createOptions());
    });
  });

  describe('kill', () => {
    it('is done for every caller before the machine is gone', async () => {
      const { id } = await sandboxes.create(TEAM, createOptions());
      const slow = gate();
      engine.beforeStop = () => slow.opened;
      await sandboxes.kill(TEAM, id);
      expect(engine.machines.has(id)).toBe(true);
      expect(sandboxes.find(id)).toBeUndefined();
      expect(sandboxes.list(TEAM)).toEqual([]);
      expect(() => sandboxes.get(TEAM, id)).toThrow(`Sandbox "${id}" doesn't exist`);
      await expect(sandboxes.kill(TEAM, id)).rejects.toMatchObject({ code: 'not_found' });
      expect(await store.listSandboxes()).toEqual([]);
      expect(told.events).toEqual([`ready ${id}`, `ended ${id}`]);
      const { ended } = { ended: engine.machine(id).ended };
      slow.open();
      expect(await ended).toEqual({ reason: 'stopped' });
    });

    it('is a conflict for whoever connects or extends at the same time', async () => {
      const { id } = await sandboxes.create(TEAM, createOptions());
      const killing = sandboxes.kill(TEAM, id);
      await expect(sandboxes.connect(TEAM, id, { timeoutSeconds: 1 })).rejects.toMatchObject({
        code: 'failed_precondition',
        message: `Sandbox "${id}" is being killed`,
      });
      await killing;
      await expect(sandboxes.connect(TEAM, id, { timeoutSeconds: 1 })).rejects.toMatchObject({
        code: 'not_found',
      });
    });

    it('succeeds once of two at the same time', async () => {
      const { id } = await sandboxes.create(TEAM, createOptions());
      const results = await Promise.allSettled([sandboxes.kill(TEAM, id), sandboxes.kill(TEAM, id)]);
      expect(results.map((result) => result.status)).toEqual(['fulfilled', 'rejected']);
      expect(told.events.filter((event) => event.startsWith('ended'))).toHaveLength(1);
    });

    it('ends a sandbox that is still starting', async () => {
      const slow = gate();
      const reached = gate();
      engine.beforeStart = () => {
        reached.open();
        return slow.opened;
      };
      const creating = sandboxes.create(TEAM, createOptions());
      const failed = expect(creating).rejects.toMatchObject({ code: 'failed_precondition' });
      await reached.opened;
      await sandboxes.kill(TEAM, engine.started[0] ?? '');
      slow.open();
      await failed;
      expect(engine.machines.size).toBe(0);
    });

    it('tries again when the machine would not end', async () => {
      const { id } = await sandboxes.create(TEAM, createOptions());
      let attempts = 0;
      const { ended } = engine.machine(id);
      engine.beforeStop = () => {
        attempts++;
        return attempts < 2 ? Promise.reject(new ServiceError('unavailable', 'engine')) : Promise.resolve();
      };
      await sandboxes.kill(TEAM, id);
      await ended;
      expect(attempts).toBe(2);
    });

    it('is refused to another team', async () => {
      const { id } = await sandboxes.create(TEAM, createOptions());
      await expect(sandboxes.kill('other', id)).rejects.toMatchObject({ code: 'not_found' });
      expect(() => sandboxes.get('other', id)).toThrow();
      expect(sandboxes.list('other')).toEqual([]);
      expect(sandboxes.find(id)?.id).toBe(id);
    });
  });

  describe('deadline', () => {
    it('ends the sandbox', async () => {
      const { id } = await sandboxes.create(TEAM, createOptions({ timeoutSeconds: 0.05 }));
      await told.until(`ended ${id}`);
      expect(sandboxes.find(id)).toBeUndefined();
    });

    it('pauses it where that was asked for', async () => {
      const { id } = await sandboxes.create(TEAM, createOptions({ timeoutSeconds: 0.05, autoPause: true }));
      await told.until(`paused ${id}`);
      expect(sandboxes.get(TEAM, id).state).toBe('paused');
      expect((await sandboxes.connect(TEAM, id, { timeoutSeconds: 60 })).resumed).toBe(true);
      expect(engine.machine(id).state).toBe('running');
    });

    it('ends it when it can not be paused', async () => {
      engine.beforePause = () => Promise.reject(new ServiceError('unavailable', 'no freezer'));
      const { id } = await sandboxes.create(TEAM, createOptions({ timeoutSeconds: 0.05, autoPause: true }));
      await told.until(`ended ${id}`);
    });

    it('moves both ways, and no further than the longest time-out', async () => {
      const { id, startedAt } = await sandboxes.create(TEAM, createOptions({ timeoutSeconds: 60 }));
      await sandboxes.setTimeout(TEAM, id, 10);
      expect(sandboxes.get(TEAM, id).endAt).toBeLessThan(startedAt + 20_000);
      await sandboxes.setTimeout(TEAM, id, 1_000_000);
      expect(sandboxes.get(TEAM, id).endAt).toBe(startedAt + 3_600_000);
      expect((await store.listSandboxes())[0]?.endAt).toBe(startedAt + 3_600_000);
      expect(engine.machine(id).deadlineAt).toBe(startedAt + 3_600_000);
    });

    it('is now when it is set to nothing', async () => {
      const { id } = await sandboxes.create(TEAM, createOptions());
      await sandboxes.setTimeout(TEAM, id, 0);
      await told.until(`ended ${id}`);
    });

    it('is refused to be moved once the longest time-out has passed', async () => {
      await sandboxes.close({ onStop: 'kill' });
      let clock = Date.now();
      sandboxes = make({ now: () => clock });
      const { id } = await sandboxes.create(TEAM, createOptions({ timeoutSeconds: 3600 }));
      clock += 3_600_000;
      await expect(sandboxes.setTimeout(TEAM, id, 10)).rejects.toMatchObject({ code: 'invalid_argument' });
    });

    it('is only extended by a refresh, by at least 15 s', async () => {
      const { id, endAt } = await sandboxes.create(TEAM, createOptions({ timeoutSeconds: 60 }));
      await sandboxes.refresh(TEAM, id, 1);
      expect(sandboxes.get(TEAM, id).endAt).toBe(endAt);
      await sandboxes.setTimeout(TEAM, id, 1);
      await sandboxes.refresh(TEAM, id, 0);
      expect(sandboxes.get(TEAM, id).endAt).toBeGreaterThan(Date.now() + 14_000);
    });

    it('is only extended by a connect', async () => {
      const { id, endAt } = await sandboxes.create(TEAM, createOptions({ timeoutSeconds: 60 }));
      expect(await sandboxes.connect(TEAM, id, { timeoutSeconds: 1 })).toMatchObject({ resumed: false });
      expect(sandboxes.get(TEAM, id).endAt).toBe(endAt);
      await sandboxes.connect(TEAM, id, { timeoutSeconds: 600 });
      expect(sandboxes.get(TEAM, id).endAt).toBeGreaterThan(endAt);
      await expect(sandboxes.connect(TEAM, id, { timeoutSeconds: 3601 })).rejects.toMatchObject({
        code: 'invalid_argument',
      });
    });
  });

  it('forgets a sandbox whose machine died, and clears what is left of it', async () => {
    const { id } = await sandboxes.create(TEAM, createOptions());
    const stopped = gate();
    engine.beforeStop = (stoppedId) => {
      expect(stoppedId).toBe(id);
      stopped.open();
      return Promise.resolve();
    };
    engine.kill(id);
    await told.until(`ended ${id}`);
    await stopped.opened;
    expect(sandboxes.list(TEAM)).toEqual([]);
  });

  describe('pause', () => {
    it('keeps the id and both tokens, takes the sandbox from the edge, and drops the deadline', async () => {
      const created = await sandboxes.create(
        TEAM,
        createOptions({ timeoutSeconds: 0.2, allowPublicTraffic: false }),
      );
      const { id, accessToken, trafficToken, startedAt } = created;
      await sandboxes.pause(TEAM, id);
      expect(sandboxes.find(id)).toBeUndefined();
      expect(sandboxes.nextDeadlineOf(TEAM)).toBeUndefined();
      expect(engine.machine(id).deadlineAt).toBeGreaterThan(Date.now() + 86_400_000);
      expect((await store.listSandboxes())[0]?.state).toBe('paused');
      await expect(sandboxes.pause(TEAM, id)).rejects.toMatchObject({ code: 'failed_precondition' });
      await expect(sandboxes.setTimeout(TEAM, id, 5)).rejects.toMatchObject({ code: 'not_found' });
      await expect(sandboxes.refresh(TEAM, id, 5)).rejects.toMatchObject({ code: 'not_found' });

      const { sandbox, resumed } = await sandboxes.connect(TEAM, id, { timeoutSeconds: 60 });
      expect(resumed).toBe(true);
      expect(sandbox).toMatchObject({ id, accessToken, trafficToken, startedAt, state: 'running' });
      expect(engine.machine(id).deadlineAt).toBe(sandbox.endAt);
      expect(told.events).toEqual([`ready ${id}`, `paused ${id}`, `resumed ${id}`]);
    });

    it('is waited for by a connect, and one of two connects resumes', async () => {
      const { id } = await sandboxes.create(TEAM, createOptions());
      const slow = gate();
      engine.beforePause = () => slow.opened;
      const pausing = sandboxes.pause(TEAM, id);
      expect(sandboxes.get(TEAM, id).state).toBe('paused');
      await expect(sandboxes.setTimeout(TEAM, id, 5)).rejects.toMatchObject({ code: 'failed_precondition' });
      const connecting = [1, 2].map(() => sandboxes.connect(TEAM, id, { timeoutSeconds: 60 }));
      slow.open();
      await pausing;
      const results = await Promise.all(connecting);
      expect(results.map((result) => result.resumed).sort()).toEqual([false, true]);
    });

    it('leaves a running sandbox when it fails', async () => {
      const { id, endAt } = await sandboxes.create(TEAM, createOptions());
      engine.beforePause = () => Promise.reject(new ServiceError('unavailable', 'no freezer'));
      await expect(sandboxes.pause(TEAM, id)).rejects.toMatchObject({ code: 'unavailable' });
      expect(sandboxes.find(id)).toMatchObject({ state: 'running', endAt });
      expect(engine.machine(id).deadlineAt).toBe(endAt);
      expect(sandboxes.nextDeadlineOf(TEAM)).toBe(endAt);
    });

    it('can be killed in the middle', async () => {
      const { id } = await sandboxes.create(TEAM, createOptions());
      const { ended } = engine.machine(id);
      const slow = gate();
      engine.beforePause = () => slow.opened;
      const pausing = sandboxes.pause(TEAM, id);
      await sandboxes.kill(TEAM, id);
      slow.open();
      await Promise.allSettled([pausing]);
      await ended;
      expect(await store.listSandboxes()).toEqual([]);
    });

    it('can be killed afterwards, and in the middle of a resume', async () => {
      const one = await sandboxes.create(TEAM, createOptions());
      await sandboxes.pause(TEAM, one.id);
      await sandboxes.kill(TEAM, one.id);
      const two = await sandboxes.create(TEAM, createOptions());
      await sandboxes.pause(TEAM, two.id);
      const slow = gate();
      engine.beforeResume = () => slow.opened;
      const connecting = sandboxes.connect(TEAM, two.id, { timeoutSeconds: 60 });
      const refused = expect(connecting).rejects.toMatchObject({ code: 'failed_precondition' });
      await sandboxes.kill(TEAM, two.id);
      slow.open();
      await refused;
      expect(sandboxes.list(TEAM)).toEqual([]);
    });

    it('is undone when the store does not take the resume, and the next one succeeds', async () => {
      const { id } = await sandboxes.create(TEAM, createOptions());
      await sandboxes.pause(TEAM, id);
      const update = jest
        .spyOn(store, 'updateSandbox')
        .mockRejectedValueOnce(new ServiceError('unavailable', 'no disk'));
      await expect(sandboxes.connect(TEAM, id, { timeoutSeconds: 60 })).rejects.toMatchObject({
        code: 'unavailable',
      });
      update.mockRestore();
      expect(sandboxes.get(TEAM, id).state).toBe('paused');
      expect(engine.machine(id).state).toBe('paused');
      expect((await sandboxes.connect(TEAM, id, { timeoutSeconds: 60 })).resumed).toBe(true);
      expect(engine.machine(id).state).toBe('running');
    });

    it('can be left when the machine was thawed by an attempt that had been given up', async () => {
      const { id } = await sandboxes.create(TEAM, createOptions());
      await sandboxes.pause(TEAM, id);
      engine.machine(id).unfreeze();
      expect((await sandboxes.connect(TEAM, id, { timeoutSeconds: 60 })).resumed).toBe(true);
      expect(sandboxes.find(id)).toBeDefined();
    });

    it('comes at once when the sandbox is resumed for no time', async () => {
      const { id } = await sandboxes.create(TEAM, createOptions({ autoPause: true }));
      await sandboxes.pause(TEAM, id);
      const paused = engine.machine(id);
      const again = gate();
      await sandboxes.connect(TEAM, id, { timeoutSeconds: 0 });
      engine.beforePause = () => Promise.resolve(again.open());
      await again.opened;
      await expect(sandboxes.connect(TEAM, id, { timeoutSeconds: 60 })).resolves.toMatchObject({
        resumed: true,
      });
      expect(paused.state).toBe('running');
    });

    it('counts as a sandbox of its team', async () => {
      sandboxes = make({ maxSandboxes: 1 });
      const { id } = await sandboxes.create(TEAM, createOptions());
      await sandboxes.pause(TEAM, id);
      await expect(sandboxes.create(TEAM, createOptions())).rejects.toMatchObject({
        code: 'resource_exhausted',
      });
      expect((await sandboxes.connect(TEAM, id, { timeoutSeconds: 60 })).resumed).toBe(true);
    });

    it('is ended by traffic where that was asked for, for the time of the create but at least 5 minutes', async () => {
      const short = await sandboxes.create(TEAM, createOptions({ autoResume: true, timeoutSeconds: 20 }));
      const long = await sandboxes.create(TEAM, createOptions({ autoResume: true, timeoutSeconds: 2000 }));
      const [first, second] = [short.id, long.id];
      expect(sandboxes.findSleeping(first)).toBeUndefined();
      for (const id of [first, second]) await sandboxes.pause(TEAM, id);
      expect(sandboxes.findSleeping(first)).toMatchObject({ id: first, state: 'paused' });
      const before = Date.now();
      await Promise.all([sandboxes.wake(first), sandboxes.wake(first), sandboxes.wake(second)]);
      const left = (id: string) => Math.round(((sandboxes.find(id)?.endAt ?? 0) - before) / 10_000) * 10;
      expect([left(first), left(second)]).toEqual([300, 2000]);
    });

    it('is not ended by traffic where that was not asked for, or for one that is gone', async () => {
      const { id } = await sandboxes.create(TEAM, createOptions());
      await sandboxes.pause(TEAM, id);
      expect(sandboxes.findSleeping(id)).toBeUndefined();
      await expect(sandboxes.wake(id)).rejects.toMatchObject({ code: 'not_found' });
      await expect(sandboxes.wake('nope')).rejects.toMatchObject({ code: 'not_found' });
    });

    it('is waited for by traffic that comes in the middle', async () => {
      const { id } = await sandboxes.create(TEAM, createOptions({ autoResume: true }));
      const slow = gate();
      engine.beforePause = () => slow.opened;
      const pausing = sandboxes.pause(TEAM, id);
      const waking = sandboxes.wake(id);
      slow.open();
      await Promise.all([pausing, waking]);
      expect(sandboxes.find(id)).toBeDefined();
    });

    it('is what a resume demands', async () => {
      const { id } = await sandboxes.create(TEAM, createOptions());
      const resume = { timeoutSeconds: 60, mustBePaused: true };
      await expect(sandboxes.connect(TEAM, id, resume)).rejects.toMatchObject({
        code: 'failed_precondition',
      });
    });
  });

  describe('network', () => {
    const closed = { allowInternetAccess: false, allowOut: [], denyOut: [] };
    const open = { allowInternetAccess: true, allowOut: [], denyOut: [] };
    const rules = { allowInternetAccess: true, allowOut: ['1.1.1.1'], denyOut: ['0.0.0.0/0'] };
    const access = { allowOut: ['1.1.1.1/32'], denyOut: ['0.0.0.0/0'] };

    it('is what was asked for from the start, and changes as a whole, in the store, too', async () => {
      const { id } = await sandboxes.create(TEAM, createOptions(rules));
      expect(engine.machine(id).spec.network).toEqual(access);
      await sandboxes.setNetwork(TEAM, id, closed);
      expect(engine.machine(id).network).toBe('none');
      expect(sandboxes.get(TEAM, id)).toMatchObject(closed);
      expect(await store.listSandboxes()).toMatchObject([closed]);
      await restarted().adopt();
      expect(sandboxes.get(TEAM, id)).toMatchObject(closed);
    });

    it('stays as it was when the machine or the store does not take the change', async () => {
      const { id } = await sandboxes.create(TEAM, createOptions(rules));
      engine.beforeSetNetwork = () => Promise.reject(new ServiceError('unavailable', 'no rules today'));
      await expect(sandboxes.setNetwork(TEAM, id, open)).rejects.toMatchObject({ code: 'unavailable' });
      engine.beforeSetNetwork = () => Promise.resolve();
      expect([engine.machine(id).network, sandboxes.get(TEAM, id).denyOut]).toEqual([access, rules.denyOut]);

      const update = store.updateSandbox.bind(store);
      store.updateSandbox = () => Promise.reject(new ServiceError('unavailable', 'no store today'));
      await expect(sandboxes.setNetwork(TEAM, id, open)).rejects.toThrow('no store today');
      store.updateSandbox = update;
      expect([engine.machine(id).network, sandboxes.get(TEAM, id).denyOut]).toEqual([access, rules.denyOut]);
    });

    it('ends as the last change says, of two at the same time', async () => {
      const { id } = await sandboxes.create(TEAM, createOptions());
      const first = gate();
      const seen: unknown[] = [];
      engine.beforeSetNetwork = (_id, to) => {
        seen.push(to);
        return seen.length === 1 ? first.opened : Promise.resolve();
      };
      const changes = [rules, closed].map((egress) => sandboxes.setNetwork(TEAM, id, egress));
      first.open();
      await Promise.all(changes);
      expect([seen, engine.machine(id).network]).toEqual([[access, 'none'], 'none']);
      expect(await store.listSandboxes()).toMatchObject([closed]);
    });

    it('is changed by the own team, as long as there is a machine', async () => {
      const { id } = await sandboxes.create(TEAM, createOptions());
      await expect(sandboxes.setNetwork('other', id, closed)).rejects.toMatchObject({ code: 'not_found' });
      engine.beforeSetNetwork = async () => engine.kill(id);
      await expect(sandboxes.setNetwork(TEAM, id, closed)).rejects.toMatchObject({ code: 'not_found' });
    });

    it('has no rules where machines can’t have any: refused before anything starts', async () => {
      await sandboxes.close({ onStop: 'kill' });
      const runtime = new FakeRuntime(engine);
      runtime.whyNoNetworkRules = 'No rules here';
      sandboxes = make({ runtime });
      const refusal = { code: 'failed_precondition', message: 'No rules here' };
      await expect(sandboxes.create(TEAM, createOptions(rules))).rejects.toMatchObject(refusal);
      expect(engine.started).toEqual([]);
      const { id } = await sandboxes.create(TEAM, createOptions());
      await expect(sandboxes.setNetwork(TEAM, id, rules)).rejects.toMatchObject(refusal);
    });
  });

  describe('metrics', () => {
    it('are told from the first moment on, to the own team only, and until the end', async () => {
      const { id, startedAt } = await sandboxes.create(TEAM, createOptions());
      const [sample] = await sandboxes.listMetrics(TEAM, id, startedAt, Infinity);
      expect(sample).toMatchObject({ cpuCount: 2, cpuUsedPct: 12.5, memUsed: 52_428_800 });
      expect(await sandboxes.lastMetric(TEAM, id)).toEqual(sample);
      expect(await sandboxes.listMetrics(TEAM, id, 0, startedAt - 1)).toEqual([]);
      await expect(sandboxes.listMetrics('other', id, 0, Infinity)).rejects.toMatchObject({
        code: 'not_found',
      });
      await expect(sandboxes.lastMetric('other', id)).rejects.toMatchObject({ code: 'not_found' });
      await sandboxes.kill(TEAM, id);
      await expect(sandboxes.listMetrics(TEAM, id, 0, Infinity)).rejects.toMatchObject({ code: 'not_found' });
    });

    it('stay over a pause, in which nothing is asked, and go on after it', async () => {
      const { id } = await sandboxes.create(TEAM, createOptions());
      const before = await sandboxes.listMetrics(TEAM, id, 0, Infinity);
      await sandboxes.pause(TEAM, id);
      expect(await sandboxes.listMetrics(TEAM, id, 0, Infinity)).toEqual(before);
      await sandboxes.connect(TEAM, id, { timeoutSeconds: 60 });
      expect(await sandboxes.listMetrics(TEAM, id, 0, Infinity)).toHaveLength(before.length + 1);
    });

    it('begin anew with a new process: at once for what runs, at its resume for what is paused', async () => {
      const running = await sandboxes.create(TEAM, createOptions());
      const paused = await sandboxes.create(TEAM, createOptions());
      await sandboxes.pause(TEAM, paused.id);
      await restarted().adopt();
      expect(await sandboxes.listMetrics(TEAM, running.id, 0, Infinity)).toHaveLength(1);
      expect(await sandboxes.listMetrics(TEAM, paused.id, 0, Infinity)).toEqual([]);
      await sandboxes.connect(TEAM, paused.id, { timeoutSeconds: 60 });
      expect(await sandboxes.listMetrics(TEAM, paused.id, 0, Infinity)).toHaveLength(1);
    });
  });

  describe('list', () => {
    it('is newest first, filtered by state, metadata, template and time', async () => {
      await sandboxes.close({ onStop: 'kill' });
      let clock = Date.now();
      sandboxes = make({ now: () => clock });
      const a = await sandboxes.create(TEAM, createOptions({ metadata: { user: 'ann', n: '1' } }));
      clock += 1000;
      const b = await sandboxes.create(TEAM, createOptions({ metadata: { user: 'bob' } }));
      clock += 1000;
      const c = await sandboxes.create(TEAM, createOptions({ template: 'code-interpreter-v1' }));
      await sandboxes.pause(TEAM, b.id);
      const ids = (filter: Parameters<Sandboxes['list']>[1]) =>
        sandboxes.list(TEAM, filter).map((each) => each.id);
      expect(ids({})).toEqual([c.id, b.id, a.id]);
      expect(ids({ order: 'asc' })).toEqual([a.id, b.id, c.id]);
      expect(ids({ states: ['paused'] })).toEqual([b.id]);
      expect(ids({ states: ['running', 'paused'] })).toEqual([c.id, b.id, a.id]);
      expect(ids({ metadata: new Map([['user', 'ann']]) })).toEqual([a.id]);
      expect(ids({ metadata: new Map([['user', 'ann'], ['n', '2']]) })).toEqual([]); // prettier-ignore
      expect(ids({ metadata: new Map([['toString', 'x']]) })).toEqual([]);
      expect(ids({ templateId: c.templateId })).toEqual([c.id]);
      expect(ids({ startedAfter: b.startedAt })).toEqual([c.id, b.id]);
    });
  });

  it('finds the sandbox that signed a file URL, and no paused or unsecured one', async () => {
    const one = await sandboxes.create(TEAM, createOptions());
    await sandboxes.create(TEAM, createOptions());
    await sandboxes.create(TEAM, createOptions({ secure: false }));
    const request = { operation: 'read', path: '/a b', username: '', expiration: undefined } as const;
    const signature = fileSignature(request, one.accessToken ?? '');
    expect(sandboxes.findBySignature({ ...request, signature })?.id).toBe(one.id);
    expect(sandboxes.findBySignature({ ...request, signature: signature.replaceAll('+', ' ') })?.id).toBe(
      one.id,
    );
    expect(sandboxes.findBySignature({ ...request, operation: 'write', signature })).toBeUndefined();
    expect(sandboxes.findBySignature({ ...request, signature: '' })).toBeUndefined();
    await sandboxes.pause(TEAM, one.id);
    expect(sandboxes.findBySignature({ ...request, signature })).toBeUndefined();
  });

  describe('adopt', () => {
    it('takes over running and paused sandboxes with their tokens and deadlines', async () => {
      const one = await sandboxes.create(TEAM, createOptions({ env: { A: '1' }, metadata: { m: 'ä' } }));
      const two = await sandboxes.create(TEAM, createOptions());
      await sandboxes.pause(TEAM, two.id);
      const before = JSON.stringify(sandboxes.list(TEAM).map(({ ...rest }) => ({ ...rest, instance: 0 })));
      const next = restarted();
      expect(await next.adopt()).toEqual({ adopted: 2, removed: 0 });
      expect(JSON.stringify(next.list(TEAM).map(({ ...rest }) => ({ ...rest, instance: 0 })))).toBe(before);
      expect(told.events).toEqual([`adopted ${one.id}`]);
      expect(next.find(two.id)).toBeUndefined();
      expect(next.nextDeadlineOf(TEAM)).toBe(one.endAt);
      await next.connect(TEAM, two.id, { timeoutSeconds: 60 });
      expect(told.events).toEqual([`adopted ${one.id}`, `adopted ${two.id}`]);
      engine.kill(one.id);
      await told.until(`ended ${one.id}`);
    });

    it('removes half-made ones, orphans, and records without a machine', async () => {
      const kept = await sandboxes.create(TEAM, createOptions());
      const lost = await sandboxes.create(TEAM, createOptions());
      const half = await sandboxes.create(TEAM, createOptions());
      const vanished = engine.machine(lost.id);
      engine.machines.delete(lost.id); // without a word, as when the host went down
      await store.updateSandbox(half.id, { state: 'starting' });
      await new FakeRuntime(engine).start({ ...engine.machine(kept.id).spec, id: 'orphan' });
      const gone = [half.id, 'orphan'].map((id) => engine.machine(id).ended);
      const next = restarted();
      expect(await next.adopt()).toEqual({ adopted: 1, removed: 3 });
      await Promise.all(gone);
      vanished.shutDown({ reason: 'stopped' });
      expect([...engine.machines.keys()]).toEqual([kept.id]);
      expect((await store.listSandboxes()).map((row) => row.id)).toEqual([kept.id]);
    });

    it('keeps deadlines that passed while no service was there', async () => {
      const ended = await sandboxes.create(TEAM, createOptions());
      const paused = await sandboxes.create(TEAM, createOptions({ autoPause: true }));
      const past = Date.now() - 1000;
      await store.updateSandbox(ended.id, { endAt: past });
      await store.updateSandbox(paused.id, { endAt: past });
      const next = restarted();
      expect(await next.adopt()).toEqual({ adopted: 1, removed: 1 });
      await told.until(`paused ${paused.id}`);
      expect(next.list(TEAM).map((sandbox) => sandbox.id)).toEqual([paused.id]);
    });

    it.each(['before the freeze was recorded', 'after the thaw, before it was recorded'])(
      'calls a sandbox paused when the service died %s',
      async (moment) => {
        const { id } = await sandboxes.create(TEAM, createOptions());
        if (moment.startsWith('before')) await new FakeRuntime(engine).pause(id);
        else await store.updateSandbox(id, { state: 'paused', endAt: Date.now() - 5 });
        const next = restarted();
        expect(await next.adopt()).toEqual({ adopted: 1, removed: 0 });
        expect(next.get(TEAM, id).state).toBe('paused');
        expect(engine.machine(id).state).toBe('paused');
        expect((await store.listSandboxes())[0]?.state).toBe('paused');
        expect((await next.connect(TEAM, id, { timeoutSeconds: 60 })).resumed).toBe(true);
      },
    );

    it('removes a sandbox that can not be reached', async () => {
      const { id } = await sandboxes.create(TEAM, createOptions());
      const { ended } = engine.machine(id);
      engine.beforeAdopt = () => Promise.reject(new ServiceError('unavailable', 'no agent'));
      expect(await restarted().adopt()).toEqual({ adopted: 0, removed: 1 });
      await ended;
      expect(await store.listSandboxes()).toEqual([]);
    });
  });

  describe('close', () => {
    it('keeps sandboxes for the next process', async () => {
      const { id } = await sandboxes.create(TEAM, createOptions());
      await sandboxes.close({ onStop: 'keep' });
      await sandboxes.close({ onStop: 'kill' });
      expect([...engine.machines.keys()]).toEqual([id]);
      expect(told.events).toEqual([`ready ${id}`]);
      await restarted().adopt();
      expect(sandboxes.find(id)?.id).toBe(id);
    });

    it('ends every sandbox where that was asked for, and a create under way in any case', async () => {
      const { id } = await sandboxes.create(TEAM, createOptions());
      const paused = await sandboxes.create(TEAM, createOptions());
      await sandboxes.pause(TEAM, paused.id);
      const slow = gate();
      const reached = gate();
      engine.beforeStart = () => {
        reached.open();
        return slow.opened;
      };
      const creating = sandboxes.create(TEAM, createOptions());
      const failed = expect(creating).rejects.toBeInstanceOf(ServiceError);
      await reached.opened;
      const closing = sandboxes.close({ onStop: 'kill' });
      slow.open();
      await closing;
      await failed;
      expect(engine.machines.size).toBe(0);
      expect(told.events).toContain(`ended ${id}`);
      await expect(sandboxes.create(TEAM, createOptions())).rejects.toMatchObject({ code: 'unavailable' });
    });
  });
});
