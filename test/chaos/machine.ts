import { execFile } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';

/*
 * Sandboxes as this host sees them: their processes, containers and directories. The injector kills from here, with no
 * help of the service; afterwards it is looked here for what is left.
 */

const run = promisify(execFile);
const ENGINE_DEADLINE_MS = 20_000;

export interface HostProcess {
  pid: number;
  parent: number;
  state: string;
  command: string;
  /** Its number in the innermost namespace. */
  innerPid: number;
}

export type Role = 'supervisor' | 'agent' | 'gateway';
const ROLES: Readonly<Record<Role, RegExp>> = {
  supervisor: /supervisor\.js/,
  agent: /agent\.js/,
  gateway: /cellbox_kernel\.gateway/,
};

/** All processes of the host; those that end meanwhile are left out. */
export function listProcesses(): HostProcess[] {
  const found: HostProcess[] = [];
  for (const name of fs.readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    try {
      const status = fs.readFileSync(`/proc/${name}/status`, 'utf8');
      const field = (key: string): string => new RegExp(`^${key}:\\s+(.*)$`, 'm').exec(status)?.[1] ?? '';
      found.push({
        pid: Number(name),
        parent: Number(field('PPid')),
        state: field('State').charAt(0),
        innerPid: Number(field('NSpid').split(/\s+/).at(-1)),
        command: fs.readFileSync(`/proc/${name}/cmdline`, 'utf8').replaceAll('\0', ' ').trim(),
      });
    } catch {
      // it has ended
    }
  }
  return found;
}

/** Everything below a process, and itself. */
function treeOf(root: number, all: readonly HostProcess[]): HostProcess[] {
  const tree = new Set([root]);
  for (let before = 0; before < tree.size;) {
    before = tree.size;
    for (const { pid, parent } of all) if (tree.has(parent)) tree.add(pid);
  }
  return all.filter(({ pid, state }) => tree.has(pid) && state !== 'Z');
}

/** The process that everything of a sandbox is below; undefined when it is gone. */
async function rootOf(runtime: 'local' | 'docker', dataDir: string, id: string): Promise<number | undefined> {
  if (runtime === 'local') {
    try {
      const text = fs.readFileSync(path.join(dataDir, 'local', id, 'state.json'), 'utf8');
      return (JSON.parse(text) as { leader?: { pid: number } }).leader?.pid;
    } catch {
      return undefined; // ended
    }
  }
  const container = await containerOf(id);
  if (container === undefined) return undefined;
  try {
    const pid = Number(await docker('inspect', '--format', '{{.State.Pid}}', container));
    return pid > 0 ? pid : undefined;
  } catch {
    return undefined; // ended meanwhile
  }
}

export async function processesOf(
  runtime: 'local' | 'docker',
  dataDir: string,
  id: string,
): Promise<HostProcess[]> {
  const root = await rootOf(runtime, dataDir, id);
  return root === undefined ? [] : treeOf(root, listProcesses());
}

export function ofRole(processes: readonly HostProcess[], role: Role): HostProcess | undefined {
  return processes.find(({ command }) => ROLES[role].test(command) && !/bwrap/.test(command));
}

/** The kernel that a cell told the number of. */
export function kernelOf(processes: readonly HostProcess[], innerPid: number): HostProcess | undefined {
  return processes.find((each) => each.innerPid === innerPid && /python/.test(each.command));
}

/** False when there was no such process any more. */
export function kill(pid: number, signal: NodeJS.Signals): boolean {
  try {
    process.kill(pid, signal);
    return true;
  } catch {
    return false; // it had ended by itself
  }
}

export async function docker(...words: string[]): Promise<string> {
  const { stdout } = await run('docker', words, { timeout: ENGINE_DEADLINE_MS });
  return stdout.trim();
}

/** How often a gateway of this sandbox has said that it listens. */
export async function gatewayStarts(
  runtime: 'local' | 'docker',
  dataDir: string,
  id: string,
): Promise<number> {
  try {
    const container = runtime === 'docker' ? await containerOf(id) : undefined;
    const text =
      container === undefined
        ? fs.readFileSync(path.join(dataDir, 'local', id, 'log'), 'utf8')
        : await docker('logs', container);
    return text.split('gateway listening on').length - 1;
  } catch {
    return 0; // the sandbox has ended
  }
}

async function containerOf(id: string): Promise<string | undefined> {
  const found = await docker('ps', '--quiet', '--no-trunc', '--filter', `label=cellbox.id=${id}`);
  return found.split('\n')[0] || undefined;
}

/** What there is on the host of a service with this data directory: one line each, for people. */
export async function leftovers(
  runtime: 'local' | 'docker',
  dataDir: string,
  ids: Iterable<string>,
): Promise<string[]> {
  const wanted = new Set(ids);
  const found: string[] = [];
  for (const { pid, command, state } of listProcesses()) {
    if (state === 'Z' || pid === process.pid) continue;
    const id = markOf(pid);
    const directory = command.split(`${dataDir}/local/`)[1]?.match(/^[a-z0-9]+/)?.[0];
    if ([id, directory].some((name) => name !== undefined && wanted.has(name)))
      found.push(`process ${pid}: ${command.slice(0, 120)}`);
  }
  for (const directory of ['local', 'executions']) {
    for (const name of listDirectory(path.join(dataDir, directory)))
      if (wanted.has(name)) found.push(`directory ${directory}/${name}`);
  }
  for (const name of cgroupsNamed(wanted)) found.push(`control group ${name}`);
  if (runtime === 'docker') {
    const listed = await docker('ps', '--all', '--format', '{{.Label "cellbox.id"}} {{.Names}} {{.Status}}');
    for (const line of listed.split('\n')) {
      const [id = ''] = line.split(' ');
      if (wanted.has(id)) found.push(`container ${line}`);
    }
  }
  return found;
}

/** What the local runtime writes into the environment of all processes of a sandbox. */
function markOf(pid: number): string | undefined {
  try {
    const environment = fs.readFileSync(`/proc/${pid}/environ`, 'utf8');
    return /(?:^|\0)_CELLBOX_INSTANCE=([^\0]*)/.exec(environment)?.[1];
  } catch {
    return undefined; // it has ended, or is the kernel's own
  }
}

export function listDirectory(directory: string): string[] {
  try {
    return fs.readdirSync(directory);
  } catch {
    return []; // never made
  }
}

function cgroupsNamed(ids: ReadonlySet<string>): string[] {
  const found: string[] = [];
  const look = (directory: string, depth: number): void => {
    for (const name of listDirectory(directory)) {
      const below = path.join(directory, name);
      if (!isDirectory(below)) continue;
      if ([...ids].some((id) => name.includes(id))) found.push(path.relative('/sys/fs/cgroup', below));
      if (depth > 0) look(below, depth - 1);
    }
  };
  look('/sys/fs/cgroup', 3);
  return found;
}

function isDirectory(file: string): boolean {
  return fs.statSync(file, { throwIfNoEntry: false })?.isDirectory() === true;
}
