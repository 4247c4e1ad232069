import { randomUUID } from 'node:crypto';
import type { KernelMessage } from '@jupyterlab/services/lib/kernel';
import type { OutputEvent } from '../../protocol/interpreter';
import type { Logger } from '../log';
import { ServiceError } from '../errors';
import { GatewayRefusal } from './gateway';
import type { EventStream } from './event-stream';
import type { KernelClient, KernelEnd, KernelRequest, KernelUser } from './kernel-client';
import { splitStreamText } from './languages';
import type { KernelError, Language } from './languages';
import { toErrorEvent, toOutputEvent } from './outputs';

/** Between `idle` and a reply that is still on its way (another channel), and the other way round. */
const REPLY_GRACE_MS = 1_000;
const IDLE_GRACE_MS = 2_000;
/** How long the next execution is held back for one that was interrupted and does not end; then it waits in the kernel. */
const INTERRUPT_GRACE_MS = 10_000;
const INTERRUPT_AGAIN_MS = 2_500;
/** For the kernel's own work of setting and restoring variables. */
const ENVIRONMENT_DEADLINE_MS = 30_000;
/** For output that is still on its way when the kernel says it is idle, and for asking it what an error meant. */
const DRAIN_DEADLINE_MS = 5_000;
/** How often an execution that was not yet sent starts over because the kernel ended under it. */
const MAX_ATTEMPTS = 3;

/** Every way in which an execution ends. */
export type Outcome =
  /** The kernel is through with it, with whatever result. */
  | { type: 'done' }
  /** The kernel process died while it ran. */
  | { type: 'restarted' }
  /** The channel was lost for good, or the context restarted or removed through the API. */
  | { type: 'lost' }
  /** It never got as far as the kernel. */
  | { type: 'failed'; name: string; value: string }
  | { type: 'client_gone' }
  | { type: 'sandbox_ended' };

/** What an execution needs of its context. */
export interface ExecutionHost {
  readonly language: Language | undefined;
  /** The kernel when it can be used at once. */
  readonly readyKernel: KernelClient | undefined;
  /** The kernel, started or connected again where needed. */
  connect(): Promise<KernelClient>;
  interrupt(): Promise<void>;
  readonly logger: Logger;
}

/**
 * One run of some code in a context, from request to end, and the one place where all ways to end race: the first
 * outcome given to `finish` wins, the stream is closed accordingly, and later ones are ignored.
 *
 * `run` resolves when the kernel is free for the next one: after the outcome, and after interrupt and clean-up. It
 * never rejects.
 */
export class Execution implements KernelUser {
  private outcome: Outcome | undefined;
  private readonly finished: Promise<undefined>;
  private resolveFinished!: () => void;
  private resolveSettled: (() => void) | undefined;
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

  constructor(
    private readonly host: ExecutionHost,
    private readonly code: string,
    private readonly env: Record<string, string>,
    private readonly stream: EventStream,
  ) {
    this.finished = new Promise((resolve) => (this.resolveFinished = () => resolve(undefined)));
    stream.onGone = () => this.finish({ type: 'client_gone' });
    stream.onDrain = () => this.resume();
  }

  get isOver(): boolean {
    return this.outcome !== undefined;
  }

  async run(): Promise<void> {
    try {
      for (let attempt = 1; !this.isOver; attempt++) {
        const client = this.host.readyKernel ?? (await this.waitForKernel());
        if (client?.isReady) {
          await this.runOn(client);
          return;
        }
        // It ended before anything was sent: try the next one.
        if (attempt === MAX_ATTEMPTS) this.finish({ type: 'restarted' });
      }
    } catch (error) {
      this.host.logger.error({ err: error }, 'an execution failed inside the service');
      this.finish({ type: 'failed', name: 'InternalError', value: ServiceError.from(error).message });
    }
  }

  finish(outcome: Outcome): void {
    if (this.outcome !== undefined) return;
    this.outcome = outcome;
    clearTimeout(this.grace);
    this.close(outcome);
    this.resume(); // nobody is waited for any more, and the kernel's end must be heard
    this.resolveFinished();
  }

  onKernelEnd(end: KernelEnd): void {
    this.finish({ type: end === 'restarting' || end === 'dead' ? 'restarted' : 'lost' });
    this.resolveSettled?.();
  }

  onRecovered(): void {
    // The kernel answers in order. It answered what was asked after the recovery, so our answer is lost.
    if (this.reply === undefined) this.finish({ type: 'lost' });
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
    const names = Object.keys(this.env);
    const byCode = names.length > 0 && language?.setEnvCode !== undefined;
    const metadata = names.length > 0 && !byCode ? { cellbox: { env: this.env } } : undefined;
    this.client = client;
    client.user = this;
    try {
      const wasSet = byCode && (await this.prepareEnvironment(client, language));
      if (!this.isOver) await this.runCode(client, metadata);
      if (wasSet && client.end === undefined) await this.restoreEnvironment(client, language, names);
    } finally {
      if (client.user === this) client.user = undefined;
    }
  }

  private async runCode(client: KernelClient, metadata: Record<string, object> | undefined): Promise<void> {
    let settled = false;
    const whenSettled = new Promise<void>((resolve) => {
      this.resolveSettled = () => {
        settled = true;
        resolve();
      };
    });
    let request: KernelRequest;
    try {
      request = client.execute(this.code, metadata ? { silent: false, metadata } : { silent: false }, this);
    } catch (error) {
      this.host.logger.debug({ err: error }, 'an execution could not be sent');
      this.finish({ type: 'lost' });
      return;
    }
    try {
      await this.finished;
      if (this.outcome?.type === 'client_gone' && !settled) await this.interrupt(whenSettled);
    } finally {
      request.dispose();
    }
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
    this.check();
  }

  private onOutput(message: KernelMessage.IIOPubMessage): void {
    if (this.isOver) return;
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
        this.stream.send({ ...event, execution_count: event.execution_count - ours });
        break;
      }
      default:
        this.stream.send(event);
    }
    if (!this.paused && this.stream.isFull) {
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
    for (const part of parts) this.stream.send({ ...event, text: part });
  }

  /** Kernels tell an error twice, on IOPub and in the reply; the client hears it once. */
  private reportError(error: KernelError): void {
    if (this.sawError) return;
    this.sawError = true;
    const { name, value, traceback } = error;
    if (this.host.language?.diagnosis?.appliesTo(error)) this.unclear = { name, value, traceback };
    else this.stream.send({ type: 'error', name, value, traceback });
  }

  /** An execution is done when the kernel has said both, in either order. */
  private check(): void {
    if (this.reply !== undefined && this.gotIdle) {
      this.conclude();
      return;
    }
    if (this.isOver) return;
    clearTimeout(this.grace);
    const grace = setTimeout(
      () => {
        // Output that the client has not taken yet may hold back what we wait for.
        if (this.paused) grace.refresh();
        else this.conclude();
      },
      this.gotIdle ? REPLY_GRACE_MS : IDLE_GRACE_MS,
    );
    this.grace = grace;
  }

  private conclude(): void {
    if (this.concluding) return;
    this.concluding = true;
    clearTimeout(this.grace);
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
        const failure = await client.runSilently(diagnosis.code(this.code), DRAIN_DEADLINE_MS);
        this.unclear = (failure && diagnosis.read(failure)) ?? unclear;
      }
    } catch (error) {
      this.host.logger.debug({ err: error }, 'the rest of an output could not be fetched');
    }
    if (this.unclear !== undefined) this.stream.send({ type: 'error', ...this.unclear });
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

  /** Tells the client how it ended. Names and texts are E2B's where it has some. */
  private close(outcome: Outcome): void {
    const error = (name: string, value: string): void =>
      this.stream.send({ type: 'error', name, value, traceback: '' });
    switch (outcome.type) {
      case 'done': {
        const content = this.reply?.content;
        // jupyterlab's types know `aborted` only; bash_kernel says `abort`.
        const status: string | undefined = content?.status;
        if (status === 'abort' || status === 'aborted') error('ExecutionAborted', 'Execution was aborted');
        break;
      }
      case 'restarted':
        error('ContextRestarting', 'Context was restarted');
        break;
      case 'lost':
        error('WebSocketError', 'The connections was lost, rerun the code to get the results');
        error(
          'UnexpectedEndOfExecution',
          'Connection to the execution was closed before the execution was finished',
        );
        break;
      case 'failed':
        error(outcome.name, outcome.value);
        break;
      case 'client_gone':
        return;
      case 'sandbox_ended':
        this.stream.reset();
        return;
    }
    this.stream.end();
  }

  /** Interrupts, repeatedly if need be, until the kernel is through with the cell or the grace is over. */
  private async interrupt(settled: Promise<void>): Promise<void> {
    const interrupt = (): void => {
      this.host
        .interrupt()
        .catch((error: unknown) => this.host.logger.warn({ err: error }, 'an interrupt failed'));
    };
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
      const code = language.setEnvCode?.(this.env) ?? '';
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
