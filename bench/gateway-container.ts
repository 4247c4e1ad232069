import { execFile, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { performance } from 'node:perf_hooks';
import { promisify } from 'node:util';
import type { IKernelConnection } from '@jupyterlab/services/lib/kernel/kernel';
import { connectGateway, runOn, STOCK_KERNEL, stockKernelspec } from './gateway-client';

const run = promisify(execFile);
const ENGINE_DEADLINE_MS = 60_000;
const ANSWER_DEADLINE_MS = 60_000;
const POLL_MS = 20;
const PYTHON = '/opt/cellbox/venv/bin/python';
const SPECS = '/opt/stock';

/** A stock gateway in a container of the sandboxes' own image, with one kernel that has answered. */
export interface GatewayContainer {
  /** Milliseconds from `docker run` to the result of `1+1`. */
  readonly firstResultMs: number;
  /** Of the container's first process, on the host. */
  readonly pid: number;
  readonly kernel: IKernelConnection;
  close(): Promise<void>;
}

/** Makes the comparison without pool and service: `docker run`, a kernel from the gateway, one cell. */
export async function startGatewayContainer(image: string): Promise<GatewayContainer> {
  const directory = await fs.mkdtemp(path.join(os.tmpdir(), 'cbx-gateway-'));
  const spec = path.join(directory, 'kernels', STOCK_KERNEL);
  await fs.mkdir(spec, { recursive: true });
  await fs.chmod(directory, 0o755); // the container's user is another
  await fs.writeFile(path.join(spec, 'kernel.json'), stockKernelspec(PYTHON));
  const token = randomBytes(16).toString('hex');
  let container: string | undefined;
  let gateway: ReturnType<typeof connectGateway> | undefined;
  let kernel: IKernelConnection | undefined;
  // Also when the bench is broken off.
  const remove = (): void => {
    if (container !== undefined)
      spawnSync('docker', ['rm', '--force', container], { timeout: ENGINE_DEADLINE_MS });
  };
  process.once('exit', remove);
  const close = async (): Promise<void> => {
    kernel?.dispose();
    gateway?.dispose();
    if (container !== undefined) await docker('rm', '--force', container);
    container = undefined;
    process.off('exit', remove);
    await fs.rm(directory, { recursive: true, force: true });
  };
  try {
    const started = performance.now();
    container = (
      await docker(
        ...['run', '--detach', '--user', 'user', '--publish', '127.0.0.1::8888'],
        ...['--volume', `${directory}:${SPECS}:ro`, '--env', `JUPYTER_PATH=${SPECS}`],
        ...['--entrypoint', PYTHON, image, '-m', 'kernel_gateway'],
        ...['--KernelGatewayApp.ip=0.0.0.0', '--KernelGatewayApp.port=8888'],
        `--KernelGatewayApp.auth_token=${token}`,
      )
    ).trim();
    const port = Number(/:(\d+)\s*$/m.exec(await docker('port', container, '8888/tcp'))?.[1]);
    await answers(port, token);
    gateway = connectGateway(port, token);
    kernel = await gateway.startKernel();
    const { types } = await runOn(kernel, '1+1');
    const firstResultMs = performance.now() - started;
    if (types.length === 0) throw new Error('the gateway in a container gave no result');
    const pid = Number(await docker('inspect', '--format', '{{.State.Pid}}', container));
    return { firstResultMs, pid, kernel, close };
  } catch (error) {
    await close();
    throw error;
  }
}

async function docker(...args: string[]): Promise<string> {
  return (await run('docker', args, { timeout: ENGINE_DEADLINE_MS })).stdout;
}

async function answers(port: number, token: string): Promise<void> {
  const deadline = Date.now() + ANSWER_DEADLINE_MS;
  for (;;) {
    try {
      const response = await fetch(`http://127.0.0.1:${port}/api`, {
        headers: { Authorization: `token ${token}` },
        signal: AbortSignal.timeout(5_000),
      });
      if (response.ok) return;
    } catch {
      // Not listening yet.
    }
    if (Date.now() > deadline) throw new Error('the gateway in a container does not answer');
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}
