import crypto from 'node:crypto';
import fs from 'node:fs/promises';
import net from 'node:net';
import path from 'node:path';
import type Dockerode from 'dockerode';
import { ServiceError } from '../errors';
import { TUNNEL_DIR_INSIDE, resourceLimits } from './docker-container';
import type { EngineLimits } from './docker-container';
import { callEngine, engineDetail, engineStatus } from './docker-engine';
import { runHelper } from './docker-helper';
import type { EngineRuntimes } from './docker-isolation';
import { SET_RULES, proxyNetworkNames } from './docker-network';
import type { NetworkNames } from './docker-network';
import { NEVER_PROXIED } from './docker-proxy-config';
import type { Resources } from './runtime';

/** What an engine can do for sandboxes. */
export interface EngineFacts {
  imageId: string;
  limits: EngineLimits;
  caveats: string[];
  engine: EngineRuntimes;
  userNamespaces: boolean;
  /** Name servers that a machine's own network leads to: where rules can close name resolution. */
  nameServers: string[];
}

export interface ProbeOptions {
  docker: Dockerode;
  /** Name or id of the kernel image. */
  image: string;
  serviceId: string;
  /** The usual size of a sandbox. */
  resources: Resources;
  nameServers: readonly string[] | undefined;
  /** Where the directories of the tunnels are. */
  tunnels: string;
  names: NetworkNames;
  /** Lines of single machines that run already. */
  rules: string;
}

/** What `SET_RULES` and `CLEAR_RULES` read. */
export function rulesEnvironment(
  names: NetworkNames,
  nameServers: readonly string[] = [],
): Record<string, string> {
  return {
    BRIDGE: names.bridge,
    PROXY_BRIDGE: proxyNetworkNames(names).bridge,
    CHAIN: names.chain,
    NAME_SERVERS: nameServers.join(' '),
    NEVER_PROXIED: NEVER_PROXIED.join(' '),
  };
}

/**
 * Sets the host's rules and learns, in the same helper container, which limits this engine can enforce.
 *
 * @throws ServiceError `failed_precondition` with a remedy when it can't isolate
 */
export async function probeEngine(options: ProbeOptions): Promise<EngineFacts> {
  const { docker, serviceId, tunnels, names, rules } = options;
  const info = (await callEngine('info', docker.info())) as {
    NCPU?: number;
    OperatingSystem?: string;
    OSType?: string;
    Driver?: string;
    DriverStatus?: Array<[string, string]>;
    SecurityOptions?: string[];
    MemoryLimit?: boolean;
    PidsLimit?: boolean;
    CpuCfsQuota?: boolean;
  } & EngineRuntimes;
  if (info.OSType !== 'linux' || info.OperatingSystem === 'Docker Desktop') {
    throw new ServiceError(
      'failed_precondition',
      `This engine (${info.OperatingSystem ?? 'unknown'}) keeps its containers in a machine of its own, where the tunnel's sockets don't reach`,
      { remedy: 'Use an engine on this Linux host, or set CELLBOX_RUNTIME=local.' },
    );
  }
  let image: Dockerode.ImageInspectInfo;
  try {
    image = await callEngine('inspect image', docker.getImage(options.image).inspect());
  } catch (error) {
    if (engineStatus(error) !== 404) throw error;
    throw new ServiceError('failed_precondition', `The engine has no image ${options.image}`, {
      cause: error,
      remedy: `docker pull ${options.image}, or unset CELLBOX_IMAGE to build one.`,
    });
  }

  const caveats: string[] = [];
  const limits: EngineLimits = { diskQuota: mayHaveQuota(info) };
  const { resources } = options;
  const security = info.SecurityOptions ?? [];
  if (!security.some((each) => each.startsWith('name=seccomp')))
    caveats.push('This engine has no seccomp: sandboxes can make every system call.');
  if (info.MemoryLimit === false) caveats.push("This engine can't limit memory.");
  if (info.PidsLimit === false) caveats.push("This engine can't limit the number of processes.");
  if (info.CpuCfsQuota === false) caveats.push("This engine can't limit CPU time.");
  // The engine refuses a machine that is to have more of them than there are.
  if (info.NCPU !== undefined) limits.cpus = info.NCPU;
  if (info.NCPU !== undefined && info.NCPU < resources.cpuCount) {
    caveats.push(`This host has ${info.NCPU} CPU; sandboxes asked to have ${resources.cpuCount} share it.`);
  }

  const userNamespaces = security.includes('name=userns');
  // A marker that the helper looks for: the tunnel works only where the engine sees the directories that we see. In a
  // directory like a tunnel's: root in the helper has no right to look into ours, unless we are root, too.
  const marker = `probe-${crypto.randomBytes(6).toString('hex')}`;
  const directory = path.join(tunnels, marker);
  await fs.mkdir(directory);
  await fs.chmod(directory, 0o755);
  await fs.writeFile(path.join(directory, marker), '');
  const attempt = () =>
    runHelper(docker, {
      image: image.Id,
      serviceId,
      userNamespaces,
      env: rulesEnvironment(names, options.nameServers),
      script: `[ -e ${TUNNEL_DIR_INSIDE}/${marker} ] || { echo "no shared directories" >&2; exit 97; }
echo "files=$(ulimit -Hn)"
${SET_RULES}`,
      input: rules,
      hostConfig: {
        ...resourceLimits(resources, limits),
        Mounts: [{ Type: 'bind', Source: directory, Target: TUNNEL_DIR_INSIDE, ReadOnly: true }],
        ShmSize: 64 * 1024 * 1024,
      },
    });
  let output = '';
  try {
    // Each failure that a limit explains takes that limit away once; so this ends.
    for (;;) {
      try {
        output = await attempt();
        break;
      } catch (error) {
        const detail = engineDetail(error);
        if (limits.diskQuota && /storage-opt|quota/i.test(detail)) {
          limits.diskQuota = false;
        } else if (limits.openFiles === undefined && /rlimit|ulimit/i.test(detail)) {
          limits.openFiles = await engineOpenFiles(docker, image.Id, serviceId);
          caveats.push(
            `This engine gives a process at most ${limits.openFiles} open files; sandboxes may ask for ${resources.openFiles}.`,
          );
        } else if (/no shared directories|bind source path does not exist/.test(detail)) {
          throw new ServiceError(
            'failed_precondition',
            'The engine does not see this machine’s directories; a remote engine can’t be used yet',
            { cause: error, remedy: 'Unset DOCKER_HOST, or set CELLBOX_RUNTIME=local.' },
          );
        } else {
          throw new ServiceError(
            'failed_precondition',
            `The host's network rules for sandboxes can't be set: ${detail}`,
            {
              cause: error,
              remedy:
                'Sandboxes would reach this host and the cloud’s metadata; see docs/decisions/0005-docker-network.md.',
            },
          );
        }
      }
    }
  } finally {
    await fs.rm(directory, { recursive: true, force: true });
  }
  if (!limits.diskQuota)
    caveats.push(
      `Disk limits are soft: the engine's storage (${info.Driver ?? 'unknown'}) has no quotas here. No file can be larger than the limit; all of them together are measured, and a sandbox that has twice its disk is ended.`,
    );
  const nameServers = await nameServersOf(output);
  return { imageId: image.Id, limits, caveats, engine: info, userNamespaces, nameServers };
}

/**
 * The host's name servers but for those on loopback: the engine asks these itself, past every rule for a machine. Where
 * there are no others, those that systemd's resolver passes questions on to.
 */
async function nameServersOf(helperOutput: string): Promise<string[]> {
  const told = /^resolvers:(.*)$/m.exec(helperOutput)?.[1]?.trim().split(' ') ?? [];
  const servers = told.filter((address) => net.isIPv4(address));
  if (servers.length > 0) return servers;
  const text = await fs.readFile('/run/systemd/resolve/resolv.conf', 'utf8').catch(() => ''); // another resolver, or none
  return [...text.matchAll(/^nameserver\s+(\S+)/gm)].flatMap(([, address = '']) =>
    net.isIPv4(address) && !address.startsWith('127.') ? [address] : [],
  );
}

/** Drivers that take a size; overlay2 does on xfs with project quotas only, which trying finds out. */
function mayHaveQuota(info: { Driver?: string; DriverStatus?: Array<[string, string]> }): boolean {
  if (info.Driver === 'btrfs' || info.Driver === 'zfs') return true;
  const backing = info.DriverStatus?.find(([name]) => name === 'Backing Filesystem')?.[1];
  return info.Driver === 'overlay2' && backing === 'xfs';
}

async function engineOpenFiles(docker: Dockerode, image: string, serviceId: string): Promise<number> {
  const output = await runHelper(docker, { image, serviceId, script: 'ulimit -Hn' });
  const files = Number(output.trim());
  return Number.isInteger(files) && files > 0 ? files : 1024;
}
