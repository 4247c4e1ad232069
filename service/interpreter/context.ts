import { posix } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { ServiceError } from '../errors';
import type { Logger } from '../log';
import { outsideScope, traced } from '../observability/scope';
import type { KernelDeath, Outcome } from './endings';
import type { Execution, ExecutionHost } from './execution';
import { GatewayRefusal } from './gateway';
import type { Gateway } from './gateway';
import { KernelClient } from './kernel-client';
import type { KernelEnd } from './kernel-client';
import { deathOf } from './kernel-death';
import { KernelState } from './kernel-state';
import { findLanguage } from './languages';
import type { Language } from './languages';
import { needsNewProcess } from './start-environment';

/** Decides when a kernel may start. Whoever wants it meanwhile waits, too. */
export type Turn = <T>(start: () => Promise<T>) => Promise<T>;

const GATEWAY_RETRY_MS = 100;
/** How often in a row a kernel may end before it answered, until we stop trying for this caller. */
const MAX_STARTS = 3;
/** Ends of a kernel after which there is, or can be, another one. */
const REPLACED: ReadonlySet<KernelEnd> = new Set(['restarting', 'dead', 'forgotten']);

/** Told of each kernel that ended without having been asked to by the API. */
export type OnKernelDeath = (ended: { contextId: string; language: string; death: KernelDeath }) => void;

export interface ContextOptions {
  id: string;
  /** Normalised name. */
  language: string;
  /** As the caller spelt it; shown again. */
  cwd: string;
  isDefault: boolean;
  /** Milliseconds since the epoch. */
  createdAt: number;
  gateway: Gateway;
  env: Record<string, string>;
  home: string;
  kernelTimeoutMs: number;
  logger: Logger;
  onKernelDeath?: OnKernelDeath | undefined;
  /** Of a kernel that runs already. */
  kernelId?: string;
  /** It is at work, and answers when it is through. */
  isBusy?: boolean;
  /** When an execution last began in the kernel that an earlier service had for it, also in one that is gone. */
  usedAt?: number | undefined;
  /** How a kernel ended that is not there any more. */
  loss?: KernelDeath;
  /** The kernel that it has is not the one of that execution, which went with its gateway. */
  isReplaced?: boolean;
}

/**
 * E2B's context: a language, a directory and a kernel, under one id. The kernel may be replaced (restart, crash, a new
 * gateway); directory and environment are given to each new process, so they stay.
 *
 * Executions run one after another in the order of `enqueue`. The kernel is started at the first use.
 */
export class Context implements ExecutionHost {
  readonly id: string;
  readonly isDefault: boolean;
  readonly language: Language | undefined;
  readonly logger: Logger;
  private kernelId: string | undefined;
  /** The kernel has not run its start-up code. */
  private fresh: boolean;
  /** The kernel was at work when it was found, so that it may be a while until it answers. */
  private isBusy: boolean;
  /** The kernel is one that was found running, and nobody has looked yet whether it has its environment. */
  private found: boolean;
  /** What the kernel is to have; see `claim`. */
  private env: Record<string, string>;
  /** What the gateway gives each process of the kernel; undefined when an earlier service had it started. */
  private spawnEnv: Record<string, string> | undefined;
  /** What the process has now. */
  private processEnv: Record<string, string> | undefined;
  private readonly state: KernelState;
  private client: KernelClient | undefined;
  private ready: KernelClient | undefined;
  /** The last attempt to get at the kernel, kept while it holds. */
  private connecting: Promise<KernelClient> | undefined;
  /** Settles when the gateway has said whether it starts the kernel. */
  private spawning: Promise<string> | undefined;
  private readonly queue: Execution[] = [];
  private readonly closing = new AbortController();
  /** The machine stands still. */
  private frozen = false;

  constructor(private readonly options: ContextOptions) {
    this.id = options.id;
    this.isDefault = options.isDefault;
    this.language = findLanguage(options.language);
    this.logger = options.logger.child({ contextId: options.id });
    this.kernelId = options.kernelId;
    this.fresh = options.kernelId === undefined;
    this.isBusy = options.isBusy ?? false;
    this.env = options.env;
    this.found = options.kernelId !== undefined;
    // A kernel that was found may have died with nobody there to give its next process what it lacks.
    this.processEnv = this.found ? undefined : options.env;
    this.state = new KernelState(options.usedAt);
    // Gone with its gateway, if there was one.
    if (!this.found || options.isReplaced === true) this.state.end(options.loss ?? {});
  }

  get languageName(): string {
    return this.options.language;
  }

  get cwd(): string {
    return this.options.cwd;
  }

  get readyKernel(): KernelClient | undefined {
    return this.ready?.isReady ? this.ready : undefined;
  }

  useKernel(): KernelDeath | undefined {
    return this.state.use();
  }

  /** An execution has told that the variables are lost: the next one need not. */
  lossIsTold(): void {
    this.state.clear();
  }

  /** Its variables, or the loss of earlier ones, are something that no execution under way is going to tell. */
  get hasToTell(): boolean {
    return this.state.hasToTell && this.queue.every((execution) => execution.isOver);
  }

  get isRemoved(): boolean {
    return this.closing.signal.aborted;
  }

  /** False while the kernel is on its way, which a standstill of the machine would break off. */
  get isAtRest(): boolean {
    return this.connecting === undefined || this.readyKernel !== undefined;
  }

  /** The machine is about to stand still; what runs and waits here goes on with `thaw`. */
  freeze(): void {
    this.frozen = true;
    for (const execution of [...this.queue]) execution.freeze();
  }

  thaw(): void {
    this.frozen = false;
    for (const execution of this.queue) execution.thaw();
  }

  /** Gets the turn after those before it; its end is its own business. */
  enqueue(execution: Execution): void {
    if (this.frozen) {
      execution.finish({ type: 'sandbox_ended' }); // it came in at the last moment
      return;
    }
    this.queue.push(execution);
    if (this.queue.length === 1) void this.workOff(); // never rejects, as `run` doesn't
  }

  /** A connection in the place of one that an earlier service had, to hear what is said to that. */
  inherit(sessionId: string): KernelClient {
    const client = this.newClient(this.kernelId ?? '', { isBusy: true, sessionId });
    this.begin(this.start(client)).catch((error: unknown) =>
      this.logger.warn({ err: error }, 'a kernel of an earlier service does not answer'),
    );
    return client;
  }

  connect(when: Turn = (start) => start()): Promise<KernelClient> {
    const start = () => traced('kernel.start', { 'cellbox.context.id': this.id }, () => this.start());
    return this.connecting ?? this.begin(when(start));
  }

  /** Resolves when the next execution would run at once, at its full speed; rejects when the kernel did not come up. */
  async warmUp(): Promise<void> {
    const client = await this.connect();
    const code = this.language?.warmUpCode;
    if (code !== undefined) await client.runSilently(code, this.options.kernelTimeoutMs);
  }

  /**
   * The sandbox, started ahead of time, is somebody's from now on and has this environment. A kernel that runs gets it
   * before the next execution, by a new process where it is too late for this one.
   */
  claim(env: Record<string, string>): void {
    this.env = env;
    const client = this.readyKernel;
    // Without one it is on its way, which ends with `startUp`, or not begun.
    if (client === undefined || isDeepStrictEqual(this.processEnv, env)) return;
    this.ready = undefined;
    this.begin(this.takeUp(client)).catch((error: unknown) =>
      this.logger.warn({ err: error }, 'a kernel could not be given its environment'),
    );
  }

  /** Resolves when the gateway has begun to start the kernel, which takes far less than the kernel does. */
  async spawned(): Promise<void> {
    if (this.kernelId !== undefined) return;
    this.connect().catch(() => undefined); // told by `spawning`, and to whoever runs code
    await this.spawning;
  }

  async interrupt(): Promise<void> {
    if (this.kernelId !== undefined) await this.options.gateway.interruptKernel(this.kernelId);
  }

  /** Interrupts what runs now; nothing happens where nothing does. */
  async interruptRunning(): Promise<void> {
    const [execution] = this.queue;
    if (execution === undefined) return;
    if (execution.isOver)
      await this.interrupt(); // its client has left, and the kernel is not through with it
    else await execution.interrupt();
  }

  /** A new process under the same id. What runs is lost; what waits runs on the new one. */
  async restart(): Promise<void> {
    this.queue[0]?.finish({ type: 'restarted' });
    await this.renewKernel(false);
  }

  /** Kills the process and starts another one, for an execution that obeys nothing else and has ended. */
  killKernel(): Promise<void> {
    return this.renewKernel(true);
  }

  private async renewKernel(now: boolean): Promise<void> {
    const previous = this.connecting;
    this.dropClient();
    const restarted = this.restartKernel(previous, now).then(() => this.state.clear());
    void this.begin(restarted.then(() => this.start())).catch((error: unknown) =>
      this.logger.warn({ err: error }, 'a restarted kernel did not come up'),
    );
    await restarted;
  }

  /** Ends kernel and executions. Idempotent. */
  async remove(): Promise<void> {
    if (this.isRemoved) return;
    const spawning = this.spawning;
    this.close({ type: 'restarted' });
    await spawning?.catch(() => undefined); // whether it came to a kernel is seen below
    if (this.kernelId === undefined) return;
    try {
      await this.options.gateway.shutdownKernel(this.kernelId);
    } catch (error) {
      if (!(error instanceof GatewayRefusal && error.status === 404)) throw error;
    }
  }

  /** Lets go of the kernel, which runs on. Every execution ends with `outcome`. Idempotent. */
  close(outcome: Outcome): void {
    this.closing.abort(new ServiceError('not_found', `Context ${this.id} not found`));
    for (const execution of [...this.queue]) execution.finish(outcome);
    this.client?.close();
  }

  private async workOff(): Promise<void> {
    for (let next = this.queue[0]; next !== undefined; next = this.queue[0]) {
      await next.run();
      if (next.record.ending?.state_survived === false) this.lossIsTold();
      this.queue.shift();
    }
  }

  /** Makes an attempt the current one; it is forgotten when it fails, so that the next caller tries again. */
  private begin(attempt: Promise<KernelClient>): Promise<KernelClient> {
    this.connecting = attempt;
    attempt.catch(() => {
      if (this.connecting === attempt) this.connecting = undefined;
    });
    return attempt;
  }

  /** `first`: a client to begin with. */
  private async start(first?: KernelClient): Promise<KernelClient> {
    for (let attempt = 1; ; attempt++) {
      this.closing.signal.throwIfAborted();
      const client = (attempt === 1 && first) || this.newClient(this.kernelId ?? (await this.spawn()));
      this.client = client;
      try {
        await client.whenReady();
        await this.lookForLoss(client);
        await this.startUp(client);
        if (client === this.client) return (this.ready = client);
        client.close(); // given up, or somebody else's attempt came after ours
        if (attempt === MAX_STARTS)
          throw new ServiceError('unavailable', 'The kernel was replaced meanwhile');
      } catch (error) {
        const again = client.end !== undefined && REPLACED.has(client.end);
        client.close();
        if (!again || attempt === MAX_STARTS) throw error;
      }
    }
  }

  private newClient(kernelId: string, options: { isBusy?: boolean; sessionId?: string } = {}): KernelClient {
    this.closing.signal.throwIfAborted();
    const { isBusy } = this;
    this.isBusy = false;
    const client: KernelClient = new KernelClient({
      gateway: this.options.gateway,
      kernelId,
      kernelName: this.kernelName,
      readyTimeoutMs: this.options.kernelTimeoutMs,
      logger: this.logger,
      onEnd: (end, death) => outsideScope(() => this.onKernelEnd(client, end, death)),
      isBusy,
      ...options,
    });
    return client;
  }

  /** A kernel that was used and then not listened to for a while may be another process of the same id by now. */
  private async lookForLoss(client: KernelClient): Promise<void> {
    if (!this.state.isUsed) return;
    try {
      const { last_ending: ending } = await this.options.gateway.findKernel(client.kernelId);
      if (ending !== undefined) this.state.end(deathOf(ending), ending.at);
    } catch (error) {
      if (!this.isRemoved)
        this.logger.warn({ err: error }, 'whether a kernel has its variables is not known');
    }
    await client.whenReady(); // it may have ended meanwhile
  }

  /** A kernel that answered before, and is to be brought up to date. */
  private async takeUp(client: KernelClient): Promise<KernelClient> {
    try {
      await this.startUp(client);
      if (client === this.client) return (this.ready = client);
    } catch (error) {
      this.logger.debug({ err: error }, 'a kernel ended while it was given its environment');
      client.close();
    }
    return this.start();
  }

  private get kernelName(): string {
    return this.language?.kernelName ?? this.options.language;
  }

  private spawn(): Promise<string> {
    const spawning = traced('gateway.start_kernel', { 'cellbox.kernel.name': this.kernelName }, () =>
      this.askForKernel(),
    );
    this.spawning = spawning;
    return spawning.then((kernelId) => {
      this.fresh = true;
      return (this.kernelId = kernelId);
    });
  }

  /** Waits for a gateway that is just coming up, but not for one that says no. */
  private async askForKernel(): Promise<string> {
    const { id, language, cwd, createdAt, gateway, kernelTimeoutMs } = this.options;
    const deadline = Date.now() + kernelTimeoutMs;
    for (;;) {
      try {
        const { env } = this;
        this.spawnEnv = env;
        this.processEnv = env;
        // Not broken off by `remove`: that would leave a kernel that nobody knows of.
        return await gateway.startKernel({
          name: this.kernelName,
          env,
          cwd: this.directory(),
          record: { id, language, cwd, is_default: this.isDefault, created_at: createdAt },
        });
      } catch (error) {
        if (error instanceof GatewayRefusal || this.isRemoved || Date.now() > deadline) throw error;
        await new Promise((resolve) => setTimeout(resolve, GATEWAY_RETRY_MS));
      }
    }
  }

  /** The directory as the gateway wants it: absolute, and none for the home, which it knows better. */
  private directory(): string | undefined {
    const { cwd, home } = this.options;
    const directory = posix.resolve(home, cwd.replace(/^~(?=\/|$)/, home));
    return directory === home ? undefined : directory;
  }

  /** Brings a process that answers to where it should be. It is given up, and not `client` any more, where that is too late. */
  private async startUp(client: KernelClient): Promise<void> {
    const { home, kernelTimeoutMs } = this.options;
    if (this.fresh) {
      const code = this.language?.startupCode?.({ cwd: this.directory() ?? home, env: this.env });
      if (code !== undefined) await client.runSilently(code, kernelTimeoutMs);
      this.fresh = false;
    }
    // Again when the sandbox was claimed in the meantime.
    while (!isDeepStrictEqual(this.processEnv, this.env)) {
      const { env } = this;
      if (this.spawnEnv !== undefined && needsNewProcess(this.spawnEnv, env)) {
        this.abandon(client);
        return;
      }
      const code = this.found ? this.language?.adoptCode?.(env) : this.language?.claimCode?.(env);
      this.found = false;
      if (code !== undefined) {
        const failure = await client.runSilently(code, kernelTimeoutMs);
        if (failure !== undefined) this.logger.warn({ failure }, 'a kernel refused its environment');
      }
      this.processEnv = env;
    }
  }

  /** Ends the kernel, in the background, for another one in its place. */
  private abandon(client: KernelClient): void {
    const { kernelId } = this;
    this.kernelId = undefined;
    this.client = undefined;
    client.close();
    if (kernelId === undefined) return;
    this.options.gateway
      .shutdownKernel(kernelId)
      .catch((error: unknown) => this.logger.warn({ err: error }, 'a kernel that was replaced may be left'));
  }

  /** What begins now is a new process of the same kernel. */
  private renewed(): void {
    this.fresh = true;
    this.found = false;
    this.processEnv = this.spawnEnv;
  }

  /** Closes it as one that is not in use, so that its end does not count as the kernel's: a restart is under way. */
  private dropClient(): void {
    this.ready = undefined;
    this.client?.close();
  }

  private async restartKernel(previous: Promise<KernelClient> | undefined, now: boolean): Promise<void> {
    await previous?.catch(() => undefined); // however it ended, its kernel is replaced now
    this.dropClient();
    this.renewed();
    if (this.kernelId === undefined) return; // the new start makes one
    try {
      await this.options.gateway.restartKernel(this.kernelId, now);
    } catch (error) {
      if (!(error instanceof GatewayRefusal && error.status === 404)) throw error;
      this.kernelId = undefined;
    }
  }

  private onKernelEnd(client: KernelClient, end: KernelEnd, death: KernelDeath): void {
    if (client !== this.client) return;
    if (end === 'dead' || end === 'restarting') {
      this.options.onKernelDeath?.({ contextId: this.id, language: this.languageName, death });
    }
    if (end === 'dead' || end === 'forgotten') this.kernelId = undefined;
    if (end === 'restarting') this.renewed();
    if (REPLACED.has(end)) this.state.end(death);
    if (this.ready !== client) return; // `start` is at work and sees it
    this.ready = undefined;
    this.connecting = undefined;
    if (!this.isRemoved && end !== 'dead' && end !== 'closed') {
      // The next execution should find it up already, and a later service the context, which it knows by its kernel.
      this.connect().catch((error: unknown) =>
        this.logger.warn({ err: error }, 'a kernel did not come back'),
      );
    }
  }
}
