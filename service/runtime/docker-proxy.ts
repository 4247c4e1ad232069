import crypto from 'node:crypto';
import os from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';
import type Dockerode from 'dockerode';
import { ServiceError } from '../errors';
import type { Logger } from '../log';
import { LABELS } from './docker-container';
import { callEngine, engineDetail, engineStatus } from './docker-engine';
import { demultiplex, removeContainer } from './docker-helper';
import { ensureNetwork, proxyNetworkNames, removeNetwork } from './docker-network';
import type { BridgeNames, NetworkNames } from './docker-network';
import type { ProxyTarget } from './docker-policy';
import {
  PROXY_DIR,
  RUN_PROXY,
  SET_LISTS,
  TELL_LISTS,
  assignSlots,
  listLines,
  proxyConfig,
  resolverConfig,
  slotOf,
  slotsHeld,
} from './docker-proxy-config';
import type { NamedRules } from './docker-proxy-config';

export interface DomainProxyOptions {
  docker: Dockerode;
  serviceId: string;
  names: NetworkNames;
  /** Asked by the proxy, IPv4. */
  nameServers: readonly string[];
  /** Gives the name of the proxy's image, which may have to be built first. */
  image: () => Promise<string>;
  /** The proxy ended by itself: nobody has domains until `serve` is called again. */
  onDeath: () => void;
  logger: Logger;
  /** Ends what the proxy's owner watches; the proxy itself goes on. */
  signal: AbortSignal;
}

interface Running {
  container: Dockerode.Container;
  /** IPv4, on its own network. */
  address: string;
}

/** How long a request waits for the image: less than the SDKs wait for an answer. */
const PREPARE_MS = 45_000;
/** How long a change of rules waits for it; it was prepared before, unless somebody removed it since. */
const IMAGE_MS = 3_000;
const EXEC_MS = 15_000;
/** A proxy that was told the same for longer is told again: a look that proves that it answers. */
const FRESH_MS = 50_000;
const MEMORY_BYTES = 1024 * 1024 * 1024;
/** Label with a hash of all that a proxy was made by. */
const MADE_BY = 'cellbox.proxy';

/**
 * The one container that machines with domain rules reach the world through: HAProxy, which judges each connection by
 * the name that it is for and resolves that itself, and unbound, which has one answer for every name. It has no rights,
 * no file system to write to and a network of its own. Made when the first machine needs it; outlives the service as
 * the machines do, and holds the slots of their rules meanwhile.
 */
export class DomainProxy {
  private readonly network: BridgeNames;
  private image: Promise<string> | undefined;
  private running: Running | undefined;
  private making: Promise<Running> | undefined;
  private slots: Map<string, number> = new Map();
  /** When it last took lists; never, for one that was just made or found. */
  private toldAt = -Infinity;
  /** Slots that the host's rules may still lead to. */
  private readonly retired = new Set<number>();

  constructor(private readonly options: DomainProxyOptions) {
    this.network = proxyNetworkNames(options.names);
  }

  /**
   * Has the proxy running, or says why it takes longer; it serves nobody yet.
   *
   * @throws ServiceError `unavailable` while its image is being built, `failed_precondition` when it can't be
   */
  async prepare(): Promise<void> {
    await this.imageWithin(PREPARE_MS);
    await this.ensureRunning();
  }

  /** Lets exactly these machines reach exactly these names. Not to be called twice at a time. */
  async serve(machines: readonly NamedRules[]): Promise<ProxyTarget> {
    const { container, address } = await this.ensureRunning();
    const slots = assignSlots(machines, this.slots, this.retired);
    const isKnown = slots.size === this.slots.size && [...slots.keys()].every((each) => this.slots.has(each));
    if (!isKnown || Date.now() - this.toldAt > FRESH_MS) {
      try {
        await execute(container, SET_LISTS, `${listLines(machines, slots)}.\n`);
      } catch (error) {
        this.running = undefined; // looked at anew by the next attempt
        throw error;
      }
      this.toldAt = Date.now();
    }
    this.keep(slots);
    const byId = new Map(machines.map((machine) => [machine.id, slotOf(machine, slots)]));
    return { address, slotOf: (id) => byId.get(id), held: () => this.retired.clear() };
  }

  private keep(slots: Map<string, number>): void {
    const kept = new Set(slots.values());
    for (const slot of this.slots.values()) if (!kept.has(slot)) this.retired.add(slot);
    this.slots = slots;
  }

  /** Takes container and network away; there need not be any. */
  async remove(): Promise<void> {
    this.running = undefined;
    const { docker } = this.options;
    await removeContainer(docker, this.network.network);
    await removeNetwork(docker, this.network);
  }

  // ---- the image ---------------------------------------------------------------------------------------------------

  private async imageWithin(ms: number): Promise<string> {
    this.image ??= this.options.image().catch((error: unknown) => {
      this.image = undefined; // the next one tries again
      // What the build said may name the host's paths and mirrors: that is for the log.
      this.options.logger.error({ error }, 'the image of the proxy for domain rules can not be had');
      throw new ServiceError(
        'failed_precondition',
        "Domain rules can't be used here: the image of their proxy can't be had; the service's log says why",
        { cause: error },
      );
    });
    const image = this.image;
    const over = new AbortController();
    const late = delay(ms, undefined, { ref: false, signal: over.signal }).then(() => {
      throw new ServiceError('unavailable', 'The image of the proxy for domain rules is being built', {
        remedy: 'Try again in a minute or two; this happens once.',
      });
    });
    late.catch(() => undefined); // given up below, or told by the race
    try {
      return await Promise.race([image, late]);
    } finally {
      over.abort();
    }
  }

  // ---- the container -----------------------------------------------------------------------------------------------

  /** Shared by all who ask meanwhile. */
  private ensureRunning(): Promise<Running> {
    if (this.running !== undefined) return Promise.resolve(this.running);
    this.making ??= this.make().finally(() => (this.making = undefined));
    return this.making;
  }

  /** Finds the proxy as an earlier process left it, or makes it. */
  private async make(): Promise<Running> {
    this.options.signal.throwIfAborted();
    const { docker } = this.options;
    const options = this.containerOptions(await this.imageWithin(IMAGE_MS));
    const found = await inspect(docker, this.network.network);
    if (found?.State.Running === true && found.Config.Labels[MADE_BY] === options.Labels?.[MADE_BY]) {
      const container = docker.getContainer(found.Id);
      this.keep(slotsHeld(await execute(container, TELL_LISTS)));
      return this.take(container, found);
    }
    await removeContainer(docker, this.network.network);
    await ensureNetwork(docker, this.network, { [LABELS.service]: this.options.serviceId });
    const container = await this.create(options);
    await callEngine('start proxy', container.start());
    return this.take(container, await inspect(docker, this.network.network));
  }

  private async create(options: Dockerode.ContainerCreateOptions): Promise<Dockerode.Container> {
    try {
      return await callEngine('create proxy', this.options.docker.createContainer(options));
    } catch (error) {
      if (engineStatus(error) !== 404) throw error; // callers would take it for their own id
      this.image = undefined; // somebody removed it
      throw new ServiceError('unavailable', 'The engine lacks the image of the proxy for domain rules', {
        cause: error,
        remedy: 'Try again: it is being made anew.',
      });
    }
  }

  private take(container: Dockerode.Container, found: Dockerode.ContainerInspectInfo | undefined): Running {
    const address = found?.NetworkSettings.Networks[this.network.network]?.IPAddress;
    if (!address) throw new ServiceError('unavailable', 'The proxy for domain rules ended at its start');
    const running = { container, address };
    this.running = running;
    this.toldAt = -Infinity;
    void this.watch(running);
    return running;
  }

  /** Until it ends, the engine goes away, or the owner does. */
  private async watch(running: Running): Promise<void> {
    const { signal, logger, onDeath } = this.options;
    const { container } = running;
    const end: unknown = await container
      .wait({ condition: 'not-running', abortSignal: signal })
      .catch((error: unknown) => engineDetail(error));
    if (signal.aborted || this.running !== running) return;
    this.running = undefined;
    const log = await callEngine(
      'read the log of the proxy',
      container.logs({ follow: false, stdout: true, stderr: true, tail: 20 }),
    ).then(demultiplex, engineDetail);
    logger.error({ end, log }, 'the proxy for domain rules is gone; it is made again');
    onDeath();
  }

  private containerOptions(image: string): Dockerode.ContainerCreateOptions {
    const { serviceId, nameServers } = this.options;
    const configs = [proxyConfig(nameServers), resolverConfig()] as const;
    const hash = crypto.createHash('sha256').update([image, RUN_PROXY, ...configs].join('\0'));
    return {
      name: this.network.network,
      Image: image,
      Hostname: 'cellbox-proxy',
      Entrypoint: ['/bin/bash', '-c', RUN_PROXY],
      Cmd: [],
      User: '65534:65534',
      WorkingDir: '/',
      Env: [`PROXY_CONFIG=${configs[0]}`, `RESOLVER_CONFIG=${configs[1]}`],
      Labels: {
        [LABELS.service]: serviceId,
        [LABELS.kind]: 'proxy',
        [MADE_BY]: hash.digest('hex').slice(0, 16),
      },
      HostConfig: {
        NetworkMode: this.network.network,
        CapDrop: ['ALL'],
        SecurityOpt: ['no-new-privileges'],
        ReadonlyRootfs: true,
        Tmpfs: { [PROXY_DIR]: 'rw,noexec,nosuid,nodev,size=16m,mode=0700,uid=65534,gid=65534' },
        Memory: MEMORY_BYTES,
        MemorySwap: MEMORY_BYTES,
        NanoCpus: Math.min(2, os.cpus().length) * 1e9,
        PidsLimit: 64,
        // Per connection, by which the memory of one machine's is bounded.
        Sysctls: {
          'net.ipv4.tcp_rmem': '4096 131072 1048576',
          'net.ipv4.tcp_wmem': '4096 65536 1048576',
        },
        RestartPolicy: { Name: 'no' },
        LogConfig: { Type: 'json-file', Config: { 'max-size': '1m', 'max-file': '1' } },
      },
    };
  }
}

/**
 * What a proxy that an earlier process made serves as it is: a start of the service leaves that alone until it knows
 * better. Machines that it holds no slot for have none.
 */
export async function proxyFound(
  docker: Dockerode,
  names: NetworkNames,
  machines: readonly NamedRules[],
): Promise<ProxyTarget | undefined> {
  const { network } = proxyNetworkNames(names);
  const found = await inspect(docker, network);
  const address = found?.NetworkSettings.Networks[network]?.IPAddress;
  if (found?.State.Running !== true || !address) return undefined;
  const slots = slotsHeld(await execute(docker.getContainer(found.Id), TELL_LISTS));
  const byId = new Map(machines.map((machine) => [machine.id, slotOf(machine, slots)]));
  return { address, slotOf: (id) => byId.get(id), held: () => undefined };
}

async function inspect(docker: Dockerode, name: string): Promise<Dockerode.ContainerInspectInfo | undefined> {
  try {
    return await callEngine('inspect proxy', docker.getContainer(name).inspect());
  } catch (error) {
    if (engineStatus(error) === 404) return undefined;
    throw error;
  }
}

/** Runs a program in the proxy's container and gives its output. */
async function execute(container: Dockerode.Container, script: string, input = ''): Promise<string> {
  const options = {
    Cmd: ['/bin/sh', '-c', script],
    AttachStdin: true,
    AttachStdout: true,
    AttachStderr: true,
  };
  const exec = await callEngine('prepare the proxy', container.exec(options), EXEC_MS);
  const started = exec.start({ hijack: true, stdin: true });
  const stream = await callEngine('tell the proxy', started, EXEC_MS);
  try {
    const told = (async () => {
      const chunks: Buffer[] = [];
      stream.end(input);
      for await (const chunk of stream) chunks.push(chunk as Buffer);
      return demultiplex(Buffer.concat(chunks));
    })();
    const output = await callEngine('tell the proxy', told, EXEC_MS);
    const { ExitCode } = await callEngine('ask after the proxy', exec.inspect());
    if (ExitCode === 0) return output;
    throw new ServiceError('unavailable', output.trim() || `exit code ${String(ExitCode)}`);
  } finally {
    stream.destroy();
  }
}
