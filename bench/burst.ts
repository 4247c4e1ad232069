import { performance } from 'node:perf_hooks';
import { Sandbox } from '@e2b/code-interpreter';
import { figuresOf } from './figures';
import type { Section } from './figures';
import { endFleet } from './fleet';
import { usageCells, usageFigures, USAGE_HEADER } from './limits';
import { POOLED, poolOf, quiet, setPool } from './native';
import { startServerFromMemory } from './sdk-alone';
import type { MeasuredService, Usage } from './service';
import { formatSummary, markdownTable, percentile, summarise } from './statistics';

export interface BurstOptions {
  creates: number;
  pool: number;
}

interface Burst {
  /** In the order in which they were there. */
  ms: number[];
  errors: string[];
  /** How many came from the pool, by its own count. */
  claimed: number;
}

/** All at once, with the SDK's own time-outs. Those from the pool are taken to be the fastest ones. */
export async function measureBurst(service: MeasuredService, options: BurstOptions): Promise<Section> {
  const sandboxes: Sandbox[] = [];
  await setPool(service, options.pool);
  try {
    await quiet(service);
    const before = await poolOf(service);
    await service.resetUsage();
    const burst: Burst = { ms: [], errors: [], claimed: 0 };
    const started = performance.now();
    await Promise.all(
      Array.from({ length: options.creates }, async () => {
        try {
          sandboxes.push(await create(service));
          burst.ms.push(performance.now() - started);
        } catch (error) {
          burst.errors.push(error instanceof Error ? error.message : String(error));
        }
      }),
    );
    const usage = await service.usage();
    burst.claimed = (await poolOf(service)).claimed_total - before.claimed_total;
    const answers = await Promise.allSettled(sandboxes.map((sandbox) => sandbox.runCode('1+1')));
    const wrong = answers.flatMap((each) => {
      if (each.status === 'rejected') return [String(each.reason)];
      return each.value.text === '2' ? [] : [JSON.stringify(each.value.error ?? each.value.text)];
    });
    if (wrong.length > 0) {
      burst.errors.push(`${wrong.length} sandboxes did not answer a first 1+1, one of them: ${wrong[0]}`);
    }
    return section(options, burst, usage, await sdkAlone(options.creates));
  } finally {
    await setPool(service, 0);
    await endFleet(sandboxes);
  }
}

function create({ url, apiKey }: Pick<MeasuredService, 'url' | 'apiKey'>): Promise<Sandbox> {
  return Sandbox.create(POOLED, { apiKey, apiUrl: url, sandboxUrl: url });
}

/** What as many creates at once take when the answer is ready: no service can be faster to one process with the SDK. */
async function sdkAlone(creates: number): Promise<number[]> {
  const { url, close } = await startServerFromMemory();
  try {
    const ms: number[] = [];
    for (let round = 0; round < 2; round++) {
      ms.length = 0; // the first one warms it up
      const started = performance.now();
      await Promise.all(
        Array.from({ length: creates }, async () => {
          await create({ url, apiKey: 'e2b_00' });
          ms.push(performance.now() - started);
        }),
      );
    }
    return ms;
  } finally {
    await close();
  }
}

function section(options: BurstOptions, burst: Burst, usage: Usage, alone: number[]): Section {
  const sorted = [...burst.ms].sort((a, b) => a - b);
  const pooled = sorted.slice(0, Math.min(options.pool, burst.claimed));
  const cell = (values: readonly number[]): string =>
    values.length === 0 ? '–' : formatSummary(summarise(values));
  return {
    name: 'burst',
    figures: {
      ...usageFigures('burst', usage),
      ...figuresOf('burst', 'all', sorted),
      ...figuresOf('burst', 'pooled', pooled),
      ...figuresOf('burst', 'sdk alone', alone.slice(0, options.pool)),
      'burst | slowest': sorted.at(-1) ?? Number.NaN,
      'burst | creates': options.creates,
      'burst | errors': burst.errors.length,
    },
    data: { options, burst, alone },
    lines: [
      markdownTable(
        [
          'p50 / p95 in ms',
          'all',
          'p99',
          'from the pool',
          'their p99',
          'SDK alone',
          'errors',
          ...USAGE_HEADER,
        ],
        [
          [
            `${options.creates} creates at once, pool of ${options.pool}`,
            cell(sorted),
            percentile(sorted, 99).toFixed(0),
            `${cell(pooled)} (${pooled.length})`,
            percentile(pooled, 99).toFixed(0),
            cell(alone.slice(0, options.pool)),
            String(burst.errors.length),
            ...usageCells(usage),
          ],
        ],
      ),
      '',
      `SDK alone: the first ${options.pool} answers to as many creates at once by a server that answers from memory.`,
      '',
      ...[...new Set(burst.errors)].slice(0, 3).map((error) => `- ${error}`),
    ],
  };
}
