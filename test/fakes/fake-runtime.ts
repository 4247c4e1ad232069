import http from 'node:http';
import net from 'node:net';
import type { AddressInfo, Socket } from 'node:net';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { AGENT_PORT } from '../../protocol/routing';
import { ServiceError } from '../../service/errors';
import { noSuchIsolation } from '../../service/runtime/instance-start';
import type {
  Check,
  Instance,
  InstanceEnd,
  InstanceRecord,
  InstanceSpec,
  InstanceStats,
  NetworkAccess,
  OutputLine,
  Runtime,
} from '../../service/runtime/runtime';
import { requestText } from './request-text';

/** What every machine's agent tells that it uses. */
export const FAKE_METRICS = {
  ts: 1_700_000_000,
  cpu_count: 2,
  cpu_used_pct: 12.5,
  mem_total: 2_147_483_648,
  mem_used: 52_428_800,
  mem_cache: 10_485_760,
  mem_total_mib: 2048,
  mem_used_mib: 50,
  disk_used: 1_073_741_824,
  disk_total: 10_737_418_240,
};

/** A promise with its handles outside. */
export function gate(): { opened: Promise<void>; open: () => void } {
  let open: () => void = () => undefined;
  const opened = new Promise<void>((resolve) => (open = resolve));
  return { opened, open };
}

/** One machine: the servers behind its ports are real ones of this process, on loopback. */
export class FakeMachine {
  readonly startedAt = Date.now();
  readonly ended: Promise<InstanceEnd>;
  state: InstanceRecord['state'] = 'starting';
  deadlineAt: number;
  /** What the agent was told last. */
  accessToken: string | undefined;
  env: Record<string, string>;
  network: NetworkAccess;
  /** How often it was started again. */
  boots = 0;
  /** Bytes that its programs wrote. */
  diskBytes = 0;
  /** What its programs said. */
  readonly output: OutputLine[] = [];
  /** Answers of the agent to `/init` and `/health`, when it is not well. */
  agentStatus: number | undefined;
  private end: (end: InstanceEnd) => void = () => undefined;
  private readonly servers = new Map<number, net.Server>();
  private readonly streams = new Set<Socket>();
  private thaw = gate();

  constructor(readonly spec: InstanceSpec) {
    this.deadlineAt = spec.deadlineAt;
    this.accessToken = spec.accessToken;
    this.env = spec.env;
    this.network = spec.network;
    this.ended = new Promise((resolve) => (this.end = resolve));
    this.thaw.open();
  }

  /** Answers a port of the machine with a server of this process, not listening yet. The machine closes it. */
  async serve(port: number, server: net.Server): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(0, '127.0.0.1', resolve);
    });
    this.servers.set(port, server);
  }

  /** The part of the agent that nearly every test meets. */
  async serveAgent(): Promise<void> {
    const agent = http.createServer((req, res) => {
      void this.thaw.opened.then(async () => {
        const { accessToken, env, agentStatus } = this;
        if (req.url === '/health') res.writeHead(agentStatus ?? 204).end();
        else if (req.url === '/init') {
          const text = await requestText(req);
          if (text === undefined) return;
          const body = JSON.parse(text) as {
            accessToken?: string;
            envVars: Record<string, string>;
          };
          if (agentStatus === undefined) {
            this.accessToken = body.accessToken;
            this.env = body.envVars;
          }
          res.writeHead(agentStatus ?? 204).end();
        } else if (accessToken !== undefined && req.headers['x-access-token'] !== accessToken) {
          res.writeHead(401).end();
        } else if (req.url === '/envs') res.end(JSON.stringify(env));
        else if (req.url === '/metrics') res.end(JSON.stringify(FAKE_METRICS));
        else res.writeHead(404).end();
      });
    });
    await this.serve(AGENT_PORT, agent);
  }

  freeze(): void {
    this.state = 'paused';
    this.thaw = gate();
  }

  unfreeze(): void {
    this.state = 'running';
    this.thaw.open();
  }

  /** Nothing runs any more; servers that tests gave it answer again after `boot`. */
  halt(): void {
    this.state = 'halted';
    this.thaw.open();
    for (const socket of this.streams) socket.resetAndDestroy();
  }

  boot(spec: InstanceSpec): void {
    this.state = 'running';
    this.boots++;
    this.accessToken = spec.accessToken;
    this.env = spec.env;
    this.network = spec.network;
    this.deadlineAt = spec.deadlineAt;
  }

  dial(port: number): Promise<Socket> {
    const address = this.servers.get(port)?.address() as AddressInfo | null | undefined;
    if (this.state === 'halted') return Promise.reject(new ServiceError('unavailable', 'it is halted'));
    if (this.state === 'dead') return Promise.reject(new ServiceError('unavailable', 'the machine is gone'));
    if (address == null) return Promise.reject(new ServiceError('not_found', `port ${port} is closed`));
    return new Promise((resolve, reject) => {
      const socket = net.connect({ port: address.port, host: '127.0.0.1', allowHalfOpen: true });
      this.streams.add(socket);
      socket.once('close', () => this.streams.delete(socket));
      socket.once('error', reject);
      socket.once('connect', () => {
        socket.off('error', reject);
        socket.on('error', () => undefined); // the one who dialled sees the close
        resolve(socket);
      });
    });
  }

  /** Ends it: streams are reset, servers closed. Twice is harmless. */
  shutDown(end: InstanceEnd): void {
    this.state = 'dead';
    this.thaw.open();
    for (const socket of this.streams) socket.resetAndDestroy();
    for (const server of this.servers.values()) {
      server.close();
      if (server instanceof http.Server) server.closeAllConnections();
    }
    this.servers.clear();
    this.end(end);
  }
}

/** What outlives one runtime object, as an engine does: the machines. And the script of what goes wrong. */
export class FakeEngine {
  readonly machines = new Map<string, FakeMachine>();
  /** Machines that ever were, in the order of their starts. */
  readonly started: string[] = [];
  checks: Check[] = [{ name: 'engine', ok: true }];
  /** Run before the thing of their name; they may wait or throw. */
  beforeStart: (spec: InstanceSpec, signal: AbortSignal | undefined) => Promise<void> = () =>
    Promise.resolve();
  beforeStop: (id: string) => Promise<void> = () => Promise.resolve();
  beforePause: (id: string) => Promise<void> = () => Promise.resolve();
  beforeResume: (id: string) => Promise<void> = () => Promise.resolve();
  beforeHalt: (id: string) => Promise<void> = () => Promise.resolve();
  beforeBoot: (spec: InstanceSpec) => Promise<void> = () => Promise.resolve();
  beforeSetNetwork: (id: string, access: NetworkAccess) => Promise<void> = () => Promise.resolve();
  beforePrepareNetwork: (access: NetworkAccess) => Promise<void> = () => Promise.resolve();
  beforeAdopt: (id: string) => Promise<void> = () => Promise.resolve();

  machine(id: string): FakeMachine {
    const machine = this.machines.get(id);
    if (machine === undefined) throw new ServiceError('not_found', `no machine ${id}`);
    return machine;
  }

  /** The machine dies by itself. */
  kill(id: string): void {
    const machine = this.machine(id);
    this.machines.delete(id);
    machine.shutDown({ reason: 'exited', detail: 'killed from outside' });
  }
}

function refuseAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted)
    throw new ServiceError('unavailable', 'the start was given up', { cause: signal.reason });
}

/** The in-memory `Runtime`: obeys the runtime suite, starts in no time, isolates nothing. */
export class FakeRuntime implements Runtime {
  readonly name = 'fake';
  readonly caveats = ['Nothing is isolated.'];
  readonly limitsDisk = false;
  whyNoNetworkRules: string | undefined;
  isolationLevels: readonly string[] = ['none'];
  private closed = false;

  constructor(readonly engine: FakeEngine = new FakeEngine()) {}

  check(): Promise<Check[]> {
    return Promise.resolve(this.engine.checks);
  }

  async start(spec: InstanceSpec, signal?: AbortSignal): Promise<Instance> {
    refuseAborted(signal);
    if (spec.isolation !== undefined && !this.isolationLevels.includes(spec.isolation))
      throw noSuchIsolation(spec.isolation, this.isolationLevels);
    if (this.engine.machines.has(spec.id)) {
      throw new ServiceError('already_exists', `there is a machine ${spec.id}`);
    }
    const machine = new FakeMachine(spec);
    this.engine.machines.set(spec.id, machine);
    this.engine.started.push(spec.id);
    try {
      await machine.serveAgent();
      await this.engine.beforeStart(spec, signal);
      await nextTurn();
      refuseAborted(signal);
      if (machine.state === 'dead')
        throw new ServiceError('unavailable', 'the machine died while it started');
    } catch (error) {
      this.engine.machines.delete(spec.id);
      machine.shutDown({ reason: 'stopped' });
      throw error;
    }
    machine.state = 'running';
    return this.handle(machine);
  }

  private handle(machine: FakeMachine): Instance {
    return {
      id: machine.spec.id,
      gatewayToken: `gateway-${machine.spec.id}`,
      ended: machine.ended,
      dial: (port, options) => {
        if (this.closed) return Promise.reject(new ServiceError('unavailable', 'the runtime is closed'));
        if (options?.signal?.aborted) return Promise.reject(new ServiceError('unavailable', 'given up'));
        return machine.dial(port);
      },
      setDeadline: (deadlineAt) => {
        machine.deadlineAt = deadlineAt;
        return Promise.resolve();
      },
    };
  }

  list(): Promise<InstanceRecord[]> {
    const records = [...this.engine.machines.values()].map(({ spec, state, startedAt }) => ({
      id: spec.id,
      state,
      startedAt,
      labels: { ...spec.labels },
    }));
    return Promise.resolve(records);
  }

  async adopt(id: string): Promise<Instance> {
    await this.engine.beforeAdopt(id);
    return this.handle(this.engine.machine(id));
  }

  async pause(id: string): Promise<void> {
    await this.engine.beforePause(id);
    const machine = this.engine.machine(id);
    if (machine.state !== 'running') throw new ServiceError('failed_precondition', 'it does not run');
    machine.freeze();
  }

  async resume(id: string): Promise<void> {
    await this.engine.beforeResume(id);
    const machine = this.engine.machine(id);
    if (machine.state !== 'paused') throw new ServiceError('failed_precondition', 'it is not paused');
    machine.unfreeze();
  }

  async halt(id: string): Promise<void> {
    await this.engine.beforeHalt(id);
    this.engine.machine(id).halt();
  }

  async boot(spec: InstanceSpec, signal?: AbortSignal): Promise<void> {
    const machine = this.engine.machine(spec.id);
    machine.halt();
    await this.engine.beforeBoot(spec);
    await nextTurn();
    refuseAborted(signal);
    machine.boot(spec);
  }

  async stop(id: string): Promise<void> {
    await this.engine.beforeStop(id);
    const machine = this.engine.machines.get(id);
    this.engine.machines.delete(id);
    machine?.shutDown({ reason: 'stopped' });
  }

  async prepareNetwork(access: NetworkAccess): Promise<void> {
    await this.engine.beforePrepareNetwork(access);
  }

  async setNetwork(id: string, access: NetworkAccess): Promise<void> {
    await this.engine.beforeSetNetwork(id, access);
    const machine = this.engine.machine(id);
    if (machine.state !== 'halted') machine.network = access; // that one gets it from its boot
  }

  async stats(id: string): Promise<InstanceStats> {
    const { resources } = this.engine.machine(id).spec;
    await nextTurn();
    return {
      cpuMs: 250,
      memoryBytes: 50 * 1_048_576,
      memoryLimitBytes: resources.memoryMB * 1_048_576,
      pids: 7,
    };
  }

  async diskUsage(id: string): Promise<number> {
    await nextTurn();
    return this.engine.machine(id).diskBytes;
  }

  async output(id: string): Promise<OutputLine[]> {
    await nextTurn();
    return [...this.engine.machine(id).output];
  }

  close(): Promise<void> {
    this.closed = true;
    return Promise.resolve();
  }
}
