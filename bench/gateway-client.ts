import { performance } from 'node:perf_hooks';
import { KernelManager } from '@jupyterlab/services/lib/kernel/manager';
import * as KernelMessage from '@jupyterlab/services/lib/kernel/messages';
import type { IKernelConnection } from '@jupyterlab/services/lib/kernel/kernel';
import { ServerConnection } from '@jupyterlab/services/lib/serverconnection';
import { WebSocket } from 'ws';
import { EXECUTION_TIMEOUT_MS } from './sdk-subject';
import { within } from './subject';
import type { Sample } from './subject';

/** The name of the kernelspec that stock gateways are given. */
export const STOCK_KERNEL = 'stock';

const START_SECONDS = 60;

/** The kernelspec of an ordinary ipykernel, as JSON. */
export function stockKernelspec(python: string): string {
  return JSON.stringify({
    argv: [python, '-m', 'ipykernel_launcher', '-f', '{connection_file}'],
    display_name: 'Python',
    language: 'python',
  });
}

/** The field's own client of a kernel gateway. `dispose` ends connections only. */
export function connectGateway(
  port: number,
  token: string,
): { startKernel(): Promise<IKernelConnection>; shutdown(id: string): Promise<void>; dispose(): void } {
  console.debug = () => {}; // the client announces every WebSocket, in the middle of our results
  const serverSettings = ServerConnection.makeSettings({
    baseUrl: `http://127.0.0.1:${port}/`,
    wsUrl: `ws://127.0.0.1:${port}/`,
    token,
    appendToken: true,
    // The client is written for browsers; ws offers the same interface as far as it is used.
    WebSocket: WebSocket as unknown as typeof globalThis.WebSocket,
  });
  const manager = new KernelManager({ serverSettings, standby: 'never' });
  return {
    startKernel: () =>
      within(
        START_SECONDS,
        'kernel of the gateway',
        manager.startNew({ name: STOCK_KERNEL }, { handleComms: false }),
      ),
    shutdown: (id) => manager.shutdown(id),
    dispose: () => manager.dispose(),
  };
}

/** Runs code until reply and idle are both there. */
export async function runOn(kernel: IKernelConnection, code: string): Promise<Sample> {
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
  const reply = await within(EXECUTION_TIMEOUT_MS / 1000, 'stock gateway', future.done);
  const ms = performance.now() - started;
  if (reply?.content.status !== 'ok') throw new Error(`stock gateway: ${JSON.stringify(reply?.content)}`);
  return { ms, stdout: stdout.join(''), types };
}
