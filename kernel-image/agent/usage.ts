import { existsSync, readdirSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { readText } from './read-text';

/**
 * Where figures of processors and memory come from: control groups of either version, a tree of processes, the host.
 * Each source tells what it knows; the texts are read here and understood by pure functions.
 */
export interface Usage {
  /** Time on processors since some beginning, in milliseconds, over all processors. */
  cpuMs?: number;
  cpuCount?: number;
  memoryTotal?: number;
  memoryUsed?: number;
  memoryCache?: number;
}

/** Where a container finds its own groups, by both versions' usual layouts. */
const CONTAINER_CGROUPS = [
  '/sys/fs/cgroup',
  '/sys/fs/cgroup/memory',
  '/sys/fs/cgroup/cpu',
  '/sys/fs/cgroup/cpuacct',
  '/sys/fs/cgroup/cpu,cpuacct',
];

/** The control groups that hold this sandbox and nothing else. */
export function sandboxCgroups(options: {
  singleUser: boolean;
  cgroups: readonly string[];
}): readonly string[] {
  return options.singleUser ? options.cgroups : CONTAINER_CGROUPS;
}

/** A limit of version 1 that means none: the largest number of bytes in whole pages. */
const NO_LIMIT = 2 ** 62;

/** Names of both versions; the two that share a name are told apart by what is in them. */
const CGROUP_FILES = [
  'cpu.max',
  'cpu.stat',
  'cpu.cfs_quota_us',
  'cpu.cfs_period_us',
  'cpuacct.usage',
  'memory.max',
  'memory.current',
  'memory.limit_in_bytes',
  'memory.usage_in_bytes',
  'memory.stat',
] as const;
export type CgroupTexts = Partial<Record<(typeof CGROUP_FILES)[number], string | undefined>>;

/**
 * Control groups that are read again and again. Where each file is, or that none is, is found out once: most of them are
 * another version's.
 */
export class Cgroups {
  /** Of each file the first one that one of the directories has. */
  private readonly files: readonly { name: keyof CgroupTexts; file: string }[];

  constructor(directories: readonly string[]) {
    this.files = CGROUP_FILES.flatMap((name) => {
      const file = directories
        .map((directory) => path.join(directory, name))
        .find((each) => existsSync(each));
      return file === undefined ? [] : { name, file };
    });
  }

  read(): Usage {
    return parseCgroup(Object.fromEntries(this.files.map(({ name, file }) => [name, readIfThere(file)])));
  }
}

/** Version 2 where its files are, else version 1; a limit that is none, as either spells it, is left out. */
export function parseCgroup(texts: CgroupTexts): Usage {
  const stat = parseFields(texts['memory.stat'] ?? '');
  const used = integer(texts['memory.current']) ?? integer(texts['memory.usage_in_bytes']);
  // Version 1 has each figure twice: of this group alone, and `total_` with the groups below, as version 2 counts.
  const reclaimable = stat.get('total_inactive_file') ?? stat.get('inactive_file') ?? 0;
  const limits = [
    integer(texts['memory.max']),
    integer(texts['memory.limit_in_bytes']),
    // Of the groups above as well.
    stat.get('hierarchical_memory_limit'),
  ].filter((limit): limit is number => limit !== undefined && limit < NO_LIMIT);
  return withoutUndefined({
    cpuMs: cpuTime(texts),
    cpuCount: processors(texts),
    memoryTotal: limits.length === 0 ? undefined : Math.min(...limits),
    memoryUsed: used === undefined ? undefined : Math.max(0, used - reclaimable),
    memoryCache: stat.get('file') ?? stat.get('total_cache') ?? stat.get('cache'),
  });
}

function cpuTime(texts: CgroupTexts): number | undefined {
  const micros = parseFields(texts['cpu.stat'] ?? '').get('usage_usec');
  if (micros !== undefined) return micros / 1e3;
  const nanos = integer(texts['cpuacct.usage']);
  return nanos === undefined ? undefined : nanos / 1e6;
}

/** Whole processors that the quota amounts to; a part of one counts as one. */
function processors(texts: CgroupTexts): number | undefined {
  const [max, maxPeriod] = (texts['cpu.max'] ?? '').trim().split(' ');
  const quota = integer(max) ?? integer(texts['cpu.cfs_quota_us']);
  const period = integer(maxPeriod) ?? integer(texts['cpu.cfs_period_us']);
  // "max" in version 2, -1 in version 1: no quota.
  if (quota === undefined || period === undefined || quota <= 0 || period <= 0) return undefined;
  return Math.ceil(quota / period);
}

/** The whole machine: what a sandbox without groups of its own, or without a limit, has. What is known is not asked for. */
export function readHost({ cpuMs = hostCpuMs() }: Usage = {}): Required<Usage> {
  return {
    cpuMs,
    cpuCount: os.availableParallelism(),
    ...parseMeminfo(readIfThere('/proc/meminfo') ?? ''),
  };
}

function hostCpuMs(): number {
  const busy = os.cpus().map(({ times }) => times.user + times.nice + times.sys + times.irq);
  return busy.reduce((sum, each) => sum + each, 0);
}

/** Elsewhere than on Linux there is no such text, and Node knows less. */
export function parseMeminfo(
  text: string,
): Required<Pick<Usage, 'memoryTotal' | 'memoryUsed' | 'memoryCache'>> {
  const fields = parseFields(text);
  const bytes = (name: string, otherwise: number) => {
    const kib = fields.get(name);
    return kib === undefined ? otherwise : kib * 1024;
  };
  const total = bytes('MemTotal', os.totalmem());
  return {
    memoryTotal: total,
    memoryUsed: Math.max(0, total - bytes('MemAvailable', os.freemem())),
    memoryCache: bytes('Cached', 0) + bytes('Buffers', 0),
  };
}

/** What one process has used; `cpuMs` with its children that have ended. */
export interface ProcessUsage {
  pid: number;
  parentPid: number;
  cpuMs: number;
  memoryBytes: number;
}

/** The kernel shows times in hundredths of a second, and memory in pages, on every Linux that Node is built for. */
const TICK_MS = 10;
const PAGE_BYTES = 4096;

/** Reads one line of `/proc/<pid>/stat`; the name in it may hold spaces and brackets. */
export function parseProcess(text: string): ProcessUsage | undefined {
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  const pid = Number.parseInt(text, 10);
  const number = (index: number) => Number(fields[index] ?? Number.NaN);
  const cpuMs = (number(11) + number(12) + number(13) + number(14)) * TICK_MS;
  const memoryBytes = number(21) * PAGE_BYTES;
  if (![pid, number(1), cpuMs, memoryBytes].every(Number.isFinite)) return undefined;
  return { pid, parentPid: number(1), cpuMs, memoryBytes };
}

/** The process `root` and all below it, added up. Pages that several of them share count in each. */
export function sumTree(table: readonly ProcessUsage[], root: number): Usage {
  const children = new Map<number, ProcessUsage[]>();
  for (const each of table) {
    const siblings = children.get(each.parentPid);
    if (siblings === undefined) children.set(each.parentPid, [each]);
    else siblings.push(each);
  }
  let cpuMs = 0;
  let memoryUsed = 0;
  const left = table.filter((each) => each.pid === root);
  if (left.length === 0) return {};
  for (let next = left.pop(); next !== undefined; next = left.pop()) {
    cpuMs += next.cpuMs;
    memoryUsed += next.memoryBytes;
    // Deleted as they are taken: numbers used again while the table was read could make a ring.
    left.push(...(children.get(next.pid) ?? []));
    children.delete(next.pid);
  }
  return { cpuMs, memoryUsed };
}

/**
 * The processes of this sandbox where it has no control group. Under a supervisor its parent is the root: it adopts
 * every process whose parent dies. Empty elsewhere than on Linux.
 */
export function readProcessTree(isSupervised: boolean): Usage {
  if (!existsSync('/proc')) return {};
  const names = readdirSync('/proc').filter((name) => /^\d+$/.test(name));
  const table = names.flatMap((pid) => parseProcess(readIfThere(`/proc/${pid}/stat`) ?? '') ?? []);
  const supervisor = table.find((each) => each.pid === process.ppid);
  return sumTree(table, (isSupervised ? supervisor?.parentPid : undefined) ?? process.pid);
}

/** Lines of a name and a whole number: `memory.stat`, `cpu.stat`, `/proc/meminfo` (in KiB). */
function parseFields(text: string): Map<string, number> {
  return new Map(
    [...text.matchAll(/^(\S+?):?\s+(\d+)/gm)].map((match) => [match[1] ?? '', Number(match[2])]),
  );
}

/** Undefined for what is not a number that is zero or more: "max", -1, a file that is not there. Pure. */
export function integer(text: string | undefined): number | undefined {
  const trimmed = text?.trim() ?? '';
  return /^\d+$/.test(trimmed) ? Number(trimmed) : undefined;
}

function readIfThere(file: string): string | undefined {
  try {
    return readText(file);
  } catch {
    return undefined; // a group or a process that has ended, not Linux: what is not there tells nothing
  }
}

function withoutUndefined(usage: Usage): Usage {
  return Object.fromEntries(Object.entries(usage).filter(([, value]) => value !== undefined));
}
