import crypto from 'node:crypto';
import type Dockerode from 'dockerode';
import { ServiceError } from '../errors';
import type { Logger } from '../log';
import { LABELS } from './docker-container';
import { callEngine, freeze } from './docker-engine';
import { rulesEnvironment } from './docker-facts';
import type { EngineFacts } from './docker-facts';
import { removeContainer, runHelper } from './docker-helper';
import { isHostKernel } from './docker-isolation';
import { ensureNetwork, removeNetwork } from './docker-network';
import type { NetworkNames } from './docker-network';
import { policyOf } from './docker-policy';
import type { MachinePolicy } from './docker-policy';
import { DomainProxy } from './docker-proxy';
import { HostRules } from './docker-rules';
import { notFound } from './instance-start';
import type { NetworkAccess } from './runtime';

type Found = Dockerode.ContainerInspectInfo;

export interface DockerEgressOptions {
  docker: Dockerode;
  serviceId: string;
  names: NetworkNames;
  facts: EngineFacts;
  /** Of machines that run already, by id. */
  policies: ReadonlyMap<string, MachinePolicy>;
  /** Name servers of machines that an operator named. */
  nameServers: readonly string[] | undefined;
  /** Gives the name of the image of the proxy for domain rules; without it there are none. */
  proxyImage: (() => Promise<string>) | undefined;
  deriveSecret: (purpose: 'tunnel', text: string) => string;
  /** What the engine knows of a machine; undefined when there is none. */
  inspect: (id: string) => Promise<Found | undefined>;
  logger: Logger;
  signal: AbortSignal;
}

const NO_NETWORK_RULES =
  'Network rules need a name server that is not on the host’s loopback, for the engine would ask that one past all rules: name one with CELLBOX_NAME_SERVERS';

/**
 * How machines get out: the network of the service, the host's rules for it, and the proxy for rules that name domains.
 * Operations on one machine must not overlap; the runtime sees to that.
 */
export class DockerEgress {
  /** Why no machine can have rules; undefined when it can. */
  readonly whyNoRules: string | undefined;
  private readonly docker: Dockerode;
  private readonly names: NetworkNames;
  private readonly proxy: DomainProxy;
  private readonly rules: HostRules;

  constructor(private readonly options: DockerEgressOptions) {
    const { docker, serviceId, names, facts, policies, proxyImage = noProxyImage, logger, signal } = options;
    this.docker = docker;
    this.names = names;
    this.whyNoRules = facts.nameServers.length > 0 ? undefined : NO_NETWORK_RULES;
    const proxy = new DomainProxy({
      docker,
      serviceId,
      names,
      nameServers: facts.nameServers,
      image: proxyImage,
      onDeath: () => void this.rules.revive(),
      logger,
      signal,
    });
    this.proxy = proxy;
    this.rules = new HostRules({
      names,
      logger,
      run: (script, input) => this.runOnHost(script, input),
      serve: (machines) => proxy.serve(machines),
      signal,
      policies,
    });
  }

  private runOnHost(script: string, input: string): Promise<string> {
    const { serviceId, facts, nameServers } = this.options;
    return runHelper(this.docker, {
      image: facts.imageId,
      serviceId,
      userNamespaces: facts.userNamespaces,
      env: { ...rulesEnvironment(this.names, nameServers), PROXY_NAME_SERVERS: facts.nameServers.join(' ') },
      script,
      input,
    });
  }

  // ---- of one machine ----------------------------------------------------------------------------------------------

  /** Never given twice, so that no machine meets the rules of another. Locally administered, and not as the engine's own begin. */
  macFor(id: string): string {
    const secret = this.options.deriveSecret('tunnel', `#mac ${id}`);
    const hex = crypto.createHash('sha256').update(secret).digest('hex').slice(0, 10);
    return ['0a', ...(hex.match(/../g) ?? [])].join(':');
  }

  /** Rules of a machine that does not run yet; undefined where it needs none. It must not start before they hold. */
  ruleAhead(id: string, access: NetworkAccess): Promise<void> | undefined {
    if (typeof access !== 'object') return undefined;
    this.requireNames();
    return this.rules.set(id, policyOf(this.macFor(id), access));
  }

  /** @throws ServiceError when it does not have the address that its rules go by */
  requireAddress(id: string, found: Found | undefined): void {
    if (this.macOn(found) === this.macFor(id)) return;
    throw new ServiceError('internal', 'The container engine gave a sandbox another address than asked for');
  }

  /** Network and rules of a halted machine, for its next start. Resolves with whether it must have its address then. */
  async open(
    id: string,
    access: NetworkAccess,
    { Id, HostConfig, NetworkSettings }: Found,
  ): Promise<boolean> {
    const network = this.docker.getNetwork(this.names.network);
    const endpoint = NetworkSettings.Networks[this.names.network];
    const leave = () => callEngine('leave network', network.disconnect({ Container: Id, Force: true }));
    await this.ensureNetwork(); // a prune takes it away while no sandbox runs on it
    if (HostConfig.NetworkMode === 'none') {
      // Its address would be another one at each start, and the engine's choice: it joins when it runs.
      if (endpoint !== undefined) {
        await leave();
        await callEngine('join none', this.docker.getNetwork('none').connect({ Container: Id }));
      }
      this.rules.drop(id);
      return false;
    }
    if (access !== 'full') this.requireNames();
    const mac = this.macFor(id);
    const now = (await callEngine('inspect network', network.inspect())) as { Id: string };
    if (endpoint?.NetworkID !== now.Id) {
      await leave();
      const again = { Container: Id, EndpointConfig: { MacAddress: mac } };
      await callEngine('join network', network.connect(again));
    }
    const policy = policyOf(mac, access);
    await this.rules.set(id, policy);
    return policy !== undefined;
  }

  /** Of a machine that has booted: one that can't have its network before it runs joins it now. */
  async joinBooted(id: string, access: NetworkAccess, found: Found): Promise<void> {
    if (access !== 'none' && this.macOn(found) === undefined) await this.join(id, access, found);
  }

  /** Of a machine that runs, and may have been started without a network. */
  async set(id: string, access: NetworkAccess, found: Found): Promise<void> {
    const mac = this.macOn(found);
    if (mac === undefined && access === 'none') return;
    if (access !== 'full') this.requireNames();
    if (mac === undefined) await this.join(id, access, found);
    else await this.rules.set(id, policyOf(mac, access));
  }

  /** There is no such machine any more. */
  drop(id: string): void {
    this.rules.drop(id);
  }

  /** Rules that close the network must close name resolution with it: it leads out, too. */
  requireNames(): void {
    if (this.whyNoRules !== undefined) throw new ServiceError('failed_precondition', this.whyNoRules);
  }

  /** For a machine that was started without a network. It does not run until its rules hold. */
  private async join(id: string, access: NetworkAccess, found: Found): Promise<void> {
    if (!isHostKernel(found.HostConfig.Runtime ?? 'runc')) {
      // Its kernel looked for interfaces once, when it started.
      throw new ServiceError(
        'failed_precondition',
        'A sandbox that was started without a network can’t join one at this isolation level',
        { remedy: 'Create it with a network whose rules deny everything, and change those.' },
      );
    }
    const container = this.docker.getContainer(found.Id);
    let isFrozen = access !== 'full' && !found.State.Paused;
    const network = this.docker.getNetwork(this.names.network);
    await this.ensureNetwork(); // a prune takes it away while no sandbox is on it
    if (isFrozen) await freeze(container);
    try {
      await callEngine(
        'leave no network',
        this.docker.getNetwork('none').disconnect({ Container: found.Id }),
      );
      await callEngine('join network', network.connect({ Container: found.Id }));
      const mac = this.macOn(await this.options.inspect(id));
      if (mac === undefined) throw new ServiceError('internal', 'The container engine gave no address');
      await this.rules.set(id, policyOf(mac, access));
    } catch (error) {
      try {
        await this.leave(id, found.Id);
      } catch (cause) {
        // It may be on the network without rules: then it must not run again.
        this.options.logger.error(
          { sandboxId: id, error: cause },
          'a sandbox is ended to keep it from the network',
        );
        isFrozen = false;
        await removeContainer(this.docker, found.Id);
      }
      throw error;
    } finally {
      if (isFrozen) await callEngine('resume sandbox', container.unpause());
    }
  }

  /** Takes a machine back to where `join` found it. */
  private async leave(id: string, containerId: string): Promise<void> {
    const found = await this.options.inspect(id);
    if (found === undefined || !found.State.Running) throw notFound(id);
    if (this.names.network in found.NetworkSettings.Networks) {
      const leaving = { Container: containerId, Force: true };
      await callEngine('leave network', this.docker.getNetwork(this.names.network).disconnect(leaving));
    }
    this.rules.drop(id);
    await callEngine('join none', this.docker.getNetwork('none').connect({ Container: containerId })).catch(
      () => undefined, // it has loopback alone either way
    );
  }

  /** Of the machine's interface; undefined when it is on no network. */
  private macOn(found: Found | undefined): string | undefined {
    return found?.NetworkSettings.Networks[this.names.network]?.MacAddress || undefined;
  }

  // ---- of all ------------------------------------------------------------------------------------------------------

  /** The host's rules go by the name of the bridge and outlive the network. */
  ensureNetwork(): Promise<void> {
    return ensureNetwork(this.docker, this.names, { [LABELS.service]: this.options.serviceId });
  }

  /** Whatever these rules need that takes long to make. */
  async prepare(access: NetworkAccess): Promise<void> {
    if (typeof access !== 'object' || (access.allowDomains ?? []).length === 0) return;
    this.requireNames();
    await this.proxy.prepare();
  }

  /** Makes the host's rules what they should be, after somebody else may have changed them; what fails is tried again. */
  assert(): void {
    void this.rules.assert();
  }

  /** Of machines that an earlier process left; what it can't do yet it tries again. */
  serveDomains(): void {
    if (this.rules.needsProxy) this.assert();
  }

  prove(): Promise<void> {
    return this.rules.prove();
  }

  settled(): Promise<void> {
    return this.rules.settled();
  }

  /** Removes a proxy that no machine needs. */
  async sweep(): Promise<void> {
    if (!this.rules.needsProxy) await this.proxy.remove();
  }

  /** No machine is left: nothing of the service stays in the engine but its image. */
  async clear(): Promise<void> {
    await this.proxy.remove();
    await removeNetwork(this.docker, this.names);
    await this.rules.clear();
  }
}

function noProxyImage(): Promise<string> {
  return Promise.reject(
    new ServiceError('failed_precondition', 'Domain rules need an image of their proxy, and none is known'),
  );
}
