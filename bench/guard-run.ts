import fs from 'node:fs/promises';
import path from 'node:path';
import { startCellbox } from './cellbox';
import type { Cellbox } from './cellbox';
import { CREATE_ROWS, measurePooled } from './creates';
import { figuresOf } from './figures';
import type { Figures } from './figures';
import { check, describe, parseRules } from './guard';
import { quiet, setPool } from './native';
import { startRawZeroMq } from './raw-zeromq';
import { figuresOfScenarios, measureScenario } from './rounds';
import { SETUP, scenarios } from './scenarios';
import type { ServiceOptions } from './service';
import { startStockGateway } from './stock-gateway';
import type { Subjects } from './subjects';

/** Measured rounds of each row: odd, so that the middle one was really measured, and few, so that it takes minutes. */
const ROUNDS: Record<string, number> = {
  '1+1': 41,
  print: 41,
  DataFrame: 15,
  chart: 9,
  '100,000 lines': 5,
  'new context': 5,
};
const CREATES = 7;

/** Compares this build's ratios with those of `guard.json`. False when some are exceeded, which is told line by line. */
export async function guard(subjects: Subjects, options: ServiceOptions, python: string): Promise<boolean> {
  const { root } = options;
  const rules = parseRules(await fs.readFile(path.join(root, 'bench', 'guard.json'), 'utf8'));
  const cellbox = await subjects.start('Cellbox', () => startCellbox(options));
  for (const nodelay of [false, true])
    await subjects.start('a stock gateway', () => startStockGateway({ root, python, nodelay }));
  await subjects.start('raw ZeroMQ', () => startRawZeroMq(root, python));
  for (const subject of subjects.list) await subject.run(SETUP);

  const measure = async (rows: readonly string[]): Promise<Figures> => {
    const figures: Figures = {};
    for (const scenario of scenarios(true)) {
      if (!rows.includes(scenario.name)) continue;
      console.error(`measuring ${scenario.name}`);
      const rounds = ROUNDS[scenario.name] ?? scenario.rounds;
      const measured = await measureScenario({ ...scenario, rounds, warmup: 2 }, subjects.list);
      Object.assign(figures, figuresOfScenarios([measured]));
    }
    const creates: string[] = [CREATE_ROWS.pooled, CREATE_ROWS.pooledFirst];
    if (rows.some((row) => creates.includes(row))) Object.assign(figures, await measureSomeCreates(cellbox));
    return figures;
  };
  const broken = await check(rules, measure, (line) => console.log(line));
  for (const violation of broken) console.log(`VIOLATION ${describe(violation)}`);
  console.log(
    broken.length === 0
      ? 'no ratio exceeds its limit'
      : `${broken.length} of ${rules.length} exceed their limits`,
  );
  return broken.length === 0;
}

/** Creates, and beside each of them, where the machine is as busy, a `1+1` in the sandbox that stands: column `1+1`. */
async function measureSomeCreates({ service, run }: Cellbox): Promise<Figures> {
  console.error('measuring creates');
  await setPool(service, 1);
  try {
    const samples = [];
    for (let round = -1; round < CREATES; round++) {
      const sample = await measurePooled(service);
      await quiet(service);
      const { ms: beside } = await run('1+1');
      if (round >= 0) samples.push({ ...sample, beside }); // the first meets cold code of SDK and service
    }
    const beside = samples.map((sample) => sample.beside);
    return {
      ...figuresOf(
        CREATE_ROWS.pooled,
        'Cellbox',
        samples.map(({ create }) => create),
      ),
      ...figuresOf(CREATE_ROWS.pooled, '1+1', beside),
      ...figuresOf(
        CREATE_ROWS.pooledFirst,
        'Cellbox',
        samples.map(({ first }) => first),
      ),
      ...figuresOf(CREATE_ROWS.pooledFirst, '1+1', beside),
    };
  } finally {
    await setPool(service, 0);
  }
}
