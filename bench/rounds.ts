import { figuresOf } from './figures';
import type { Figures, Section } from './figures';
import type { Scenario } from './scenarios';
import { formatSummary, markdownTable, ratioOf, summarise } from './statistics';
import type { Subject } from './subject';

/** Samples of one scenario in milliseconds, by subject's name, in the order measured. */
export interface Measured {
  scenario: string;
  samples: Record<string, number[]>;
}

/** Runs one scenario through all subjects, in turns. */
export async function measureScenario(scenario: Scenario, all: readonly Subject[]): Promise<Measured> {
  const subjects = all.filter(({ scenarios }) => scenarios?.includes(scenario.name) ?? true);
  const samples = Object.fromEntries(subjects.map((subject): [string, number[]] => [subject.name, []]));
  for (let round = 0; round < scenario.warmup + scenario.rounds; round++) {
    for (let turn = 0; turn < subjects.length; turn++) {
      // Whoever comes first in a round may find caches cold, so they take turns.
      const subject = subjects[(turn + round) % subjects.length];
      if (subject === undefined) continue;
      const sample =
        scenario.where === 'same context'
          ? await subject.run(scenario.code)
          : await subject.newContext(scenario.code);
      const wrong = scenario.check(sample);
      if (wrong !== undefined) throw new Error(`${scenario.name} through ${subject.name}: ${wrong}`);
      if (round >= scenario.warmup) samples[subject.name]?.push(sample.ms);
    }
  }
  return { scenario: scenario.name, samples };
}

export function figuresOfScenarios(measured: readonly Measured[]): Figures {
  return Object.assign(
    {},
    ...measured.flatMap(({ scenario, samples }) =>
      Object.entries(samples).map(([name, values]) => figuresOf(scenario, name, values)),
    ),
  );
}

/** The table of all scenarios: the first subject is ours, and beside each other one stands how it compares. */
export function scenariosSection(measured: readonly Measured[], subjects: readonly Subject[]): Section {
  const [ours, ...others] = subjects.map((subject) => subject.name);
  return {
    name: 'scenarios',
    figures: figuresOfScenarios(measured),
    data: measured.map(({ scenario, samples }) => ({
      scenario,
      summaries: Object.fromEntries(
        Object.entries(samples).map(([name, values]) => [name, summarise(values)]),
      ),
      samples,
    })),
    lines: [
      markdownTable(
        [
          'p50 / p95 in ms',
          'n',
          ...subjects.map((subject) => subject.name),
          ...others.map((other) => `÷ ${other}`),
        ],
        measured.map(({ scenario, samples }) => [
          scenario,
          String(samples[ours ?? '']?.length ?? 0),
          ...subjects.map((subject) => formatSummary(summarise(samples[subject.name] ?? []))),
          ...others.map((other) => ratioOf(samples[ours ?? ''], samples[other])),
        ]),
      ),
      '',
    ],
  };
}
