import { execFile } from 'node:child_process';
import fs from 'node:fs/promises';
import { readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import { ServiceError } from '../errors';

/**
 * Processes of this host, read from /proc (Linux) or `ps` (elsewhere, best effort). Everything here is about process
 * trees that outlive this service, so a process is never named by its number alone: numbers are used again.
 */

/** Environment variable that every process of an instance carries; kernels drop `CELLBOX_` names, so it is not one. */
export const MARK = '_CELLBOX_INSTANCE';

/** One process for ever: its number, and when it began (with the boot, on Linux). Plain data, kept in files. */
export interface ProcessIdentity {
  pid: number;
  startTime: string;
}

export interface ProcessEntry extends ProcessIdentity {
  parentPid: number;
  groupId: number;
  sessionId: number;
  /** First letter of the state: `Z` is dead and not yet waited for, `T` is stopped. */
  state: string;
  cpuMs: number;
  memoryBytes: number;
}

/** How the processes of one instance are recognised. */
export interface TreeMarks {
  instanceId: string;
  /** Processes that the service started itself; everything below them belongs to the instance. */
  roots: readonly ProcessIdentity[];
  /** Numbers of the processes in the instance's control group, where it has one. */
  groupMembers?: () => Promise<readonly number[]>;
}

/** Jiffies per second that the kernel shows to programs; 100 on every Linux that Node runs on. */
const TICKS_PER_SECOND = 100;
const PAGE_BYTES = 4096;
const KILL_DEADLINE_MS = 10_000;
const onLinux = process.platform === 'linux';
const run = promisify(execFile);

let bootId: string | undefined;

function thisBoot(): string {
  bootId ??= readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim().slice(0, 8);
  return bootId;
}

/** Reads one line of `/proc/<pid>/stat`; the name in it may hold spaces and brackets. */
export function parseStat(text: string, boot: string): ProcessEntry | undefined {
  const nameEnd = text.lastIndexOf(')');
  const pid = Number.parseInt(text, 10);
  const fields = text.slice(nameEnd + 2).split(' ');
  const number = (index: number) => Number(fields[index] ?? Number.NaN);
  const startTicks = fields[19];
  if (nameEnd < 0 || !Number.isInteger(pid) || startTicks === undefined) return undefined;
  return {
    pid,
    startTime: `${boot}:${startTicks}`,
    state: fields[0] ?? '?',
    parentPid: number(1),
    groupId: number(2),
    sessionId: number(3),
    cpuMs: ((number(11) + number(12) + number(13) + number(14)) * 1000) / TICKS_PER_SECOND,
    memoryBytes: number(21) * PAGE_BYTES,
  };
}

/** Reads one line of `ps -axo pid=,ppid=,pgid=,stat=,rss=,time=,lstart=`. */
export function parsePsLine(line: string): ProcessEntry | undefined {
  const match = /^\s*(\d+)\s+(\d+)\s+(\d+)\s+(\S+)\s+(\d+)\s+([\d:.-]+)\s+(\S.*?)\s*$/.exec(line);
  if (match === null) return undefined;
  const [, pid, parentPid, groupId, state = '?', rss, time = '', startTime = ''] = match;
  const seconds = time.split(/[:-]/).reduce((total, part) => total * 60 + Number(part), 0);
  return {
    pid: Number(pid),
    startTime,
    state: state.charAt(0),
    parentPid: Number(parentPid),
    groupId: Number(groupId),
    sessionId: Number(groupId),
    cpuMs: seconds * 1000,
    memoryBytes: Number(rss) * 1024,
  };
}

/** Every process that can be seen now. */
export async function listProcesses(): Promise<ProcessEntry[]> {
  if (!onLinux) {
    const { stdout } = await run('ps', ['-axo', 'pid=,ppid=,pgid=,stat=,rss=,time=,lstart='], {
      maxBuffer: 64 * 1024 * 1024,
      timeout: 5_000,
      env: { PATH: '/bin:/usr/bin', LC_ALL: 'C' },
    });
    return stdout.split('\n').flatMap((line) => parsePsLine(line) ?? []);
  }
  const pids = (await fs.readdir('/proc')).filter((name) => /^\d+$/.test(name));
  const entries = await Promise.all(pids.map((pid) => readProcess(Number(pid))));
  return entries.filter((entry) => entry !== undefined);
}

async function readProcess(pid: number): Promise<ProcessEntry | undefined> {
  if (!onLinux) return (await listProcesses()).find((entry) => entry.pid === pid);
  try {
    return parseStat(await fs.readFile(`/proc/${pid}/stat`, 'latin1'), thisBoot());
  } catch {
    return undefined; // gone between the listing and the reading
  }
}

/** Who the process of this number is now, or undefined when there is none. */
export async function identify(pid: number): Promise<ProcessIdentity | undefined> {
  const entry = await readProcess(pid);
  return entry && { pid: entry.pid, startTime: entry.startTime };
}

/** True while exactly this process runs: a later process of the same number doesn't count, nor does a dead one. */
export async function isAlive(identity: ProcessIdentity): Promise<boolean> {
  const entry = await readProcess(identity.pid);
  return entry !== undefined && entry.startTime === identity.startTime && entry.state !== 'Z';
}

/**
 * Everything below the roots by parenthood, session or process group, the roots too, and everything below `seeds`,
 * processes already known to belong. Pure.
 */
export function findDescendants(
  table: readonly ProcessEntry[],
  roots: readonly ProcessIdentity[],
  seeds: ReadonlySet<number> = new Set(),
): ProcessEntry[] {
  const byPid = new Map(table.map((entry) => [entry.pid, entry]));
  // A root that is gone says nothing: its number may be somebody else's by now.
  const live = roots.filter((root) => byPid.get(root.pid)?.startTime === root.startTime);
  const led = new Set(live.map((root) => root.pid));
  const found = new Set([...led, ...seeds]);
  for (let before = -1; before !== found.size;) {
    before = found.size;
    for (const entry of table) {
      if (found.has(entry.parentPid) || led.has(entry.sessionId) || led.has(entry.groupId))
        found.add(entry.pid);
    }
  }
  return table.filter((entry) => found.has(entry.pid));
}

async function carriesMark(pid: number, instanceId: string): Promise<boolean> {
  try {
    const environment = await fs.readFile(`/proc/${pid}/environ`, 'latin1');
    return `\0${environment}`.includes(`\0${MARK}=${instanceId}\0`);
  } catch {
    return false; // gone, or another user's, which no process of ours can have become
  }
}

/**
 * Every live process of the instance: below its roots, in its control group, or carrying its mark (which finds
 * those whose ancestors are gone).
 */
export async function findMembers(marks: TreeMarks): Promise<ProcessEntry[]> {
  const known = new Set(await marks.groupMembers?.());
  const table = await listProcesses();
  if (onLinux) {
    const below = new Set(findDescendants(table, marks.roots, known).map((entry) => entry.pid));
    const marked = await Promise.all(
      table.map(async ({ pid }) => !below.has(pid) && (await carriesMark(pid, marks.instanceId)) && pid),
    );
    for (const pid of marked) if (pid !== false) known.add(pid);
  }
  return findDescendants(table, marks.roots, known).filter(
    (entry) => entry.state !== 'Z' && entry.pid !== process.pid,
  );
}

/** Sends the signal to exactly this process; one that has gone is fine. */
export async function signalProcess(identity: ProcessIdentity, signal: NodeJS.Signals): Promise<void> {
  if (!(await isAlive(identity))) return;
  try {
    process.kill(identity.pid, signal);
  } catch (error) {
    // ESRCH: it ended this moment, which is what callers want. Anything else they must hear of.
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

/**
 * Sends the signal to these processes and to their whole process groups: a group is reached at once, so that a process
 * that forks all the time can't step aside. Groups of an instance hold nothing else, because its session is its own.
 */
async function signalAll(entries: readonly ProcessEntry[], signal: NodeJS.Signals): Promise<void> {
  const ownGroup = (await readProcess(process.pid))?.groupId;
  const groups = new Set(entries.map(({ groupId }) => groupId));
  for (const group of groups) {
    if (group <= 1 || group === ownGroup) continue;
    try {
      process.kill(-group, signal);
    } catch {
      // The group is gone, or some of it is not ours to signal; each process is told below.
    }
  }
  for (const entry of entries) await signalProcess(entry, signal);
}

/** Stops (as by Ctrl-Z) every process of the instance; again and again, because they fork meanwhile. */
export async function freezeTree(marks: TreeMarks): Promise<void> {
  for (const deadline = Date.now() + KILL_DEADLINE_MS; Date.now() < deadline;) {
    const running = (await findMembers(marks)).filter((entry) => entry.state !== 'T');
    if (running.length === 0) return;
    await signalAll(running, 'SIGSTOP');
    await delay(1); // a stop is carried out when the process next leaves the kernel
  }
  throw new ServiceError('unavailable', 'Some processes of the sandbox could not be frozen');
}

export async function thawTree(marks: TreeMarks): Promise<void> {
  await signalAll(await findMembers(marks), 'SIGCONT');
}

/** A look at /proc takes a while and may miss a process that was handed on meanwhile, hardly several times. */
const SURE_AFTER_LOOKS = 3;

/**
 * Kills every process of the instance and resolves when none is left.
 *
 * All are stopped before the first is killed, so that none can fork away in between, and so that the roots, to whom
 * orphans are handed, are there until everything is found.
 *
 * @throws ServiceError `internal` when some are still there after the deadline.
 */
export async function killTree(marks: TreeMarks): Promise<void> {
  let left: ProcessEntry[] = [];
  let gone = 0;
  let still = 0;
  const startedAt = Date.now();
  while (Date.now() - startedAt < KILL_DEADLINE_MS) {
    left = await findMembers(marks);
    if (left.length === 0) {
      if (++gone === SURE_AFTER_LOOKS) return;
      continue;
    }
    gone = 0;
    const running = left.filter(({ state }) => state !== 'T');
    await signalAll(running, 'SIGSTOP');
    still = running.length === 0 ? still + 1 : 0;
    // Something that can't be stopped (it waits for a disk) must not keep the rest alive for ever.
    const isLate = Date.now() - startedAt > KILL_DEADLINE_MS / 2;
    if (still >= SURE_AFTER_LOOKS || isLate) await signalAll(left, 'SIGKILL');
    await delay(1); // nothing tells when somebody else's child has stopped or ended
  }
  throw new ServiceError(
    'internal',
    `Could not end ${left.length} processes of sandbox ${marks.instanceId}: ${left.map(({ pid }) => pid).join(', ')}`,
  );
}
