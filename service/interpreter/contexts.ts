import { createHash, randomUUID } from 'node:crypto';
import type { Socket } from 'node:net';
import type { Context as ContextListing } from '../../protocol/interpreter';
import { ServiceError } from '../errors';
import type { Logger } from '../log';
import { Context } from './context';
import type { OnKernelDeath, Turn } from './context';
import { tellLost } from './endings';
import type { KernelDeath, Outcome } from './endings';
import { Execution } from './execution';
import type { ExecutionRecord } from './execution-record';
import type { LastUse } from './execution-records';
import { Gateway } from './gateway';
import type { KernelModel } from './gateway';
import { deathOf } from './kernel-death';
import { findLanguage } from './languages';

/** Listed from the start, in this order; the first one's kernel starts with the sandbox. */
const DEFAULT_LANGUAGES = ['python', 'javascript'];
const ADOPT_RETRY_MS = 200;

/** What the interpreter is given of a sandbox: enough to reach its kernels. */
export interface Machine {
  /** The sandbox's id. */
  readonly id: string;
  /** Environment of the sandbox, given to every kernel. */
  readonly env: Record<string, string>;
  readonly gatewayToken: string;
  /** Settles once, never rejects. */
  readonly ended: Promise<unknown>;
  /** See `Instance.dial`. */
  dial(port: number, options?: { signal?: AbortSignal }): Promise<Socket>;
}

/** A default context with variables that nobody was told the loss of. */
export interface UsedDefault {
  readonly id: string;
  readonly language: string;
}

export interface ContextsOptions {
  machine: Machine;
  kernelTimeoutMs: number;
  /** For executions of an earlier service. */
  interruptGraceMs: number;
  /** See `ExecutionRecords.lastUse`. */
  lastUse: (contextId: string) => LastUse | undefined;
  home: string;
  logger: Logger;
  onKernelDeath?: OnKernelDeath | undefined;
}

/**
 * The contexts of one machine, oldest first, and its connection to the gateway. `close` lets go of all of them and
 * leaves the kernels running; it is idempotent.
 */
export class Contexts {
  readonly gateway: Gateway;
  private readonly contexts = new Map<string, Context>();
  /** Not listed yet: the gateway has not said whether it can start their kernels. */
  private readonly unlisted = new Set<Context>();
  private readonly logger: Logger;
  private adopting: Promise<void> | undefined;
  private env: Record<string, string>;
  /** How kernels ended that are not found any more. */
  private loss: KernelDeath = {};
  private closed = false;

  constructor(private readonly options: ContextsOptions) {
    const { machine, logger } = options;
    this.logger = logger.child({ sandboxId: machine.id });
    this.env = machine.env;
    this.gateway = new Gateway((port, dialOptions) => machine.dial(port, dialOptions), machine.gatewayToken);
  }

  /** Resolves when the contexts are known; undefined when they are, so that nobody need wait. */
  get whenKnown(): Promise<void> | undefined {
    return this.adopting;
  }

  /** A fresh machine: lists the defaults, and starts the first one's kernel in the background, when it is its turn. */
  prepare(turn?: Turn): void {
    const later = [...this.contexts.values()];
    this.contexts.clear();
    for (const language of DEFAULT_LANGUAGES) {
      const existing = later.find((each) => each.isDefault && each.languageName === language);
      this.add(existing ?? this.make(language, this.options.home, true, { id: this.firstId(language) }));
    }
    for (const context of later) this.add(context);
    this.defaultContext.connect(turn).catch((error: unknown) => {
      if (!this.closed) this.logger.warn({ err: error }, 'the default kernel did not start');
    });
  }

  /** Resolves when the kernel that `prepare` starts can be used at once; rejects when it did not come up. */
  async whenWarm(): Promise<void> {
    await this.defaultContext.warmUp();
  }

  get isWarm(): boolean {
    return this.defaultContext.readyKernel !== undefined;
  }

  /** A machine that was made ready ahead of time is somebody's now, and has this environment. */
  claim(env: Record<string, string>): void {
    this.env = env;
    for (const context of this.contexts.values()) context.claim(env);
  }

  /**
   * A machine with a past: takes over the kernels that run there, then sees to the defaults. Never rejects.
   *
   * @param unanswered what an earlier service had sent to them: waited for where the kernel is found, else told as lost.
   * @param pausedAt since when the machine stood still until now (milliseconds since the epoch), if it did: what
   *   kernels are busy with is then left to them.
   */
  adopt(unanswered: readonly ExecutionRecord[] = [], pausedAt?: number): Promise<void> {
    const standstillMs = pausedAt === undefined ? undefined : Math.max(0, Date.now() - pausedAt);
    this.adopting ??= this.takeOver(unanswered, standstillMs).finally(() => (this.adopting = undefined));
    return this.adopting;
  }

  /**
   * A machine that was halted, and starts over its files: there are no contexts but defaults, with new kernels.
   *
   * @param used their next executions are told that variables are lost.
   */
  boot(used: readonly UsedDefault[]): void {
    this.loss = { halted: true };
    for (const { id, language } of used) {
      this.add(this.make(language, this.options.home, true, { id, usedAt: Date.now() }));
    }
    this.prepare();
    this.loss = {};
  }

  /** Default contexts whose next execution has to be told when their kernels go now. */
  get usedDefaults(): UsedDefault[] {
    return [...this.contexts.values()]
      .filter((context) => context.isDefault && context.hasToTell)
      .map(({ id, languageName: language }) => ({ id, language }));
  }

  list(): ContextListing[] {
    return [...this.contexts.values()].map(listing);
  }

  get(id: string): Context {
    const context = this.contexts.get(id);
    if (context === undefined) throw new ServiceError('not_found', `Context ${id} not found`);
    return context;
  }

  private get defaultContext(): Context {
    return this.forLanguage(DEFAULT_LANGUAGES[0] ?? '');
  }

  /** The default context of a language (normalised), made when there is none. Its kernel starts at the first use. */
  forLanguage(language: string): Context {
    for (const context of this.contexts.values()) {
      if (context.isDefault && context.languageName === language) return context;
    }
    return this.add(this.make(language, this.options.home, true));
  }

  /** Resolves when its kernel is being started, rejects as `Context.spawned` and forgets the context. */
  async create(language: string, cwd: string): Promise<Context> {
    const context = this.make(language, cwd, false);
    this.unlisted.add(context);
    try {
      await context.spawned();
    } catch (error) {
      context.close({ type: 'lost' });
      throw error;
    } finally {
      this.unlisted.delete(context);
    }
    if (this.closed) throw new ServiceError('unavailable', 'The sandbox has ended');
    return this.add(context);
  }

  /** Forgets a context that never came to be. Defaults that are always listed stay, for the next try. */
  discard(context: Context): void {
    if (context.isDefault && DEFAULT_LANGUAGES.includes(context.languageName)) return;
    this.contexts.delete(context.id);
    context.close({ type: 'lost' });
  }

  async remove(id: string): Promise<void> {
    const context = this.get(id);
    this.contexts.delete(id);
    await context.remove();
  }

  /**
   * The machine is about to stand still; `thaw` goes on where this was. False when something is under way that the
   * standstill would break off: then the owner closes these contexts and has others `adopt` the kernels afterwards.
   */
  freeze(): boolean {
    const all = [...this.contexts.values()];
    if (this.adopting !== undefined || this.unlisted.size > 0) return false;
    if (!all.every((context) => context.isAtRest)) return false;
    for (const context of all) context.freeze();
    return true;
  }

  thaw(): void {
    for (const context of this.contexts.values()) context.thaw();
  }

  close(outcome: Outcome = { type: 'sandbox_ended' }): void {
    if (this.closed) return;
    this.closed = true;
    for (const context of [...this.contexts.values(), ...this.unlisted]) context.close(outcome);
    this.contexts.clear();
    this.gateway.close();
  }

  /** The id of a default context that is listed from the start: the same after a restart of the service. */
  private firstId(language: string): string {
    const hash = createHash('sha256').update(`${this.options.machine.id}/${language}`).digest('hex');
    return hash.replace(/^(.{8})(.{4}).(.{3}).(.{3})(.{12}).*$/, '$1-$2-8$3-8$4-$5'); // as UUIDs of one's own making
  }

  private make(
    language: string,
    cwd: string,
    isDefault: boolean,
    existing: {
      id?: string;
      kernelId?: string;
      createdAt?: number;
      isBusy?: boolean;
      usedAt?: number;
    } = {},
  ): Context {
    const { home, kernelTimeoutMs, lastUse, onKernelDeath } = this.options;
    const known = existing.id === undefined ? undefined : lastUse(existing.id);
    // One that is found may have been used longer ago than executions are kept.
    const usedAt = known?.at ?? (existing.kernelId === undefined ? undefined : Date.now());
    const isReplaced = known?.kernelId !== undefined && known.kernelId !== existing.kernelId;
    return new Context({
      id: randomUUID(),
      language,
      cwd,
      isDefault,
      createdAt: Date.now(),
      gateway: this.gateway,
      env: this.env,
      home,
      kernelTimeoutMs,
      logger: this.logger,
      onKernelDeath,
      usedAt,
      isReplaced,
      loss: this.loss,
      ...existing,
    });
  }

  private add(context: Context): Context {
    this.contexts.set(context.id, context);
    return context;
  }

  private async takeOver(
    unanswered: readonly ExecutionRecord[],
    standstillMs: number | undefined,
  ): Promise<void> {
    const deadline = Date.now() + this.options.kernelTimeoutMs;
    const waiting = new Set(unanswered);
    let asked = false;
    while (!this.closed && !asked) {
      try {
        const kernels = await this.gateway.listKernels();
        asked = true;
        const age = (kernel: KernelModel): number => kernel.metadata?.cellbox.created_at ?? 0;
        for (const kernel of kernels.sort((a, b) => age(a) - age(b)))
          await this.adoptKernel(kernel, waiting, standstillMs);
      } catch (error) {
        if (Date.now() > deadline) {
          this.logger.warn({ err: error }, 'running kernels could not be taken over');
          break;
        }
        // The gateway may be on its way up.
        await new Promise((resolve) => setTimeout(resolve, ADOPT_RETRY_MS));
      }
    }
    if (this.closed) return; // whoever takes the machine up again looks for them
    for (const record of waiting) {
      record.end(tellLost(asked ? { type: 'died', death: {} } : { type: 'lost' }));
      if (asked) this.contexts.get(record.options.contextId)?.lossIsTold();
    }
    this.prepare();
  }

  private async adoptKernel(
    kernel: KernelModel,
    waiting: Set<ExecutionRecord>,
    standstillMs: number | undefined,
  ): Promise<void> {
    const found = kernel.metadata?.cellbox;
    const language = found?.language ?? languageOfKernel(kernel.name);
    const known = [...this.contexts.values()];
    const isDefault =
      found?.is_default ?? !known.some((context) => context.isDefault && context.languageName === language);
    const id = found?.id ?? kernel.id;
    if (this.contexts.has(id)) return;
    const createdAt = found?.created_at ?? Date.now();
    const cwd = found?.cwd ?? this.options.home;
    const isBusy = kernel.execution_state === 'busy';
    const context = this.make(language, cwd, isDefault, { id, kernelId: kernel.id, createdAt, isBusy });
    this.add(context);
    const sent = [...waiting].filter(({ unanswered }) => unanswered?.kernel_id === kernel.id);
    const record = sent.pop();
    // A kernel has one at a time: the ends of these could not be written down, as on a full disk.
    for (const older of sent) {
      waiting.delete(older);
      older.end(tellLost({ type: 'lost' }));
    }
    const ending = kernel.last_ending;
    if (record !== undefined && ending !== undefined && ending.at > (record.startedAt ?? 0)) {
      waiting.delete(record);
      record.end(tellLost({ type: 'died', death: deathOf(ending) }));
      context.lossIsTold();
    } else if (record !== undefined) {
      waiting.delete(record);
      this.inherit(context, record, standstillMs);
    } else if (isBusy && standstillMs === undefined) {
      // Nobody knows whose this is, and nobody is going to take what comes of it.
      await context
        .interrupt()
        .catch((error: unknown) =>
          this.logger.warn({ err: error }, 'a busy kernel could not be interrupted'),
        );
    }
  }

  /** Waits for what an earlier service had sent; for the kernel, E2B's clients went away with that service. */
  private inherit(context: Context, record: ExecutionRecord, standstillMs = 0): void {
    const { unanswered } = record;
    if (unanswered === undefined) return;
    const { interruptGraceMs } = this.options;
    const { timeoutMs } = record.options;
    const execution = new Execution(
      context,
      { code: '', env: {}, timeoutMs, interruptGraceMs, standstillMs },
      record,
      unanswered,
    );
    context.enqueue(execution);
    if (unanswered.is_plain) execution.finish({ type: 'client_gone' });
  }
}

export function listing(context: Context): ContextListing {
  return { id: context.id, language: context.languageName, cwd: context.cwd };
}

function languageOfKernel(kernelName: string): string {
  const name = kernelName === 'python3' ? 'python' : kernelName;
  return findLanguage(name)?.name ?? name;
}
