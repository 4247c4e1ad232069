import { performance } from 'node:perf_hooks';
import { Sandbox } from '@e2b/code-interpreter';
import type { PoolInfo } from '../protocol/native';
import type { MachineFloor } from './machine-floor';

/** Where the service is, and the key for it. */
export interface Service {
  readonly url: string;
  readonly apiKey: string;
}

/** Milliseconds of one row, beside those of the floor: to the agent's connection, or to the kernel's first answer. */
export interface CreateRow {
  readonly name: string;
  readonly samples: number[];
  readonly floor: number[];
}

const CREATE_ROWS = [
  'create (pooled)',
  'create → first result (pooled)',
  'create (cold)',
  'create → first result (cold)',
] as const;

const POOLED = 'code-interpreter-v1';
/** A template without a pool: each of its sandboxes is a cold start. */
const UNPOOLED = 'base';
const POOL_SIZE = 2;
const FILL_DEADLINE_MS = 120_000;
const POLL_MS = 100;
/** What a full pool and an ended sandbox still have to do in the background. */
const SETTLE_MS = 500;

/** `Sandbox.create` and a first `1+1` in it, through the official SDK; the pool is full before each round. */
export async function measureCreates(
  service: Service,
  floor: MachineFloor,
  quick: boolean,
): Promise<CreateRow[]> {
  const rows = CREATE_ROWS.map((name): CreateRow => ({ name, samples: [], floor: [] }));
  const [pooled, pooledFirst, cold, coldFirst] = rows as [CreateRow, CreateRow, CreateRow, CreateRow];
  const rounds = quick ? 3 : 30;
  const coldEvery = quick ? 1 : 5;
  await setPool(service, POOL_SIZE);
  try {
    // The round before the first is not counted: it meets cold code of SDK and service.
    for (let round = -1; round < rounds; round++) {
      await quiet(service);
      const before = await poolOf(service);
      const warm = await measure(service, POOLED);
      const after = await poolOf(service);
      if (after.claimed_total !== before.claimed_total + 1)
        throw new Error('a create did not come from the pool');
      if (round < 0) continue;
      pooled.samples.push(warm.create);
      pooledFirst.samples.push(warm.first);
      if (round % coldEvery !== 0) continue;
      await quiet(service);
      const least = await floor.start();
      await quiet(service);
      const fresh = await measure(service, UNPOOLED);
      cold.samples.push(fresh.create);
      coldFirst.samples.push(fresh.first);
      for (const row of [pooled, cold]) row.floor.push(least.agent);
      for (const row of [pooledFirst, coldFirst]) row.floor.push(least.kernel);
    }
  } finally {
    await setPool(service, 0);
  }
  return rows;
}

async function measure(
  { url, apiKey }: Service,
  template: string,
): Promise<{ create: number; first: number }> {
  const started = performance.now();
  const sandbox = await Sandbox.create(template, { apiKey, apiUrl: url, sandboxUrl: url });
  try {
    const create = performance.now() - started;
    const execution = await sandbox.runCode('1+1');
    const first = performance.now() - started;
    if (execution.text !== '2') throw new Error(`1+1 in a new sandbox: ${JSON.stringify(execution)}`);
    return { create, first };
  } finally {
    await sandbox.kill();
  }
}

/** Waits until the pool is full and nothing else is under way. */
async function quiet(service: Service): Promise<void> {
  const deadline = Date.now() + FILL_DEADLINE_MS;
  for (;;) {
    const { ready, starting, target, last_error } = await poolOf(service);
    if (ready === target && starting === 0) break;
    if (Date.now() > deadline) throw new Error(`the pool is not full: ${last_error ?? 'it says no why'}`);
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
  await new Promise((resolve) => setTimeout(resolve, SETTLE_MS));
}

async function poolOf(service: Service): Promise<PoolInfo> {
  const { items } = (await ask(service, 'GET', '/v1/pools')) as { items: PoolInfo[] };
  const pool = items.find((each) => each.template === POOLED);
  if (pool === undefined) throw new Error(`there is no pool of ${POOLED}`);
  return pool;
}

async function setPool(service: Service, target: number): Promise<void> {
  await ask(service, 'PUT', `/v1/pools/${POOLED}`, { target });
}

async function ask({ url, apiKey }: Service, method: string, path: string, body?: object): Promise<unknown> {
  const response = await fetch(url + path, {
    method,
    headers: { 'x-api-key': apiKey, 'content-type': 'application/json' },
    ...(body !== undefined && { body: JSON.stringify(body) }),
    signal: AbortSignal.timeout(10_000),
  });
  if (!response.ok)
    throw new Error(`${method} ${path} answered ${response.status}: ${await response.text()}`);
  return response.json();
}
