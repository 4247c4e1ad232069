import { parseArgs } from 'node:util';
import { scenarios } from './scenarios';

/** Names of `--only` beside those of the scenarios: rows that are measured together. */
export const GROUPS = ['computer', 'create', 'outputs', 'load', 'burst', 'memory', 'restart'] as const;
export type Group = (typeof GROUPS)[number];

export const HELP = `Usage: npm run bench -- [--quick] [--runtime local|docker] [--python <path>] [--only <name>] …

  --quick      few rounds, for CI: proves that everything works, the numbers are coarse
  --runtime    where Cellbox runs its sandboxes (default local)
  --python     interpreter for the stock gateway, raw ZeroMQ and the bare chain; default: the local runtime's own
               environment, which is made where \`npm start\` makes it
  --only       may be given several times: a scenario by name (1+1, print, DataFrame, chart, "100,000 lines",
               "new context"), or one of
                 create    new sandboxes, from the pool and cold, and a first chart
                 computer  commands and files
                 outputs   large and many outputs, and a slow reader
                 load      many live sandboxes with one execution a second each
                 burst     many creates at once, more than the pool has
                 memory    an idle pooled sandbox
                 restart   the service, with live sandboxes
  --sandboxes  how many \`load\` and \`burst\` use (default 50, quick 8): fewer on a small machine
  --seconds    how long \`load\` takes (default 60, quick 8)
  --rival      http://host:49999, a server of the same NDJSON API: one more column in the scenarios
  --guard      some minutes: compares ratios with the limits of bench/guard.json; exit status 1 when one is exceeded`;

export interface Options {
  help: boolean;
  quick: boolean;
  guard: boolean;
  runtime: 'local' | 'docker';
  python: string | undefined;
  rival: string | undefined;
  sandboxes: number;
  seconds: number;
  /** Whether a scenario or a group was asked for. */
  isChosen(name: string): boolean;
}

/** Reads the command line. @throws with one sentence that names the mistake. */
export function readOptions(args: readonly string[]): Options {
  const { values } = parseArgs({
    args: [...args],
    options: {
      quick: { type: 'boolean', default: false },
      guard: { type: 'boolean', default: false },
      runtime: { type: 'string', default: 'local' },
      python: { type: 'string' },
      rival: { type: 'string' },
      sandboxes: { type: 'string' },
      seconds: { type: 'string' },
      only: { type: 'string', multiple: true },
      help: { type: 'boolean', default: false },
    },
  });
  const { quick, runtime, only, rival } = values;
  if (runtime !== 'local' && runtime !== 'docker')
    throw new Error(`--runtime ${runtime}: must be local or docker`);
  const names = [...scenarios(quick).map((each) => each.name), ...GROUPS];
  const unknown = only?.filter((name) => !names.includes(name)) ?? [];
  if (unknown.length > 0) throw new Error(`--only ${unknown.join(', ')}: must be of ${names.join(', ')}`);
  return {
    help: values.help,
    quick,
    guard: values.guard,
    runtime,
    python: values.python,
    rival,
    sandboxes: count('--sandboxes', values.sandboxes, quick ? 8 : 50),
    seconds: count('--seconds', values.seconds, quick ? 8 : 60),
    isChosen: (name) => only?.includes(name) ?? true,
  };
}

function count(flag: string, text: string | undefined, fallback: number): number {
  const value = text === undefined ? fallback : Number(text);
  if (!Number.isInteger(value) || value < 2 || value > 1000)
    throw new Error(`${flag} ${text}: must be a whole number from 2 to 1000`);
  return value;
}
