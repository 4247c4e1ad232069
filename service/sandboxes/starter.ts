import os from 'node:os';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { ServiceError } from '../errors';
import type { Logger } from '../log';
import { traced } from '../observability/scope';
import { initAgentAgain } from '../runtime/instance-start';
import type { Instance, Resources, Runtime } from '../runtime/runtime';
import type { Secrets } from '../secrets';
import type { MachineStopper } from './machine-stopper';
import { accessOf } from './network';
import type { Pools } from './pools';
import { newSandboxId, ownEnv, specOf, withTokens } from './sandbox';
import type { CreateOptions, RunningSandbox, Sandbox } from './sandbox';
import { sameResources } from './sizes';
import type { Store, StoredSandbox } from './store';
import type { Template } from './templates';
import { Turns } from '../turns';
import { deadline, giveUp } from './waiting';

/** How long a machine from a pool may take to hear whose it is; then another one is tried. */
const CLAIM_TIMEOUT_MS = 5_000;
/** How many machines of a pool may fail to be claimed before a create goes without them. */
const MAX_CLAIMS = 3;
/** Fresh machines that start at a time, per processor: half of a start is waiting for the engine. */
const STARTS_PER_PROCESSOR = 2;

export interface StarterOptions {
  runtime: Runtime;
  store: Store;
  secrets: Secrets;
  logger: Logger;
  stopper: MachineStopper;
  pools: Pools | undefined;
  startTimeoutMs: number;
  now: () => number;
}

/** A create that was found to be in order. */
export interface StartRequest {
  readonly teamId: string;
  readonly template: Template;
  readonly resources: Resources;
  readonly options: CreateOptions;
  /** Gives up: somebody ended the sandbox, or the service stops. */
  readonly abort: AbortSignal;
  readonly callerGone: AbortSignal | undefined;
  /** Told before anything of the sandbox can be found, and again when it is to be another machine after all. */
  readonly onId: (id: string) => void;
  /** From here on the sandbox is live. Called in the moment in which the start can no longer fail. */
  readonly take: (sandbox: RunningSandbox, pooled: boolean) => void;
}

/**
 * Gives new sandboxes their machines: one that was kept ready where there is one that fits, else a fresh one. Either
 * way nothing is left behind when it fails, and the row in the store comes before the answer.
 */
export class SandboxStarter {
  private cold = 0;
  /** Claims under way; none of them rejects. */
  private readonly claims = new Set<Promise<void>>();

  private readonly processors = os.availableParallelism();
  private readonly turns = new Turns(STARTS_PER_PROCESSOR * this.processors);

  constructor(private readonly options: StarterOptions) {}

  /** Fresh machines on their way for somebody who waits. */
  get coldStarts(): number {
    return this.cold;
  }

  async start(request: StartRequest): Promise<Sandbox> {
    const access = accessOf(request.options);
    if (typeof access === 'object') await this.options.runtime.prepareNetwork(access); // may take longer than a claim
    const pooled = await this.startPooled(request);
    if (pooled !== undefined) return pooled;
    this.cold++;
    try {
      // In a burst, those who can have an answer at once would else wait for processors like all others.
      if (this.claims.size > 0) await Promise.all(this.claims).then(() => nextTurn());
      return await this.startCold(request);
    } finally {
      this.cold--;
    }
  }

  // --- from a pool ----------------------------------------------------------------------------------------------

  /** Undefined when no pool has what is asked for. */
  private async startPooled(request: StartRequest): Promise<Sandbox | undefined> {
    const { pools, logger } = this.options;
    // No network at all is best had without an interface, and that is part of the machine.
    if (pools === undefined || accessOf(request.options) === 'none') return undefined;
    const { abort, callerGone, template } = request;
    if (!sameResources(template.resources, request.resources)) return undefined;
    const givenUp = callerGone === undefined ? abort : AbortSignal.any([abort, callerGone]);
    for (let attempt = 1; attempt <= MAX_CLAIMS; attempt++) {
      const instance = await pools.claim(template.id, givenUp);
      if (instance === undefined) return undefined;
      const claimed = traced('pool.claim', { 'cellbox.sandbox.id': instance.id }, () =>
        this.claim(request, instance, givenUp),
      );
      const settled = claimed.then(ignore, ignore).finally(() => this.claims.delete(settled));
      this.claims.add(settled);
      try {
        return await claimed;
      } catch (error) {
        pools.discard(template.id, instance, givenUp.aborted ? undefined : error);
        if (givenUp.aborted) throw this.failure(request, error);
        logger.warn({ sandboxId: instance.id, err: error }, 'a machine kept ready could not be claimed');
      }
    }
    return undefined;
  }

  private async claim(request: StartRequest, instance: Instance, givenUp: AbortSignal): Promise<Sandbox> {
    const { runtime, store, secrets } = this.options;
    const signal = AbortSignal.any([givenUp, AbortSignal.timeout(CLAIM_TIMEOUT_MS)]);
    request.onId(instance.id);
    const now = this.options.now();
    const endAt = now + request.options.timeoutSeconds * 1000;
    const row = { ...this.rowOf(request, instance.id, now), state: 'running', endAt } as const;
    const sandbox: RunningSandbox = { ...withTokens(row, secrets), state: 'running', instance };
    const access = accessOf(sandbox);
    signal.throwIfAborted();
    await Promise.all([
      access !== 'full' &&
        deadline(runtime.setNetwork(instance.id, access), CLAIM_TIMEOUT_MS, 'Setting the network rules'),
      initAgentAgain(instance, specOf(sandbox), signal),
      deadline(instance.setDeadline(endAt), CLAIM_TIMEOUT_MS, 'Telling the deadline'),
    ]);
    signal.throwIfAborted();
    // After the secret: a row stands for a machine that a later service may take over as it is.
    await store.addSandbox(row);
    try {
      signal.throwIfAborted();
    } catch (error) {
      await store.removeSandbox(row.id);
      throw error;
    }
    request.take(sandbox, true);
    return sandbox;
  }

  // --- from nothing ---------------------------------------------------------------------------------------------

  private async startCold(request: StartRequest): Promise<Sandbox> {
    const { runtime, store, secrets, stopper, startTimeoutMs } = this.options;
    const { abort, callerGone, options } = request;
    const row = this.rowOf(request, newSandboxId(), this.options.now());
    request.onId(row.id);
    // The row comes first: a machine without one is an orphan that the next start of the service ends.
    await store.addSandbox(row);
    const tooLong = AbortSignal.timeout(startTimeoutMs);
    const signal = AbortSignal.any([abort, tooLong, ...(callerGone === undefined ? [] : [callerGone])]);
    let machine: Promise<Instance> | undefined;
    let sandbox: RunningSandbox;
    try {
      sandbox = await this.turns.run(signal, startTimeoutMs, async () => {
        signal.throwIfAborted();
        const planned = { ...withTokens(row, secrets), state: 'running' } as const;
        const crowd = this.turns.length > this.processors ? { gatewayWaits: true } : {};
        machine = runtime.start({ ...specOf(planned, request.template), ...crowd }, signal);
        const instance = await giveUp(machine, signal);
        signal.throwIfAborted();
        const upAt = this.options.now();
        const times = { startedAt: upAt, runStartedAt: upAt, endAt: upAt + options.timeoutSeconds * 1000 };
        await store.updateSandbox(row.id, { state: 'running', ...times });
        signal.throwIfAborted();
        return { ...planned, ...times, instance, ...crowd };
      });
    } catch (error) {
      // Needless where the runtime has cleaned up; it may also have given up too late, or still be at it.
      stopper.stop(row.id);
      machine?.then(
        () => stopper.stop(row.id),
        () => undefined, // told below, or too late for anyone to hear
      );
      await store.removeSandbox(row.id);
      throw this.failure(request, error, tooLong);
    }
    request.take(sandbox, false);
    return sandbox;
  }

  // --- both -----------------------------------------------------------------------------------------------------

  private rowOf(
    { teamId, template, resources, options }: StartRequest,
    id: string,
    now: number,
  ): StoredSandbox {
    return {
      id,
      teamId,
      templateId: template.id,
      templateAlias: template.alias,
      state: 'starting',
      pauseMode: undefined,
      startedAt: now,
      runStartedAt: now,
      endAt: now + this.options.startTimeoutMs + options.timeoutSeconds * 1000,
      autoPause: options.autoPause,
      autoPauseMode: options.autoPauseMode,
      autoResume: options.autoResume,
      timeoutSeconds: options.timeoutSeconds,
      metadata: options.metadata,
      env: { ...options.env, ...ownEnv(id, template.id) },
      resources,
      allowInternetAccess: options.allowInternetAccess,
      allowOut: options.allowOut,
      denyOut: options.denyOut,
      allowPublicTraffic: options.allowPublicTraffic,
      maskRequestHost: options.maskRequestHost,
      httpsPorts: options.httpsPorts,
      secure: options.secure,
    };
  }

  private failure(request: StartRequest, cause: unknown, tooLong?: AbortSignal): ServiceError {
    if (request.abort.aborted) {
      return new ServiceError('failed_precondition', 'The sandbox was ended while it started', { cause });
    }
    if (request.callerGone?.aborted)
      return new ServiceError('unavailable', 'The caller went away', { cause });
    if (tooLong?.aborted) {
      const message = `The sandbox did not start within ${this.options.startTimeoutMs / 1000} s`;
      return new ServiceError('deadline_exceeded', message, { cause });
    }
    if (cause instanceof ServiceError) return cause;
    return new ServiceError('internal', 'The sandbox could not be started', { cause });
  }
}

function ignore(): void {
  // whoever claimed hears of it
}
