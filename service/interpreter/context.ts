import { posix } from 'node:path';
import { ServiceError } from '../errors';
import type { Logger } from '../log';
import type { Execution, ExecutionHost, Outcome } from './execution';
import { GatewayRefusal } from './gateway';
import type { Gateway } from './gateway';
import { KernelClient } from './kernel-client';
import type { KernelEnd } from './kernel-client';
import { findLanguage } from './languages';
import type { Language } from './languages';

const GATEWAY_RETRY_MS = 100;
/** How often in a row a kernel may end before it answered, until we stop trying for this caller. */
const MAX_STARTS = 3;

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
  /** Of a kernel that runs already. */
  kernelId?: string;
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
  private client: KernelClient | undefined;
  private ready: KernelClient | undefined;
  /** The last attempt to get at the kernel, kept while it holds. */
  private connecting: Promise<KernelClient> | undefined;
  /** Settles when the gateway has said whether it starts the kernel. */
  private spawning: Promise<string> | undefined;
  private readonly queue: Execution[] = [];
  private readonly closing = new AbortController();

  constructor(private readonly options: ContextOptions) {
    this.id = options.id;
    this.isDefault = options.isDefault;
    this.language = findLanguage(options.language);
    this.logger = options.logger.child({ contextId: options.id });
    this.kernelId = options.kernelId;
    this.fresh = options.kernelId === undefined;
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

  get isRemoved(): boolean {
    return this.closing.signal.aborted;
  }

  /** Gets the turn after those before it; its end is its own business. */
  enqueue(execution: Execution): void {
    this.queue.push(execution);
    if (this.queue.length === 1) void this.workOff(); // never rejects, as `run` doesn't
  }

  connect(): Promise<KernelClient> {
    return this.connecting ?? this.begin(this.start());
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

  /** A new process under the same id. What runs is lost; what waits runs on the new one. */
  async restart(): Promise<void> {
    const previous = this.connecting;
    this.queue[0]?.finish({ type: 'lost' });
    this.client?.close();
    const restarted = this.restartKernel(previous);
    void this.begin(restarted.then(() => this.start())).catch((error: unknown) =>
      this.logger.warn({ err: error }, 'a restarted kernel did not come up'),
    );
    await restarted;
  }

  /** Ends kernel and executions. Idempotent. */
  async remove(): Promise<void> {
    if (this.isRemoved) return;
    const spawning = this.spawning;
    this.close({ type: 'lost' });
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

  private async start(): Promise<KernelClient> {
    for (let attempt = 1; ; attempt++) {
      this.closing.signal.throwIfAborted();
      const kernelId = this.kernelId ?? (await this.spawn());
      this.closing.signal.throwIfAborted();
      const client: KernelClient = new KernelClient({
        gateway: this.options.gateway,
        kernelId,
        kernelName: this.kernelName,
        readyTimeoutMs: this.options.kernelTimeoutMs,
        logger: this.logger,
        onEnd: (end) => this.onKernelEnd(client, end),
      });
      this.client = client;
      try {
        await client.whenReady();
        await this.startUp(client);
        this.ready = client;
        return client;
      } catch (error) {
        const again = client.end === 'restarting' || client.end === 'dead';
        client.close();
        if (!again || attempt === MAX_STARTS) throw error;
      }
    }
  }

  private get kernelName(): string {
    return this.language?.kernelName ?? this.options.language;
  }

  private spawn(): Promise<string> {
    const spawning = this.askForKernel();
    this.spawning = spawning;
    return spawning.then((kernelId) => {
      this.fresh = true;
      return (this.kernelId = kernelId);
    });
  }

  /** Waits for a gateway that is just coming up, but not for one that says no. */
  private async askForKernel(): Promise<string> {
    const { id, language, cwd, createdAt, env, gateway, kernelTimeoutMs } = this.options;
    const deadline = Date.now() + kernelTimeoutMs;
    for (;;) {
      try {
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

  private async startUp(client: KernelClient): Promise<void> {
    if (!this.fresh) return;
    const { env, home, kernelTimeoutMs } = this.options;
    const code = this.language?.startupCode?.({ cwd: this.directory() ?? home, env });
    if (code !== undefined) await client.runSilently(code, kernelTimeoutMs);
    this.fresh = false;
  }

  private async restartKernel(previous: Promise<KernelClient> | undefined): Promise<void> {
    await previous?.catch(() => undefined); // however it ended, its kernel is replaced now
    this.client?.close();
    this.fresh = true;
    if (this.kernelId === undefined) return; // the new start makes one
    try {
      await this.options.gateway.restartKernel(this.kernelId);
    } catch (error) {
      if (!(error instanceof GatewayRefusal && error.status === 404)) throw error;
      this.kernelId = undefined;
    }
  }

  private onKernelEnd(client: KernelClient, end: KernelEnd): void {
    if (client !== this.client) return;
    if (end === 'dead') this.kernelId = undefined;
    if (end === 'restarting') this.fresh = true;
    if (this.ready !== client) return; // `start` is at work and sees it
    this.ready = undefined;
    this.connecting = undefined;
    if (end === 'restarting' && !this.isRemoved) {
      // The next execution should find it up already.
      this.connect().catch((error: unknown) =>
        this.logger.warn({ err: error }, 'a kernel did not come back'),
      );
    }
  }
}
