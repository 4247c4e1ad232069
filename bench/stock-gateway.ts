import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { performance } from 'node:perf_hooks';
import { endChild, freePort, untilAnswers } from './child';
import { connectGateway, runOn, STOCK_KERNEL, stockKernelspec } from './gateway-client';
import type { Subject } from './subject';

export interface StockGatewayOptions {
  root: string;
  python: string;
  /** With the one socket option that the stock gateway lacks. */
  nodelay: boolean;
}

/** The ordinary way: an unchanged kernel gateway with an unchanged ipykernel, driven by the field's own client. */
export async function startStockGateway(
  options: StockGatewayOptions,
): Promise<Subject & { readonly pid: number }> {
  const { root, python, nodelay } = options;
  const directory = await fs.mkdtemp(path.join(os.tmpdir(), 'cellbox-bench-'));
  const spec = path.join(directory, 'kernels', STOCK_KERNEL);
  await fs.mkdir(spec, { recursive: true });
  await fs.writeFile(path.join(spec, 'kernel.json'), stockKernelspec(python));
  const port = await freePort();
  const token = randomBytes(16).toString('hex');
  const child = spawn(
    python,
    [
      ...(nodelay ? [path.join(root, 'bench', 'nodelay_gateway.py')] : ['-m', 'kernel_gateway']),
      '--KernelGatewayApp.ip=127.0.0.1',
      `--KernelGatewayApp.port=${port}`,
      '--KernelGatewayApp.port_retries=0',
      `--KernelGatewayApp.auth_token=${token}`,
    ],
    {
      cwd: directory,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: {
        ...process.env,
        JUPYTER_PATH: directory,
        JUPYTER_CONFIG_DIR: directory,
        JUPYTER_RUNTIME_DIR: path.join(directory, 'runtime'),
        IPYTHONDIR: path.join(directory, 'ipython'),
        PYTHONDONTWRITEBYTECODE: '1',
      },
    },
  );
  const close = async (): Promise<void> => {
    await endChild(child);
    await fs.rm(directory, { recursive: true, force: true });
  };
  try {
    await untilAnswers(child, `http://127.0.0.1:${port}/api`, { Authorization: `token ${token}` }, 60);
    const gateway = connectGateway(port, token);
    const kernel = await gateway.startKernel();
    await runOn(kernel, '1');
    return {
      pid: child.pid ?? 0,
      name: nodelay ? 'stock + NODELAY' : 'stock gateway',
      description: nodelay
        ? 'the same with TCP_NODELAY set on its connections, and nothing else changed'
        : 'jupyter_kernel_gateway and ipykernel as released, @jupyterlab/services',
      run: (code) => runOn(kernel, code),
      newContext: async (code) => {
        const started = performance.now();
        const second = await gateway.startKernel();
        try {
          const sample = await runOn(second, code);
          return { ...sample, ms: performance.now() - started };
        } finally {
          const { id } = second;
          second.dispose(); // first, or it complains that its kernel died
          await gateway.shutdown(id);
        }
      },
      close: async () => {
        kernel.dispose();
        gateway.dispose();
        await close();
      },
    };
  } catch (error) {
    await close();
    throw error;
  }
}
