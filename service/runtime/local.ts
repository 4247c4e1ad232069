import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { createHash } from 'node:crypto';
import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { ServiceError } from '../errors';
import { accountUids, chooseUid, INSIDE, SYSTEM_PATH } from './local-bubblewrap';
import type { HostLayout } from './local-bubblewrap';
import { Cgroup } from './local-cgroup';
import {
  alreadyExists,
  initAgent,
  isToldAtStart,
  noSuchIsolation,
  notFound,
  startVariables,
  throwIfCancelled,
  wakeAgent,
} from './instance-start';
import { EnvironmentTemplate } from './local-environment';
import { allOf, bytesIn, makeFiles, removeTree } from './local-files';
import { readLocalHost } from './local-host';
import type { LocalHost, LocalHostOptions } from './local-host';
import { LocalInstance } from './local-instance';
import { launchArguments } from './local-launch';
import { findMembers, freezeTree, identify, isAlive, killTree, MARK, thawTree } from './local-process';
import type { ProcessIdentity, TreeMarks } from './local-process';
import { Operations } from './operations';
import type {
  Check,
  InboundHandler,
  Instance,
  InstanceEnd,
  InstanceRecord,
  InstanceSpec,
  InstanceStats,
  NetworkAccess,
  OutputLine,
  Runtime,
} from './runtime';
import { MAX_OUTPUT_LINES } from './runtime';
import { TunnelServer } from './tunnel';

/**
 * Sandboxes as process trees of this host: supervisor, agent and kernel gateway started detached, so that they outlive
 * the service, each with a directory of its own:
 *
 *     <dataDir>/local/<id>/  state.json   what a later service must know (mode 0600)
 *                            workspace/   the sandbox's home          tmp/   its /tmp
 *                            venv/        its own Python packages     etc/   its /etc (bubblewrap)
 *                            tunnel/      where the service listens   log    what the supervisor says
 *
 * Only workspace, tmp and venv can be written from inside when bubblewrap is there.
 */
export interface LocalRuntimeOptions extends LocalHostOptions {
  /** Level that every machine must have; the only one that there is, or the runtime does not open. */
  isolation?: string | undefined;
  /** How long a start may take until the agent is connected. */
  startTimeoutMs?: number;
  /** How long after its deadline a sandbox without a service goes on; the supervisor's own default when absent. */
  deadmanGraceMs?: number;
  /** Secrets of one instance, the same after a restart of the service. */
  deriveSecret: (purpose: 'tunnel' | 'gateway', instanceId: string) => string;
  onInbound: InboundHandler;
}

/** Without rules of its own: a process of this host can't have any. */
type LocalSpec = InstanceSpec & { network: 'full' | 'none' };

interface InstanceState {
  id: string;
  startedAt: number;
  labels: Record<string, string>;
  paused: boolean;
  /** The process we started; everything else is below it. */
  leader?: ProcessIdentity;
  /** Where the service listens for the agent. */
  socketPath?: string;
  /** Host uid that this sandbox alone has. */
  uid?: number;
  /** Whether every process of it was born in the control group. */
  grouped?: boolean;
  memoryLimitBytes?: number;
  /** Absent in what an earlier release wrote, which had no way to change it either. */
  network?: 'full' | 'none';
}

const NO_NETWORK_RULES =
  'Network rules need the docker runtime: on the local one a sandbox has the host’s network, or none';
const NEEDS_DOCKER = 'Other levels need the docker runtime: an engine, and CELLBOX_RUNTIME=docker.';
const DEFAULT_START_TIMEOUT_MS = 60_000;
const ADOPT_TIMEOUT_MS = 10_000;
const LOG_LIMIT_BYTES = 1024 * 1024;
/** Of the log, what `output` looks at: between two looks at its size a hostile program may write any amount. */
const OUTPUT_BYTES = 256 * 1024;
const NEEDED_DISK_BYTES = 100 * 1024 * 1024;
/** Longest path of a Unix socket, by the size of the kernel's structure. */
const SOCKET_PATH_BYTES = process.platform === 'linux' ? 107 : 103;

/** Looks at what this host can do, once, and gives the runtime; rejects with a remedy when a demand can't be met. */
export async function createLocalRuntime(options: LocalRuntimeOptions): Promise<Runtime> {
  const host = await readLocalHost(options);
  const levels = levelsOf(host.layout);
  if (options.isolation !== undefined && !levels.includes(options.isolation))
    throw noSuchIsolation(options.isolation, levels, NEEDS_DOCKER);
  await fs.mkdir(path.join(options.dataDir, 'local'), { recursive: true, mode: 0o700 });
  return new LocalRuntime(options, host, await EnvironmentTemplate.read(host.facts));
}

/** A path that fits into a Unix socket's address: in the instance's directory, or else in a short one of our own. */
export function socketPathFor(dataDir: string, id: string, runtimeDir: string): string {
  const usual = path.join(dataDir, 'local', id, 'tunnel', 'service.sock');
  if (Buffer.byteLength(usual) <= SOCKET_PATH_BYTES) return usual;
  return path.join(shortSocketDirectory(dataDir, runtimeDir), id, 'service.sock');
}

function shortSocketDirectory(dataDir: string, runtimeDir: string): string {
  const short = createHash('sha256').update(dataDir).digest('hex').slice(0, 8);
  return path.join(runtimeDir, `cellbox-${process.getuid?.() ?? 0}-${short}`);
}

function runtimeDirectory(): string {
  return process.env['XDG_RUNTIME_DIR'] || os.tmpdir();
}

/** There is one: a machine is behind the wall that this host has, or behind none. */
function levelsOf(layout: HostLayout | undefined): string[] {
  return [layout === undefined ? 'none' : 'bubblewrap'];
}

class LocalRuntime implements Runtime {
  readonly name = 'local';
  readonly limitsDisk = false;
  readonly whyNoNetworkRules = NO_NETWORK_RULES;
  readonly caveats: readonly string[];
  readonly isolationLevels: readonly string[];
  private readonly handles = new Map<string, LocalInstance>();
  private readonly starts = new Map<string, { controller: AbortController; settled: Promise<unknown> }>();
  private readonly adoptions = new Map<string, Promise<LocalInstance>>();
  private readonly operations = new Operations();
  private readonly uids = new Set<number>();
  private readonly closing = new AbortController();

  constructor(
    private readonly options: LocalRuntimeOptions,
    private readonly host: LocalHost,
    private readonly environmentTemplate: EnvironmentTemplate,
  ) {
    this.caveats = host.caveats;
    this.isolationLevels = levelsOf(host.layout);
  }

  async check(): Promise<Check[]> {
    const { dataDir, agentDir, python } = this.options;
    const attempt = async (name: string, remedy: string, work: () => Promise<unknown>): Promise<Check> => {
      try {
        await work();
        return { name, ok: true };
      } catch (error) {
        return { name, ok: false, detail: `${(error as Error).message}: ${remedy}` };
      }
    };
    return Promise.all([
      attempt('python', 'restart the service, which makes the environment anew', async () => {
        await fs.access(python, fs.constants.X_OK);
        await fs.access(this.host.facts.sitePackages);
      }),
      attempt('agent', 'run npm run build', () => fs.access(path.join(agentDir, 'supervisor.js'))),
      attempt('data-directory', 'make it writable for the service', async () => {
        const trial = path.join(dataDir, 'local', `.write-${process.pid}`);
        await fs.writeFile(trial, 'x');
        await fs.rm(trial);
      }),
      attempt('disk', 'free some space', async () => {
        const { bavail, bsize } = await fs.statfs(dataDir);
        if (bavail * bsize < NEEDED_DISK_BYTES) throw new Error(`less than 100 MB free at ${dataDir}`);
      }),
      attempt('bubblewrap', 'install it again or restart the service', async () => {
        if (this.host.layout !== undefined) await fs.access(this.host.layout.bubblewrap, fs.constants.X_OK);
      }),
    ]);
  }

  async start(spec: InstanceSpec, signal?: AbortSignal): Promise<Instance> {
    if (!/^[a-z0-9]+$/.test(spec.id))
      throw new ServiceError('invalid_argument', `Not an instance id: ${JSON.stringify(spec.id)}`);
    this.throwIfClosed();
    if (spec.network === 'none' && this.host.layout === undefined) {
      throw new ServiceError(
        'failed_precondition',
        'A sandbox without a network needs bubblewrap on the local runtime, which this host does not have',
      );
    }
    if (spec.isolation !== undefined && !this.isolationLevels.includes(spec.isolation))
      throw noSuchIsolation(spec.isolation, this.isolationLevels, NEEDS_DOCKER);
    const { network } = spec;
    if (typeof network === 'object') throw noNetworkRules();
    if (this.starts.has(spec.id)) throw alreadyExists(spec.id);
    const controller = new AbortController();
    const work = this.startGuarded(
      { ...spec, network },
      signal === undefined ? controller.signal : AbortSignal.any([signal, controller.signal]),
    );
    // The caller gets the rejection; `stop` and `close` only wait for the end.
    this.starts.set(spec.id, { controller, settled: work.catch(() => undefined) });
    try {
      return await work;
    } finally {
      this.starts.delete(spec.id);
    }
  }

  private async startGuarded(spec: LocalSpec, signal: AbortSignal): Promise<LocalInstance> {
    throwIfCancelled(signal);
    try {
      await fs.mkdir(this.directory(spec.id), { mode: 0o700 });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'EEXIST') throw alreadyExists(spec.id);
      throw new ServiceError('unavailable', 'The data directory can not be written', { cause: error });
    }
    const state: InstanceState = {
      id: spec.id,
      startedAt: Date.now(),
      labels: spec.labels,
      paused: false,
      network: spec.network,
      socketPath: socketPathFor(this.options.dataDir, spec.id, runtimeDirectory()),
    };
    let handle: LocalInstance | undefined;
    try {
      const tunnel = this.newTunnel(state);
      handle = new LocalInstance(spec.id, this.options.deriveSecret('gateway', spec.id), tunnel);
      await allOf([this.chooseOwner(state), this.prepareGroup(spec, state)]);
      // The kernel takes 5 to 20 ms to let the first process of a while into a control group.
      const [child] = await allOf([
        this.launch(spec, state),
        this.prepareDirectory(spec, state).then(() => tunnel.listen()),
      ]);
      throwIfCancelled(signal);
      child.stdin?.end('go\n');
      await this.connect(handle, spec, state, child, signal);
      throwIfCancelled(signal);
      this.handles.set(spec.id, handle);
      handle.watch(child, () => this.look(state), (detail) => this.ended(state, detail)); // prettier-ignore
      return handle;
    } catch (error) {
      await handle?.finish({ reason: 'stopped' });
      await this.destroy(state);
      if (signal.aborted && !(error instanceof ServiceError))
        throw new ServiceError('unavailable', 'The start was cancelled', { cause: error });
      throw error;
    }
  }

  /** Everything that the sandbox will find, before anything of it runs. */
  private async prepareDirectory(spec: LocalSpec, state: InstanceState): Promise<void> {
    const { uid } = state;
    const files = { directory: this.directory(spec.id), uid, network: spec.network };
    await allOf([makeFiles(this.host, this.environmentTemplate, files), this.makeSocketDirectory(state)]);
  }

  private async chooseOwner(state: InstanceState): Promise<void> {
    if (this.host.layout?.identity !== 'own-uid') return;
    state.uid = chooseUid(state.id, new Set([...(await accountUids()), ...(await this.usedUids())]));
    this.uids.add(state.uid);
  }

  private async prepareGroup(spec: InstanceSpec, state: InstanceState): Promise<void> {
    const cgroup = this.cgroup(spec.id);
    if (cgroup === undefined) return;
    await cgroup.create(spec.resources);
    state.grouped = true;
    if (this.host.cgroups?.directories.memory !== undefined)
      state.memoryLimitBytes = spec.resources.memoryMB * 1024 * 1024;
  }

  private async makeSocketDirectory(state: InstanceState): Promise<void> {
    const directory = path.dirname(this.socketPath(state));
    const isShort = !directory.startsWith(this.directory(state.id));
    if (isShort) {
      const parent = path.dirname(directory);
      await fs.mkdir(parent, { recursive: true, mode: 0o700 });
      // Somebody else may have made it in the shared temporary directory, to listen in our place.
      const found = await fs.lstat(parent);
      if (!found.isDirectory() || found.uid !== process.getuid?.() || (found.mode & 0o077) !== 0) {
        throw new ServiceError(
          'failed_precondition',
          `${parent} must be a directory that only this user can enter: remove it, or set a shorter CELLBOX_DATA_DIR`,
        );
      }
    }
    // Readable for the sandbox's own uid; the directories above it are closed to everybody else.
    await fs.mkdir(directory, { recursive: true });
    await fs.chmod(directory, 0o755);
  }

  /** Starts a shell that enters the control groups; told to `go`, it becomes the sandbox. */
  private async launch(spec: LocalSpec, state: InstanceState): Promise<ChildProcess> {
    const directory = this.directory(spec.id);
    const log = await fs.open(path.join(directory, 'log'), 'a', 0o600);
    try {
      const args = launchArguments(this.host, {
        directory,
        socketDirectory: path.dirname(this.socketPath(state)),
        supervisor: path.join(this.options.agentDir, 'supervisor.js'),
        resources: spec.resources,
        network: spec.network,
        uid: state.uid,
        cgroup: this.cgroup(spec.id),
      });
      const child = spawn('/bin/sh', args, {
        detached: true,
        stdio: ['pipe', log.fd, log.fd],
        cwd: directory,
        env: this.environment(spec, this.socketPath(state)),
      });
      child.unref();
      await new Promise<void>((resolve, reject) => {
        child.once('spawn', resolve);
        child.once('error', (error) =>
          reject(new ServiceError('unavailable', 'The sandbox could not be started', { cause: error })),
        );
      });
      child.on('error', () => {}); // a kill that comes too late; ends are told by `exit`
      child.stdin?.on('error', () => {}); // the same
      state.leader = child.pid === undefined ? undefined : await identify(child.pid);
      await this.writeState(state);
      return child;
    } finally {
      await log.close();
    }
  }

  /** All that the supervisor gets to see: nothing of the service's own environment but PATH where there are no namespaces. */
  private environment(spec: InstanceSpec, socketPath: string): Record<string, string> {
    const own = (name: string) => path.join(this.directory(spec.id), name);
    const isolated = this.host.layout !== undefined;
    const venv = isolated ? INSIDE.environment : own('venv');
    const socket = isolated ? path.join(INSIDE.tunnel, path.basename(socketPath)) : socketPath;
    const user = isolated ? 'user' : (process.env['USER'] ?? 'user');
    const rest = isolated ? SYSTEM_PATH : (process.env['PATH'] ?? SYSTEM_PATH);
    return {
      [MARK]: spec.id,
      PATH: [path.join(venv, 'bin'), path.join(this.host.facts.prefix, 'bin'), rest].join(':'),
      HOME: isolated ? INSIDE.home : own('workspace'),
      USER: user,
      LOGNAME: user,
      SHELL: '/bin/bash',
      LANG: 'C.UTF-8',
      ...(isolated ? {} : { TMPDIR: own('tmp') }),
      CELLBOX_TUNNEL: `unix:${socket}`,
      CELLBOX_TUNNEL_TOKEN: this.options.deriveSecret('tunnel', spec.id),
      CELLBOX_GATEWAY_TOKEN: this.options.deriveSecret('gateway', spec.id),
      CELLBOX_GATEWAY_PORT: '0',
      CELLBOX_PYTHON: path.join(venv, 'bin', 'python'),
      CELLBOX_HOME: isolated ? INSIDE.home : own('workspace'),
      CELLBOX_USER: 'user',
      CELLBOX_SINGLE_USER: '1',
      ...startVariables(spec),
      CELLBOX_CGROUPS: (this.cgroup(spec.id)?.places ?? []).join('\n'),
      // On the host's loopback these ports can belong to one sandbox only, so they belong to none.
      CELLBOX_LISTEN_LOOPBACK: isolated && spec.network === 'none' ? '1' : '0',
      ...(this.options.deadmanGraceMs === undefined
        ? {}
        : { CELLBOX_DEADMAN_GRACE_MS: String(this.options.deadmanGraceMs) }),
    };
  }

  /** Waits for the agent, then tells it what its start could not. Fails as soon as the process ends, the time is up or the caller gives up. */
  private async connect(
    handle: LocalInstance,
    spec: InstanceSpec,
    state: InstanceState,
    child: ChildProcess,
    signal: AbortSignal,
  ): Promise<void> {
    const timeoutMs = this.options.startTimeoutMs ?? DEFAULT_START_TIMEOUT_MS;
    const over = new AbortController();
    const onExit = () => over.abort('exited');
    child.once('exit', onExit);
    if (child.exitCode !== null || child.signalCode !== null) onExit();
    const timer = setTimeout(() => over.abort('timeout'), timeoutMs);
    try {
      const any = AbortSignal.any([signal, over.signal]);
      await handle.tunnel.firstConnection(any);
      if (isToldAtStart(spec)) wakeAgent(handle);
      else await initAgent(handle, spec, any);
    } catch (error) {
      if (over.signal.reason === 'exited') {
        throw new ServiceError(
          'unavailable',
          `The sandbox ended while starting: ${await this.lastWords(state.id)}`,
          {
            cause: error,
          },
        );
      }
      if (over.signal.reason === 'timeout')
        throw new ServiceError('deadline_exceeded', `The sandbox did not start within ${timeoutMs} ms`, {
          cause: error,
        });
      throwIfCancelled(signal);
      throw error;
    } finally {
      clearTimeout(timer);
      child.off('exit', onExit);
    }
  }

  private async lastWords(id: string): Promise<string> {
    const text = await fs.readFile(path.join(this.directory(id), 'log'), 'utf8').catch(() => ''); // nothing said
    return text.trim().split('\n').slice(-3).join(' | ').slice(-500) || 'it said nothing';
  }

  async list(): Promise<InstanceRecord[]> {
    const names = await fs.readdir(path.join(this.options.dataDir, 'local'), { withFileTypes: true });
    const records = names
      .filter((entry) => entry.isDirectory() && /^[a-z0-9]+$/.test(entry.name))
      .map(({ name: id }) => this.record(id));
    return (await Promise.all(records)).filter((record) => record !== undefined);
  }

  private async record(id: string): Promise<InstanceRecord | undefined> {
    const state = await this.readState(id);
    if (state === undefined) {
      const found = await fs.stat(this.directory(id)).catch(() => undefined); // removed since the listing
      if (found === undefined) return undefined;
      return { id, state: this.starts.has(id) ? 'starting' : 'dead', startedAt: found.mtimeMs, labels: {} };
    }
    const { startedAt, labels, leader } = state;
    if (this.starts.has(id)) return { id, state: 'starting', startedAt, labels };
    const alive = leader !== undefined && (await isAlive(leader));
    const now = !alive ? 'halted' : state.paused ? 'paused' : 'running';
    return { id, state: now, startedAt, labels };
  }

  async adopt(id: string, signal?: AbortSignal): Promise<Instance> {
    this.throwIfClosed();
    const known = this.handles.get(id);
    if (known !== undefined && !known.isFinished) return known;
    const running = this.adoptions.get(id);
    if (running !== undefined) return running;
    const adoption = this.operations
      .run(id, () => this.adoptNow(id, signal))
      .finally(() => this.adoptions.delete(id));
    this.adoptions.set(id, adoption);
    return adoption;
  }

  private async adoptNow(id: string, signal: AbortSignal | undefined): Promise<LocalInstance> {
    const state = await this.madeState(id);
    const isHalted = !(await this.isRunning(id));
    const handle = new LocalInstance(id, this.options.deriveSecret('gateway', id), this.newTunnel(state));
    try {
      await handle.tunnel.listen();
      // A frozen agent can't connect; it will when it is thawed, that of a halted machine when it boots.
      if (!state.paused && !isHalted) {
        const limit = AbortSignal.timeout(ADOPT_TIMEOUT_MS);
        await handle.tunnel.firstConnection(signal === undefined ? limit : AbortSignal.any([signal, limit]));
      }
    } catch (error) {
      await handle.finish({ reason: 'exited', detail: 'never adopted' });
      if (!(await this.isRunning(id))) throw notFound(id, error);
      throw new ServiceError('unavailable', 'The agent of the sandbox did not come back', { cause: error });
    }
    this.handles.set(id, handle);
    if (isHalted) handle.halt();
    else handle.watch(undefined, () => this.look(state), (detail) => this.ended(state, detail)); // prettier-ignore
    return handle;
  }

  async pause(id: string): Promise<void> {
    await this.operations.run(id, async () => {
      const state = await this.liveState(id);
      if (state.paused) throw new ServiceError('failed_precondition', 'The sandbox is paused already');
      // Noted first: after a crash in between, `resume` thaws what is not frozen, which does no harm.
      await this.writeState({ ...state, paused: true });
      try {
        if (!(await this.cgroup(id)?.setFrozen(true))) await freezeTree(this.marks(state));
      } catch (error) {
        await this.thaw(state);
        await this.writeState(state);
        throw error;
      }
    });
  }

  async resume(id: string): Promise<void> {
    await this.operations.run(id, async () => {
      const state = await this.liveState(id);
      if (!state.paused) throw new ServiceError('failed_precondition', 'The sandbox is not paused');
      await this.thaw(state);
      await this.writeState({ ...state, paused: false });
    });
  }

  private async thaw(state: InstanceState): Promise<void> {
    if (!(await this.cgroup(state.id)?.setFrozen(false))) await thawTree(this.marks(state));
  }

  async halt(id: string): Promise<void> {
    await this.operations.run(id, () => this.haltNow(id));
  }

  private async haltNow(id: string): Promise<void> {
    const state = await this.madeState(id);
    const handle = this.handles.get(id);
    handle?.halt();
    await this.kill(state);
    handle?.halt(); // with connections that came in at the last moment
    await this.cgroup(id)?.remove();
    await this.writeState({ ...state, paused: false });
  }

  async boot(spec: InstanceSpec, signal?: AbortSignal): Promise<void> {
    this.throwIfClosed();
    const signals = [this.closing.signal, ...(signal === undefined ? [] : [signal])];
    await this.operations.run(spec.id, () => this.bootNow(spec, AbortSignal.any(signals)));
  }

  private async bootNow(spec: InstanceSpec, signal: AbortSignal): Promise<void> {
    const { id, network } = spec;
    throwIfCancelled(signal);
    if (typeof network === 'object') throw noNetworkRules();
    const handle = this.handles.get(id);
    if (handle === undefined || handle.isFinished) throw notFound(id);
    await this.haltNow(id);
    try {
      const state: InstanceState = { ...(await this.madeState(id)), network };
      await this.prepareGroup(spec, state);
      await this.makeSocketDirectory(state);
      throwIfCancelled(signal);
      handle.boot();
      const child = await this.launch({ ...spec, network }, state);
      child.stdin?.end('go\n');
      await this.connect(handle, spec, state, child, signal);
      handle.watch(child, () => this.look(state), (detail) => this.ended(state, detail)); // prettier-ignore
    } catch (error) {
      await this.haltNow(id).catch((cause: unknown) =>
        this.options.logger.error({ sandboxId: id, err: cause }, 'a failed start could not be halted'),
      );
      throwIfCancelled(signal);
      throw error;
    }
  }

  async stop(id: string): Promise<void> {
    if (!/^[a-z0-9]+$/.test(id)) return; // never started, and no name of a directory
    const starting = this.starts.get(id);
    if (starting !== undefined) {
      starting.controller.abort(
        new ServiceError('unavailable', 'The sandbox was stopped while it was starting'),
      );
      await starting.settled;
    }
    await this.operations.run(id, async () => {
      const handle = this.handles.get(id);
      handle?.expectEnd();
      const state = (await this.readState(id)) ?? {
        id,
        startedAt: 0,
        labels: {},
        paused: false,
      };
      await this.destroy(state, () => handle?.finish({ reason: 'stopped' }));
      this.handles.delete(id);
    });
  }

  prepareNetwork(access: NetworkAccess): Promise<void> {
    return typeof access === 'object' ? Promise.reject(noNetworkRules()) : Promise.resolve();
  }

  /** Takes what the machine has already. */
  async setNetwork(id: string, access: NetworkAccess): Promise<void> {
    const { network } = await this.madeState(id);
    if (typeof access === 'object') throw noNetworkRules();
    if (network === access) return; // that of an older release is not known, and takes no change
    throw new ServiceError(
      'failed_precondition',
      'On the local runtime a sandbox keeps the network that it was created with',
    );
  }

  async stats(id: string): Promise<InstanceStats> {
    const state = await this.liveState(id);
    const [members, usage] = await Promise.all([findMembers(this.marks(state)), this.cgroup(id)?.usage()]);
    const sum = (of: 'cpuMs' | 'memoryBytes') => members.reduce((total, each) => total + each[of], 0);
    return {
      cpuMs: usage?.cpuMs ?? sum('cpuMs'),
      memoryBytes: usage?.memoryBytes ?? sum('memoryBytes'),
      memoryLimitBytes: state.memoryLimitBytes,
      pids: members.length,
    };
  }

  async diskUsage(id: string): Promise<number> {
    await this.liveState(id);
    const own = ['workspace', 'tmp', 'venv'].map((name) => path.join(this.directory(id), name));
    return bytesIn(own);
  }

  async output(id: string): Promise<OutputLine[]> {
    if (!/^[a-z0-9]+$/.test(id)) throw notFound(id);
    let file: fs.FileHandle;
    try {
      file = await fs.open(
        path.join(this.directory(id), 'log'),
        fs.constants.O_RDONLY | fs.constants.O_NOFOLLOW,
      );
    } catch (error) {
      throw notFound(id, error);
    }
    try {
      const { size } = await file.stat();
      const length = Math.min(size, OUTPUT_BYTES);
      const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, size - length);
      const lines = buffer.toString('utf8', 0, bytesRead).split('\n');
      if (length < size) lines.shift(); // its beginning was not read
      return lines
        .filter((text) => text !== '')
        .slice(-MAX_OUTPUT_LINES)
        .map((text) => ({ text }));
    } finally {
      await file.close();
    }
  }

  async close(): Promise<void> {
    this.closing.abort(new ServiceError('unavailable', 'The service is stopping'));
    for (const { controller } of this.starts.values())
      controller.abort(new ServiceError('unavailable', 'The service is stopping'));
    await Promise.all([...this.starts.values()].map(({ settled }) => settled));
    await this.operations.settled();
    await Promise.all([...this.handles.values()].map((handle) => handle.release()));
    this.handles.clear();
    // Made by the first start that needed it; other sandboxes that go on running may have their sockets there.
    await fs.rmdir(shortSocketDirectory(this.options.dataDir, runtimeDirectory())).catch(() => {});
  }

  /** The regular look at an instance: is it there, and has its log grown beyond measure? */
  private async look(state: InstanceState): Promise<boolean> {
    const log = path.join(this.directory(state.id), 'log');
    // Programs inside hold it open for appending; what is cut off is the past.
    const { size } = await fs.stat(log).catch(() => ({ size: 0 })); // being removed
    if (size > LOG_LIMIT_BYTES) await fs.truncate(log).catch(() => {}); // being removed
    return state.leader !== undefined && (await isAlive(state.leader));
  }

  /** The leader ended by itself: nothing of it may go on running. The directory stays until `stop`. */
  private async ended(state: InstanceState, detail: string): Promise<InstanceEnd> {
    await this.operations
      .run(state.id, () => this.kill(state))
      .catch((error: unknown) => {
        this.options.logger.error(
          { sandboxId: state.id, err: error },
          'processes of an ended sandbox are left',
        );
      });
    return { reason: 'exited', detail };
  }

  private async kill(state: InstanceState): Promise<void> {
    const isEmpty = await this.cgroup(state.id)?.kill();
    // With namespaces nothing can have left the group, once the first process has entered it. Without, and for what hangs,
    // the other marks are needed.
    const hasEntered = state.leader === undefined || !(await isAlive(state.leader));
    if (isEmpty === true && state.grouped === true && this.host.layout !== undefined && hasEntered) return;
    await killTree(this.marks(state));
  }

  /** Takes everything away: processes, then control groups, then files. `afterKill` runs when no process is left. */
  private async destroy(state: InstanceState, afterKill?: () => Promise<void> | undefined): Promise<void> {
    await this.kill(state);
    await afterKill?.();
    await this.cgroup(state.id)?.remove();
    const socketDirectory = path.dirname(this.socketPath(state));
    const directory = this.directory(state.id);
    if (!socketDirectory.startsWith(directory))
      await fs.rm(socketDirectory, { recursive: true, force: true });
    await removeTree(directory);
    if (state.uid !== undefined) this.uids.delete(state.uid);
  }

  private marks(state: InstanceState): TreeMarks {
    const cgroup = this.cgroup(state.id);
    return {
      instanceId: state.id,
      roots: state.leader === undefined ? [] : [state.leader],
      ...(cgroup === undefined ? {} : { groupMembers: () => cgroup.members() }),
    };
  }

  private cgroup(id: string): Cgroup | undefined {
    return this.host.cgroups && new Cgroup(this.host.cgroups, `cellbox-${id}`);
  }

  private newTunnel(state: InstanceState): TunnelServer {
    return new TunnelServer({
      socketPath: this.socketPath(state),
      token: this.options.deriveSecret('tunnel', state.id),
      instanceId: state.id,
      onInbound: this.options.onInbound,
      logger: this.options.logger,
    });
  }

  private directory(id: string): string {
    return path.join(this.options.dataDir, 'local', id);
  }

  /** Kept in the state: a later service may have been started from elsewhere, with another directory for sockets. */
  private socketPath(state: InstanceState): string {
    return state.socketPath ?? socketPathFor(this.options.dataDir, state.id, runtimeDirectory());
  }

  private async usedUids(): Promise<Set<number>> {
    const states = await Promise.all((await this.list()).map(({ id }) => this.readState(id)));
    return new Set([...this.uids, ...states.flatMap((state) => state?.uid ?? [])]);
  }

  private async readState(id: string): Promise<InstanceState | undefined> {
    if (!/^[a-z0-9]+$/.test(id)) return undefined;
    try {
      const text = await fs.readFile(path.join(this.directory(id), 'state.json'), 'utf8');
      return JSON.parse(text) as InstanceState; // written by writeState, as a whole or not at all
    } catch {
      return undefined; // never there, or removed
    }
  }

  private async writeState(state: InstanceState): Promise<void> {
    const file = path.join(this.directory(state.id), 'state.json');
    await fs.writeFile(`${file}.tmp`, JSON.stringify(state), { mode: 0o600 });
    await fs.rename(`${file}.tmp`, file);
  }

  /** Of a machine that is not just being made, whether or not it runs now. */
  private async madeState(id: string): Promise<InstanceState> {
    const state = await this.readState(id);
    if (state === undefined || this.starts.has(id)) throw notFound(id);
    return state;
  }

  private throwIfClosed(): void {
    if (this.closing.signal.aborted) throw new ServiceError('unavailable', 'The runtime is closed');
  }

  private async isRunning(id: string): Promise<boolean> {
    const state = await this.readState(id);
    return state?.leader !== undefined && (await isAlive(state.leader));
  }

  private async liveState(id: string): Promise<InstanceState> {
    const state = await this.readState(id);
    if (state?.leader === undefined || this.starts.has(id) || !(await isAlive(state.leader)))
      throw notFound(id);
    return state;
  }
}

function noNetworkRules(): ServiceError {
  return new ServiceError('failed_precondition', NO_NETWORK_RULES);
}
