import { createLogger } from '../../../service/log';
import { Sandboxes } from '../../../service/sandboxes/sandboxes';
import type { SandboxEvents } from '../../../service/sandboxes/sandbox-events';
import { Store } from '../../../service/sandboxes/store';
import { DEFAULT_TEAM_ID } from '../../../service/sandboxes/store-teams';
import { Secrets } from '../../../service/secrets';
import { FakeEngine, FakeRuntime } from '../../fakes/fake-runtime';
import { createOptions } from './create-options';

const TEMPLATE = 'cellboxcodeinterp001';
const RESOURCES = { cpuCount: 1, memoryMB: 128, diskSizeMB: 128, pids: 64, openFiles: 256 };
type Outcome = Parameters<NonNullable<SandboxEvents['onCreate']>>[0];

let engine: FakeEngine;
let store: Store;
let sandboxes: Sandboxes;
let outcomes: Outcome[];

beforeEach(async () => {
  engine = new FakeEngine();
  store = await Store.open(':memory:');
  outcomes = [];
  sandboxes = new Sandboxes({
    runtime: new FakeRuntime(engine),
    store,
    secrets: new Secrets(Buffer.alloc(32, 1)),
    logger: createLogger('silent'),
    resources: RESOURCES,
    maxSandboxes: 2,
    maxTimeoutSeconds: 3600,
    startTimeoutMs: 5_000,
    events: { onCreate: (outcome) => outcomes.push(outcome) },
    pool: {
      warmer: { warm: () => Promise.resolve(), isWarm: () => true, drop: () => undefined, underWay: 0 },
      sizes: new Map([[TEMPLATE, { min: 0, target: 1, max: 1 }]]),
      freeMemoryMB: () => 8192,
    },
  });
});

afterEach(async () => {
  await sandboxes.close({ onStop: 'kill' });
  await store.close();
});

const create = (template = 'base', idempotencyKey?: string) =>
  sandboxes.create(
    DEFAULT_TEAM_ID,
    createOptions({ template, ...(idempotencyKey !== undefined && { idempotencyKey }) }),
  );

async function until(isSo: () => boolean): Promise<void> {
  for (const deadline = Date.now() + 5_000; !isSo();) {
    if (Date.now() > deadline) throw new Error('it did not come to that');
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

it('tells of each create how it ended, and whether its machine was ready', async () => {
  sandboxes.pools?.open();
  await until(() => sandboxes.pools?.list().some(({ ready }) => ready === 1) === true);
  await create('code-interpreter-v1');
  await create('base');
  await expect(create('base')).rejects.toMatchObject({ code: 'resource_exhausted' });
  await expect(create('unknown')).rejects.toMatchObject({ code: 'not_found' });
  const seconds = expect.any(Number) as number;
  expect(outcomes).toEqual([
    { result: 'ok', pooled: true, seconds },
    { result: 'ok', pooled: false, seconds },
    { result: 'resource_exhausted', pooled: false, seconds },
    { result: 'not_found', pooled: false, seconds },
  ]);
});

it('tells a defect by its word, and a repeated create once', async () => {
  await create('base', 'again');
  await create('base', 'again');
  expect(outcomes.map(({ result }) => result)).toEqual(['ok']);
  engine.beforeStart = () => Promise.reject(new Error('no engine'));
  await expect(create()).rejects.toMatchObject({ code: 'internal' });
  expect(outcomes.at(-1)?.result).toBe('internal');
});

it('counts what there is by state', async () => {
  expect(sandboxes.counts).toEqual({ starting: 0, running: 0, paused: 0, stopping: 0 });
  const { id } = await create();
  await create();
  await sandboxes.pause(DEFAULT_TEAM_ID, id);
  expect(sandboxes.counts).toEqual({ starting: 0, running: 1, paused: 1, stopping: 0 });
  let release = (): void => undefined;
  const held = new Promise<void>((resolve) => (release = resolve));
  engine.beforeStop = () => held;
  await sandboxes.kill(DEFAULT_TEAM_ID, id);
  expect(sandboxes.counts).toEqual({ starting: 0, running: 1, paused: 0, stopping: 1 });
  engine.beforeStart = () => held;
  const third = create();
  expect(sandboxes.counts.starting).toBe(1);
  release();
  await third;
  await until(() => sandboxes.counts.stopping === 0);
  expect(sandboxes.counts).toEqual({ starting: 0, running: 2, paused: 0, stopping: 0 });
});
