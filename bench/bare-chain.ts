import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { endChild, freePort, tailOf, untilAnswers } from './child';
import { plainKernel } from './raw-zeromq';
import { connectRival } from './rival';
import { within } from './subject';
import type { Subject } from './subject';

/**
 * The floor of what a service can give that has a gateway beside its kernel: every process on the way, and in each of
 * them no more than passing messages on.
 */
export async function startBareChain(root: string, python: string): Promise<Subject> {
  const children: ChildProcess[] = [];
  const close = async (): Promise<void> => {
    for (const child of [...children].reverse()) await endChild(child); // the service first, its gateway ends with it
  };
  try {
    const gateway = spawn(
      python,
      [path.join(root, 'bench', 'bare_gateway.py'), JSON.stringify(plainKernel(python))],
      { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, PYTHONDONTWRITEBYTECODE: '1' } },
    );
    children.push(gateway);
    const server = await startBareServer(root, await socketOf(gateway));
    children.push(server.child);
    return {
      ...(await connectRival(server.url)),
      name: 'bare chain',
      description:
        'official JavaScript SDK, a server and a gateway process beside the same kernel that only pass messages on',
      scenarios: ['1+1', 'print'],
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
}

/** Where the gateway listens, which it says when its kernel is ready. */
async function socketOf(gateway: ChildProcess): Promise<string> {
  const tail = tailOf(gateway);
  if (gateway.stdout === null) throw new Error('the bare gateway has no output');
  const lines = createInterface({ input: gateway.stdout })[Symbol.asyncIterator]();
  const first = await within(90, 'the bare gateway', lines.next());
  if (first.done) throw new Error(`the bare gateway ended:\n${tail()}`);
  return (JSON.parse(first.value) as { socket: string }).socket; // our own program's only line
}

/** The service of the chain, in front of whatever speaks like `bare_gateway.py` at that socket. The caller ends it. */
export async function startBareServer(
  root: string,
  gatewaySocket: string,
): Promise<{ child: ChildProcess; url: string }> {
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const program = path.join(root, 'bench', 'bare-chain-server.js');
  const child = spawn(process.execPath, [program, String(port), gatewaySocket], {
    stdio: ['pipe', 'pipe', 'pipe'],
  });
  try {
    await once(child, 'spawn');
    await untilAnswers(child, `${url}/`, {}, 10);
    return { child, url };
  } catch (error) {
    await endChild(child);
    throw error;
  }
}
