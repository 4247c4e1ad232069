import os from 'node:os';
import { MIN_RESOURCES } from '../../protocol/control-plane';
import { ServiceError } from '../errors';
import type { Resources } from '../runtime/runtime';

type Figure = keyof Resources;

/** Some limits; those that are undefined stay what they are. */
export type Figures = { readonly [Name in Figure]?: number | undefined };

/** Limits with a name. */
export interface Size extends Figures {
  readonly cpuCount: number;
  readonly memoryMB: number;
  readonly diskSizeMB: number;
}

/** What a create or a template asks for in place of the usual: a size, or single figures. */
export interface ResourceRequest extends Figures {
  readonly size?: string | undefined;
}

/** How a size may be spelt; also what a reference to a template can have behind its `@`. */
export const SIZE_NAME = /^[a-z0-9][a-z0-9_.-]{0,63}$/;

/** What a size is about: one of them beside it would contradict it. */
const FIXED_BY_SIZE = ['cpuCount', 'memoryMB', 'diskSizeMB'] as const;

export const FIGURES = Object.keys(MIN_RESOURCES) as readonly Figure[];

const UNITS: Record<Figure, string> = {
  cpuCount: 'CPUs',
  memoryMB: 'MiB of memory',
  diskSizeMB: 'MiB of disk',
  pids: 'processes',
  openFiles: 'open files',
};

function builtIn(cpuCount: number, memoryGB: number): [string, Size] {
  const diskGB = Math.max(10, 5 * memoryGB);
  return [
    `${cpuCount}vcpu-${memoryGB}gb`,
    { cpuCount, memoryMB: memoryGB * 1024, diskSizeMB: diskGB * 1024 },
  ];
}

/** Sizes that every installation knows, as far as its maximum allows. GB are GiB, as everywhere. */
export const BUILT_IN_SIZES: ReadonlyMap<string, Size> = new Map([
  builtIn(1, 0.5),
  builtIn(1, 1),
  builtIn(1, 2),
  builtIn(1, 4),
  builtIn(2, 2),
  builtIn(2, 4),
  builtIn(2, 8),
  builtIn(4, 8),
  builtIn(4, 16),
  builtIn(8, 16),
  builtIn(8, 32),
]);

/** What a size is also asked for as: clouds sell `apps-s-1vcpu-2gb`, shared or dedicated, and `…-fixed`. */
function plainName(name: string): string {
  return name
    .replace(/^(?:apps-)?[sd]-(?=\d)/, '')
    .replace(/^apps-(?=\d)/, '')
    .replace(/-fixed$/, '');
}

/**
 * The most that one sandbox may have: as the settings say, else what the host has of CPUs and memory, and no bound for the
 * rest. The usual is allowed on a host that has less, too: the runtime tells of that.
 */
export function boundsOf(maximum: Figures, usual: Resources): Resources {
  const bound = (figure: Figure, fallback: number) => Math.max(usual[figure], maximum[figure] ?? fallback);
  return {
    cpuCount: bound('cpuCount', hostCpus()),
    memoryMB: bound('memoryMB', hostMemoryMB()),
    diskSizeMB: bound('diskSizeMB', Infinity),
    pids: bound('pids', Infinity),
    openFiles: bound('openFiles', Infinity),
  };
}

/** What is wrong with limits that are above the bounds, one sentence each. */
export function excesses(limits: Figures, bounds: Resources): string[] {
  return FIGURES.filter((figure) => (limits[figure] ?? 0) > bounds[figure]).map(
    (figure) => `${figure}: at most ${bounds[figure]} ${UNITS[figure]} for one sandbox`,
  );
}

/**
 * The sizes that can be asked for by name: the operator's own, and built-in ones as far as the bounds allow them.
 *
 * Rules: a size's figures beat the template's, and single figures beat both; but beside a size none for CPUs, memory or
 * disk may stand.
 */
export class Sizes {
  /** In the order of the lists; an own one replaces the built-in one of the same name. */
  readonly all: ReadonlyMap<string, Size>;

  constructor(own: ReadonlyMap<string, Size>, bounds: Resources) {
    const mistakes = [...own].flatMap(([name, size]) =>
      excesses(size, bounds).map((text) => `sizes.${name}.${text}`),
    );
    if (mistakes.length > 0) throw new ServiceError('invalid_argument', mistakes.join('\n'));
    const known = [...BUILT_IN_SIZES].filter(
      ([name, size]) => !own.has(name) && excesses(size, bounds).length === 0,
    );
    this.all = new Map([...own, ...known]);
  }

  /**
   * `base` with what is asked for.
   *
   * @throws ServiceError `invalid_argument` for an unknown size or a contradiction
   */
  apply(base: Resources, { size: name, ...figures }: ResourceRequest): Resources {
    const said = given(figures);
    if (name === undefined) return { ...base, ...said };
    const beside = FIXED_BY_SIZE.filter((figure) => said[figure] !== undefined);
    if (beside.length > 0) {
      throw new ServiceError('invalid_argument', `size: can not be given together with ${beside.join(', ')}`);
    }
    return { ...base, ...given(this.find(name)), ...said };
  }

  /** Also by the names that clouds have for it. */
  private find(name: string): Size {
    const spelt = name.trim().toLowerCase();
    const size = this.all.get(spelt) ?? this.all.get(plainName(spelt));
    if (size !== undefined) return size;
    const why = BUILT_IN_SIZES.has(plainName(spelt))
      ? 'is more than a sandbox may have here'
      : 'is not known';
    throw new ServiceError(
      'invalid_argument',
      `size: ${JSON.stringify(name)} ${why}; there are ${[...this.all.keys()].join(', ')}`,
    );
  }
}

export function sameResources(a: Resources, b: Resources): boolean {
  return FIGURES.every((figure) => a[figure] === b[figure]);
}

/** Only what is said: a gap must not cover what is beneath it. */
function given(figures: Figures): Partial<Resources> {
  const said: Partial<Resources> = {};
  for (const figure of FIGURES) {
    const value = figures[figure];
    if (value !== undefined) said[figure] = value;
  }
  return said;
}

/** All of the machine's, also for a service that is itself held to fewer: its sandboxes may be elsewhere. */
function hostCpus(): number {
  return os.cpus().length || os.availableParallelism();
}

function hostMemoryMB(): number {
  return Math.floor(os.totalmem() / 1_048_576);
}
