import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { performance } from 'node:perf_hooks';
import { KernelManager } from '@jupyterlab/services/lib/kernel/manager';
import * as KernelMessage from '@jupyterlab/services/lib/kernel/messages';
import type { IKernelConnection } from '@jupyterlab/services/lib/kernel/kernel';
import { ServerConnection } from '@jupyterlab/services/lib/serverconnection';
import { WebSocket } from 'ws';
import { endChild, freePort, untilAnswers } from './child';
import { within } from './subject';
import type { Sample, Subject } from './subject';

/** The ordinary way: an unchanged kernel gateway with an unchanged ipykernel, driven by the field's own client. */
export async function startStockGateway(python: string): Promise<Subject> {
  console.debug = () => {}; // the client announces every WebSocket, in the middle of our results
  const directory = await fs.mkdtemp(path.join(os.tmpdir(), 'cellbox-bench-'));
  const spec = path.join(directory, 'kernels', 'stock');
  await fs.mkdir(spec, { recursive: true });
  await fs.writeFile(
    path.join(spec, 'kernel.json'),
    JSON.stringify({
      argv: [python, '-m', 'ipykernel_launcher', '-f', '{connection_file}'],
      display_name: 'Python',
      language: 'python',
    }),
  );
  const port = await freePort();
  const token = randomBytes(16).toString('hex');
  const child = spawn(
    python,
    [
      '-m',
      'kernel_gateway',
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
      },
    },
  );
  const close = async (): Promise<void> => {
    await endChild(child);
    await fs.rm(directory, { recursive: true, force: true });
  };
  try {
    await untilAnswers(child, `http://127.0.0.1:${port}/api`, { Authorization: `token ${token}` }, 60);
    const serverSettings = ServerConnection.makeSettings({
      baseUrl: `http://127.0.0.1:${port}/`,
      wsUrl: `ws://127.0.0.1:${port}/`,
      token,
      appendToken: true,
      // The client is written for browsers; ws offers the same interface as far as it is used.
      WebSocket: WebSocket as unknown as typeof globalThis.WebSocket,
    });
    const manager = new KernelManager({ serverSettings, standby: 'never' });
    const kernel = await within(
      60,
      'stock gateway',
      manager.startNew({ name: 'stock' }, { handleComms: false }),
    );
    await run(kernel, '1');
    return {
      name: 'stock gateway',
      description: 'jupyter_kernel_gateway and ipykernel as released, @jupyterlab/services',
      run: (code) => run(kernel, code),
      newContext: async (code) => {
        const started = performance.now();
        const second = await manager.startNew({ name: 'stock' }, { handleComms: false });
        try {
          const sample = await run(second, code);
          return { ...sample, ms: performance.now() - started };
        } finally {
          const { id } = second;
          second.dispose(); // first, or it complains that its kernel died
          await manager.shutdown(id);
        }
      },
      close: async () => {
        kernel.dispose();
        manager.dispose();
        await close();
      },
    };
  } catch (error) {
    await close();
    throw error;
  }
}

async function run(kernel: IKernelConnection, code: string): Promise<Sample> {
  const stdout: string[] = [];
  const types: string[] = [];
  const started = performance.now();
  const future = kernel.requestExecute({ code, allow_stdin: false, stop_on_error: true });
  future.onIOPub = (message) => {
    if (KernelMessage.isStreamMsg(message)) {
      if (message.content.name === 'stdout') stdout.push(message.content.text);
    } else if (KernelMessage.isExecuteResultMsg(message) || KernelMessage.isDisplayDataMsg(message)) {
      types.push(...Object.keys(message.content.data));
    }
  };
  const reply = await within(180, 'stock gateway', future.done);
  const ms = performance.now() - started;
  if (reply?.content.status !== 'ok') throw new Error(`stock gateway: ${JSON.stringify(reply?.content)}`);
  return { ms, stdout: stdout.join(''), types };
}
