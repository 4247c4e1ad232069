import crypto from 'node:crypto';
import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import type Dockerode from 'dockerode';
import { ServiceError } from '../errors';
import type { Logger } from '../log';
import { LABELS, TUNNEL_DIR_INSIDE, containerOptions, toOutput, toRecord, toStats } from './docker-container';
import { DockerEgress } from './docker-egress';
import { callEngine, connectEngine, engineDetail, engineStatus, freeze, pingEngine } from './docker-engine';
import { followEvents } from './docker-events';
import type { EngineEvent } from './docker-events';
import { probeEngine } from './docker-facts';
import type { EngineFacts } from './docker-facts';
import { removeContainer } from './docker-helper';
import { DockerInstance } from './docker-instance';
import { DockerIsolation, isHostKernel } from './docker-isolation';
import type { IsolationLevel } from './docker-isolation';
import { ensureNetwork, networkNames, removeNetwork } from './docker-network';
import type { NetworkNames } from './docker-network';
import { policyLines, policyOf } from './docker-policy';
import type { MachinePolicy } from './docker-policy';
import { proxyFound } from './docker-proxy';
import { namedRules } from './docker-rules';
import {
  alreadyExists,
  initAgent,
  isToldAtStart,
  notFound,
  startVariables,
  throwIfCancelled,
  wakeAgent,
} from './instance-start';
import { Operations } from './operations';
import { MAX_OUTPUT_LINES } from './runtime';
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
  Resources,
  Runtime,
} from './runtime';
import { MAX_SOCKET_PATH_BYTES, TunnelServer } from './tunnel';

export interface DockerRuntimeOptions {
  dataDir: string;
  /** Name or id of the kernel image; it must be there (`ensureImage`). */
  image: string;
  /** The usual size of a sandbox: what the engine can't enforce of it is found out at creation. */
  resources: Resources;
  /** What machines of an earlier process may reach, by id; those that are not in it have no rules of their own. */
  networks?: ReadonlyMap<string, NetworkAccess>;
  /** Name servers of machines, IPv4; the host's when undefined. */
  nameServers?: readonly string[] | undefined;
  /** Gives the name of the image of the proxy for domain rules; asked when a machine first has some. Without it there are none. */
  proxyImage?: () => Promise<string>;
  /** Secrets of one instance, the same after a restart of the service. */
  deriveSecret: (purpose: 'tunnel' | 'gateway', instanceId: string) => string;
  onInbound: InboundHandler;
  logger: Logger;
  /** How long a start may take until the agent is connected. */
  startTimeoutMs?: number;
  /** How long after its deadline a sandbox without a service goes on; the supervisor's own default when absent. */
  deadmanGraceMs?: number;
  /** Level of machines whose spec names none: `gvisor`, or an OCI runtime of the engine; its default when undefined. */
  isolation?: string | undefined;
  /** Default: the engine that `DOCKER_HOST` names, else the one on this machine. */
  docker?: Dockerode;
}

const MAX_LAST_WORDS = 4096;
const DEFAULT_START_TIMEOUT_MS = 60_000;
const ADOPT_TIMEOUT_MS = 10_000;
const DISK_USAGE_TIMEOUT_MS = 60_000;
const NEEDED_DISK_BYTES = 500 * 1024 * 1024;
const SOCKET_NAME = 'service.sock';
/** How long programs may take to end when they are asked to, before they are killed. */
const HALT_GRACE_SECONDS = 2;
const NO_NAME_SERVERS =
  'a network needs a name server that is not on the host’s loopback: name one with CELLBOX_NAME_SERVERS';
/** Longer than any id, in bytes; so that all sockets of one service land in one place. */
const LONGEST_ID = 40;
const NETWORK_STAYS = 'the network of the sandboxes stays';

/**
 * Proves the engine fit for sandboxes, makes the network and the host's rules for it, and gives the runtime.
 *
 * @throws ServiceError `unavailable` when no engine answers, `failed_precondition` with a remedy when it can't isolate
 */
export async function createDockerRuntime(options: DockerRuntimeOptions): Promise<Runtime> {
  const docker = options.docker ?? connectEngine();
  const ping = await pingEngine(docker);
  if (!ping.ok) {
    throw new ServiceError('unavailable', `No container engine answers: ${ping.detail}`, {
      remedy: 'Start Docker, or point DOCKER_HOST to an engine, or set CELLBOX_RUNTIME=local.',
    });
  }
  const serviceId = engineServiceId(options.deriveSecret);
  const tunnels = await makeTunnelRoot(options.dataDir, serviceId);
  const names = networkNames(serviceId);
  await ensureNetwork(docker, names, { [LABELS.service]: serviceId });
  const policies = await runningPolicies(docker, options, serviceId, names);
  const proxy = await proxyFound(docker, names, namedRules(policies)).catch((error: unknown) => {
    options.logger.warn({ error }, 'the proxy for domain rules says nothing: what they allow is closed');
    return undefined;
  });
  const rules = policyLines(names, policies, proxy);
  const { image, resources, nameServers } = options;
  const facts = await probeEngine({
    docker,
    image,
    serviceId,
    resources,
    nameServers,
    tunnels,
    names,
    rules,
  }).catch(async (refusal: unknown) => {
    await removeNetworkOfNone(docker, serviceId, names).catch((error: unknown) =>
      options.logger.warn({ error }, NETWORK_STAYS),
    );
    throw refusal;
  });
  for (const caveat of facts.caveats) options.logger.warn({ runtime: 'docker' }, caveat);
  const isolation = new DockerIsolation({
    docker,
    image: facts.imageId,
    serviceId,
    tunnels,
    network: names.network,
    engine: facts.engine,
    usual: options.isolation,
    logger: options.logger,
  });
  const runtime = new DockerRuntime(docker, options, serviceId, names, tunnels, facts, isolation, policies);
  try {
    await isolation.take(undefined); // what every sandbox would fail for is told now
    await runtime.watch();
    await runtime.sweep();
  } catch (error) {
    await runtime.close();
    throw error;
  }
  runtime.egress.serveDomains();
  return runtime;
}

/** Of a start that was refused: an engine has addresses for some thirty networks only. */
async function removeNetworkOfNone(docker: Dockerode, serviceId: string, names: NetworkNames): Promise<void> {
  if ((await listSandboxes(docker, serviceId)).length === 0) await removeNetwork(docker, names);
}

/** What the engine's objects of this service are labelled with. From the secret: two services may share one engine. */
export function engineServiceId(deriveSecret: DockerRuntimeOptions['deriveSecret']): string {
  return crypto.createHash('sha256').update(deriveSecret('tunnel', '#service')).digest('hex').slice(0, 32);
}

/** Where the directories of the tunnels are: in the data directory, unless that makes socket paths too long. */
async function makeTunnelRoot(dataDir: string, serviceId: string): Promise<string> {
  const longest = (root: string) => Buffer.byteLength(path.join(root, 'x'.repeat(LONGEST_ID), SOCKET_NAME));
  let root = path.join(path.resolve(dataDir), 'tunnels');
  if (longest(root) > MAX_SOCKET_PATH_BYTES) {
    root = path.join(process.env['XDG_RUNTIME_DIR'] || os.tmpdir(), `cellbox-${serviceId.slice(0, 12)}`);
    if (longest(root) > MAX_SOCKET_PATH_BYTES) root = path.join('/tmp', path.basename(root));
  }
  await fs.mkdir(root, { recursive: true, mode: 0o700 });
  const { uid, mode } = await fs.lstat(root);
  if (uid !== process.getuid?.() || (mode & 0o022) !== 0) {
    // The short place lies in a directory that everybody writes to.
    throw new ServiceError('failed_precondition', `${root} belongs to someone else`, {
      remedy: 'Remove it, or choose a shorter CELLBOX_DATA_DIR.',
    });
  }
  return root;
}

/** The rules of single machines that run already: the first look at the host's must not take them away. */
async function runningPolicies(
  docker: Dockerode,
  { networks }: DockerRuntimeOptions,
  serviceId: string,
  names: NetworkNames,
): Promise<Map<string, MachinePolicy>> {
  const policies = new Map<string, MachinePolicy>();
  if (networks === undefined || networks.size === 0) return policies;
  for (const { Labels, NetworkSettings } of await listSandboxes(docker, serviceId)) {
    const id = Labels[LABELS.id] ?? '';
    const mac = NetworkSettings.Networks[names.network]?.MacAddress;
    const policy = mac ? policyOf(mac, networks.get(id) ?? 'full') : undefined;
    if (policy !== undefined) policies.set(id, policy);
  }
  return policies;
}

/** Those that run, are paused, or are halted. */
function listSandboxes(docker: Dockerode, serviceId: string): Promise<Dockerode.ContainerInfo[]> {
  const filters = { label: sandboxFilters(serviceId) };
  return callEngine('list sandboxes', docker.listContainers({ all: true, filters }));
}

function sandboxFilters(serviceId: string): string[] {
  return [`${LABELS.service}=${serviceId}`, `${LABELS.kind}=sandbox`];
}

/** Sandboxes as containers of one Docker engine; the contract is on `Runtime`. */
class DockerRuntime implements Runtime {
  readonly name = 'docker';
  readonly limitsDisk: boolean;
  private readonly handles = new Map<string, DockerInstance>();
  /** Starts under way; a stop aborts them. */
  private readonly starting = new Map<string, AbortController>();
  /** Failed starts whose container may be there still, because the engine was away. Cleared when it is back. */
  private readonly doomed = new Set<string>();
  private readonly startingIds = new Set<string>();
  private readonly operations = new Operations();
  private readonly closing = new AbortController();
  private watcher: Promise<void> | undefined;
  private closed: Promise<void> | undefined;
  readonly egress: DockerEgress;

  constructor(
    private readonly docker: Dockerode,
    private readonly options: DockerRuntimeOptions,
    private readonly serviceId: string,
    private readonly names: NetworkNames,
    private readonly tunnels: string,
    private readonly facts: EngineFacts,
    private readonly isolation: DockerIsolation,
    policies: ReadonlyMap<string, MachinePolicy>,
  ) {
    this.limitsDisk = facts.limits.diskQuota;
    this.egress = new DockerEgress({
      docker,
      serviceId,
      names,
      facts,
      policies,
      nameServers: options.nameServers,
      proxyImage: options.proxyImage,
      deriveSecret: options.deriveSecret,
      inspect: (id) => this.inspect(id),
      logger: options.logger,
      signal: this.closing.signal,
    });
  }

  get whyNoNetworkRules(): string | undefined {
    return this.egress.whyNoRules;
  }

  get caveats(): readonly string[] {
    return [...this.facts.caveats, ...this.isolation.caveats];
  }

  get isolationLevels(): readonly string[] {
    return this.isolation.levels;
  }

  // ---- start -----------------------------------------------------------------------------------------------------

  async start(spec: InstanceSpec, signal?: AbortSignal): Promise<Instance> {
    this.throwIfClosed();
    if (!/^[a-z0-9]{1,40}$/.test(spec.id))
      throw new ServiceError('invalid_argument', 'An instance id is 1 to 40 lower-case letters and digits');
    if (this.handles.has(spec.id) || this.startingIds.has(spec.id)) throw alreadyExists(spec.id);
    throwIfCancelled(signal);
    const controller = new AbortController();
    this.starting.set(spec.id, controller);
    this.startingIds.add(spec.id);
    const signals = [controller.signal, this.closing.signal, ...(signal === undefined ? [] : [signal])];
    try {
      return await this.operations.run(spec.id, () => this.startNow(spec, AbortSignal.any(signals)));
    } finally {
      this.starting.delete(spec.id);
      this.startingIds.delete(spec.id);
    }
  }

  private async startNow(spec: InstanceSpec, signal: AbortSignal): Promise<Instance> {
    const isolation = await this.isolation.take(spec.isolation);
    throwIfCancelled(signal);
    const name = this.containerName(spec.id);
    const directory = path.join(this.tunnels, spec.id);
    try {
      await fs.mkdir(directory);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
      // A machine of an earlier process, or only what a crash left of one.
      if ((await this.inspect(spec.id)) !== undefined) throw alreadyExists(spec.id);
    }
    await fs.chmod(directory, 0o755); // the agent's user inside is not ours; the directory above keeps others out
    const tunnel = this.newTunnel(spec.id);
    let created: Promise<Dockerode.Container> | undefined;
    let isForeign = false;
    try {
      const ruled = this.egress.ruleAhead(spec.id, spec.network); // beside the create; the start waits for it
      ruled?.catch(() => undefined); // heard below, unless something else fails first
      await tunnel.listen();
      const resolvConf = await this.writeResolvConf(directory, spec.network, isolation);
      created = this.docker.createContainer(
        containerOptions({
          spec,
          name,
          image: this.facts.imageId,
          serviceId: this.serviceId,
          network: this.names.network,
          mac: this.egress.macFor(spec.id),
          nameServers: this.facts.nameServers,
          tunnelDir: directory,
          env: this.environment(spec),
          createdAt: Date.now(),
          limits: this.facts.limits,
          isolation,
          resolvConf,
        }),
      );
      let container: Dockerode.Container;
      try {
        container = await callEngine('create sandbox', created);
      } catch (error) {
        isForeign = engineStatus(error) === 409;
        throw isForeign ? alreadyExists(spec.id, error) : error;
      }
      throwIfCancelled(signal);
      await ruled;
      await callEngine('start sandbox', container.start());
      if (ruled !== undefined) this.egress.requireAddress(spec.id, await this.inspect(spec.id));
      const handle = new DockerInstance(
        spec.id,
        container.id,
        this.options.deriveSecret('gateway', spec.id),
        tunnel,
      );
      this.handles.set(spec.id, handle);
      await this.connect(handle, spec, signal);
      return handle;
    } catch (error) {
      await this.clearFailedStart(spec.id, tunnel, created, isForeign);
      throw this.explainStart(error, signal);
    }
  }

  /**
   * Waits for the agent, then tells it what it can't know: one that boots has the environment of its first start. Fails as
   * soon as the container ends, the time is up or the caller gives up.
   */
  private async connect(
    handle: DockerInstance,
    spec: InstanceSpec,
    signal: AbortSignal,
    { isBoot = false } = {},
  ): Promise<void> {
    const timeoutMs = this.options.startTimeoutMs ?? DEFAULT_START_TIMEOUT_MS;
    const over = new AbortController();
    const timer = setTimeout(() => over.abort('timeout'), timeoutMs);
    void handle.ended.then(() => over.abort('ended'));
    handle.onBootEnd = () => over.abort('ended');
    try {
      const any = AbortSignal.any([signal, over.signal]);
      await handle.tunnel.firstConnection(any);
      if (isBoot || !isToldAtStart(spec)) await initAgent(handle, spec, any);
      else wakeAgent(handle);
      if (isBoot) await handle.setDeadline(spec.deadlineAt);
    } catch (error) {
      throwIfCancelled(signal);
      const output = await this.lastWords(spec.id);
      this.options.logger.warn({ sandboxId: spec.id, output }, 'a sandbox did not start');
      if (over.signal.reason === 'ended') {
        throw new ServiceError('unavailable', 'The sandbox ended while starting', {
          cause: new Error(output, { cause: error }),
        });
      }
      if (over.signal.reason === 'timeout') {
        throw new ServiceError('deadline_exceeded', `The sandbox did not start within ${timeoutMs} ms`, {
          cause: new Error(output, { cause: error }),
        });
      }
      throw error;
    } finally {
      clearTimeout(timer);
      handle.onBootEnd = undefined;
    }
  }

  /** What went wrong before matters more than a failure here, which is logged; the next `list` shows what stayed. */
  private async clearFailedStart(
    id: string,
    tunnel: TunnelServer,
    created: Promise<Dockerode.Container> | undefined,
    isForeign: boolean,
  ): Promise<void> {
    const handle = this.handles.get(id);
    handle?.expectEnd();
    await tunnel.close();
    if (isForeign) return;
    // Else the removal could come before what it removes. Whether it worked does not matter here.
    const isCreated =
      created !== undefined &&
      (await callEngine('create sandbox', created, 10_000).then(
        () => true,
        () => false,
      ));
    const remove = () => removeContainer(this.docker, this.containerName(id));
    try {
      await remove();
      this.egress.drop(id);
    } catch (error) {
      this.doomed.add(id);
      this.options.logger.error({ sandboxId: id, error }, 'a failed start could not be cleared yet');
    }
    // A create that was given up may still succeed: then it goes at once. Its own failure was reported above. One that had
    // succeeded is gone by now, and its name may be another's.
    if (!isCreated) created?.then(remove).catch(() => undefined);
    // Also when the container stayed: without its directory nobody reaches it.
    await fs.rm(path.join(this.tunnels, id), { recursive: true, force: true });
    this.finish(id, handle, { reason: 'stopped' });
  }

  private explainStart(error: unknown, signal: AbortSignal): unknown {
    if (error instanceof ServiceError && error.code === 'already_exists') return error;
    throwIfCancelled(signal);
    if (error instanceof ServiceError && error.code === 'not_found') {
      // 404 of a create or start: the image or the network went away. Callers would take it for their own id.
      this.egress
        .ensureNetwork()
        .catch((cause: unknown) =>
          this.options.logger.error({ error: cause }, 'the network of the sandboxes is gone'),
        );
      return new ServiceError(
        'unavailable',
        'The container engine lacks the image or the network of sandboxes',
        {
          cause: error,
          remedy: 'Try again: the network is being made anew. When that fails too, restart the service.',
        },
      );
    }
    return error;
  }

  /**
   * The engine's resolver listens in the network stack that the host's kernel has for the container. A machine with a
   * stack of its own never meets it, so it asks the name servers themselves; undefined for all others.
   */
  private async writeResolvConf(
    directory: string,
    network: NetworkAccess,
    { name, isHostKernel }: IsolationLevel,
  ): Promise<string | undefined> {
    if (isHostKernel || network === 'none') return undefined;
    const { nameServers } = this.facts;
    if (nameServers.length === 0)
      throw new ServiceError('failed_precondition', `Isolation ${name}: ${NO_NAME_SERVERS}`);
    const file = path.join(directory, 'resolv.conf');
    await fs.writeFile(file, nameServers.map((address) => `nameserver ${address}\n`).join(''));
    await fs.chmod(file, 0o644); // whatever the service's umask says
    return file;
  }

  /** For the supervisor only; it keeps our names from the user's programs. */
  private environment(spec: InstanceSpec): Record<string, string> {
    return {
      CELLBOX_TUNNEL: `unix:${TUNNEL_DIR_INSIDE}/${SOCKET_NAME}`,
      CELLBOX_TUNNEL_TOKEN: this.options.deriveSecret('tunnel', spec.id),
      CELLBOX_GATEWAY_TOKEN: this.options.deriveSecret('gateway', spec.id),
      ...startVariables(spec),
      CELLBOX_LISTEN_LOOPBACK: '1',
      ...(this.options.deadmanGraceMs === undefined
        ? {}
        : { CELLBOX_DEADMAN_GRACE_MS: String(this.options.deadmanGraceMs) }),
    };
  }

  // ---- list, adopt, pause, resume, halt, boot, stop ----------------------------------------------------------------

  async list(): Promise<InstanceRecord[]> {
    const found = await listSandboxes(this.docker, this.serviceId);
    return found.flatMap((info) => toRecord(info, this.startingIds) ?? []);
  }

  async adopt(id: string, signal?: AbortSignal): Promise<Instance> {
    this.throwIfClosed();
    throwIfCancelled(signal);
    return this.operations.run(id, async () => {
      const known = this.handles.get(id);
      if (known !== undefined) return known;
      const found = await this.inspect(id);
      const isHalted = found?.State.Status === 'exited';
      if (found === undefined || !(found.State.Running || isHalted)) throw notFound(id);
      await fs.mkdir(path.join(this.tunnels, id), { recursive: true, mode: 0o755 });
      const tunnel = this.newTunnel(id);
      const handle = new DockerInstance(id, found.Id, this.options.deriveSecret('gateway', id), tunnel);
      if (isHalted) handle.life = 'halted';
      this.handles.set(id, handle);
      const over = new AbortController();
      const timer = setTimeout(() => over.abort(), ADOPT_TIMEOUT_MS);
      void handle.ended.then(() => over.abort());
      try {
        await tunnel.listen();
        // The agent of a frozen machine connects when it thaws, that of a halted one when it boots.
        if (!found.State.Paused && !isHalted) {
          const signals = [over.signal, this.closing.signal, ...(signal === undefined ? [] : [signal])];
          await tunnel.firstConnection(AbortSignal.any(signals));
        }
        return handle;
      } catch (error) {
        if (this.handles.get(id) === handle) this.handles.delete(id);
        await handle.release();
        if ((await this.inspect(id)) === undefined) throw notFound(id, error);
        throw new ServiceError('unavailable', 'The agent of the sandbox did not come back in time', {
          cause: error,
        });
      } finally {
        clearTimeout(timer);
      }
    });
  }

  async pause(id: string): Promise<void> {
    await this.operations.run(id, async () => {
      const found = await this.running(id);
      if (found.State.Paused) throw new ServiceError('failed_precondition', 'The sandbox is paused already');
      await freeze(this.docker.getContainer(found.Id));
    });
  }

  async resume(id: string): Promise<void> {
    await this.operations.run(id, async () => {
      const found = await this.running(id);
      if (!found.State.Paused) throw new ServiceError('failed_precondition', 'The sandbox is not paused');
      await callEngine('resume sandbox', this.docker.getContainer(found.Id).unpause());
    });
  }

  async halt(id: string): Promise<void> {
    await this.operations.run(id, () => this.haltNow(id));
  }

  private async haltNow(id: string): Promise<void> {
    const found = await this.inspect(id);
    if (found === undefined) throw notFound(id);
    const handle = this.handles.get(id);
    // Before the engine tells of the end that was asked for.
    if (handle !== undefined) handle.life = 'halted';
    handle?.tunnel.reset();
    if (!found.State.Running) return;
    const container = this.docker.getContainer(found.Id);
    try {
      // A frozen kernel other than the host's dies, and its runtime never hears of it.
      if (found.State.Paused && !isHostKernel(found.HostConfig.Runtime ?? 'runc'))
        await callEngine('thaw sandbox', container.unpause());
      // What is frozen can't end when it is asked to.
      const ended = found.State.Paused ? container.kill() : container.stop({ t: HALT_GRACE_SECONDS });
      await callEngine('halt sandbox', ended);
    } catch (error) {
      if (engineStatus(error) !== 304 && engineStatus(error) !== 409) throw error; // it has ended meanwhile
    }
    await callEngine('wait for the halt', container.wait({ condition: 'not-running' }));
    handle?.tunnel.reset(); // connections that came in at the last moment
  }

  async boot(spec: InstanceSpec, signal?: AbortSignal): Promise<void> {
    this.throwIfClosed();
    const signals = [this.closing.signal, ...(signal === undefined ? [] : [signal])];
    await this.operations.run(spec.id, () => this.bootNow(spec, AbortSignal.any(signals)));
  }

  private async bootNow(spec: InstanceSpec, signal: AbortSignal): Promise<void> {
    const { id } = spec;
    throwIfCancelled(signal);
    const handle = this.handles.get(id);
    if (handle === undefined) throw notFound(id);
    const before = await this.inspect(id);
    if (before === undefined) {
      await this.onGone(handle, 'the machine is gone');
      throw notFound(id);
    }
    await this.haltNow(id);
    try {
      const isRuled = await this.egress.open(id, spec.network, before);
      const container = this.docker.getContainer(before.Id);
      throwIfCancelled(signal);
      await callEngine('start sandbox', container.start());
      handle.life = 'booting'; // from here on its end is told by `confirmEnd`
      handle.ranOutOfMemory = false;
      const found = await this.inspect(id);
      if (found?.State.Running !== true) {
        throw new ServiceError('unavailable', 'The sandbox ended while starting', {
          cause: new Error(await this.lastWords(id)),
        });
      }
      if (isRuled) this.egress.requireAddress(id, found);
      await this.egress.joinBooted(id, spec.network, found);
      await this.connect(handle, spec, signal, { isBoot: true });
      handle.life = 'running';
      handle.hasBooted = true;
    } catch (error) {
      await this.haltNow(id).catch((cause: unknown) =>
        this.options.logger.error({ sandboxId: id, error: cause }, 'a failed start could not be halted'),
      );
      throw this.explainStart(error, signal);
    }
  }

  async stop(id: string): Promise<void> {
    this.starting.get(id)?.abort(new ServiceError('unavailable', 'The sandbox was stopped while starting'));
    await this.operations.run(id, async () => {
      const handle = this.handles.get(id);
      handle?.expectEnd();
      await handle?.tunnel.close(); // first: clients learn it before the engine has finished
      await removeContainer(this.docker, this.containerName(id));
      this.egress.drop(id);
      if (/^[a-z0-9]+$/.test(id)) await fs.rm(path.join(this.tunnels, id), { recursive: true, force: true });
      this.finish(id, handle, { reason: 'stopped' });
    });
  }

  // ---- the way out -------------------------------------------------------------------------------------------------

  async setNetwork(id: string, access: NetworkAccess): Promise<void> {
    await this.operations.run(id, async () => {
      const found = await this.inspect(id);
      if (found?.State.Running !== true && this.handles.get(id)?.life === 'halted') {
        if (access !== 'full') this.egress.requireNames();
        return; // set by its next boot
      }
      if (found?.State.Running !== true) throw notFound(id);
      await this.egress.set(id, access, found);
    });
  }

  async prepareNetwork(access: NetworkAccess): Promise<void> {
    await this.egress.prepare(access);
  }

  // ---- what it is doing --------------------------------------------------------------------------------------------

  async stats(id: string): Promise<InstanceStats> {
    const { Id } = await this.running(id);
    const stats = await callEngine(
      'read statistics',
      this.docker.getContainer(Id).stats({ stream: false, 'one-shot': true }),
      10_000,
    );
    return toStats(stats);
  }

  async diskUsage(id: string): Promise<number> {
    const container = this.docker.getContainer(this.containerName(id));
    // The engine walks through the container's own layer; it holds nothing meanwhile that others wait for.
    const withSize: object = { size: true }; // the type definitions know neither this nor its answer
    const measuring = container.inspect(withSize) as Promise<{ SizeRw?: number }>;
    const { SizeRw } = await callEngine('measure the disk of the sandbox', measuring, DISK_USAGE_TIMEOUT_MS);
    return SizeRw ?? 0; // left out when it is none
  }

  async output(id: string): Promise<OutputLine[]> {
    const container = this.docker.getContainer(this.containerName(id));
    // The log of a container has 1 MiB at most; see `containerOptions`.
    const log = await callEngine(
      'read the log of the sandbox',
      container.logs({ follow: false, stdout: true, stderr: true, timestamps: true, tail: MAX_OUTPUT_LINES }),
    );
    return toOutput(log);
  }

  /** What a machine that did not start said; its log goes away with it. */
  private async lastWords(id: string): Promise<string> {
    const lines = await this.output(id).catch(() => []); // no container: it said nothing
    const text = lines.map((line) => line.text).join('\n');
    return text.slice(-MAX_LAST_WORDS).trim() || 'it said nothing';
  }

  // ---- check -------------------------------------------------------------------------------------------------------

  async check(): Promise<Check[]> {
    if (this.closed !== undefined) return [{ name: 'engine', ok: false, detail: 'the runtime is closed' }];
    const ping = await pingEngine(this.docker);
    if (!ping.ok) {
      return [
        { name: 'engine', ok: false, detail: `No container engine answers (${ping.detail}): start Docker` },
      ];
    }
    return [
      { name: 'engine', ok: true },
      ...(await Promise.all([
        prove('image', async () => {
          await callEngine('inspect image', this.docker.getImage(this.facts.imageId).inspect(), 2_000);
        }),
        prove('network', async () => {
          await this.egress.ensureNetwork(); // a prune takes it away while no sandbox is on it
        }),
        prove('host rules', () => this.egress.prove()),
        prove('disk', () => proveDisk(this.tunnels)),
      ])),
    ];
  }

  /** Removes what a crashed process left: helpers, and directories whose container is gone. */
  async sweep(): Promise<void> {
    const helpers = await callEngine(
      'list helpers',
      this.docker.listContainers({
        all: true,
        filters: { label: [`${LABELS.service}=${this.serviceId}`, `${LABELS.kind}=helper`] },
      }),
    );
    for (const helper of helpers) await removeContainer(this.docker, helper.Id);
    await this.egress.sweep();
    const known = new Set((await this.list()).map(({ id }) => id));
    for (const name of await fs.readdir(this.tunnels)) {
      if (!known.has(name)) await fs.rm(path.join(this.tunnels, name), { recursive: true, force: true });
    }
  }

  // ---- the engine's events -----------------------------------------------------------------------------------------

  /** Follows the engine's events until closed; resolves when the first connection stands. */
  async watch(): Promise<void> {
    let connected: () => void = () => undefined;
    const first = new Promise<void>((resolve) => (connected = resolve));
    this.watcher = followEvents({
      docker: this.docker,
      labels: sandboxFilters(this.serviceId),
      signal: this.closing.signal,
      logger: this.options.logger,
      onEvent: (event) => this.onEvent(event),
      onConnected: async (isFirst) => {
        connected();
        if (isFirst) return;
        // The engine was away. A restart may have ended machines, or kept them; and it rewrites the firewall.
        await this.reconcile();
        await this.clearDoomed();
        this.egress.assert();
      },
    });
    await callEngine('follow events', Promise.race([first, this.watcher]), 10_000);
  }

  private onEvent(event: EngineEvent): void {
    const handle = [...this.handles.values()].find((each) => each.containerId === event.containerId);
    if (handle === undefined) return;
    if (event.action === 'oom') {
      handle.ranOutOfMemory = true;
      return;
    }
    if (handle.life === 'halted') return; // as we asked
    const memory = handle.ranOutOfMemory ? ', after memory ran out' : '';
    const detail = `the machine ended with exit code ${event.exitCode ?? 'unknown'}${memory}`;
    if (handle.life === 'booting' || handle.hasBooted) void this.confirmEnd(handle, detail);
    else void this.onGone(handle, detail);
  }

  /** Of a machine that was halted once: what is told late may be the end of an earlier run. Never rejects. */
  private async confirmEnd(handle: DockerInstance, detail: string): Promise<void> {
    try {
      const found = await this.inspect(handle.id);
      if (found?.State.Running === true || handle.life === 'halted') return;
      if (handle.life === 'booting') handle.onBootEnd?.();
      else await this.onGone(handle, detail);
    } catch (error) {
      // The engine is away; when it is back, everything is compared.
      this.options.logger.warn({ sandboxId: handle.id, error }, 'whether a sandbox has ended is not known');
    }
  }

  /** Compares what we hold with what runs, after a gap in the events. */
  private async reconcile(): Promise<void> {
    for (const handle of [...this.handles.values()]) {
      try {
        const found = await callEngine('inspect', this.docker.getContainer(handle.containerId).inspect());
        if (!found.State.Running && handle.life === 'running')
          await this.onGone(handle, `the machine ended (${found.State.Status})`);
      } catch (error) {
        if (engineStatus(error) !== 404) throw error; // says nothing about the machine: asked again when connected
        await this.onGone(handle, 'the machine is gone');
      }
    }
  }

  private async clearDoomed(): Promise<void> {
    for (const id of [...this.doomed]) {
      if (!this.startingIds.has(id))
        await this.operations.run(id, () => removeContainer(this.docker, this.containerName(id)));
      this.egress.drop(id);
      this.doomed.delete(id);
    }
  }

  /** A machine ended and we did not ask for it: clears what the engine does not clear by itself. */
  private async onGone(handle: DockerInstance, detail: string): Promise<void> {
    if (handle.isEndExpected) return; // whoever expects it also clears up
    handle.expectEnd();
    this.egress.drop(handle.id);
    this.options.logger.warn({ sandboxId: handle.id, detail }, 'a sandbox ended by itself');
    await handle.tunnel.close();
    try {
      await removeContainer(this.docker, handle.containerId);
      await fs.rm(path.join(this.tunnels, handle.id), { recursive: true, force: true });
    } catch (error) {
      this.options.logger.error({ sandboxId: handle.id, error }, 'an ended sandbox could not be cleared');
    }
    this.finish(handle.id, handle, { reason: 'exited', detail });
  }

  // ---- the rest ----------------------------------------------------------------------------------------------------

  close(): Promise<void> {
    this.closed ??= (async () => {
      this.closing.abort(new ServiceError('unavailable', 'The service is shutting down'));
      await this.watcher;
      await this.operations.settled();
      await this.egress.settled();
      await Promise.all([...this.handles.values()].map((handle) => handle.release()));
      this.handles.clear();
      try {
        await this.removeUnusedNetwork();
      } catch (error) {
        this.options.logger.warn({ error }, NETWORK_STAYS);
      }
    })();
    return this.closed;
  }

  private async removeUnusedNetwork(): Promise<void> {
    const isUnused = (await this.list()).length === 0;
    await (isUnused ? this.egress.clear() : this.egress.sweep());
  }

  private finish(id: string, handle: DockerInstance | undefined, end: InstanceEnd): void {
    if (handle === undefined) return;
    if (this.handles.get(id) === handle) this.handles.delete(id);
    handle.finish(end);
  }

  /**
   * Not the id: programs in other sandboxes can ask the engine's resolver for the name behind an address, and the id
   * alone opens a sandbox that is not secured. Operators find a container by its label.
   */
  private containerName(id: string): string {
    const hash = crypto.createHash('sha256').update(this.options.deriveSecret('tunnel', `#name ${id}`));
    return `cellbox-${hash.digest('hex').slice(0, 16)}`;
  }

  private async inspect(id: string): Promise<Dockerode.ContainerInspectInfo | undefined> {
    try {
      return await callEngine('inspect sandbox', this.docker.getContainer(this.containerName(id)).inspect());
    } catch (error) {
      if (engineStatus(error) === 404) return undefined;
      throw error;
    }
  }

  private async running(id: string): Promise<Dockerode.ContainerInspectInfo> {
    const found = await this.inspect(id);
    if (found === undefined || !found.State.Running) throw notFound(id);
    return found;
  }

  private newTunnel(id: string): TunnelServer {
    return new TunnelServer({
      socketPath: path.join(this.tunnels, id, SOCKET_NAME),
      token: this.options.deriveSecret('tunnel', id),
      instanceId: id,
      onInbound: this.options.onInbound,
      logger: this.options.logger,
    });
  }

  private throwIfClosed(): void {
    if (this.closed !== undefined) throw new ServiceError('unavailable', 'The service is shutting down');
  }
}

async function prove(name: string, proof: () => Promise<void>): Promise<Check> {
  try {
    await proof();
    return { name, ok: true };
  } catch (error) {
    return { name, ok: false, detail: engineDetail(error) };
  }
}

async function proveDisk(directory: string): Promise<void> {
  const { bavail, bsize } = await fs.statfs(directory);
  if (bavail * bsize < NEEDED_DISK_BYTES)
    throw new Error(`only ${Math.floor((bavail * bsize) / 1024 / 1024)} MiB are free: make room`);
}
