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
import { chooseUid, INSIDE, SYSTEM_PATH } from '../service/runtime/local-bubblewrap';
import { Cgroup } from '../service/runtime/local-cgroup';
import { EnvironmentTemplate } from '../service/runtime/local-environment';
import { makeFiles } from '../service/runtime/local-files';
import { readLocalHost } from '../service/runtime/local-host';
import { launchArguments } from '../service/runtime/local-launch';
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

/** The same wall as a sandbox's: its control groups and its namespaces, with the supervisor and all it starts behind them. */
export async function localFloor(python: string): Promise<MachineFloor> {
  const dataDir = await fs.mkdtemp(path.join(os.tmpdir(), 'cbf-'));
  const logger = pino({ level: 'silent' });
  const host = await readLocalHost({ dataDir, python, agentDir: AGENT_DIR, bubblewrap: 'auto', logger });
  await fs.rmdir(dataDir);
  const isWalled = host.layout !== undefined;
  const environment = await EnvironmentTemplate.read(host.facts);
  const uidOf = (id: string) =>
    host.layout?.identity === 'own-uid' ? chooseUid(id, new Set<number>()) : undefined;
  const seen = (directory: string) =>
    isWalled
      ? { home: INSIDE.home, venv: INSIDE.environment, tunnel: INSIDE.tunnel }
      : { home: path.join(directory, 'workspace'), venv: path.join(directory, 'venv'), tunnel: directory };
  const wall = isWalled ? 'bubblewrap' : 'no wall';
  const groups = host.cgroups === undefined ? 'without control groups' : 'in control groups';
  return floor(`${wall} starts agent and gateway ${groups}`, {
    prepare: (id, directory) => makeFiles(host, environment, { directory, uid: uidOf(id), network: 'full' }),
    async start(id, directory, env) {
      const { home, venv, tunnel } = seen(directory);
      const cgroup = host.cgroups && new Cgroup(host.cgroups, `cellbox-bench-${id}`);
      await cgroup?.create(RESOURCES);
      const args = launchArguments(host, {
        directory,
        socketDirectory: directory,
        supervisor: path.join(AGENT_DIR, 'supervisor.js'),
        resources: RESOURCES,
        network: 'full',
        uid: uidOf(id),
        cgroup,
      });
      const child = spawn('/bin/sh', args, {
        stdio: ['pipe', 'ignore', 'ignore'],
        env: {
          ...env,
          PATH: `${venv}/bin:${SYSTEM_PATH}`,
          HOME: home,
          CELLBOX_TUNNEL: `unix:${tunnel}/service.sock`,
          CELLBOX_PYTHON: path.join(venv, 'bin', 'python'),
          CELLBOX_HOME: home,
          CELLBOX_GATEWAY_PORT: '0',
          CELLBOX_SINGLE_USER: '1',
        },
      });
      child.stdin.end('go\n');
      return async () => {
        await endChild(child);
        await cgroup?.kill();
        await cgroup?.remove();
      };
    },
  });
}

interface Starter {
  /** What is no part of the start. */
  prepare?(id: string, directory: string): Promise<void>;
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
        await starter.prepare?.(id, directory);
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
