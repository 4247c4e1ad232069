import { execFileSync } from 'node:child_process';
import crypto from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import WebSocket from 'ws';
import { GATEWAY_PORT } from '../../protocol/routing';
import { createLogger } from '../../service/log';
import { createLocalRuntime } from '../../service/runtime/local';
import { findMembers, listProcesses, signalProcess } from '../../service/runtime/local-process';
import { preparePython } from '../../service/runtime/local-python';
import type { InboundHandler, Instance, InstanceSpec, Runtime } from '../../service/runtime/runtime';
import { eventually, request } from '../suites/runtime-suite';
import type { RuntimeHarness } from '../suites/runtime-suite';

const ROOT = path.join(__dirname, '..', '..');

/** Why sandboxes can't have namespaces here; undefined when they can. The runtime's own probe is the judge elsewhere. */
export function whyNoBubblewrap(): string | undefined {
  try {
    execFileSync('bwrap', ['--ro-bind', '/', '/', '--unshare-pid', 'true'], {
      stdio: 'pipe',
      timeout: 10_000,
    });
    return undefined;
  } catch {
    return 'bubblewrap is not installed or does not work here';
  }
}

export interface LocalHarness extends RuntimeHarness {
  readonly dataDir: string;
  run(id: string, argv: string[]): Promise<string>;
  /** Runs a Python program in a kernel of the sandbox and gives its stdout; rejects with the traceback. */
  python(id: string, code: string): Promise<string>;
  killFromOutside(id: string): Promise<void>;
  /** Every live process of any sandbox of this harness, by number. */
  processes(): Promise<number[]>;
}

export interface LocalHarnessOptions {
  bubblewrap: 'off' | 'require';
  dataDir?: string;
  agentDir?: string;
  startTimeoutMs?: number;
}

export async function makeLocalHarness(
  hooks: { onInbound: InboundHandler },
  options: LocalHarnessOptions,
): Promise<LocalHarness> {
  const { python } = await preparePython({
    dataDir: path.join(ROOT, '.cellbox', 'test'),
    kernelImageDir: path.join(ROOT, 'kernel-image'),
    onProgress: (text) => process.stderr.write(`${text}\n`),
  });
  const agentDir = options.agentDir ?? path.join(ROOT, 'dist', 'agent');
  if (!fs.existsSync(agentDir)) execFileSync(process.execPath, ['build.js'], { cwd: ROOT });
  const dataDir = options.dataDir ?? fs.mkdtempSync(path.join(os.tmpdir(), 'cbx-local-'));
  const secret = crypto.randomBytes(32);
  const instances = new Map<string, Instance>();
  const seen = new Set<string>();

  const make = async (): Promise<Runtime> => {
    const runtime = await createLocalRuntime({
      dataDir,
      python,
      agentDir,
      bubblewrap: options.bubblewrap,
      startTimeoutMs: options.startTimeoutMs ?? 60_000,
      deadmanGraceMs: 500,
      deriveSecret: (purpose, id) =>
        crypto.createHmac('sha256', secret).update(`${purpose}\0${id}`).digest('hex'),
      onInbound: hooks.onInbound,
      logger: createLogger(process.env['CELLBOX_TEST_LOG_LEVEL'] ?? 'silent'),
    });
    const { start, adopt } = runtime;
    // The suite names machines by their ids; programs are run in them through the handle.
    runtime.start = async (spec: InstanceSpec, signal?: AbortSignal) => {
      seen.add(spec.id);
      const instance = await start.call(runtime, spec, signal);
      instances.set(spec.id, instance);
      return instance;
    };
    runtime.adopt = async (id: string, signal?: AbortSignal) => {
      const instance = await adopt.call(runtime, id, signal);
      instances.set(id, instance);
      return instance;
    };
    return runtime;
  };

  let runtime = await make().catch((error: unknown) => {
    if (options.dataDir === undefined) fs.rmSync(dataDir, { recursive: true, force: true });
    throw error;
  });

  const processes = async (): Promise<number[]> => {
    const members = await Promise.all(
      [...seen].map((instanceId) =>
        findMembers({
          instanceId,
          roots: [],
          groupMembers: () => Promise.resolve(pidsIn(instanceId)),
        }),
      ),
    );
    return [...new Set(members.flat().map(({ pid }) => pid))];
  };

  const harness: LocalHarness = {
    get runtime() {
      return runtime;
    },
    dataDir,
    processes,
    async restart() {
      await runtime.close();
      runtime = await make();
      return runtime;
    },
    async leftovers() {
      const directories = fs.readdirSync(path.join(dataDir, 'local'));
      const groups = [...seen].flatMap((id) => groupsOf(id));
      return [
        ...(await processes()).map((pid) => `process ${pid}`),
        ...directories.map((name) => `directory ${name}`),
        ...groups.map((name) => `control group ${name}`),
      ];
    },
    async killFromOutside(id) {
      const state = JSON.parse(fs.readFileSync(path.join(dataDir, 'local', id, 'state.json'), 'utf8')) as {
        leader: { pid: number; startTime: string };
      };
      await signalProcess(state.leader, 'SIGKILL');
    },
    async run(id, argv) {
      const code = `import subprocess; print(subprocess.run(${JSON.stringify(argv)}, check=True, capture_output=True, text=True).stdout, end="")`;
      return harness.python(id, code);
    },
    async python(id, code) {
      const instance = instances.get(id);
      if (instance === undefined) throw new Error(`no handle of ${id}`);
      return execute(instance, code);
    },
    async close() {
      for (const { id } of await runtime.list()) await runtime.stop(id);
      await runtime.close();
      if (options.dataDir === undefined) fs.rmSync(dataDir, { recursive: true, force: true });
    },
  };
  return harness;
}

function groupsOf(id: string): string[] {
  const found: string[] = [];
  const walk = (directory: string, levels: number) => {
    for (const entry of entriesOf(directory)) {
      if (!entry.isDirectory()) continue;
      const file = path.join(directory, entry.name);
      if (entry.name === `cellbox-${id}`) found.push(file);
      else if (levels > 0) walk(file, levels - 1);
    }
  };
  walk('/sys/fs/cgroup', 3);
  return found;
}

/** Groups come and go: one of somebody else may be gone between two looks, and is none of ours then. */
function entriesOf(directory: string): fs.Dirent[] {
  try {
    return fs.readdirSync(directory, { withFileTypes: true });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
}

function pidsIn(id: string): number[] {
  return groupsOf(id).flatMap((directory) =>
    fs.readFileSync(path.join(directory, 'cgroup.procs'), 'utf8').split('\n').filter(Boolean).map(Number),
  );
}

/** Runs Python in a fresh kernel through the gateway: the way that a user's code takes. */
async function execute(instance: Instance, code: string): Promise<string> {
  const headers = { authorization: `token ${instance.gatewayToken}`, 'content-type': 'application/json' };
  const made = await eventually(async () => {
    const answer = await request(instance, GATEWAY_PORT, '/api/kernels', {
      method: 'POST',
      headers,
      body: JSON.stringify({ name: 'python3' }),
    });
    if (answer.status !== 201) throw new Error(`${answer.status} ${answer.body}`);
    return answer;
  }, 60_000);
  const kernel = (JSON.parse(made.body) as { id: string }).id;
  const stream = await instance.dial(GATEWAY_PORT);
  const socket = new WebSocket(`ws://sandbox/api/kernels/${kernel}/channels`, {
    createConnection: () => stream,
    headers: { authorization: headers.authorization },
  });
  try {
    return await new Promise<string>((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error('no answer of the kernel within 60 s')), 60_000);
      socket.on('close', () => {
        clearTimeout(timer);
        reject(new Error('the kernel gateway went away')); // settled already when the answer is here
      });
      socket.on('error', reject);
      socket.on('open', () => {
        socket.send(
          JSON.stringify({
            header: {
              msg_id: 'm1',
              msg_type: 'execute_request',
              session: 's',
              username: '',
              date: '',
              version: '5.3',
            },
            parent_header: {},
            metadata: {},
            channel: 'shell',
            content: { code, silent: false, store_history: false, user_expressions: {}, allow_stdin: false },
            buffers: [],
          }),
        );
      });
      let output = '';
      let failure: string | undefined;
      socket.on('message', (data) => {
        const {
          msg_type: type,
          content,
          parent_header: parent,
        } = JSON.parse(String(data)) as {
          msg_type: string;
          content: { name?: string; text?: string; traceback?: string[]; execution_state?: string };
          parent_header: { msg_id?: string };
        };
        if (parent.msg_id !== 'm1') return;
        if (type === 'stream' && content.name === 'stdout') output += content.text ?? '';
        if (type === 'error') failure = (content.traceback ?? []).join('\n');
        if (type !== 'status' || content.execution_state !== 'idle') return;
        if (failure === undefined) resolve(output);
        else reject(new Error(failure));
      });
    });
  } finally {
    socket.terminate();
    stream.destroy();
  }
}

/** Processes whose command line holds this word: what a test started on purpose to be missed. */
export async function processesWith(word: string): Promise<number[]> {
  const table = await listProcesses();
  return table
    .filter(({ pid, state }) => {
      if (state === 'Z' || pid === process.pid) return false;
      try {
        return fs.readFileSync(`/proc/${pid}/cmdline`, 'latin1').includes(word);
      } catch {
        return false; // ended meanwhile
      }
    })
    .map(({ pid }) => pid);
}
