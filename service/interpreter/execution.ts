import { randomUUID } from 'node:crypto';
import type { KernelMessage } from '@jupyterlab/services/lib/kernel';
import type { OutputEvent } from '../../protocol/interpreter';
import type { Logger } from '../log';
import { ExecutionTrace } from '../observability/execution-trace';
import { ServiceError } from '../errors';
import { tell, tellStateLost } from './endings';
import type { KernelDeath, Outcome, Stop } from './endings';
import type { ExecutionRecord } from './execution-record';
import { GatewayRefusal } from './gateway';
import type { SentRequest } from './journal';
import type { KernelClient, KernelEnd, KernelRequest, KernelUser } from './kernel-client';
import { asksToExit, readUsage } from './kernel-death';
import { splitStreamText } from './languages';
import type { KernelError, Language } from './languages';
import { toErrorEvent, toOutputEvent } from './outputs';
import { within } from './waiting';
import { PausableTimer } from './pausable-timer';

/** Between `idle` and a reply that is still on its way (another channel), and the other way round. */
const REPLY_GRACE_MS = 2_000;
const IDLE_GRACE_MS = 2_000;
/** How long the next execution is held back for one that was interrupted and does not end; then it waits in the kernel. */
const INTERRUPT_GRACE_MS = 10_000;
const INTERRUPT_AGAIN_MS = 2_500;
/** For the kernel's own work of setting and restoring variables. */
const ENVIRONMENT_DEADLINE_MS = 30_000;
/** For output that is still on its way when the kernel says it is idle, and for asking it what an error meant. */
const DRAIN_DEADLINE_MS = 5_000;
/** Between the reply to a cell that asked its kernel to end, and that end. */
const EXIT_GRACE_MS = 5_000;
/** For the kernel to be gone that is killed at its time limit; then the end is told all the same. */
const KILL_DEADLINE_MS = 5_000;
/** How often an execution that was not yet sent starts over because the kernel ended under it. */
const MAX_ATTEMPTS = 3;

/** What an execution needs of its context. */
export interface ExecutionHost {
  readonly language: Language | undefined;
  /** The kernel when it can be used at once. */
  readonly readyKernel: KernelClient | undefined;
  /** The kernel, started or connected again where needed. */
  connect(): Promise<KernelClient>;
  /** A connection in the place of one that an earlier service had. */
  inherit(sessionId: string): KernelClient;
  interrupt(): Promise<void>;
  /** An execution begins in the kernel. Returns how an earlier one ended whose variables nobody was told to be lost. */
  useKernel(): KernelDeath | undefined;
  /** Kills the kernel and starts another one; resolves when the old one is gone. */
  killKernel(): Promise<void>;
  readonly logger: Logger;
}

/** What is to be run. */
export interface ExecutionOptions {
  code: string;
  env: Record<string, string>;
  /** From the moment the kernel gets it; 0 is no limit. */
  timeoutMs: number;
  /** After the interrupt at the limit, until the kernel is killed. */
  interruptGraceMs: number;
  /** Of the time since the kernel got it, how long the machine stood still. */
  standstillMs?: number;
}

/**
 * One run of some code in a context, from request to end, and the one place where all ways to end race: the first
 * outcome given to `finish` wins, the record is closed accordingly, and later ones are ignored.
 *
 * `run` resolves when the kernel is free for the next one: after the outcome, and after interrupt and clean-up. It
 * never rejects.
 */
export class Execution implements KernelUser {
  readonly onLate: (message: KernelMessage.IIOPubMessage) => void;
  private outcome: Outcome | undefined;
  private readonly finished: Promise<undefined>;
  private resolveFinished!: () => void;
  private resolveSettled: (() => void) | undefined;
  private readonly trace: ExecutionTrace;
  private client: KernelClient | undefined;
  private reply: KernelMessage.IExecuteReplyMsg | undefined;
  private gotIdle = false;
  private sawError = false;
  private concluding = false;
  private paused = false;
  /** An error that says nothing, until the kernel was asked what it meant. */
  private unclear: KernelError | undefined;
  private marker: string | undefined;
  private onMarker: (() => void) | undefined;
  private grace: NodeJS.Timeout | undefined;
  private request: KernelRequest | undefined;
  private readonly limit = new PausableTimer();
  /** The machine stands still. */
  private frozen = false;
  /** Why it was interrupted. */
  private stop: Stop | undefined;
  /** Settles when no interrupt of ours is on its way to the kernel: a later cell must not get it. */
  private interrupting: Promise<unknown> = Promise.resolve();
  /** The kernel is being killed for the time limit; settles when it is gone. */
  private killing: Promise<void> | undefined;
  /** The cell has asked its kernel to end. */
  private leaving = false;
  /** Of an error that was not told, as the time limit is. */
  private traceback = '';

  constructor(
    private readonly host: ExecutionHost,
    private readonly options: ExecutionOptions,
    readonly record: ExecutionRecord,
    /** The kernel has it from an earlier service. */
    private readonly inherited?: SentRequest,
  ) {
    this.finished = new Promise((resolve) => (this.resolveFinished = () => resolve(undefined)));
    this.onLate = lateListener(record);
    this.trace = new ExecutionTrace({
      'cellbox.sandbox.id': record.options.sandboxId,
      'cellbox.context.id': record.options.contextId,
      'cellbox.execution.id': record.id,
    });
    record.onDrain = () => this.resume();
    record.onInterrupt = () => this.interrupt();
  }

  get isOver(): boolean {
    return this.outcome !== undefined;
  }

  run(): Promise<void> {
    return this.trace.run(() => this.runTraced());
  }

  private async runTraced(): Promise<void> {
    try {
      if (this.inherited !== undefined) {
        await this.runOn(this.host.inherit(this.inherited.session));
        return;
      }
      for (let attempt = 1; !this.isOver; attempt++) {
        const client = this.host.readyKernel ?? (await this.waitForKernel());
        if (client?.isReady) {
          await this.runOn(client);
          return;
        }
        // It ended before anything was sent: try the next one.
        if (attempt === MAX_ATTEMPTS) this.finish({ type: 'died', death: {} });
      }
    } catch (error) {
      this.host.logger.error({ err: error }, 'an execution failed inside the service');
      this.finish({ type: 'failed', name: 'InternalError', value: ServiceError.from(error).message });
    }
  }

  finish(outcome: Outcome): void {
    if (this.outcome !== undefined) return;
    if (this.killing !== undefined && outcome.type === 'client_gone') return; // the limit was first
    this.outcome = outcome;
    clearTimeout(this.grace);
    // The cell of one that a pause has ended goes on, within its limit.
    if (outcome.type !== 'paused') this.limit.clear();
    this.close(outcome);
    this.trace.end(this.record.ending?.termination ?? outcome.type);
    this.resume(); // nobody is waited for any more, and the kernel's end must be heard
    this.resolveFinished();
  }

  /**
   * Interrupts this one and no other: one that waits never starts. Resolves when the kernel has been told; whether the
   * code obeys shows in how it ends.
   */
  async interrupt(): Promise<void> {
    if (this.isOver) return;
    if (this.request === undefined) {
      this.finish({ type: 'cancelled' });
      return;
    }
    this.stop ??= 'interrupt';
    await this.sendInterrupt();
  }

  /**
   * The machine is about to stand still, and its time with it. A client of E2B's API is lost with that, and its
   * execution ends here; the cell goes on when the machine does.
   */
  freeze(): void {
    this.frozen = true;
    this.limit.pause();
    if (this.record.isPlain) this.finish({ type: 'paused' });
  }

  thaw(): void {
    this.frozen = false;
    this.limit.resume();
  }

  onKernelEnd(end: KernelEnd, death: KernelDeath): void {
    if (this.killing !== undefined) {
      // Ours, and told when it is done.
    } else if (end === 'closed') this.finish({ type: 'restarted' });
    else if (end === 'lost') this.finish({ type: 'lost' });
    else this.finish({ type: 'died', death, asked: this.leaving });
    this.resolveSettled?.();
  }

  onRecovered(): void {
    // The kernel answers in order. It answered what was asked after the recovery, so our answer is lost.
    if (this.reply !== undefined) return;
    this.finish({ type: 'lost' });
    this.resolveSettled?.();
  }

  /** The kernel; undefined when it or the execution ended first. */
  private async waitForKernel(): Promise<KernelClient | undefined> {
    let client: KernelClient | undefined;
    try {
      client = await Promise.race([this.host.connect(), this.finished]);
    } catch (error) {
      this.finish({ type: 'failed', name: 'ContextError', value: messageOf(error) });
    }
    if (!client) return undefined;
    // Ready at first, it may just be getting its lost channel back.
    const ready = client.whenReady().catch(() => undefined); // told by `isReady`
    await Promise.race([ready, this.finished]);
    return client;
  }

  private async runOn(client: KernelClient): Promise<void> {
    const { language } = this.host;
    const { inherited } = this;
    const { env } = this.options;
    const names = inherited?.env_names ?? Object.keys(env);
    const byCode = names.length > 0 && language?.setEnvCode !== undefined;
    const metadata = names.length > 0 && !byCode ? { cellbox: { env } } : undefined;
    this.client = client;
    client.user = this;
    try {
      const wasSet = byCode && (inherited !== undefined || (await this.prepareEnvironment(client, language)));
      if (!this.isOver || inherited !== undefined) {
        await this.runCode(client, metadata, byCode ? names : []);
      }
      if (wasSet && client.end === undefined) await this.restoreEnvironment(client, language, names);
    } finally {
      if (client.user === this) client.user = undefined;
    }
  }

  private async runCode(
    client: KernelClient,
    metadata: Record<string, object> | undefined,
    envNames: string[],
  ): Promise<void> {
    let settled = false;
    const whenSettled = new Promise<void>((resolve) => {
      this.resolveSettled = () => {
        settled = true;
        resolve();
      };
    });
    try {
      this.request = this.send(client, metadata, envNames);
    } catch (error) {
      this.host.logger.debug({ err: error }, 'an execution could not be sent');
      this.finish({ type: 'lost' });
      return;
    }
    this.trace.begin(client.kernelId);
    this.limitTime();
    try {
      await this.finished;
      if (this.outcome?.type === 'client_gone' && !settled) await this.interruptUntil(whenSettled);
      // Ends with the cell, or with the kernel. What comes next would only wait in the kernel, and its limit would run.
      if (this.outcome?.type === 'paused') await whenSettled;
      await this.killing;
      await this.interrupting;
    } finally {
      this.limit.clear();
      this.request.dispose();
    }
  }

  private send(
    client: KernelClient,
    metadata: Record<string, object> | undefined,
    envNames: string[],
  ): KernelRequest {
    if (this.inherited !== undefined) {
      this.record.send({ type: 'reattached' });
      return client.inherit(this.inherited.message_id, this);
    }
    const { kernelId, sessionId } = client;
    const onSend = (messageId: string): void => {
      this.record.begin({
        kernel_id: kernelId,
        session: sessionId,
        message_id: messageId,
        env_names: envNames,
      });
      const loss = this.host.useKernel();
      if (loss !== undefined) this.record.send(tellStateLost(loss));
    };
    return client.execute(
      this.options.code,
      metadata ? { silent: false, metadata, onSend } : { silent: false, onSend },
      this,
    );
  }

  private limitTime(): void {
    const { timeoutMs, standstillMs = 0 } = this.options;
    if (timeoutMs === 0 || this.isOver) return;
    const { startedAt = Date.now() } = this.record;
    this.limit.start(startedAt + standstillMs + timeoutMs - Date.now(), () => this.onTimeout());
  }

  /** The time limit has passed. What an interrupt does not end within the grace, the kernel's death does. */
  private onTimeout(): void {
    if (this.concluding) return; // the cell is through; what is left has deadlines of its own
    this.stop = 'timeout';
    this.limit.start(this.options.interruptGraceMs, () => void this.kill());
    void this.sendInterrupt();
  }

  /** Never rejects. */
  private sendInterrupt(): Promise<unknown> {
    // A client that takes nothing would keep the kernel from saying that it obeyed.
    this.record.passBy();
    this.resume();
    const sent = this.host
      .interrupt()
      .catch((error: unknown) => this.host.logger.warn({ err: error }, 'an interrupt failed'));
    this.interrupting = Promise.all([this.interrupting, sent]);
    return sent;
  }

  /**
   * The end is told when the kernel is gone: a service that dies in between must not have said so of one that lives.
   * Never rejects.
   */
  private async kill(): Promise<void> {
    this.concluding = true; // whatever the cell still says, its variables are lost
    // Noted before it is done: the kernel's end is heard within the call.
    this.killing = Promise.resolve()
      .then(() => this.host.killKernel())
      .catch((error: unknown) =>
        this.host.logger.error({ err: error }, 'a kernel beyond its time limit could not be killed'),
      );
    await within(this.killing, KILL_DEADLINE_MS);
    this.finish({ type: 'timeout_killed' });
  }

  onMessage(message: KernelMessage.IIOPubMessage): void {
    if (message.header.msg_type === 'status') {
      if ((message.content as { execution_state?: unknown }).execution_state !== 'idle') return;
      this.gotIdle = true;
      this.check();
      return;
    }
    this.onOutput(message);
  }

  onReply(reply: KernelMessage.IExecuteReplyMsg): void {
    this.reply = reply;
    const { cpuMs, memoryPeakBytes } = readUsage(reply);
    this.record.cpuMs = cpuMs;
    this.record.memoryPeakBytes = memoryPeakBytes;
    this.check();
  }

  private onOutput(message: KernelMessage.IIOPubMessage): void {
    if (this.isOver) {
      this.onLate(message);
      return;
    }
    const event = toOutputEvent(message);
    if (event === undefined) return;
    this.grace?.refresh();
    switch (event.type) {
      case 'error':
        this.reportError(event);
        break;
      case 'stdout':
      case 'stderr':
        this.sendText(event);
        break;
      case 'number_of_executions': {
        const ours = this.host.language?.silentRequestsCount ? (this.client?.silentRequests ?? 0) : 0;
        this.record.send({ ...event, execution_count: event.execution_count - ours });
        // An idle kernel ignores interrupts; this is when it begins.
        if (this.stop !== undefined) void this.sendInterrupt();
        break;
      }
      default:
        this.record.send(event);
    }
    if (!this.paused && this.record.isFull) {
      this.paused = true;
      this.client?.pause();
    }
  }

  private sendText(event: Extract<OutputEvent, { type: 'stdout' | 'stderr' }>): void {
    let { text } = event;
    if (this.marker !== undefined && text.includes(this.marker)) {
      text = text.slice(0, text.indexOf(this.marker));
      this.onMarker?.();
      if (text === '') return;
    }
    const { language } = this.host;
    const parts = language === undefined ? [text] : splitStreamText(language, text);
    for (const part of parts) this.record.send({ ...event, text: part });
  }

  /** Kernels tell an error twice, on IOPub and in the reply; the client hears it once. */
  private reportError(error: KernelError): void {
    if (this.sawError) return;
    this.sawError = true;
    const { name, value, traceback } = error;
    if (this.stop === 'timeout') {
      this.traceback = traceback;
      return; // the limit is the error that is told
    }
    if (this.host.language?.diagnosis?.appliesTo(error)) this.unclear = { name, value, traceback };
    else this.record.send({ type: 'error', name, value, traceback });
  }

  /** An execution is done when the kernel has said both, in either order. */
  private check(): void {
    if (this.reply !== undefined && this.gotIdle) {
      this.conclude();
      return;
    }
    if (this.isOver && this.outcome?.type !== 'paused') return;
    clearTimeout(this.grace);
    const grace = setTimeout(
      () => {
        // Output that the client has not taken yet may hold back what we wait for, and so does a machine that stands still.
        if (this.paused || this.frozen) grace.refresh();
        // In a busy process timers come before what has arrived long since: that is read first.
        else setImmediate(() => setImmediate(() => this.conclude()));
      },
      this.gotIdle ? REPLY_GRACE_MS : IDLE_GRACE_MS,
    );
    this.grace = grace;
  }

  private conclude(): void {
    if (this.concluding) return;
    this.concluding = true;
    clearTimeout(this.grace);
    this.limit.clear();
    if (this.reply !== undefined && asksToExit(this.reply) && !this.isOver) {
      this.leaving = true;
      this.grace = setTimeout(() => this.settle(), EXIT_GRACE_MS);
      return;
    }
    if (this.reply?.content.status === 'error') this.reportError(toErrorEvent(this.reply.content));
    const { language } = this.host;
    const { client } = this;
    if (client === undefined || this.isOver || !(language?.drainCode || this.unclear)) {
      this.settle();
      return;
    }
    void this.drain(client, language).finally(() => this.settle()); // `drain` never rejects
  }

  private settle(): void {
    this.finish({ type: 'done' });
    this.resolveSettled?.();
  }

  /** For kernels that say `idle` too early, or fail without a reason: fetches the rest. */
  private async drain(client: KernelClient, language: Language | undefined): Promise<void> {
    const { unclear } = this;
    try {
      if (language?.drainCode !== undefined) {
        await this.fetchLateOutput(client, language.drainCode);
      }
      const { diagnosis } = language ?? {};
      if (unclear !== undefined && diagnosis !== undefined && !this.isOver) {
        const failure = await client.runSilently(diagnosis.code(this.options.code), DRAIN_DEADLINE_MS);
        this.unclear = (failure && diagnosis.read(failure)) ?? unclear;
      }
    } catch (error) {
      this.host.logger.debug({ err: error }, 'the rest of an output could not be fetched');
    }
    if (this.unclear !== undefined) this.record.send({ type: 'error', ...this.unclear });
  }

  /** Has the kernel print a mark. What comes before it is ours, whichever request it names. */
  private async fetchLateOutput(client: KernelClient, drainCode: (marker: string) => string): Promise<void> {
    const marker = `cellbox:${randomUUID()}`;
    const marked = new Promise<void>((resolve) => (this.onMarker = resolve));
    const late = new Promise<void>((resolve) => (this.grace = setTimeout(resolve, DRAIN_DEADLINE_MS)));
    this.marker = marker;
    const request = client.execute(
      drainCode(marker),
      { silent: true },
      {
        onMessage: (message) => {
          if (message.header.msg_type === 'stream') this.onOutput(message);
        },
        onReply: (reply) => {
          if (reply.content.status !== 'ok') this.onMarker?.(); // it won't come
        },
      },
    );
    try {
      await Promise.race([marked, late, this.finished]);
    } finally {
      clearTimeout(this.grace);
      request.dispose();
    }
  }

  private resume(): void {
    if (!this.paused) return;
    this.paused = false;
    this.client?.resume();
  }

  private close(outcome: Outcome): void {
    const { timeoutMs, interruptGraceMs } = this.options;
    const told = tell(outcome, {
      replyStatus: this.reply?.content.status,
      sawError: this.sawError,
      stop: this.stop,
      interruptKeepsState: this.host.language?.interruptKeepsState ?? true,
      traceback: this.traceback,
      timeoutMs,
      graceMs: interruptGraceMs,
    });
    this.record.end(told);
  }

  /** Interrupts, repeatedly if need be, until the kernel is through with the cell or the grace is over. */
  private async interruptUntil(settled: Promise<void>): Promise<void> {
    const interrupt = (): void => void this.sendInterrupt();
    let over: NodeJS.Timeout | undefined;
    const again = setInterval(interrupt, INTERRUPT_AGAIN_MS);
    interrupt();
    try {
      const grace = new Promise<void>((resolve) => (over = setTimeout(resolve, INTERRUPT_GRACE_MS)));
      await Promise.race([settled, grace]);
    } finally {
      clearInterval(again);
      clearTimeout(over);
    }
  }

  /** Whether the kernel was asked to set them, and so must be asked to restore them. */
  private async prepareEnvironment(client: KernelClient, language: Language): Promise<boolean> {
    let asked = false;
    try {
      const code = language.setEnvCode?.(this.options.env) ?? '';
      asked = true;
      const set = client.runSilently(code, ENVIRONMENT_DEADLINE_MS);
      set.catch(() => undefined); // also awaited; this is for when the execution ends first
      await Promise.race([set, this.finished]);
    } catch (error) {
      this.finish({ type: 'failed', name: 'EnvironmentError', value: ServiceError.from(error).message });
    }
    return asked;
  }

  private async restoreEnvironment(client: KernelClient, language: Language, names: string[]): Promise<void> {
    try {
      await client.runSilently(language.restoreEnvCode?.(names) ?? '', ENVIRONMENT_DEADLINE_MS);
    } catch (error) {
      // Ended: nothing to restore. Busy: the request is in the kernel's queue, before whatever comes next.
      this.host.logger.debug({ err: error }, 'variables were not restored in time');
    }
  }
}

function messageOf(error: unknown): string {
  if (error instanceof GatewayRefusal) return `Failed to create context: ${error.text}`;
  return ServiceError.from(error).message;
}

/** Made here so that it holds on to nothing else. */
function lateListener(record: ExecutionRecord): (message: KernelMessage.IIOPubMessage) => void {
  return (message) => {
    if (message.header.msg_type !== 'stream') return;
    const { name, text } = message.content as { name: string; text: string }; // checked when it arrived
    record.late(name === 'stderr' ? 'stderr' : 'stdout', text);
  };
}
