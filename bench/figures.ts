import { percentile } from './statistics';

/** Every number that targets and guard speak about, by name: see `figure`. */
export type Figures = Record<string, number>;

/** What one part of the bench found out: for people, for targets and guard, and with everything it measured. */
export interface Section {
  readonly name: string;
  /** Markdown. */
  readonly lines: readonly string[];
  readonly figures: Figures;
  /** As it goes into the JSON file. */
  readonly data: unknown;
}

export type Statistic = 'p50' | 'p95' | 'p99';

/** The name of one figure: what was measured, in which column of the table, and which statistic of it. */
export function figure(row: string, column: string, statistic: Statistic): string {
  return `${row} | ${column} | ${statistic}`;
}

/** All statistics of some samples in milliseconds. */
export function figuresOf(row: string, column: string, samples: readonly number[]): Figures {
  if (samples.length === 0) return {};
  const sorted = [...samples].sort((a, b) => a - b);
  return Object.fromEntries(
    ([50, 95, 99] as const).map((percent) => [
      figure(row, column, `p${percent}`),
      percentile(sorted, percent),
    ]),
  );
}
