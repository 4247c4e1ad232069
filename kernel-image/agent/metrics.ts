import fs from 'node:fs/promises';
import type { ServerResponse } from 'node:http';
import type { AgentMetrics } from '../../protocol/agent-metrics';
import { sendJson } from './http-error';
import { log, reason } from './log';
import { Cgroups, readHost, readProcessTree, sandboxCgroups } from './usage';
import type { Usage } from './usage';

const MIB = 1_048_576;
const MOST_BYTES = BigInt(Number.MAX_SAFE_INTEGER);
/** Two looks closer together than this show the counters' grain, not the load: the earlier figure counts on. */
const SHORTEST_WINDOW_MS = 50;

/** Reads what the sandbox uses now. Calls may overlap. */
export type Meter = () => Promise<AgentMetrics>;

export interface MeterOptions {
  singleUser: boolean;
  /** Control groups that hold this sandbox and nothing else; in a container they are where they always are. */
  cgroups: readonly string[];
  /** Where files go. */
  home: string;
  isSupervised: boolean;
  /** Milliseconds of a clock that never jumps. */
  now?: () => number;
}

/** Starts counting: the first call tells the load since now. */
export function createMeter(options: MeterOptions): Meter {
  const cgroups = new Cgroups(sandboxCgroups(options));
  let before = readCounters(options, cgroups);
  let percent = 0;
  return async () => {
    const disk = await readDisk(options);
    // No await from here on: calls that overlap count one after another.
    const now = readCounters(options, cgroups);
    if (now.at - before.at >= SHORTEST_WINDOW_MS) {
      percent = cpuPercent(before, now);
      before = now;
    }
    return {
      ts: Math.floor(Date.now() / 1000),
      cpu_count: now.cpuCount,
      cpu_used_pct: percent,
      mem_total: now.memoryTotal,
      mem_used: now.memoryUsed,
      mem_cache: now.memoryCache,
      mem_total_mib: Math.floor(now.memoryTotal / MIB),
      mem_used_mib: Math.floor(now.memoryUsed / MIB),
      ...disk,
    };
  };
}

interface Counters extends Required<Usage> {
  /** When, by the meter's clock. */
  at: number;
}

/** At once: these are small texts that the system keeps in memory, and each detour to the thread pool costs more. */
function readCounters(options: MeterOptions, cgroups: Cgroups): Counters {
  const { singleUser, isSupervised, now = () => performance.now() } = options;
  const at = now();
  const group = cgroups.read();
  // Version 1 may count memory in a group of ours and processors in one of the host's.
  const isPart = group.cpuMs === undefined || group.memoryUsed === undefined;
  const tree = singleUser && isPart ? readProcessTree(isSupervised) : {};
  // The host's cache is nothing that one of many users has.
  const noCache = singleUser ? { memoryCache: 0 } : {};
  return { at, ...combine(readHost(group), { ...noCache, ...tree }, group) };
}

/** What a later source knows counts more; no limit reaches beyond the host. Pure. */
export function combine(host: Required<Usage>, tree: Usage, group: Usage): Required<Usage> {
  const all = { ...host, ...tree, ...group };
  const memoryTotal = Math.min(all.memoryTotal, host.memoryTotal);
  // In a tree, pages count more than once.
  return { ...all, memoryTotal, memoryUsed: Math.min(all.memoryUsed, memoryTotal) };
}

/** Of all processors together, 0 to 100, two decimals. Pure. */
export function cpuPercent(
  then: Pick<Counters, 'at' | 'cpuMs'>,
  now: Pick<Counters, 'at' | 'cpuMs' | 'cpuCount'>,
): number {
  const share = (now.cpuMs - then.cpuMs) / Math.max(1, (now.at - then.at) * now.cpuCount);
  // A tree that lost a process has used less than before; counters and clock are not read in one instant.
  return Math.round(Math.min(Math.max(share, 0), 1) * 10_000) / 100;
}

/** What is not available counts as used: a part may be kept for root. */
async function readDisk(options: MeterOptions): Promise<Pick<AgentMetrics, 'disk_used' | 'disk_total'>> {
  // With namespaces the root directory of a single user is an empty one in memory.
  const disk = await fs.statfs(options.singleUser ? options.home : '/', { bigint: true });
  return diskFigures(disk);
}

/** A file system in memory may say that it has more room than a number in JSON can tell. Pure. */
export function diskFigures({
  blocks,
  bavail,
  bsize,
}: Record<'blocks' | 'bavail' | 'bsize', bigint>): Pick<AgentMetrics, 'disk_used' | 'disk_total'> {
  const told = (bytes: bigint) => Number(bytes < MOST_BYTES ? bytes : MOST_BYTES);
  return { disk_used: told((blocks - bavail) * bsize), disk_total: told(blocks * bsize) };
}

/** Answers `GET /metrics`; a failure has no body. */
export async function sendMetrics(meter: Meter, response: ServerResponse): Promise<void> {
  response.setHeader('Cache-Control', 'no-store');
  try {
    sendJson(response, 200, await meter());
  } catch (error) {
    log(`agent: no metrics: ${reason(error)}`);
    response.writeHead(500).end();
  }
}
