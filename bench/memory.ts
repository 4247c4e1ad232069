import fs from 'node:fs/promises';
import path from 'node:path';
import { connectEngine } from '../service/prepare';
import { findDescendants, identify, listProcesses } from '../service/runtime/local-process';
import type { Section } from './figures';
import { startGatewayContainer } from './gateway-container';
import { runOn } from './gateway-client';
import { quiet, setPool } from './native';
import { startService } from './service';
import type { ServiceOptions } from './service';
import { markdownTable } from './statistics';
import { startStockGateway } from './stock-gateway';

/** Proportional memory of one process. Pages that several share are counted in parts, so sums are right. */
interface ProcessMemory {
  name: string;
  pssBytes: number;
}

const IDLE_MS = 3_000;
const MB = 1_000_000;
const PLAIN_SETUP = 'import pandas';

/**
 * One sandbox that waits in the pool, all of its processes counted, beside a stock gateway with one plain kernel that
 * has imported pandas. One after the other and each alone, because what they share with each other counts for neither.
 *
 * @returns undefined where this can't be read: not on Linux, or not by this user.
 */
export async function measureMemory(
  options: ServiceOptions,
  rival: { python: string; image: string | undefined },
): Promise<Section | undefined> {
  if (process.platform !== 'linux') return undefined;
  const pooled = await pooledSandbox(options);
  const plain =
    rival.image === undefined
      ? await plainProcess(options.root, rival.python)
      : await plainContainer(rival.image);
  if (pooled === undefined || plain === undefined) return undefined;
  const [ours, theirs] = [sum(pooled), sum(plain)];
  const list = (all: readonly ProcessMemory[]): string =>
    all.map(({ name, pssBytes }) => `${name} ${(pssBytes / MB).toFixed(0)}`).join(', ');
  return {
    name: 'memory',
    figures: {
      'memory | ratio': ours / theirs,
      'memory | pooled MB': ours / MB,
      'memory | plain MB': theirs / MB,
    },
    data: { pooled, plain },
    lines: [
      markdownTable(
        ['PSS in MB', 'Cellbox', 'gateway + plain kernel', 'ratio'],
        [
          [
            'one idle pooled sandbox',
            (ours / MB).toFixed(0),
            (theirs / MB).toFixed(0),
            `${(ours / theirs).toFixed(2)}×`,
          ],
        ],
      ),
      '',
      `- Cellbox: ${list(pooled)}`,
      `- gateway + plain kernel with pandas: ${list(plain)}`,
      '',
    ],
  };
}

async function pooledSandbox(options: ServiceOptions): Promise<ProcessMemory[] | undefined> {
  const service = await startService(options);
  try {
    await setPool(service, 1);
    await quiet(service);
    await idle();
    if (options.runtime === 'local') return await memoryBelow(service.pid, { withRoot: false });
    const docker = connectEngine();
    const containers = await docker.listContainers({ filters: { label: ['cellbox.kind=sandbox'] } });
    const own = containers.find((each) =>
      each.Mounts.some((mount) => mount.Source?.startsWith(service.dataDir)),
    );
    if (own === undefined) throw new Error('the container of the pooled sandbox was not found');
    const { State } = await docker.getContainer(own.Id).inspect();
    return await memoryBelow(State.Pid, { withRoot: true });
  } finally {
    await service.close();
  }
}

async function plainProcess(root: string, python: string): Promise<ProcessMemory[] | undefined> {
  const gateway = await startStockGateway({ root, python, nodelay: false });
  try {
    await gateway.run(PLAIN_SETUP);
    await idle();
    return await memoryBelow(gateway.pid, { withRoot: true });
  } finally {
    await gateway.close();
  }
}

async function plainContainer(image: string): Promise<ProcessMemory[] | undefined> {
  const container = await startGatewayContainer(image);
  try {
    await runOn(container.kernel, PLAIN_SETUP);
    await idle();
    return await memoryBelow(container.pid, { withRoot: true });
  } finally {
    await container.close();
  }
}

/** Every process below one, by the kernel's own account; undefined when that can't be read. */
async function memoryBelow(
  pid: number,
  { withRoot }: { withRoot: boolean },
): Promise<ProcessMemory[] | undefined> {
  const root = await identify(pid);
  if (root === undefined) throw new Error(`process ${pid} has ended`);
  const below = findDescendants(await listProcesses(), [root]).filter((each) => withRoot || each.pid !== pid);
  const memory = await Promise.all(below.map((each) => memoryOf(each.pid)));
  return memory.every((each) => each !== undefined) ? memory : undefined;
}

async function memoryOf(pid: number): Promise<ProcessMemory | undefined> {
  try {
    const rollup = await fs.readFile(`/proc/${pid}/smaps_rollup`, 'latin1');
    const words = (await fs.readFile(`/proc/${pid}/cmdline`, 'latin1')).split('\0');
    const kilobytes = Number(/^Pss:\s+(\d+) kB/m.exec(rollup)?.[1] ?? 0);
    return { name: nameOf(words), pssBytes: kilobytes * 1024 };
  } catch {
    return undefined; // another user's, or gone
  }
}

/** Of a command line, what tells a reader which process it is. */
export function nameOf(words: readonly string[]): string {
  const module = words[words.indexOf('-m') + 1];
  if (words.includes('-m') && module !== undefined) return module;
  const script = words.find((word) => /\.(js|py)$/.test(word));
  return path.basename(script ?? words[0] ?? '?');
}

function sum(all: readonly ProcessMemory[]): number {
  return all.reduce((total, { pssBytes }) => total + pssBytes, 0);
}

function idle(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, IDLE_MS));
}
