import { performance } from 'node:perf_hooks';
import { Sandbox } from '@e2b/code-interpreter';
import { figuresOf } from './figures';
import type { Section } from './figures';
import { startGatewayContainer } from './gateway-container';
import type { MachineFloor } from './machine-floor';
import { POOLED, poolOf, quiet, setPool, UNPOOLED } from './native';
import type { Service } from './service';
import { CHART, isChart } from './scenarios';
import { formatSummary, markdownTable, ratioOf, summarise } from './statistics';

/** Milliseconds of one row, by column. */
interface CreateRow {
  readonly name: string;
  readonly samples: Record<'Cellbox' | 'floor' | 'docker run', number[]>;
}

const POOL_SIZE = 2;

export const CREATE_ROWS = {
  pooled: 'create (pooled)',
  pooledFirst: 'create → first result (pooled)',
  firstChart: 'first chart (pooled)',
  cold: 'create (cold)',
  coldFirst: 'create → first result (cold)',
} as const;

/**
 * `Sandbox.create` and what is run first there, through the official SDK; the pool is full before each round. `image`:
 * what `docker run` makes a container from that has a gateway and no service.
 */
export async function measureCreates(
  service: Service,
  floor: MachineFloor,
  options: { quick: boolean; image: string | undefined },
): Promise<Section> {
  const row = (name: string): CreateRow => ({ name, samples: { Cellbox: [], floor: [], 'docker run': [] } });
  const rows = {
    pooled: row(CREATE_ROWS.pooled),
    pooledFirst: row(CREATE_ROWS.pooledFirst),
    firstChart: row(CREATE_ROWS.firstChart),
    cold: row(CREATE_ROWS.cold),
    coldFirst: row(CREATE_ROWS.coldFirst),
  };
  const rounds = options.quick ? 3 : 30;
  const coldEvery = options.quick ? 1 : 5;
  await setPool(service, POOL_SIZE);
  try {
    // The round before the first is not counted: it meets cold code of SDK and service.
    for (let round = -1; round < rounds; round++) {
      const warm = await measurePooled(service);
      if (round < 0) continue;
      rows.pooled.samples.Cellbox.push(warm.create);
      rows.pooledFirst.samples.Cellbox.push(warm.first);
      if (round % coldEvery !== 0) continue;
      rows.firstChart.samples.Cellbox.push((await measurePooled(service, CHART)).run);
      await quiet(service);
      const least = await floor.start();
      await quiet(service);
      const fresh = await measureCreate(service, UNPOOLED, '1+1');
      rows.cold.samples.Cellbox.push(fresh.create);
      rows.coldFirst.samples.Cellbox.push(fresh.first);
      for (const each of [rows.pooled, rows.cold]) each.samples.floor.push(least.agent);
      for (const each of [rows.pooledFirst, rows.coldFirst]) each.samples.floor.push(least.kernel);
      if (options.image === undefined) continue;
      await quiet(service);
      const container = await startGatewayContainer(options.image);
      await container.close();
      for (const each of [rows.pooledFirst, rows.coldFirst])
        each.samples['docker run'].push(container.firstResultMs);
    }
  } finally {
    await setPool(service, 0);
  }
  return section(Object.values(rows), floor.description);
}

/** One create that came from the pool, and ran the code first. */
export async function measurePooled(
  service: Service,
  code = '1+1',
): Promise<{ create: number; first: number; run: number }> {
  await quiet(service);
  const before = await poolOf(service);
  const measured = await measureCreate(service, POOLED, code);
  const after = await poolOf(service);
  if (after.claimed_total !== before.claimed_total + 1)
    throw new Error('a create did not come from the pool');
  return measured;
}

async function measureCreate(
  { url, apiKey }: Service,
  template: string,
  code: string,
): Promise<{ create: number; first: number; run: number }> {
  const started = performance.now();
  const sandbox = await Sandbox.create(template, { apiKey, apiUrl: url, sandboxUrl: url });
  try {
    const create = performance.now() - started;
    const execution = await sandbox.runCode(code);
    const first = performance.now() - started;
    const isRight = code === CHART ? isChart(execution.results[0]) : execution.text === '2';
    if (!isRight) throw new Error(`${code} in a new sandbox: ${JSON.stringify(execution).slice(0, 1000)}`);
    return { create, first, run: first - create };
  } finally {
    await sandbox.kill();
  }
}

function section(rows: readonly CreateRow[], floor: string): Section {
  const cell = (values: readonly number[]): string =>
    values.length === 0 ? '–' : formatSummary(summarise(values));
  return {
    name: 'create',
    figures: Object.assign(
      {},
      ...rows.flatMap(({ name, samples }) =>
        Object.entries(samples).map(([column, values]) => figuresOf(name, column, values)),
      ),
    ),
    data: { rows, floor },
    lines: [
      markdownTable(
        ['p50 / p95 in ms', 'n', 'Cellbox', 'floor', 'docker run + gateway', '÷ floor', '÷ docker run'],
        rows.map(({ name, samples }) => [
          name,
          String(samples.Cellbox.length),
          cell(samples.Cellbox),
          cell(samples.floor),
          cell(samples['docker run']),
          ratioOf(samples.Cellbox, samples.floor),
          ratioOf(samples.Cellbox, samples['docker run']),
        ]),
      ),
      '',
      `Floor: ${floor}, without any service; until its agent has connected, and for results until a kernel has answered. ` +
        'docker run + gateway: a container of the same image with the stock gateway, its port published, a plain kernel.',
      '',
    ],
  };
}
