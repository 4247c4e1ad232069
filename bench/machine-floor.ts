import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { performance } from 'node:perf_hooks';
import pino from 'pino';
import type { Config } from '../service/config';
import { Interpreter } from '../service/interpreter/interpreter';
import { AGENT_DIR, connectEngine, prepareImage } from '../service/prepare';
import { containerOptions } from '../service/runtime/docker-container';
import { TunnelServer } from '../service/runtime/tunnel';
import { endChild } from './child';

/** What no service can do without to start a machine: measured without the service. */
export interface MachineFloor {
  readonly description: string;
  /** Starts one machine, and ends it: milliseconds until its agent has connected, and until a kernel has answered. */
  start(): Promise<{ agent: number; kernel: number }>;
  close(): Promise<void>;
}

const CONNECT_DEADLINE_MS = 60_000;
const RESOURCES = {
  cpuCount: os.cpus().length,
  memoryMB: 2048,
  diskSizeMB: 10_240,
  pids: 1024,
  openFiles: 1024,
};

/** One `create` and one `start` of the engine, with the image and the limits of a sandbox. */
export async function dockerFloor(config: Config): Promise<MachineFloor> {
  const docker = connectEngine();
  const image = await prepareImage(config, () => undefined); // the service has built it
  const { Id } = await docker.getImage(image).inspect();
  return floor('the engine creates and starts a container of the same image', {
    async start(id, directory, env) {
      const container = await docker.createContainer(
        containerOptions({
          spec: { id, env: {}, resources: RESOURCES, network: 'full', labels: {}, deadlineAt: 0 },
          name: `cellbox-bench-${id}`,
          image: Id,
          serviceId: 'bench',
          network: 'bridge',
          mac: `0a${randomBytes(5).toString('hex')}`.replace(/(..)(?=.)/g, '$1:'),
          nameServers: [],
          tunnelDir: directory,
          env: { ...env, CELLBOX_TUNNEL: 'unix:/run/cellbox/service.sock' },
          createdAt: Date.now(),
          limits: { diskQuota: false },
          isolation: { name: 'default', ociRuntime: 'runc', isHostKernel: true },
        }),
      );
      await container.start();
      return () => container.remove({ force: true });
    },
  });
}

/** The supervisor and all it starts, as a plain child process: no namespaces, no control groups. */
export function localFloor(python: string): Promise<MachineFloor> {
  return floor('a process starts agent and gateway', {
    async start(_id, directory, env) {
      const child = spawn(process.execPath, [path.join(AGENT_DIR, 'supervisor.js')], {
        cwd: directory,
        stdio: 'ignore',
        env: {
          PATH: process.env['PATH'],
          HOME: directory,
          ...env,
          CELLBOX_TUNNEL: `unix:${path.join(directory, 'service.sock')}`,
          CELLBOX_PYTHON: python,
          CELLBOX_HOME: directory,
          CELLBOX_GATEWAY_PORT: '0',
          CELLBOX_SINGLE_USER: '1',
        },
      });
      return () => endChild(child);
    },
  });
}

interface Starter {
  /** Resolves when the engine or the system has started it; the returned function ends it. */
  start(id: string, directory: string, env: Record<string, string>): Promise<() => Promise<void>>;
}

async function floor(description: string, starter: Starter): Promise<MachineFloor> {
  const root = await fs.mkdtemp(path.join(os.tmpdir(), 'cbf-'));
  await fs.chmod(root, 0o755); // the agent in a container is another user
  const logger = pino({ level: 'silent' });
  const interpreter = new Interpreter({ logger, kernelTimeoutMs: CONNECT_DEADLINE_MS, maxBodyBytes: 1024 });
  return {
    description,
    start: async () => {
      const id = randomBytes(6).toString('hex');
      const token = randomBytes(16).toString('hex');
      const directory = path.join(root, id);
      await fs.mkdir(directory, { mode: 0o755 });
      const tunnel = new TunnelServer({
        socketPath: path.join(directory, 'service.sock'),
        token,
        instanceId: id,
        onInbound: (_id, _port, stream) => stream.destroy(),
        logger,
      });
      let end: (() => Promise<void>) | undefined;
      try {
        const started = performance.now();
        await tunnel.listen();
        end = await starter.start(id, directory, {
          CELLBOX_TUNNEL_TOKEN: token,
          CELLBOX_GATEWAY_TOKEN: token,
        });
        await tunnel.firstConnection(AbortSignal.timeout(CONNECT_DEADLINE_MS));
        const agent = performance.now() - started;
        await interpreter.warm({
          id,
          env: {},
          gatewayToken: token,
          ended: new Promise(() => undefined),
          dial: (port, options) => tunnel.dial(port, options),
        });
        return { agent, kernel: performance.now() - started };
      } finally {
        interpreter.drop(id);
        await tunnel.close();
        await end?.();
        await fs.rm(directory, { recursive: true, force: true });
      }
    },
    close: async () => {
      await interpreter.close();
      await fs.rm(root, { recursive: true, force: true });
    },
  };
}
