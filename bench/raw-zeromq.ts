import { spawn } from 'node:child_process';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { endChild, tailOf } from './child';
import { within } from './subject';
import type { Sample, Subject } from './subject';

/** The command of the kernel that sandboxes run. */
export function plainKernel(python: string): string[] {
  return [python, '-m', 'cellbox_kernel.kernel', '-f', '{connection_file}'];
}

/** The floor: the same kernel as in a sandbox, with nothing between it and a Python client on bare ZeroMQ sockets. */
export async function startRawZeroMq(root: string, python: string): Promise<Subject> {
  const kernel = plainKernel(python);
  const child = spawn(python, [path.join(root, 'bench', 'raw_zeromq.py'), JSON.stringify(kernel)], {
    stdio: ['pipe', 'pipe', 'pipe'],
    env: { ...process.env, PYTHONDONTWRITEBYTECODE: '1' },
  });
  const tail = tailOf(child);
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();

  const next = async (seconds: number): Promise<unknown> => {
    const line = await within(seconds, 'raw ZeroMQ', lines.next());
    if (line.done) throw new Error(`the raw ZeroMQ program ended:\n${tail()}`);
    return JSON.parse(line.value) as unknown;
  };
  const ask = async (request: { op: 'run' | 'new_context'; code: string }): Promise<Sample> => {
    child.stdin.write(`${JSON.stringify(request)}\n`);
    const answer = (await next(310)) as Sample | { error: string }; // our own program's two answers
    if ('error' in answer) throw new Error(`raw ZeroMQ: ${answer.error}`);
    return answer;
  };

  try {
    await next(90);
  } catch (error) {
    await endChild(child);
    throw error;
  }
  return {
    name: 'raw ZeroMQ',
    description: 'the same kernel, pyzmq and jupyter_client.session in one Python process, no server',
    run: (code) => ask({ op: 'run', code }),
    newContext: (code) => ask({ op: 'new_context', code }),
    close: async () => {
      child.stdin.end(); // the program ends its kernel and itself
      await endChild(child);
    },
  };
}
