import { execFile } from 'node:child_process';
import fs from 'node:fs/promises';
import path from 'node:path';
import { randomBytes } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import { ServiceError } from '../errors';
import type { Resources } from './runtime';

/**
 * Control groups for local sandboxes, below the service's own group so that no limit set on the service is escaped.
 * Version 2 where its controllers are there, else the version 1 hierarchies; what the host doesn't let us write is
 * left out and told.
 */

export type Controller = 'memory' | 'pids' | 'cpu' | 'freezer';
const CONTROLLERS: readonly Controller[] = ['memory', 'pids', 'cpu', 'freezer'];

/** Where this service may make groups: one directory per controller. In version 2 they are all the same one. */
export interface CgroupHost {
  version: 1 | 2;
  directories: Partial<Record<Controller, string>>;
}

export interface CgroupUsage {
  cpuMs: number | undefined;
  memoryBytes: number | undefined;
}

const CPU_PERIOD_US = 100_000;
const GONE_DEADLINE_MS = 5_000;
const run = promisify(execFile);

/** Finds the directories of our own groups from the texts of `/proc/self/mountinfo` and `/proc/self/cgroup`. Pure. */
export function locateCgroups(
  mountinfo: string,
  ownGroups: string,
): { v1: Partial<Record<Controller, string>>; v2: string | undefined } {
  const own = new Map<string, string>();
  for (const line of ownGroups.split('\n')) {
    const [, controllers, ...rest] = line.split(':');
    if (rest.length === 0) continue;
    for (const controller of (controllers ?? '').split(',')) own.set(controller, rest.join(':'));
  }
  const v1: Partial<Record<Controller, string>> = {};
  let v2: string | undefined;
  for (const line of mountinfo.split('\n')) {
    const [left = '', right = ''] = line.split(' - ');
    const [, , , root = '/', mountPoint = ''] = left.split(' ');
    const [type, , options = ''] = right.split(' ');
    const inside = (group: string) =>
      path.join(mountPoint, root !== '/' && group.startsWith(root) ? group.slice(root.length) : group);
    if (type === 'cgroup2') v2 = inside(own.get('') ?? '/');
    if (type !== 'cgroup') continue;
    for (const controller of CONTROLLERS) {
      const group = own.get(controller);
      if (group !== undefined && options.split(',').includes(controller)) v1[controller] = inside(group);
    }
  }
  return { v1, v2 };
}

/** Tries what works here by making a group, moving a process into it and removing it again. */
export async function probeCgroups(): Promise<CgroupHost | undefined> {
  if (process.platform !== 'linux') return undefined;
  const { v1, v2 } = locateCgroups(
    await fs.readFile('/proc/self/mountinfo', 'utf8'),
    await fs.readFile('/proc/self/cgroup', 'utf8'),
  );
  const usable: Partial<Record<Controller, string>> = {};
  if (v2 !== undefined && Object.keys(v1).length === 0) {
    const controllers = await enableControllers(v2);
    if (!(await canMoveInto(v2))) return undefined;
    for (const controller of controllers) usable[controller] = v2;
    return { version: 2, directories: { ...usable, freezer: v2 } };
  }
  for (const [controller, directory] of Object.entries(v1) as Array<[Controller, string]>) {
    if (await canMoveInto(directory)) usable[controller] = directory;
  }
  return Object.keys(usable).length > 0 ? { version: 1, directories: usable } : undefined;
}

async function enableControllers(directory: string): Promise<Controller[]> {
  const read = async () =>
    (await fs.readFile(path.join(directory, 'cgroup.subtree_control'), 'utf8')).trim().split(' ');
  const wanted = CONTROLLERS.filter((controller) => controller !== 'freezer');
  try {
    for (const controller of wanted) {
      if ((await read()).includes(controller)) continue;
      // Refused when not delegated to us, or when processes live in this very group; limits are then not enforced.
      await fs.writeFile(path.join(directory, 'cgroup.subtree_control'), `+${controller}`).catch(() => {});
    }
    const enabled = await read();
    return wanted.filter((controller) => enabled.includes(controller));
  } catch {
    return []; // no such file: not a version 2 group that we can see
  }
}

async function canMoveInto(parent: string): Promise<boolean> {
  const trial = path.join(parent, `cellbox-probe-${randomBytes(4).toString('hex')}`);
  try {
    await fs.mkdir(trial);
    await prepareCpuset(trial);
    await run('/bin/sh', ['-c', 'echo $$ > "$1/cgroup.procs"', 'sh', trial], { timeout: 3_000 });
    return true;
  } catch {
    return false; // that it doesn't work is the answer
  } finally {
    await removeGroup(trial).catch(() => {}); // an empty group left behind costs nothing, a failed probe would
  }
}

/** A hierarchy that is mounted together with cpuset takes no process before these are set. */
async function prepareCpuset(directory: string): Promise<void> {
  for (const name of ['cpuset.cpus', 'cpuset.mems']) {
    const value = await fs.readFile(path.join(directory, '..', name), 'utf8').catch(() => undefined);
    if (value !== undefined) await fs.writeFile(path.join(directory, name), value).catch(() => {}); // already inherited
  }
}

async function removeGroup(directory: string): Promise<void> {
  for (const deadline = Date.now() + GONE_DEADLINE_MS; ;) {
    try {
      await fs.rmdir(directory);
      return;
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === 'ENOENT') return;
      if (Date.now() > deadline) {
        throw new ServiceError('internal', `Could not remove the control group ${directory}`, {
          cause: error,
        });
      }
      await delay(5); // busy until the kernel has put away the last process
    }
  }
}

/** What is not limited on this host, as words for a sentence. */
export function unenforcedLimits(host: CgroupHost | undefined): string[] {
  const words = { memory: 'memory', pids: 'process count', cpu: 'CPU' } as const;
  return (Object.keys(words) as Array<keyof typeof words>)
    .filter((controller) => host?.directories[controller] === undefined)
    .map((controller) => words[controller]);
}

/**
 * The control group of one instance. Made before its first process and removed after its last one;
 * it keeps nothing in memory, so a service that starts later makes the same object from the same name.
 */
export class Cgroup {
  private readonly directories: ReadonlyArray<[Controller, string]>;

  constructor(
    private readonly host: CgroupHost,
    name: string,
  ) {
    this.directories = (Object.entries(host.directories) as Array<[Controller, string]>).map(
      ([controller, parent]) => [controller, path.join(parent, name)],
    );
  }

  /** Where its figures can be read, each directory once. */
  get places(): string[] {
    return [...new Set(this.directories.map(([, directory]) => directory))];
  }

  /** Files that a process writes its number to in order to enter, each once. */
  get entrances(): string[] {
    return this.places.map((directory) => path.join(directory, 'cgroup.procs'));
  }

  private file(controller: Controller, name: string): string | undefined {
    const found = this.directories.find(([each]) => each === controller);
    return found && path.join(found[1], name);
  }

  async create(resources: Resources): Promise<void> {
    for (const [, directory] of this.directories) {
      await fs.mkdir(directory, { recursive: true });
      await prepareCpuset(directory);
    }
    const bytes = String(resources.memoryMB * 1024 * 1024);
    const quota = Math.round(resources.cpuCount * CPU_PERIOD_US);
    const settings: Array<[Controller, string, string, 'must' | 'may']> =
      this.host.version === 2
        ? [
            ['memory', 'memory.max', bytes, 'must'],
            ['memory', 'memory.swap.max', '0', 'may'],
            ['pids', 'pids.max', String(resources.pids), 'must'],
            ['cpu', 'cpu.max', `${quota} ${CPU_PERIOD_US}`, 'must'],
          ]
        : [
            ['memory', 'memory.limit_in_bytes', bytes, 'must'],
            ['memory', 'memory.memsw.limit_in_bytes', bytes, 'may'],
            ['pids', 'pids.max', String(resources.pids), 'must'],
            ['cpu', 'cpu.cfs_period_us', String(CPU_PERIOD_US), 'may'],
            ['cpu', 'cpu.cfs_quota_us', String(quota), 'must'],
          ];
    for (const [controller, name, value, need] of settings) {
      const file = this.file(controller, name);
      if (file === undefined) continue;
      try {
        await fs.writeFile(file, value);
      } catch (error) {
        // Swap accounting is compiled out of many kernels; the other files exist wherever their controller does.
        if (need === 'must')
          throw new ServiceError('unavailable', `Could not set ${name} of a sandbox`, { cause: error });
      }
    }
  }

  async members(): Promise<number[]> {
    const lists = await Promise.all(
      this.entrances.map((file) => fs.readFile(file, 'utf8').catch(() => '')), // gone: it has no members
    );
    return [...new Set(lists.flatMap((text) => text.split('\n').filter(Boolean).map(Number)))];
  }

  /** Freezes or thaws all processes at once. False when this host has no freezer for us. */
  async setFrozen(frozen: boolean): Promise<boolean> {
    const v2 = this.host.version === 2;
    const file = this.file('freezer', v2 ? 'cgroup.freeze' : 'freezer.state');
    if (file === undefined) return false;
    const [value, reached] = v2
      ? [frozen ? '1' : '0', frozen ? /^frozen 1$/m : /^frozen 0$/m]
      : [frozen ? 'FROZEN' : 'THAWED', frozen ? /^FROZEN/ : /^THAWED/];
    try {
      await fs.writeFile(file, value);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false; // never made, or gone already
      throw error;
    }
    const told = v2 ? this.file('freezer', 'cgroup.events') : file;
    for (const deadline = Date.now() + GONE_DEADLINE_MS; Date.now() < deadline;) {
      if (reached.test(await fs.readFile(told ?? file, 'utf8'))) return true;
      if (frozen && !v2) await fs.writeFile(file, value); // version 1 asks to be told again while it is FREEZING
      await delay(2);
    }
    throw new ServiceError('unavailable', `The sandbox could not be ${frozen ? 'frozen' : 'thawed'}`);
  }

  /**
   * Kills everything in the group. It is frozen first: a frozen process neither forks nor ends, so the list is
   * complete and no number in it has become somebody else's.
   *
   * @returns false when some are left, or when there is no freezer here.
   */
  async kill(): Promise<boolean> {
    for (const deadline = Date.now() + GONE_DEADLINE_MS; Date.now() < deadline;) {
      if ((await this.members()).length === 0) return true;
      try {
        if (!(await this.setFrozen(true))) return false;
        for (const pid of await this.members()) process.kill(pid, 'SIGKILL');
      } catch {
        // One that hangs in the kernel can't be frozen, and is not to save the others: the caller looks for what is left.
        return false;
      } finally {
        await this.setFrozen(false).catch(() => {}); // gone meanwhile
      }
      await delay(2);
    }
    return false;
  }

  async usage(): Promise<CgroupUsage> {
    const read = async (controller: Controller, name: string) => {
      const file = this.file(controller, name);
      return file === undefined ? undefined : fs.readFile(file, 'utf8').catch(() => undefined); // not in this kernel
    };
    if (this.host.version === 2) {
      const cpu = /^usage_usec (\d+)/m.exec((await read('cpu', 'cpu.stat')) ?? '')?.[1];
      const memory = await read('memory', 'memory.current');
      return {
        cpuMs: cpu === undefined ? undefined : Number(cpu) / 1000,
        memoryBytes: memory === undefined ? undefined : Number(memory),
      };
    }
    const memory = await read('memory', 'memory.usage_in_bytes');
    return { cpuMs: undefined, memoryBytes: memory === undefined ? undefined : Number(memory) };
  }

  /** Resolves when no group is left; the processes must have been killed before. */
  async remove(): Promise<void> {
    for (const [, directory] of this.directories) await removeGroup(directory);
  }
}
