import { setTimeout as delay } from 'node:timers/promises';
import type { PoolSize } from '../../../service/sandboxes/pool';
import { poolSizes } from '../../../service/sandboxes/pools';
import type { PoolsOptions, Warmer } from '../../../service/sandboxes/pools';
import type { CreateOptions } from '../../../service/sandboxes/sandbox';
import { Sandboxes } from '../../../service/sandboxes/sandboxes';
import type { SandboxesOptions } from '../../../service/sandboxes/sandboxes';
import { Store } from '../../../service/sandboxes/store';
import { DEFAULT_TEAM_ID as TEAM } from '../../../service/sandboxes/store-teams';
import { BUILT_IN_TEMPLATES } from '../../../service/sandboxes/templates';
import { FakeEngine, gate } from '../../fakes/fake-runtime';
import { createOptions } from './create-options';
import { RESOURCES, sandboxesOptions } from './sandboxes-options';

const TEMPLATE = 'cellboxcodeinterp001';
const WAIT_MS = 10_000;

/** Kernels that answer as soon as they are asked for. */
class FakeWarmer implements Warmer {
  readonly warmed = new Set<string>();
  readonly dropped: string[] = [];
  before: () => Promise<void> = () => Promise.resolve();

  async warm({ id }: { id: string }): Promise<void> {
    await this.before();
    this.warmed.add(id);
  }

  isWarm(id: string): boolean {
    return this.warmed.has(id);
  }

  drop(id: string): void {
    this.dropped.push(id);
  }

  underWay = 0;
}

const options = (overrides: Partial<CreateOptions> = {}): CreateOptions =>
  createOptions({ template: 'code-interpreter-v1', ...overrides });

async function until(condition: () => boolean): Promise<void> {
  const deadline = Date.now() + WAIT_MS;
  while (!condition()) {
    if (Date.now() > deadline) throw new Error('it did not come to that in time');
    await delay(2);
  }
}

describe('Sandboxes with pools', () => {
  let engine: FakeEngine;
  let store: Store;
  let warmer: FakeWarmer;
  let ready: string[];
  let sandboxes: Sandboxes;

  function make(
    size: PoolSize,
    overrides: Partial<SandboxesOptions> = {},
    pools: Partial<PoolsOptions> = {},
  ): Sandboxes {
    return new Sandboxes({
      ...sandboxesOptions(engine, store),
      maxSandboxes: 100,
      metricsIntervalMs: 3_600_000,
      pool: { warmer, sizes: new Map([[TEMPLATE, size]]), parallel: 4, freeMemoryMB: () => 8192, ...pools },
      events: { onReady: ({ id }) => ready.push(id) },
      ...overrides,
    });
  }

  const fixed = (target: number): PoolSize => ({ min: 0, target, max: target });
  const status = () => {
    const found = sandboxes.pools?.list().find(({ template }) => template.id === TEMPLATE);
    if (found === undefined) throw new Error('no pool');
    return found;
  };

  async function filled(...settings: Parameters<typeof make>): Promise<void> {
    const [size] = settings;
    sandboxes = make(...settings);
    sandboxes.pools?.open();
    await until(() => status().ready === size.target);
  }

  beforeEach(async () => {
    engine = new FakeEngine();
    store = await Store.open(':memory:');
    warmer = new FakeWarmer();
    ready = [];
  });

  afterEach(async () => {
    await sandboxes.close({ onStop: 'kill' });
    await store.close();
    expect(engine.machines.size).toBe(0);
  });

  it('makes machines of the template and size that belong to nobody, and lists none of them', async () => {
    await filled(fixed(2));
    const [id = ''] = engine.started;
    expect(engine.machine(id).spec).toEqual({
      id,
      env: { E2B_SANDBOX: 'true', E2B_SANDBOX_ID: id, E2B_TEMPLATE_ID: TEMPLATE },
      resources: RESOURCES,
      network: 'full',
      labels: { pool: 'ready', template: TEMPLATE },
      deadlineAt: expect.any(Number),
    });
    expect(id).toMatch(/^i[a-z0-9]{20}$/);
    expect(sandboxes.list(TEAM)).toEqual([]);
    expect(sandboxes.find(id)).toBeUndefined();
    expect(await store.listSandboxes()).toEqual([]);
  });

  it('stays empty until it is opened', async () => {
    sandboxes = make(fixed(1));
    const sandbox = await sandboxes.create(TEAM, options());
    expect(engine.started).toEqual([sandbox.id]);
    expect(status()).toMatchObject({ ready: 0, starting: 0, missesTotal: 0 });
  });

  it('gives a create the oldest machine, with all that was asked for', async () => {
    await filled(fixed(2));
    const [oldest = ''] = engine.started;
    const before = Date.now();
    const sandbox = await sandboxes.create(
      TEAM,
      options({ env: { A: '1' }, metadata: { m: 'x' }, allowPublicTraffic: false, timeoutSeconds: 60 }),
    );
    expect(sandbox.id).toBe(oldest);
    const machine = engine.machine(oldest);
    expect(machine.env).toEqual({ ...machine.spec.env, A: '1' });
    expect(machine.accessToken).toBe(sandbox.accessToken);
    expect(sandbox.accessToken).toMatch(/^[0-9a-f]{64}$/);
    expect(sandbox.trafficToken).toMatch(/^[0-9a-f]{64}$/);
    expect(sandbox.startedAt).toBeGreaterThanOrEqual(before);
    expect(sandbox.endAt).toBe(sandbox.startedAt + 60_000);
    expect(machine.deadlineAt).toBe(sandbox.endAt);
    expect(ready).toEqual([oldest]);
    const rows = await store.listSandboxes();
    expect(rows.map((row) => [row.id, row.teamId, row.state, row.metadata, row.endAt])).toEqual([
      [oldest, TEAM, 'running', { m: 'x' }, sandbox.endAt],
    ]);
    expect(sandboxes.list(TEAM).map(({ id }) => id)).toEqual([oldest]);
  });

  it('leaves the agent of an unsecured sandbox open', async () => {
    await filled(fixed(1));
    const { id, accessToken } = await sandboxes.create(TEAM, options({ secure: false }));
    expect([accessToken, engine.machine(id).accessToken]).toEqual([undefined, undefined]);
  });

  it('is refilled by the claim', async () => {
    await filled(fixed(2));
    await sandboxes.create(TEAM, options());
    await until(() => engine.started.length === 3 && status().ready === 2);
    expect(status()).toMatchObject({ claimedTotal: 1, missesTotal: 0, lastError: undefined });
  });

  it('has its network rules before its settings are recorded, and is ended when it can’t have them', async () => {
    await filled(fixed(2));
    const [first = '', second = ''] = engine.started;
    const rows: unknown[] = [];
    engine.beforeSetNetwork = async (id) => {
      rows.push(await store.listSandboxes());
      if (id === first) throw new Error('no rules today');
    };
    const sandbox = await sandboxes.create(TEAM, options({ denyOut: ['1.1.1.1'] }));
    expect([sandbox.id, rows]).toEqual([second, [[], []]]);
    expect(engine.machine(second).network).toEqual({ allowOut: [], denyOut: ['1.1.1.1/32'] });
    await until(() => !engine.machines.has(first));
  });

  it.each([
    ['without a network', { allowInternetAccess: false }],
    ['of another template', { template: 'base' }],
  ])('starts a sandbox %s from nothing', async (_kind, overrides) => {
    await filled(fixed(1));
    const [pooled] = engine.started;
    const sandbox = await sandboxes.create(TEAM, options(overrides));
    expect(sandbox.id).not.toBe(pooled);
    expect(status()).toMatchObject({ ready: 1, claimedTotal: 0, missesTotal: 0 });
  });

  it('takes another machine when the agent of one does not take its settings, and ends that one', async () => {
    await filled(fixed(2));
    const [first = '', second = ''] = engine.started;
    engine.machine(first).agentStatus = 500;
    const sandbox = await sandboxes.create(TEAM, options());
    expect(sandbox.id).toBe(second);
    await until(() => !engine.machines.has(first));
    expect(warmer.dropped).toContain(first);
    expect(ready).toEqual([second]);
    expect((await store.listSandboxes()).map(({ id }) => id)).toEqual([second]);
  });

  it('starts one from nothing when no machine can be claimed', async () => {
    await filled(fixed(1));
    const [first = ''] = engine.started;
    engine.machine(first).agentStatus = 500;
    const sandbox = await sandboxes.create(TEAM, options());
    expect(sandbox.id).not.toBe(first);
    expect(sandboxes.list(TEAM)).toHaveLength(1);
  });

  it('gives one machine to one create, however many come at once', async () => {
    await filled(fixed(10));
    const pooled = new Set(engine.started);
    const created = await Promise.all(Array.from({ length: 50 }, () => sandboxes.create(TEAM, options())));
    const ids = created.map(({ id }) => id);
    expect(new Set(ids).size).toBe(50);
    expect(ids.filter((id) => pooled.has(id))).toHaveLength(10);
    const tokens = new Set(created.map(({ accessToken }) => accessToken));
    expect(tokens.size).toBe(50);
    for (const { id, accessToken } of created) expect(engine.machine(id).accessToken).toBe(accessToken);
    await until(() => status().ready === 10);
  });

  it('answers those who get a machine before it starts any other', async () => {
    await filled(fixed(1), {}, { parallel: 1 }); // so that the pool fills up again after both of them
    const [id = ''] = engine.started;
    engine.machine(id).freeze(); // its agent does not answer yet
    const claiming = sandboxes.create(TEAM, options());
    const starting = sandboxes.create(TEAM, options({ template: 'base' }));
    await delay(20);
    expect(engine.started).toEqual([id]);
    engine.machine(id).unfreeze();
    const [claimed, started] = await Promise.all([claiming, starting]);
    expect([claimed.id, started.id]).toEqual([id, engine.started[1]]);
  });

  it('replays a create with the machine that the first one got', async () => {
    await filled(fixed(2));
    const keyed = options({ idempotencyKey: 'k' });
    const [one, two] = await Promise.all([sandboxes.create(TEAM, keyed), sandboxes.create(TEAM, keyed)]);
    expect(two.id).toBe(one.id);
    expect(status().claimedTotal).toBe(1);
  });

  describe('the limit of sandboxes', () => {
    it('is as high as without a pool', async () => {
      await filled(fixed(2), { maxSandboxes: 2 });
      await sandboxes.create(TEAM, options({ template: 'base' }));
      await sandboxes.create(TEAM, options({ template: 'base' }));
      await expect(sandboxes.create(TEAM, options())).rejects.toMatchObject({ code: 'resource_exhausted' });
    });

    it('holds for machines in use and kept ready together', async () => {
      await filled(fixed(3), { maxSandboxes: 4 });
      await sandboxes.create(TEAM, options({ template: 'base' }));
      await sandboxes.create(TEAM, options({ template: 'base' }));
      await until(() => engine.machines.size === 4 && status().ready === 2);
      const [sandbox] = sandboxes.list(TEAM);
      await sandboxes.kill(TEAM, sandbox?.id ?? '');
      await until(() => status().ready === 3);
    });
  });

  it('ends a machine whose creator went away while it was claimed', async () => {
    await filled(fixed(1));
    const [id = ''] = engine.started;
    engine.machine(id).freeze(); // its agent does not answer
    const caller = new AbortController();
    const creating = sandboxes.create(TEAM, options(), caller.signal);
    const failed = expect(creating).rejects.toMatchObject({ code: 'unavailable' });
    caller.abort();
    await failed;
    await until(() => !engine.machines.has(id));
    expect(sandboxes.list(TEAM)).toEqual([]);
    expect(await store.listSandboxes()).toEqual([]);
  });

  it('replaces a machine that fails its regular check', async () => {
    sandboxes = make(fixed(1), {}, { checkEveryMs: 20 });
    sandboxes.pools?.open();
    await until(() => status().ready === 1);
    const [first = ''] = engine.started;
    engine.machine(first).agentStatus = 500;
    await until(() => !engine.machines.has(first));
    await until(() => status().ready === 1);
    expect(engine.started).toHaveLength(2);
  });

  describe('the end of the service', () => {
    it('ends unclaimed machines also where sandboxes are kept', async () => {
      await filled(fixed(2));
      const { id } = await sandboxes.create(TEAM, options());
      await sandboxes.close({ onStop: 'keep' });
      expect([...engine.machines.keys()]).toEqual([id]);
      sandboxes = make(fixed(0));
      await sandboxes.adopt();
    });

    it('leaves nothing of a start under way', async () => {
      const slow = gate();
      engine.beforeStart = () => slow.opened;
      sandboxes = make(fixed(2));
      sandboxes.pools?.open();
      await until(() => engine.started.length === 2);
      const closing = sandboxes.close({ onStop: 'keep' });
      slow.open();
      await closing;
      expect(engine.machines.size).toBe(0);
    });

    it('by a crash leaves claimed sandboxes to the next one, which ends the others', async () => {
      await filled(fixed(2));
      const { id } = await sandboxes.create(TEAM, options({ env: { A: '1' } }));
      await until(() => status().ready === 2);
      // What a crash leaves: store and machines as they are. The old object does nothing more but hold its machines.
      const crashed = sandboxes;
      sandboxes = make(fixed(0));
      expect(await sandboxes.adopt()).toEqual({ adopted: 1, removed: 2 });
      await until(() => engine.machines.size === 1);
      expect(sandboxes.find(id)).toMatchObject({ id, env: expect.objectContaining({ A: '1' }) });
      await crashed.close({ onStop: 'keep' });
    });
  });
});

describe('poolSizes', () => {
  it('keeps the code interpreter ready, and lets it grow to twice its size', () => {
    expect([...poolSizes({ poolSize: 2, poolMin: 1, poolMax: undefined })]).toEqual([
      [TEMPLATE, { min: 1, target: 2, max: 4 }],
    ]);
    expect(BUILT_IN_TEMPLATES.map(({ id }) => id)).toContain(TEMPLATE);
  });

  it('refuses sizes that contradict each other', () => {
    expect(() => poolSizes({ poolSize: 2, poolMin: 3, poolMax: undefined })).toThrow('min ≤ target ≤ max');
    expect(() => poolSizes({ poolSize: 2, poolMin: 0, poolMax: 1 })).toThrow('min ≤ target ≤ max');
  });
});
