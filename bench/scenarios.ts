import type { Sample } from './subject';

export interface Scenario {
  name: string;
  code: string;
  /** `context`: in a kernel made for it, and the time includes making it. */
  where: 'same context' | 'new context';
  /** How many measured rounds, and how many before them that don't count. */
  rounds: number;
  warmup: number;
  /** What is wrong with a sample, or undefined: a fast answer must also be the right one. */
  check(sample: Sample): string | undefined;
}

const LINES = 100_000;
export const LINES_CODE = `for i in range(${LINES}): print(f"line {i}")`;
export const LINES_EXPECTED = Array.from({ length: LINES }, (_, index) => `line ${index}\n`).join('');

/** `png` to the SDK, `image/png` to everyone else. */
const hasType = (sample: Sample, name: string): boolean =>
  sample.types.some((type) => type === name || type.endsWith(`/${name}`));

/** A first chart: with its imports, as a model writes it. */
export const CHART =
  'import matplotlib.pyplot as plt\nplt.plot([1, 4, 9, 16])\nplt.title("squares")\nplt.show()';

/** A result of the SDK that has the picture and its data. */
export function isChart(result: { png?: string; chart?: unknown } | undefined): boolean {
  return result?.png !== undefined && result.chart !== undefined;
}

/** Run once in every subject before the first scenario, so that no scenario pays for another's imports. */
export const SETUP = `
import pandas as pd
import matplotlib.pyplot as plt
frame = pd.DataFrame({"city": ["Oslo", "Rome", "Lima", "Cairo"] * 5, "n": range(20), "x": [i / 7 for i in range(20)]})
frame
`;

/** Everything that is measured. `quick` is for CI: it proves that all of it works, its numbers are coarse. */
export function scenarios(quick: boolean): Scenario[] {
  const many = quick ? { rounds: 10, warmup: 2 } : { rounds: 100, warmup: 10 };
  const some = quick ? { rounds: 4, warmup: 1 } : { rounds: 20, warmup: 3 };
  const few = quick ? { rounds: 1, warmup: 0 } : { rounds: 5, warmup: 1 };
  return [
    {
      name: '1+1',
      code: '1+1',
      where: 'same context',
      ...many,
      check: (sample) => (sample.types.length > 0 ? undefined : 'no result'),
    },
    {
      name: 'print',
      code: 'print("hello")',
      where: 'same context',
      ...many,
      check: (sample) =>
        sample.stdout === 'hello\n' ? undefined : `printed ${JSON.stringify(sample.stdout)}`,
    },
    {
      name: 'DataFrame',
      code: 'frame[frame.n > 3]',
      where: 'same context',
      ...some,
      check: (sample) => (hasType(sample, 'html') ? undefined : 'no table'),
    },
    {
      name: 'chart',
      code: 'plt.plot([1, 4, 9, 16])\nplt.title("squares")\nplt.show()',
      where: 'same context',
      ...some,
      check: (sample) => (hasType(sample, 'png') ? undefined : 'no picture'),
    },
    {
      name: '100,000 lines',
      code: LINES_CODE,
      where: 'same context',
      ...few,
      check: (sample) =>
        sample.stdout === LINES_EXPECTED ? undefined : describeDifference(sample.stdout, LINES_EXPECTED),
    },
    {
      name: 'new context',
      code: 'import pandas, matplotlib.pyplot\nprint(pandas.DataFrame({"a": [1]}).a.sum())',
      where: 'new context',
      ...few,
      check: (sample) => (sample.stdout === '1\n' ? undefined : `printed ${JSON.stringify(sample.stdout)}`),
    },
  ];
}

/** Where output stops being complete and in order, for a person to read. */
export function describeDifference(got: string, expected: string): string | undefined {
  if (got === expected) return undefined;
  const lines = got.split('\n');
  const wanted = expected.split('\n');
  const first = wanted.findIndex((line, index) => lines[index] !== line);
  const at = first === -1 ? wanted.length : first;
  return (
    `${lines.length - 1} lines instead of ${wanted.length - 1}; first difference at line ${at}: ` +
    `${JSON.stringify(lines[at]?.slice(0, 60))} instead of ${JSON.stringify(wanted[at])}`
  );
}
