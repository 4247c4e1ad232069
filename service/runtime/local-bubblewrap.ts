import { execFile } from 'node:child_process';
import { existsSync, lstatSync, readlinkSync, realpathSync } from 'node:fs';
import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';

/**
 * Namespaces for local sandboxes by bubblewrap: what a sandbox may see of the host, and as whom it runs.
 * docs/decisions/0004-local-runtime.md has the reasons.
 */

/** Paths inside a sandbox that has its own namespaces. */
export const INSIDE = {
  home: '/home/user',
  tunnel: '/run/cellbox',
  environment: '/opt/cellbox/venv',
} as const;

/**
 * As whom sandboxes run. `user-namespace`: the service's own unprivileged user, seen as uid 1000.
 * `own-uid`: the service is root, so each sandbox gets a host uid of its own. It must never be root's in a user
 * namespace: the kernel lets uid 0 of the host write /proc/sys whatever its namespace.
 */
export type Identity = 'user-namespace' | 'own-uid';

/** What every sandbox of this host has in common. */
export interface HostLayout {
  bubblewrap: string;
  identity: Identity;
  /** Whether this bubblewrap can forbid further user namespaces inside. */
  disableUserns: boolean;
  /** Shown read-only at the same path. */
  readOnly: readonly string[];
  /** `/bin` and the like where they are symbolic links: path → target. */
  links: ReadonlyArray<readonly [string, string]>;
  /** Hidden although they lie below something shown. */
  hidden: readonly string[];
}

/** What is this sandbox's own. Paths are the host's. */
export interface Mounts {
  workspace: string;
  temporary: string;
  environment: string;
  etc: string;
  tunnel: string;
  network: 'full' | 'none';
  /** Its control groups, shown read-only at the same path so that the agent can read what it uses. */
  cgroups?: readonly string[];
  /** Host uid and gid of `own-uid`. */
  uid?: number;
}

const SYSTEM = ['/usr', '/bin', '/sbin', '/lib', '/lib32', '/lib64', '/libx32', '/nix/store', '/gnu/store'];

/** Of /etc only what programs need and nobody minds: no shadow, no private keys, no machine's own configuration. */
const ETC = [
  'alternatives',
  'ca-certificates',
  'ca-certificates.conf',
  'crypto-policies',
  'debian_version',
  'fonts',
  'gai.conf',
  'host.conf',
  'inputrc',
  'ld.so.cache',
  'ld.so.conf',
  'ld.so.conf.d',
  'localtime',
  'locale.alias',
  'magic',
  'mime.types',
  'os-release',
  'pki/ca-trust/extracted',
  'pki/tls/certs',
  'protocols',
  'R',
  'services',
  'ssl/certs',
  'ssl/openssl.cnf',
  'terminfo',
];

/** Uids that systemd sets aside for services made on the fly; distributions give them to nobody. */
const FIRST_UID = 61184;
const LAST_UID = 65519;

const PROBE_TIMEOUT_MS = 10_000;
const run = promisify(execFile);

function isInside(child: string, parent: string): boolean {
  return child === parent || child.startsWith(parent.endsWith('/') ? parent : `${parent}/`);
}

function depth(file: string): number {
  return file.split('/').filter(Boolean).length;
}

/**
 * Decides what sandboxes see of this host. `needed` are the files and directories without which nothing starts
 * (Python, Node, the agent); `secret` are directories never shown, whatever they lie in.
 *
 * @returns a reason instead when a needed directory would show everything that must stay hidden.
 */
export function planLayout(options: {
  bubblewrap: string;
  identity: Identity;
  disableUserns: boolean;
  needed: readonly string[];
  secret: readonly string[];
}): HostLayout | { reason: string } {
  const shown: string[] = [];
  const links: Array<readonly [string, string]> = [];
  for (const directory of SYSTEM) {
    if (!existsSync(directory)) continue;
    if (lstatSync(directory).isSymbolicLink()) links.push([directory, readlinkSync(directory)]);
    else shown.push(directory);
  }
  for (const name of ETC) {
    // The target of a link such as os-release or localtime is shown under the link's name.
    if (existsSync(path.join('/etc', name))) shown.push(path.join('/etc', name));
  }
  // Python and Node may lie behind links (version switchers): both the name and what it leads to are needed.
  const needed = [...new Set(options.needed.flatMap((file) => [file, realpathSync(file)]))];
  for (const file of needed) {
    const exposed = options.secret.find((secret) => isInside(secret, file));
    if (exposed !== undefined) return { reason: `${file}, which sandboxes need to see, holds ${exposed}` };
  }
  const extra = needed.filter((file) => !shown.some((each) => isInside(file, each)));
  const hidden = options.secret.filter((secret) => shown.some((each) => isInside(secret, each)));
  // What a hidden directory hides and sandboxes need is shown again on top of it.
  const again = needed.filter((file) => hidden.some((each) => isInside(file, each)));
  return {
    bubblewrap: options.bubblewrap,
    identity: options.identity,
    disableUserns: options.disableUserns,
    readOnly: [...new Set([...shown, ...extra, ...again])],
    links,
    hidden,
  };
}

/** The command line up to and without the program that runs inside. Pure. */
export function bubblewrapArguments(layout: HostLayout, mounts: Mounts): string[] {
  const steps: Array<{ at: string; args: string[] }> = [
    ...layout.readOnly.map((file) => ({ at: file, args: ['--ro-bind', file, file] })),
    ...layout.hidden.map((directory) => ({ at: directory, args: ['--tmpfs', directory] })),
    ...['passwd', 'group', 'hosts', 'hostname', 'nsswitch.conf', 'resolv.conf'].map((name) => ({
      at: `/etc/${name}`,
      args: ['--ro-bind', path.join(mounts.etc, name), `/etc/${name}`],
    })),
    { at: INSIDE.environment, args: ['--bind', mounts.environment, INSIDE.environment] },
    { at: INSIDE.home, args: ['--bind', mounts.workspace, INSIDE.home] },
    { at: '/tmp', args: ['--bind', mounts.temporary, '/tmp'] },
    { at: '/var/tmp', args: ['--symlink', '/tmp', '/var/tmp'] },
    { at: INSIDE.tunnel, args: ['--ro-bind', mounts.tunnel, INSIDE.tunnel] },
    ...(mounts.cgroups ?? []).map((group) => ({ at: group, args: ['--ro-bind-try', group, group] })),
  ];
  // What lies deeper comes later, or it would be covered.
  steps.sort((one, other) => depth(one.at) - depth(other.at));
  const made = new Set(['/']);
  const deepest = (file: string, among: readonly string[]) =>
    Math.max(-1, ...among.filter((each) => isInside(file, each)).map(depth));
  const isShown = (file: string) => deepest(file, layout.readOnly) > deepest(file, layout.hidden);
  const parents = (file: string): string[] => {
    const directory = path.dirname(file);
    // Inside of something shown they are there, and could not be made.
    if (made.has(directory) || isShown(directory)) return [];
    made.add(directory);
    // bubblewrap itself would make them with mode 0700, of root.
    return [...parents(directory), '--perms', '0755', '--dir', directory];
  };
  const body = steps.flatMap(({ at, args }) => {
    const before = parents(at);
    made.add(at);
    return [...before, ...args];
  });
  const ownUid = layout.identity === 'own-uid';
  return [
    ...['--unshare-pid', '--unshare-ipc', '--unshare-uts', '--unshare-cgroup-try'],
    ...['--hostname', 'cellbox', '--new-session'],
    ...(mounts.network === 'none' ? ['--unshare-net'] : []),
    ...(ownUid ? [] : ['--unshare-user', '--uid', '1000', '--gid', '1000']),
    ...(!ownUid && layout.disableUserns ? ['--disable-userns'] : []),
    ...layout.links.flatMap(([at, target]) => ['--symlink', target, at]),
    ...['--proc', '/proc', '--dev', '/dev', '--perms', '1777', '--tmpfs', '/dev/shm'],
    ...body,
    ...['--remount-ro', '/', '--chdir', INSIDE.home, '--cap-drop', 'ALL'],
    ...(ownUid ? ['--cap-add', 'CAP_SETUID', '--cap-add', 'CAP_SETGID', '--cap-add', 'CAP_SETPCAP'] : []),
    '--',
    ...(ownUid ? dropTo(mounts.uid) : []),
  ];
}

function dropTo(uid: number | undefined): string[] {
  if (uid === undefined) throw new Error('own-uid without a uid'); // would leave root inside
  const id = String(uid);
  return [
    ...['setpriv', '--reuid', id, '--regid', id, '--clear-groups'],
    ...['--inh-caps=-all', '--bounding-set=-all', '--no-new-privs', '--'],
  ];
}

/** A uid for one sandbox that neither the host's accounts nor other sandboxes have. */
export function chooseUid(instanceId: string, taken: ReadonlySet<number>): number {
  const count = LAST_UID - FIRST_UID + 1;
  let sum = 0;
  for (const char of instanceId) sum = (sum * 31 + char.charCodeAt(0)) % count;
  for (let step = 0; step < count; step++) {
    const uid = FIRST_UID + ((sum + step) % count);
    if (!taken.has(uid)) return uid;
  }
  throw new Error('no free uid');
}

/** Uids of the host's accounts. */
export async function accountUids(): Promise<Set<number>> {
  const passwd = await fs.readFile('/etc/passwd', 'utf8');
  return new Set(passwd.split('\n').map((line) => Number(line.split(':')[2])));
}

/** The few files of /etc that a sandbox gets made for it. */
export async function writeEtc(directory: string, uid: number, network: 'full' | 'none'): Promise<void> {
  const resolv = network === 'full' ? await fs.readFile('/etc/resolv.conf', 'utf8').catch(() => '') : ''; // none here: none inside
  const files: Record<string, string> = {
    passwd: [
      ...(uid === 0 ? [] : ['root:x:0:0:root:/root:/usr/sbin/nologin']),
      `user:x:${uid}:${uid}:user:${INSIDE.home}:/bin/bash`,
      'nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin',
      '',
    ].join('\n'),
    group: `root:x:0:\nuser:x:${uid}:\nnogroup:x:65534:\n`,
    hosts: '127.0.0.1 localhost cellbox\n::1 localhost\n',
    hostname: 'cellbox\n',
    'nsswitch.conf': 'passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n',
    'resolv.conf': resolv,
  };
  await fs.mkdir(directory, { recursive: true });
  await Promise.all(
    Object.entries(files).map(([name, text]) =>
      fs.writeFile(path.join(directory, name), text, { mode: 0o644 }),
    ),
  );
}

/** The result of trying bubblewrap on this host: how to use it, or one sentence why not and what would help. */
export type BubblewrapProbe =
  { usable: true; layout: HostLayout } | { usable: false; reason: string; remedy: string };

/**
 * Runs `program` (as every sandbox will be run: same layout, same identity) in a trial sandbox with and without a
 * network, and checks that a secret directory can't be seen.
 */
export async function probeBubblewrap(options: {
  needed: readonly string[];
  secret: readonly string[];
  program: readonly string[];
}): Promise<BubblewrapProbe> {
  if (process.platform !== 'linux')
    return { usable: false, reason: 'bubblewrap exists on Linux only', remedy: 'use the docker runtime' };
  const bubblewrap = await findProgram('bwrap');
  const remedy = 'install it (Debian, Ubuntu: apt-get install bubblewrap)';
  if (bubblewrap === undefined) return { usable: false, reason: 'bubblewrap is not installed', remedy };
  const root = process.getuid?.() === 0;
  if (root && (await findProgram('setpriv')) === undefined) {
    return {
      usable: false,
      reason: 'the service runs as root and there is no setpriv to become somebody else',
      remedy: 'run the service as an ordinary user, or install util-linux',
    };
  }
  const help = await run(bubblewrap, ['--help'], { timeout: PROBE_TIMEOUT_MS }).catch(() => undefined); // told below
  if (help === undefined || !help.stdout.includes('--perms'))
    return {
      usable: false,
      reason: `${bubblewrap} does not run or is older than 0.5`,
      remedy: 'update bubblewrap',
    };
  const layout = planLayout({
    bubblewrap,
    identity: root ? 'own-uid' : 'user-namespace',
    disableUserns: help.stdout.includes('--disable-userns'),
    needed: options.needed,
    secret: options.secret,
  });
  if ('reason' in layout)
    return { usable: false, reason: layout.reason, remedy: 'install Python and Node outside of it' };
  let problem = await tryLayout(layout, options.program);
  if (problem === undefined) return { usable: true, layout };
  if (layout.disableUserns) {
    // Kernels exist whose limit on user namespaces can't be set from inside: then without that extra lock.
    const without = { ...layout, disableUserns: false };
    problem = await tryLayout(without, options.program);
    if (problem === undefined) return { usable: true, layout: without };
  }
  return {
    usable: false,
    reason: `bubblewrap does not work here: ${problem}`,
    remedy:
      'allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone=1; Ubuntu 24.04: an AppArmor profile for bwrap), or run outside of a container that forbids them',
  };
}

async function tryLayout(layout: HostLayout, program: readonly string[]): Promise<string | undefined> {
  const directory = await fs.mkdtemp(path.join(os.tmpdir(), 'cellbox-probe-'));
  try {
    const own = (name: string) => path.join(directory, name);
    for (const name of ['workspace', 'temporary', 'environment', 'tunnel']) await fs.mkdir(own(name));
    const uid = layout.identity === 'own-uid' ? LAST_UID : 1000;
    await writeEtc(own('etc'), uid, 'none');
    for (const network of ['full', 'none'] as const) {
      const args = bubblewrapArguments(layout, {
        workspace: own('workspace'),
        temporary: own('temporary'),
        environment: own('environment'),
        etc: own('etc'),
        tunnel: own('tunnel'),
        network,
        uid,
      });
      await run(layout.bubblewrap, [...args, ...program], {
        timeout: PROBE_TIMEOUT_MS,
        cwd: '/',
        env: { PATH: SYSTEM_PATH },
      });
    }
    return undefined;
  } catch (error) {
    const { stderr = '', code, signal } = error as { stderr?: string; code?: unknown; signal?: unknown };
    const [first] = stderr.split('\n').filter((line) => line.trim() !== '');
    return first?.trim() ?? `the trial ended with ${String(signal ?? code)}`;
  } finally {
    await fs.rm(directory, { recursive: true, force: true });
  }
}

export const SYSTEM_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

async function findProgram(name: string): Promise<string | undefined> {
  for (const directory of SYSTEM_PATH.split(':')) {
    const file = path.join(directory, name);
    if (await fs.access(file, fs.constants.X_OK).then(() => true, () => false)) return file; // prettier-ignore
  }
  return undefined;
}
