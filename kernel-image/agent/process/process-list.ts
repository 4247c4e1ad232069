import { readdirSync, readFileSync } from 'node:fs';

/** One process as /proc shows it. */
export interface ListedProcess {
  pid: number;
  parent: number;
  group: number;
  session: number;
  /** Dead, and not yet waited for by its parent. */
  isZombie: boolean;
  /** In ticks since the boot: with the number it names one process for ever. */
  startTime: string;
}

/** Reads `/proc/<pid>/stat`; the name in it may hold spaces and brackets. Pure. */
export function parseStat(text: string): ListedProcess | undefined {
  const pid = Number.parseInt(text, 10);
  const nameEnd = text.lastIndexOf(')');
  const fields = text.slice(nameEnd + 2).split(' ');
  const [state, parent, group, session] = fields;
  const startTime = fields[19];
  if (nameEnd < 0 || !Number.isInteger(pid) || startTime === undefined) return undefined;
  return {
    pid,
    parent: Number(parent),
    group: Number(group),
    session: Number(session),
    isZombie: state === 'Z' || state === 'X',
    startTime,
  };
}

/** All processes that can be seen; none where there is no /proc. Synchronous: it is used when every moment counts. */
export function listProcesses(): ListedProcess[] {
  let names: string[];
  try {
    names = readdirSync('/proc');
  } catch {
    return []; // not Linux
  }
  return names.flatMap((name) => (/^\d+$/.test(name) ? (readProcess(Number(name)) ?? []) : []));
}

export function startTime(pid: number): string | undefined {
  return readProcess(pid)?.startTime;
}

/** How soon the kernel ends it when memory runs out; undefined when it is gone or nobody keeps such scores. */
export function oomScore(pid: number | 'self'): number | undefined {
  try {
    return Number(readFileSync(`/proc/${pid}/oom_score_adj`, 'latin1'));
  } catch {
    return undefined;
  }
}

function readProcess(pid: number): ListedProcess | undefined {
  try {
    return parseStat(readFileSync(`/proc/${pid}/stat`, 'latin1'));
  } catch {
    return undefined; // gone, or not Linux
  }
}
