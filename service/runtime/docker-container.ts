import type Dockerode from 'dockerode';
import type { IsolationLevel } from './docker-isolation';
import { largestFileBytes } from './instance-start';
import type { InstanceRecord, InstanceSpec, InstanceStats, OutputLine, Resources } from './runtime';

/** Where the agent finds the service's socket: the read-only mount of the tunnel's directory. */
export const TUNNEL_DIR_INSIDE = '/run/cellbox';

/** Names of our labels on containers and networks. */
export const LABELS = {
  /** Whose it is: one value per data directory. */
  service: 'cellbox.service',
  /** `sandbox` or `helper`. */
  kind: 'cellbox.kind',
  id: 'cellbox.id',
  /** The level that it was started at. */
  isolation: 'cellbox.isolation',
  /** JSON of `InstanceSpec.labels`. */
  labels: 'cellbox.labels',
  /** Milliseconds since the epoch. */
  createdAt: 'cellbox.created-at',
} as const;

/** Capabilities of the profile `standard`: enough for sudo, package managers and servers on low ports. */
const CAPABILITIES = [
  'CHOWN',
  'DAC_OVERRIDE',
  'FOWNER',
  'FSETID',
  'SETUID',
  'SETGID',
  'KILL',
  'NET_BIND_SERVICE',
  'SYS_CHROOT',
  'AUDIT_WRITE',
];

/** What this engine can't do, found out once. Undefined: no limit known. */
export interface EngineLimits {
  cpus?: number;
  openFiles?: number;
  /** Whether the storage driver can hold a container to a size. */
  diskQuota: boolean;
}

export interface ContainerInput {
  spec: InstanceSpec;
  name: string;
  image: string;
  serviceId: string;
  network: string;
  /** Address of its interface on the network: what rules of its own go by. */
  mac: string;
  /** Name servers that the engine's resolver asks from inside, by the machine's own network; empty: the host's settings. */
  nameServers: readonly string[];
  tunnelDir: string;
  env: Record<string, string>;
  createdAt: number;
  limits: EngineLimits;
  isolation: IsolationLevel;
  /** File of the host that names the name servers, for a machine that can't ask the engine's resolver. */
  resolvConf?: string | undefined;
}

/** The engine's description of one sandbox, profile `standard`. Pure. */
export function containerOptions(input: ContainerInput): Dockerode.ContainerCreateOptions {
  const { spec } = input;
  // The type definitions don't know it yet.
  const cgroupNamespace: object = { CgroupnsMode: 'private' };
  const isOnNetwork = spec.network !== 'none';
  const { mac, network, nameServers } = input;
  return {
    name: input.name,
    // Engines from API 1.44 on read the second, older ones the first.
    ...(isOnNetwork && {
      MacAddress: mac,
      NetworkingConfig: { EndpointsConfig: { [network]: { MacAddress: mac } } },
    }),
    Image: input.image,
    Hostname: 'cellbox',
    Env: Object.entries(input.env).map(([name, value]) => `${name}=${value}`),
    Labels: {
      [LABELS.service]: input.serviceId,
      [LABELS.kind]: 'sandbox',
      [LABELS.id]: spec.id,
      [LABELS.isolation]: input.isolation.name,
      [LABELS.labels]: JSON.stringify(spec.labels),
      [LABELS.createdAt]: String(input.createdAt),
    },
    StopTimeout: 2,
    HostConfig: {
      ...resourceLimits(spec.resources, input.limits),
      // One that is halted is to be started again. What ended by itself the service removes, or its next start.
      AutoRemove: false,
      RestartPolicy: { Name: 'no' },
      CapDrop: ['ALL'],
      CapAdd: CAPABILITIES,
      Privileged: false,
      NetworkMode: isOnNetwork ? network : 'none',
      // Also without a network, for the one that it may join later.
      ...(nameServers.length > 0 && { Dns: [...nameServers] }),
      IpcMode: 'private',
      ...cgroupNamespace,
      LogConfig: { Type: 'json-file', Config: { 'max-size': '1m', 'max-file': '1' } },
      Mounts: [
        readOnly(input.tunnelDir, TUNNEL_DIR_INSIDE),
        ...(input.resolvConf === undefined ? [] : [readOnly(input.resolvConf, '/etc/resolv.conf')]),
      ],
      Runtime: input.isolation.ociRuntime,
    },
  };
}

/** A file or directory of the host, as a mount that nothing inside can write. */
export function readOnly(source: string, target: string): Dockerode.MountSettings {
  return { Type: 'bind', Source: source, Target: target, ReadOnly: true };
}

export function resourceLimits(resources: Resources, limits: EngineLimits): Dockerode.HostConfig {
  const memory = resources.memoryMB * 1024 * 1024;
  const openFiles = Math.min(resources.openFiles, limits.openFiles ?? Infinity);
  const fileBytes = largestFileBytes(resources);
  const cpus = Math.min(resources.cpuCount, limits.cpus ?? Infinity);
  return {
    Memory: memory,
    MemorySwap: memory, // memory and swap together: none is left for swap
    NanoCpus: Math.round(cpus * 1e9),
    PidsLimit: resources.pids,
    Ulimits: [
      { Name: 'nofile', Soft: openFiles, Hard: openFiles },
      { Name: 'fsize', Soft: fileBytes, Hard: fileBytes },
    ],
    ShmSize: Math.max(64 * 1024 * 1024, Math.floor(memory / 4)), // counts as the container's memory
    ...(limits.diskQuota ? { StorageOpt: { size: `${resources.diskSizeMB}M` } } : {}),
  };
}

/** One line of the engine's list as the runtime tells it. `starting` holds the ids that this process is starting. */
export function toRecord(
  info: Pick<Dockerode.ContainerInfo, 'Labels' | 'State' | 'Created'>,
  starting: ReadonlySet<string>,
): InstanceRecord | undefined {
  const id = info.Labels[LABELS.id];
  if (id === undefined) return undefined;
  const createdAt = Number(info.Labels[LABELS.createdAt]);
  return {
    id,
    state: starting.has(id) && info.State !== 'dead' ? 'starting' : toState(info.State),
    startedAt: Number.isFinite(createdAt) && createdAt > 0 ? createdAt : info.Created * 1000,
    labels: parseLabels(info.Labels[LABELS.labels]),
  };
}

function toState(state: string): InstanceRecord['state'] {
  switch (state) {
    case 'running':
    case 'paused':
      return state;
    case 'created':
    case 'restarting':
      return 'starting';
    case 'exited':
      return 'halted';
    default: // dead, removing, and what a later engine may invent: nothing that can be reached
      return 'dead';
  }
}

function parseLabels(text: string | undefined): Record<string, string> {
  try {
    const value: unknown = JSON.parse(text ?? '{}');
    if (value === null || typeof value !== 'object') return {};
    return Object.fromEntries(
      Object.entries(value).filter((entry): entry is [string, string] => typeof entry[1] === 'string'),
    );
  } catch {
    return {}; // a label that someone else wrote: the machine is still ours to list and stop
  }
}

/** The numbers that count, out of the engine's statistics of either cgroup version. */
export function toStats(stats: Dockerode.ContainerStats): InstanceStats {
  const memory = stats.memory_stats as {
    usage?: number;
    limit?: number;
    stats?: Record<string, number | undefined>;
  };
  // File pages that the kernel gives back when asked are not the machine's use: as the engine's own client counts.
  const reclaimable = memory.stats?.['total_inactive_file'] ?? memory.stats?.['inactive_file'] ?? 0;
  return {
    cpuMs: (stats.cpu_stats.cpu_usage?.total_usage ?? 0) / 1e6,
    memoryBytes: Math.max(0, (memory.usage ?? 0) - reclaimable),
    memoryLimitBytes: memory.limit,
    pids: stats.pids_stats?.current ?? 0,
  };
}

/** Bytes before each piece of a log: which stream, three zeros, length. */
const FRAME_HEAD_BYTES = 8;

/** The engine's log of a container without a terminal, read with time stamps. */
export function toOutput(log: Buffer): OutputLine[] {
  const lines: OutputLine[] = [];
  for (let at = 0; at + FRAME_HEAD_BYTES <= log.length;) {
    const begin = at + FRAME_HEAD_BYTES;
    at = begin + log.readUInt32BE(at + 4);
    const [stamp = '', text = ''] = log.toString('utf8', begin, at).split(/ (.*)/s);
    const time = Date.parse(stamp);
    lines.push(Number.isNaN(time) ? { text: `${stamp} ${text}` } : { at: time, text });
  }
  return lines;
}
