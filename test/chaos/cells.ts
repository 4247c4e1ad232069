import type { CellPlan } from './plan';

/** A cell as it is sent, and what it must come to when nobody disturbs it. */
export interface Cell {
  id: string;
  plan: CellPlan;
  code: string;
  timeoutMs: number;
  /** What `cbx_generation` is once the cell has told who it is. */
  generation: string;
  /** Terminations without a fault. */
  nominal: string;
  /** After its mark it runs for at least so long. */
  lastsMs: number;
  /** Whether an interrupt ends it. */
  obeys: boolean;
}

/** What a cell tells of itself first. */
export interface Mark {
  mark: string;
  /** Of the kernel, as the sandbox counts. */
  pid: number;
  /** When, in seconds since the epoch. */
  t: number;
  /** The generation that the cell before has left; null in a new kernel. */
  old: string | null;
  /** The sandbox's own environment variable. */
  env: string | null;
}

const MEBIBYTE = 1_048_576;

/** `owner` is in everything that the cell puts out, so that it is known wherever it turns up. */
export function makeCell(plan: CellPlan, id: string, owner: string, memoryMb: number): Cell {
  const generation = `${owner}-${id}`;
  const name = `# chaos ${id}`; // its first line, by which its record is found
  const mark = [
    'import os as _os, time as _time, json as _json',
    `_old = globals().get("cbx_generation"); cbx_generation = "${generation}"`,
    `print(_json.dumps({"mark": "${id}", "pid": _os.getpid(), "t": _time.time(), "old": _old, "env": _os.environ.get("CHAOS_OWNER")}), flush=True)`,
  ];
  const rest = { id, plan, generation, timeoutMs: 0, lastsMs: 0, obeys: true };
  const code = (...body: string[]): string => [name, ...mark, ...body].join('\n');
  const done = `print("DONE ${id}", flush=True)`;
  switch (plan.does) {
    case 'lines':
      return {
        ...rest,
        nominal: 'ok',
        lastsMs: plan.lines * plan.everyMs,
        code: code(
          `for _i in range(${plan.lines}):`,
          `  print("${owner} line", _i, flush=True)`,
          `  _time.sleep(${plan.everyMs / 1000})`,
          done,
        ),
      };
    case 'much':
      return {
        ...rest,
        nominal: 'ok',
        code: code(`for _i in range(${plan.lines}): print("${owner} line", _i)`, done),
      };
    case 'error':
      return { ...rest, nominal: 'error', code: code(`raise ValueError("${owner} wanted this")`) };
    case 'result':
      return {
        ...rest,
        nominal: 'ok',
        code: code(
          'import pandas as _pd',
          done,
          `_pd.DataFrame({"owner": ["${owner}"] * 3, "n": [1, 2, 3]})`,
        ),
      };
    case 'exit':
      return { ...rest, nominal: 'exited', code: code(`_os._exit(${plan.code})`) };
    case 'crash':
      return {
        ...rest,
        nominal: 'crashed',
        // A handler that prints stacks first would change nothing but take its time.
        code: code(
          'import signal as _signal',
          `_signal.signal(_signal.SIGABRT, _signal.SIG_DFL)`,
          `_os.kill(_os.getpid(), _signal.${plan.signal})`,
          '_time.sleep(60)',
        ),
      };
    case 'sleep':
      return {
        ...rest,
        nominal: 'timeout_interrupted',
        timeoutMs: plan.limitMs,
        code: code('_time.sleep(600)', done),
      };
    case 'stubborn':
      return {
        ...rest,
        nominal: 'timeout_killed',
        timeoutMs: plan.limitMs,
        obeys: false,
        // Before its mark, which says that from now on it obeys nothing.
        code: [
          name,
          'import signal as _signal',
          '_signal.signal(_signal.SIGINT, _signal.SIG_IGN)',
          ...mark,
          '_time.sleep(600)',
          done,
        ].join('\n'),
      };
    case 'oom': {
      const bytes = 4 * memoryMb * MEBIBYTE;
      return {
        ...rest,
        nominal: 'oom',
        code: code(`_x = bytearray(${bytes})`, `for _i in range(0, ${bytes}, 4096): _x[_i] = 1`, done),
      };
    }
  }
}

/**
 * Whether these are the lines that the cell prints, or the first of them: nothing missing, doubled or out of order, but
 * for so many gaps. Returns what is wrong. `whole`: nothing may be missing at the end either.
 */
export function checkLines(
  cell: Cell,
  owner: string,
  stdout: string,
  whole: boolean,
  gaps: number,
): string | undefined {
  const { plan, id } = cell;
  const lines = stdout.split('\n');
  const last = lines.pop() ?? '';
  if (last !== '' && whole) return `the last line has no end: ${JSON.stringify(last.slice(0, 80))}`;
  const count = plan.does === 'lines' || plan.does === 'much' ? plan.lines : 0;
  const wanted = (number: number): string | undefined =>
    number < count ? `${owner} line ${number}` : number === count ? `DONE ${id}` : undefined;
  let next = 0;
  let left = gaps;
  for (const line of lines.slice(1)) {
    // after the mark
    if (line !== wanted(next)) {
      const at = line === `DONE ${id}` ? count : Number(/^own\w+ line (\d+)$/.exec(line)?.[1] ?? Number.NaN);
      if (left === 0 || at < next || at > count)
        return `line ${next + 1} is ${JSON.stringify(line.slice(0, 80))}, not ${JSON.stringify(wanted(next))}`;
      // A gap that cuts a line leaves a piece of it, and what comes after tells where it ends.
      if (Number.isNaN(at)) continue;
      left--;
      next = at;
    }
    next++;
  }
  if (whole && next !== count + 1 && left === 0) return `it ends after ${next} lines of ${count + 1}`;
  return undefined;
}

export function readMark(stdout: string, id: string): Mark | undefined {
  const end = stdout.indexOf('\n');
  if (end < 0) return undefined;
  try {
    const mark = JSON.parse(stdout.slice(0, end)) as Mark; // what our own cell printed
    return mark.mark === id ? mark : undefined;
  } catch {
    return undefined; // not ours: the caller compares the lines
  }
}
