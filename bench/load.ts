import { performance } from 'node:perf_hooks';
import type { Sandbox } from '@e2b/code-interpreter';
import { figuresOf } from './figures';
import type { Section } from './figures';
import { endFleet, startFleet } from './fleet';
import { usageCells, usageFigures, USAGE_HEADER } from './limits';
import type { MeasuredService } from './service';
import { formatMs, formatSummary, markdownTable, percentile, summarise } from './statistics';

export interface LoadOptions {
  /** Live at a time, each with one execution a second. */
  sandboxes: number;
  seconds: number;
}

const PERIOD_MS = 1000;
/** Executions of the one sandbox that is measured before the others are there. */
const ALONE_ROUNDS = 20;
export const LOAD_ROW = 'load';

/**
 * Many sandboxes with one execution a second each, their turns spread over the second, beside one sandbox that does the
 * same alone. Time runs from the moment an execution was due: one that waits for its forerunner has waited.
 */
export async function measureLoad(service: MeasuredService, options: LoadOptions): Promise<Section> {
  const fleet: Sandbox[] = [];
  try {
    fleet.push(...(await startFleet(service, 1)));
    await keepPace(fleet, 3); // cold code of SDK and service
    const alone = await keepPace(fleet, ALONE_ROUNDS);
    fleet.push(...(await startFleet(service, options.sandboxes - 1)));
    await keepPace(fleet, 3);
    await service.resetUsage();
    const loaded = await keepPace(fleet, options.seconds);
    const usage = await service.usage();
    return section(options, alone, loaded, usageCells(usage), usageFigures(LOAD_ROW, usage));
  } finally {
    await endFleet(fleet);
  }
}

interface Pace {
  samples: number[];
  errors: string[];
}

async function keepPace(fleet: readonly Sandbox[], rounds: number): Promise<Pace> {
  const pace: Pace = { samples: [], errors: [] };
  const began = performance.now();
  await Promise.all(
    fleet.map(async (sandbox, position) => {
      for (let round = 0; round < rounds; round++) {
        const due = began + PERIOD_MS * (round + position / fleet.length);
        await until(due);
        try {
          const execution = await sandbox.runCode(`${round}+${position}`);
          if (execution.text !== String(round + position)) throw new Error(JSON.stringify(execution));
          pace.samples.push(performance.now() - due);
        } catch (error) {
          pace.errors.push(error instanceof Error ? error.message : String(error));
        }
      }
    }),
  );
  return pace;
}

/** The timers of Node are up to a millisecond early or late, which is told from the latency here. */
async function until(due: number): Promise<void> {
  for (let left = due - performance.now(); left > 0; left = due - performance.now())
    await new Promise((resolve) => setTimeout(resolve, left));
}

function section(
  options: LoadOptions,
  alone: Pace,
  loaded: Pace,
  usage: string[],
  figures: Record<string, number>,
): Section {
  const sorted = [...loaded.samples].sort((a, b) => a - b);
  const [p99, unloaded] = [percentile(sorted, 99), summarise(alone.samples).p50];
  const errors = [...alone.errors, ...loaded.errors];
  const row = `${options.sandboxes} sandboxes, one execution a second each, ${options.seconds} s`;
  return {
    name: 'load',
    figures: {
      ...figures,
      ...figuresOf(LOAD_ROW, 'alone', alone.samples),
      ...figuresOf(LOAD_ROW, 'loaded', loaded.samples),
      'load | sandboxes': options.sandboxes,
      'load | errors': errors.length,
    },
    data: { options, alone, loaded },
    lines: [
      markdownTable(
        ['in ms', 'n', 'p50 / p95', 'p99', 'p99 ÷ p50 alone', 'errors', ...USAGE_HEADER],
        [
          [
            'one sandbox alone',
            String(alone.samples.length),
            formatSummary(summarise(alone.samples)),
            '–',
            '–',
            String(alone.errors.length),
            '–',
            '–',
          ],
          [
            row,
            String(loaded.samples.length),
            formatSummary(summarise(loaded.samples)),
            formatMs(p99),
            `${(p99 / unloaded).toFixed(2)}×`,
            String(loaded.errors.length),
            ...usage,
          ],
        ],
      ),
      '',
      ...errors.slice(0, 3).map((error) => `- ${error}`),
    ],
  };
}
