import { Sandboxes } from '../../../service/sandboxes/sandboxes';
import { Store } from '../../../service/sandboxes/store';
import { DEFAULT_TEAM_ID as TEAM } from '../../../service/sandboxes/store-teams';
import { Templates } from '../../../service/sandboxes/templates';
import { FakeEngine, FakeRuntime } from '../../fakes/fake-runtime';
import { eventually } from '../../suites/runtime-suite';
import { createOptions } from './create-options';
import { RESOURCES, sandboxesOptions } from './sandboxes-options';

const POOLED = 'cellboxcodeinterp001';

describe('the isolation level of a template', () => {
  let engine: FakeEngine;
  let store: Store;
  let sandboxes: Sandboxes;

  /** `base` has no level of its own, the other template has this one, and a pool of one machine. */
  function make(isolation: string): void {
    const runtime = new FakeRuntime(engine);
    runtime.isolationLevels = ['none', 'gvisor'];
    const templates = new Templates(RESOURCES, {
      templates: new Map([['code-interpreter-v1', { isolation }]]),
    });
    const warmer = { warm: () => Promise.resolve(), isWarm: () => true, drop: () => undefined, underWay: 0 };
    const sizes = new Map([[POOLED, { min: 0, target: 1, max: 1 }]]);
    sandboxes = new Sandboxes({
      ...sandboxesOptions(engine, store),
      runtime,
      templates,
      metricsIntervalMs: 3_600_000,
      pool: { warmer, sizes, parallel: 2, freeMemoryMB: () => 8192 },
    });
  }

  const pool = () => sandboxes.pools?.list().find(({ template }) => template.id === POOLED);

  beforeEach(async () => {
    engine = new FakeEngine();
    store = await Store.open(':memory:');
  });

  afterEach(async () => {
    await sandboxes.close({ onStop: 'kill' });
    await store.close();
    expect(engine.machines.size).toBe(0);
  });

  it('is what its machines are started at, and no other template’s', async () => {
    make('gvisor');
    const { id: walled } = await sandboxes.create(TEAM, createOptions({ template: 'code-interpreter-v1' }));
    const { id: plain } = await sandboxes.create(TEAM, createOptions({ template: 'base' }));
    expect(engine.machine(walled).spec.isolation).toBe('gvisor');
    expect(engine.machine(plain).spec).not.toHaveProperty('isolation');
  });

  it('is what its machines kept ready have', async () => {
    make('gvisor');
    sandboxes.pools?.open();
    await eventually(() => Promise.resolve(expect(pool()?.ready).toBe(1)), 5_000);
    const { id } = await sandboxes.create(TEAM, createOptions({ template: 'code-interpreter-v1' }));
    expect(engine.started[0]).toBe(id);
    expect(engine.machine(id).spec.isolation).toBe('gvisor');
  });

  it('fails a create when the runtime lacks it, names those that there are, and leaves nothing', async () => {
    make('moat');
    await expect(
      sandboxes.create(TEAM, createOptions({ template: 'code-interpreter-v1' })),
    ).rejects.toMatchObject({
      code: 'failed_precondition',
      message: 'There is no isolation level moat here, only none, gvisor',
    });
    expect(await store.listSandboxes()).toEqual([]);
    expect(sandboxes.list(TEAM)).toEqual([]);
  });

  it('makes its pool pause and say why, when the runtime lacks it', async () => {
    make('moat');
    sandboxes.pools?.open();
    await eventually(
      () => Promise.resolve(expect(pool()?.lastError).toContain('no isolation level moat')),
      5_000,
    );
    expect(pool()).toMatchObject({ ready: 0, starting: 0 });
    expect(engine.started).toEqual([]);
  });
});
