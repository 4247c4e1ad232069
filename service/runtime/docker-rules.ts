import { setTimeout as delay } from 'node:timers/promises';
import { ServiceError } from '../errors';
import type { Logger } from '../log';
import { engineDetail } from './docker-engine';
import { CLEAR_RULES, SET_RULES } from './docker-network';
import type { NetworkNames } from './docker-network';
import { policyLines } from './docker-policy';
import type { MachinePolicy, ProxyTarget } from './docker-policy';
import type { NamedRules } from './docker-proxy-config';

export interface HostRulesOptions {
  names: NetworkNames;
  logger: Logger;
  /** Runs a program in the host's network namespace with this on its standard input. */
  run: (script: string, input: string) => Promise<unknown>;
  /**
   * Gives the proxy what machines may reach by name, all of it; resolves when it serves them by that, and not before it
   * has forgotten everybody else. Never called twice at a time.
   */
  serve: (machines: readonly NamedRules[]) => Promise<ProxyTarget>;
  /** Ends what is tried again and again. */
  signal: AbortSignal;
  /** What holds on the host already, by machine. */
  policies: Iterable<readonly [string, MachinePolicy]>;
}

/** The host's rules are asserted again when a check finds them older: someone may have flushed the firewall. */
const FRESH_MS = 60_000;
/** Between attempts to serve machines with domain rules again; doubled each time, up to the second. */
const REVIVE_MS = 200;
const MAX_REVIVE_MS = 30_000;
/** How long a check waits for that; on a loaded host it tells the last result, and the next check the new one. */
const PROVE_MS = 1_500;

/**
 * Keeps the host's rules as they must be: the bridge's, and those of each machine that has its own. All are set anew, in
 * one commit, whenever one changes; changes that come while others are being set go together.
 */
export class HostRules {
  private readonly policies: Map<string, MachinePolicy>;
  /** The attempt under way; never rejects. */
  private running: Promise<unknown> = Promise.resolve();
  /** The one after it, for all that came meanwhile. */
  private waiting: Promise<Outcome> | undefined;
  private reviving = false;
  private setAt = Date.now();
  private failure: string | undefined;

  constructor(private readonly options: HostRulesOptions) {
    this.policies = new Map(options.policies);
  }

  /**
   * Gives a machine other rules, or none of its own; resolves when they hold.
   *
   * @throws ServiceError `unavailable` when they can't be set: then those from before are going to hold
   */
  async set(id: string, policy: MachinePolicy | undefined): Promise<void> {
    const before = this.policies.get(id);
    if (policy === undefined && before === undefined) {
      // An earlier machine's may be on their way out, under the same address.
      await this.settled();
      return;
    }
    this.keep(id, policy);
    let outcome: Outcome;
    try {
      outcome = await this.apply();
    } catch (error) {
      if (this.policies.get(id) === policy) this.keep(id, before);
      throw new ServiceError('unavailable', "The host's network rules can't be set", { cause: error });
    }
    if (policy === undefined || policy.domains.length === 0 || outcome.isServed(id)) return;
    // It holds, but closed.
    if (this.policies.get(id) === policy) this.keep(id, before);
    void this.assert();
    const { unserved } = outcome;
    if (unserved === undefined)
      throw new ServiceError('resource_exhausted', 'Too many sandboxes have domains in their network rules');
    throw new ServiceError('unavailable', "The proxy for domain rules can't be reached", { cause: unserved });
  }

  /** The machine is gone; its rules follow. */
  drop(id: string): void {
    if (this.policies.delete(id)) void this.assert();
  }

  /** Sets all rules again; a failure is logged and told by `prove`. Never rejects. */
  assert(): Promise<void> {
    return this.apply().then(
      () => undefined,
      () => undefined, // logged by `setAll`
    );
  }

  /** Whether any machine has domain rules. */
  get needsProxy(): boolean {
    return namedRules(this.policies).length > 0;
  }

  /** Tries until the proxy serves everybody again, or nobody needs it; never rejects. */
  async revive(): Promise<void> {
    if (this.reviving) return;
    this.reviving = true;
    const { signal } = this.options;
    try {
      for (let pauseMs = REVIVE_MS; ; pauseMs = Math.min(2 * pauseMs, MAX_REVIVE_MS)) {
        await delay(pauseMs, undefined, { signal, ref: false }).catch(() => undefined); // closed: the loop ends
        if (signal.aborted || !this.needsProxy) return;
        const unserved = await this.apply().then(
          (outcome) => outcome.unserved,
          (error: unknown) => error, // logged by `setAll`
        );
        if (unserved === undefined) return;
      }
    } finally {
      this.reviving = false;
    }
  }

  /** Rejects when the rules don't hold, as far as one can know without asking each time. */
  async prove(): Promise<void> {
    if (Date.now() - this.setAt > FRESH_MS || this.failure !== undefined) {
      await Promise.race([this.assert(), delay(PROVE_MS, undefined, { ref: false })]);
    }
    if (this.failure !== undefined) throw new Error(`can't be set: ${this.failure}`);
  }

  /** Resolves when nothing is under way any more. */
  async settled(): Promise<void> {
    while (this.waiting !== undefined) await this.waiting.catch(() => undefined); // whoever asked for it hears
    await this.running;
  }

  /** Takes everything back, when no machine is left. */
  async clear(): Promise<void> {
    await this.settled();
    await this.options.run(CLEAR_RULES, '');
  }

  private keep(id: string, policy: MachinePolicy | undefined): void {
    if (policy === undefined) this.policies.delete(id);
    else this.policies.set(id, policy);
  }

  /** An attempt that begins after this call, shared by all who ask before it begins. */
  private apply(): Promise<Outcome> {
    this.waiting ??= this.running.then(() => {
      this.waiting = undefined;
      const attempt = this.setAll();
      this.running = attempt.catch(() => undefined); // those who wait for `attempt` hear of it
      return attempt;
    });
    return this.waiting;
  }

  private async setAll(): Promise<Outcome> {
    const { names, logger, run, serve } = this.options;
    const policies = new Map(this.policies); // what comes meanwhile is the next attempt's
    const machines = namedRules(policies);
    let proxy: ProxyTarget | undefined;
    let unserved: unknown;
    try {
      if (machines.length > 0) proxy = await serve(machines);
    } catch (error) {
      unserved = error;
      logger.error({ error }, 'the proxy does not serve domain rules: what they allow is closed');
      void this.revive();
    }
    try {
      await run(SET_RULES, policyLines(names, policies, proxy));
      proxy?.held();
      this.failure = unserved === undefined ? undefined : engineDetail(unserved);
      return { unserved, isServed: (id) => proxy?.slotOf(id) !== undefined };
    } catch (error) {
      this.failure = engineDetail(error);
      logger.error({ error }, "the host's rules for sandboxes can't be set");
      throw error;
    } finally {
      this.setAt = Date.now();
    }
  }
}

/** Of the machines that may reach anything by name. */
export function namedRules(policies: Iterable<readonly [string, MachinePolicy]>): NamedRules[] {
  return [...policies].flatMap(([id, { domains }]) => (domains.length > 0 ? [{ id, domains }] : []));
}

/** Of an attempt by which the host's rules hold. */
interface Outcome {
  /** Why no domain is reachable; undefined when the proxy serves those that it has room for. */
  unserved: unknown;
  isServed(id: string): boolean;
}
