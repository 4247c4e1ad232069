import path from 'node:path';
import { readText } from './read-text';
import { Cgroups, integer, sandboxCgroups } from './usage';

/** What ran out. Either is missing where it can't be read; the limit also where there is none. */
export interface MemoryFigures {
  /** The most that the sandbox's processes ever used together. */
  peakBytes?: number | undefined;
  limitBytes?: number | undefined;
}

/** Of version 2 and version 1. */
const KILL_COUNTERS = ['memory.events', 'memory.oom_control'];
const PEAKS = ['memory.peak', 'memory.max_usage_in_bytes'];

/** The sandbox's memory as its control groups count it, whichever version has them. */
export class SandboxMemory {
  private readonly groups: readonly string[];
  private readonly counter: string;

  /** The nearest group that counts is asked; where none does, the whole machine. */
  constructor(groups: readonly string[], proc = '/proc') {
    this.groups = groups;
    const counters = groups.flatMap((group) => KILL_COUNTERS.map((name) => path.join(group, name)));
    this.counter = counters.find((file) => killsIn(file) !== undefined) ?? path.join(proc, 'vmstat');
  }

  /** How often a process was killed for memory so far; undefined where nobody counts. Cheap: one small file. */
  oomKills(): number | undefined {
    return killsIn(this.counter);
  }

  figures(): MemoryFigures {
    const usages = this.groups.map((group) => new Cgroups([group]).read());
    // Limits hold downwards: the lowest of all groups that this one is in.
    const limits = usages.flatMap(({ memoryTotal }) => memoryTotal ?? []);
    const peaks = this.groups.flatMap((group) => PEAKS.map((name) => path.join(group, name)));
    return {
      peakBytes: peaks.map((file) => integer(textOf(file))).find((peak) => peak !== undefined),
      limitBytes: limits.length === 0 ? undefined : Math.min(...limits),
    };
  }
}

/** Of this process's sandbox: the groups that the runtime made for it, else those that it finds itself in. */
export function createSandboxMemory(options: {
  singleUser: boolean;
  cgroups: readonly string[];
}): SandboxMemory {
  return new SandboxMemory([...sandboxCgroups(options), ...ownMemoryGroups()]);
}

/** The memory group that this process is in and those above it, the nearest first, as far as they can be seen. */
export function ownMemoryGroups(proc = '/proc'): string[] {
  const own = new Map<string, string>();
  for (const line of textOf(path.join(proc, 'self/cgroup')).split('\n')) {
    const [, controllers = '', ...group] = line.split(':');
    if (group.length === 0) continue;
    for (const controller of controllers.split(',')) own.set(controller, group.join(':'));
  }
  // A mount that comes later may cover an earlier one.
  const mounts = textOf(path.join(proc, 'self/mountinfo')).split('\n').reverse();
  return mounts.flatMap((line) => {
    const [left = '', right = ''] = line.split(' - ');
    const [, , , root = '/', mountPoint = '/'] = left.split(' ');
    const [type, , options = ''] = right.split(' ');
    const isVersion1 = type === 'cgroup' && options.split(',').includes('memory');
    const group = isVersion1 ? own.get('memory') : type === 'cgroup2' ? own.get('') : undefined;
    if (group === undefined) return [];
    const below = path.relative(root, group);
    // The engine mounted this group alone, and its namespace names it otherwise.
    return groupsUpTo(mountPoint, below.startsWith('..') ? mountPoint : path.join(mountPoint, below));
  });
}

function groupsUpTo(top: string, group: string): string[] {
  return group === top || group === '/' ? [group] : [group, ...groupsUpTo(top, path.dirname(group))];
}

function killsIn(file: string): number | undefined {
  const [, count] = /^oom_kill (\d+)$/m.exec(textOf(file)) ?? [];
  return count === undefined ? undefined : Number(count);
}

function textOf(file: string): string {
  try {
    return readText(file);
  } catch {
    return ''; // another version's file, a controller that is off, not Linux: it tells nothing
  }
}
