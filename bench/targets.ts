import { CREATE_ROWS } from './creates';
import { figure } from './figures';
import type { Figures } from './figures';
import { LIMITS } from './limits';
import { formatMs, markdownTable } from './statistics';

/** One number of a promise: what it is called here, how it is written, and which side of the limit is good. */
interface Measure {
  /** What a reader is told it is. */
  text: string;
  value(figures: Figures): number | undefined;
  limit: number;
  unit: 'ms' | '×' | 'MB' | '';
  /** The limit is a least and not a most. */
  atLeast?: boolean;
}

interface Target {
  what: string;
  measures: Measure[];
}

/** What became of one promise. `undefined`: this run did not measure it. */
export interface Verdict {
  what: string;
  target: string;
  measured: string;
  met: boolean | undefined;
}

function ms(text: string, name: string, limit: number): Measure {
  return { text, value: (figures) => figures[name], limit, unit: 'ms' };
}

function count(text: string, name: string, limit: number): Measure {
  return { text, value: (figures) => figures[name], limit, unit: '' };
}

function quotient(
  text: string,
  over: string,
  under: string,
  limit: number,
  options: { atLeast?: boolean } = {},
): Measure {
  const value = (figures: Figures): number | undefined => {
    const [above, below] = [figures[over], figures[under]];
    return above === undefined || below === undefined ? undefined : above / below;
  };
  return { text, value, limit, unit: '×', ...options };
}

/** The p50 of our column over the p50 of another one in the same row. */
function against(row: string, other: string, text: string, limit: number): Measure {
  return quotient(text, figure(row, 'Cellbox', 'p50'), figure(row, other, 'p50'), limit);
}

/** The largest of all figures whose names end alike: a limit that holds whatever the service does. */
function worst(text: string, ending: string, limit: number, unit: Measure['unit']): Measure {
  const value = (figures: Figures): number | undefined => {
    const found = Object.entries(figures).filter(([name]) => name.endsWith(ending));
    return found.length === 0 ? undefined : Math.max(...found.map(([, each]) => each));
  };
  return { text, value, limit, unit };
}

/** What we promise in numbers, in the order in which it is printed. */
const TARGETS: readonly Target[] = [
  {
    what: '`Sandbox.create` from the pool',
    measures: [
      ms('p50', figure(CREATE_ROWS.pooled, 'Cellbox', 'p50'), 15),
      ms('p99', figure(CREATE_ROWS.pooled, 'Cellbox', 'p99'), 40),
    ],
  },
  {
    what: 'create → first result, pooled',
    measures: [ms('p50', figure(CREATE_ROWS.pooledFirst, 'Cellbox', 'p50'), 30)],
  },
  {
    what: 'cold create, then first result',
    measures: [
      against(CREATE_ROWS.cold, 'floor', 'create ÷ floor', 1.2),
      against(CREATE_ROWS.coldFirst, 'floor', 'first result ÷ floor', 1.2),
    ],
  },
  {
    what: '`runCode("1+1")`',
    measures: [
      against('1+1', 'raw ZeroMQ', '÷ raw ZeroMQ', 1.5),
      against('1+1', 'stock gateway', '÷ stock gateway', 0.3),
    ],
  },
  {
    what: '100,000 printed lines',
    measures: [against('100,000 lines', 'stock + NODELAY', '÷ stock + NODELAY', 1)],
  },
  {
    what: 'new Python context with pandas and matplotlib',
    measures: [
      ms('p50', figure('new context', 'Cellbox', 'p50'), 250),
      against('new context', 'raw ZeroMQ', '÷ a plain kernel’s start and imports', 0.1),
    ],
  },
  {
    what: 'first chart in a pooled sandbox',
    measures: [ms('p50', figure(CREATE_ROWS.firstChart, 'Cellbox', 'p50'), 150)],
  },
  {
    what: 'burst of creates beyond the pool',
    measures: [
      count('failed', 'burst | errors', 0),
      ms('slowest', 'burst | slowest', 60_000),
      ms('pooled p50', figure('burst', 'pooled', 'p50'), 15),
      ms('pooled p99', figure('burst', 'pooled', 'p99'), 40),
    ],
  },
  {
    what: 'many live sandboxes, one execution a second each',
    measures: [
      quotient('p99 ÷ unloaded p50', figure('load', 'loaded', 'p99'), figure('load', 'alone', 'p50'), 5),
      count('errors', 'load | errors', 0),
    ],
  },
  {
    what: 'memory of one idle pooled sandbox',
    measures: [
      {
        text: '÷ gateway + plain kernel',
        value: (figures) => figures['memory | ratio'],
        limit: 1.5,
        unit: '×',
      },
    ],
  },
  {
    what: 'restart with live sandboxes',
    measures: [
      count('lost', 'restart | lost', 0),
      ms('all have run a cell', 'restart | all answered ms', 2000),
    ],
  },
  {
    what: 'a command, 1 MB each way, a list of 1,000 files, over HTTP',
    measures: (['command', '1 MB up', '1 MB down', 'list 1,000 files'] as const).map((row) =>
      ms(row, figure(row, 'without SDK', 'p50'), 10),
    ),
  },
  {
    what: 'upload and download of 100 MB, speed',
    measures: (['up', 'down'] as const).map((way) =>
      quotient(
        `${way} ÷ bare files`,
        figure(`100 MB ${way}`, 'floor', 'p50'),
        figure(`100 MB ${way}`, 'Cellbox', 'p50'),
        0.5,
        { atLeast: true },
      ),
    ),
  },
  {
    what: 'the service, whatever it was asked to do',
    measures: [
      worst('memory at most', 'service memory peak MB', LIMITS.rssPeakMB, 'MB'),
      worst('event loop p99', 'event loop p99 ms', LIMITS.loopDelayP99Ms, 'ms'),
    ],
  },
];

/** Holds what was measured against what is promised. Pure. */
export function judge(figures: Figures): Verdict[] {
  return TARGETS.map(({ what, measures }) => {
    const values = measures.map((measure) => measure.value(figures));
    const isMet = values.map((value, at) => {
      const measure = measures[at];
      if (value === undefined || measure === undefined) return undefined;
      return measure.atLeast ? value >= measure.limit : value <= measure.limit;
    });
    return {
      what,
      target: measures
        .map((each) => `${each.text} ${each.atLeast ? '≥' : '≤'} ${write(each.limit, each.unit)}`)
        .join(', '),
      measured: values.map((value, at) => write(value, measures[at]?.unit ?? '')).join(', '),
      // One that failed is enough; all must have been measured for a promise to be kept.
      met: isMet.includes(false) ? false : isMet.includes(undefined) ? undefined : true,
    };
  });
}

export function targetsTable(verdicts: readonly Verdict[]): string[] {
  return [
    markdownTable(
      ['Promise', 'target', 'measured', 'met'],
      verdicts.map(({ what, target, measured, met }) => [
        what,
        target,
        measured,
        met === undefined ? '–' : met ? 'yes' : 'NO',
      ]),
    ),
    '',
  ];
}

function write(value: number | undefined, unit: Measure['unit']): string {
  if (value === undefined || Number.isNaN(value)) return '–';
  if (unit === 'ms') return `${value >= 1000 ? Math.round(value) : formatMs(value).replace(/\.0+$/, '')} ms`;
  if (unit === '×') return `${Number(value.toFixed(2))}×`;
  if (unit === 'MB') return `${value.toFixed(0)} MB`;
  return String(value);
}
