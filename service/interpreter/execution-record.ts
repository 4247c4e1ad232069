import { createHash, randomUUID } from 'node:crypto';
import path from 'node:path';
import { Readable } from 'node:stream';
import { decodeLines, encodeLine } from '../../protocol/ndjson';
import type { Ending, OutputEvent, TextStream } from '../../protocol/interpreter';
import { ServiceError } from '../errors';
import type { Logger } from '../log';
import type { ErrorEvent, Told } from './endings';
import { accountingOf } from './endings';
import { EventLog } from './event-log';
import type { LogState } from './event-log';
import type { EndedEntry, Entry, JournalledExecution, SentRequest, TextState } from './journal';
import type { DiskBudget } from './spool-file';
import { TextOutput } from './text-output';

/** Text of background threads that is kept of one execution after its end. */
const MAX_LATE_BYTES = 8 * 1024 * 1024;
const FIRST_LINE_LENGTH = 200;

/** Who is sent the events as they come, beside the record. */
export interface LiveView {
  readonly isFull: boolean;
  event(event: OutputEvent, line: string): void;
  end(errors: readonly ErrorEvent[], ending: Ending): void;
  /** The sandbox has ended. */
  reset(): void;
}

export interface RecordOptions {
  sandboxId: string;
  contextId: string;
  language: string;
  detached: boolean;
  timeoutMs: number;
  /** Where its files go. */
  directory: string;
  /** Bytes of text per stream that go into the events. */
  inlineBytes: number;
  budget: DiskBudget;
  logger: Logger;
  /** Writes to the journal, before anybody hears of it. */
  onEntry: (entry: Entry) => void;
  onEnd: (record: ExecutionRecord) => void;
}

export interface TextLeftBehind {
  state: TextState;
  /** How much is in a file of its own. */
  fileBytes: number;
  /** All of it, when it has no file and the execution has not ended. */
  text: string;
}

/** What an earlier service left of one execution: the journal's words, and what its files have. */
export interface LeftBehind extends JournalledExecution {
  log: LogState;
  texts: Record<TextStream, TextLeftBehind>;
  /** Of what it put out so far, when it has not ended. */
  outputBytes: number;
  results: number;
}

/** Text in UTF-8 that can be read in parts. */
export interface RecordedText {
  bytes: number;
  /** Of the same stream, and not kept for lack of room. */
  lostBytes: number;
  /** From `start` up to, not including, `end`. */
  read(start: number, end: number): Readable;
}

/**
 * What one execution has put out and how it ended, for anybody who asks: each event is encoded once, kept, and handed to
 * the view that is attached, if any. It outlives the execution; the owner calls `remove`.
 */
export class ExecutionRecord {
  readonly id: string;
  readonly codeHash: string;
  readonly codeFirstLine: string;
  readonly createdAt: number;
  /** When the kernel got it. */
  startedAt: number | undefined;
  /** Where it began. */
  kernelId: string | undefined;
  endedAt: number | undefined;
  ending: Ending | undefined;
  /** Somebody who held the kernel back because of `isFull` may let it go on. */
  onDrain: (() => void) | undefined;
  /** Interrupts the execution, or lets it never start; set by it. */
  onInterrupt: (() => Promise<void>) | undefined;
  /** Of the kernel's reply. */
  cpuMs: number | undefined;
  memoryPeakBytes: number | undefined;
  readonly log: EventLog;
  private readonly texts: Record<TextStream, TextOutput>;
  private view: LiveView | undefined;
  private outputBytes = 0;
  private results = 0;
  private lateBytes = 0;
  private passing = false;
  private passedBytes = 0;
  private sent: SentRequest | undefined;

  /** `origin`: the code of a new one, or what an earlier service left. */
  constructor(
    readonly options: RecordOptions,
    origin: string | LeftBehind,
  ) {
    const { directory, budget, inlineBytes } = options;
    const identity = typeof origin === 'string' ? identityOf(origin) : origin.created;
    this.id = identity.id;
    this.codeHash = identity.code_hash;
    this.codeFirstLine = identity.code_first_line;
    this.createdAt = identity.created_at;
    const onFailure = (error: unknown): void =>
      options.logger.warn({ err: error, executionId: this.id }, 'output could not be kept on the disk');
    const onDrain = (): void => this.drained();
    const file = (name: string): string => path.join(directory, `${this.id}.${name}`);
    this.log = new EventLog(file('events'), budget, onFailure);
    this.log.onDrain = onDrain;
    const text = (name: TextStream): TextOutput =>
      new TextOutput(file(name), inlineBytes, budget, onFailure, onDrain);
    this.texts = { stdout: text('stdout'), stderr: text('stderr') };
    if (typeof origin !== 'string') this.resume(origin);
  }

  get state(): 'queued' | 'running' | 'ended' {
    if (this.ending !== undefined) return 'ended';
    return this.startedAt === undefined ? 'queued' : 'running';
  }

  /** Whether the kernel should be read no further for a while: `onDrain` says when it may go on. */
  get isFull(): boolean {
    return (
      this.view?.isFull === true || this.log.isFull || this.texts.stdout.isFull || this.texts.stderr.isFull
    );
  }

  /** From the first event on; at most one. */
  attach(view: LiveView): void {
    this.view = view;
  }

  /** Somebody of E2B's API waits for it, on a connection that it lives and dies with. */
  get isPlain(): boolean {
    return this.view !== undefined;
  }

  drained(): void {
    if (!this.isFull) this.onDrain?.();
  }

  /** @throws ServiceError `failed_precondition` when it has ended. */
  async cancel(): Promise<void> {
    if (this.ending !== undefined) {
      throw new ServiceError(
        'failed_precondition',
        `The execution has ended already: ${this.ending.termination}`,
      );
    }
    await this.onInterrupt?.();
  }

  /** The kernel is about to get it. */
  begin(sent: Omit<SentRequest, 'is_plain'>): void {
    this.startedAt = Date.now();
    this.sent = { ...sent, is_plain: this.isPlain };
    this.kernelId = sent.kernel_id;
    this.options.onEntry(this.startedEntry(this.sent));
  }

  /** What was sent to the kernel and has no answer yet; undefined when it has ended or never began. */
  get unanswered(): SentRequest | undefined {
    return this.ending === undefined ? this.sent : undefined;
  }

  /** For the journal: everything that a later service would need to know. */
  get entries(): Entry[] {
    const entries: Entry[] = [this.newEntry()];
    if (this.ending !== undefined) entries.push(this.endedEntry(this.ending));
    if (this.ending === undefined && this.sent !== undefined) entries.push(this.startedEntry(this.sent));
    return entries;
  }

  /** Resolves when what there is is on the disk, or never will be. */
  async settled(): Promise<void> {
    const { stdout, stderr } = this.texts;
    await Promise.all([this.log.settled(), stdout.settled(), stderr.settled()]);
  }

  send(event: OutputEvent): void {
    if (this.ending !== undefined) return;
    switch (event.type) {
      case 'stdout':
      case 'stderr':
        this.sendText(event.type, event);
        return;
      case 'result':
      case 'display':
        this.results++;
        this.outputBytes += this.publish(event, false);
        return;
      case 'update_display':
        this.outputBytes += this.publish(event, false);
        return;
      default:
        this.publish(event, event.type === 'error' || event.type === 'state_lost');
    }
  }

  /**
   * The execution is to end. A client that takes nothing must not keep the kernel from saying that it has: from now on
   * what would have to wait goes past the client, and is told as left out.
   */
  passBy(): void {
    this.passing = true;
    if (this.view?.isFull !== true) return;
    this.texts.stdout.closeInline();
    this.texts.stderr.closeInline();
  }

  /** The execution has ended, once. */
  end({ errors, plainErrors, ending: fields }: Told): void {
    if (this.ending !== undefined) return;
    for (const stream of ['stdout', 'stderr'] as const) {
      if (this.texts[stream].omittedBytes > 0) this.tellTruncation(stream);
    }
    if (this.log.omittedBytes > 0) {
      const omitted = this.log.omittedBytes;
      this.log.append(encodeLine({ type: 'truncated', stream: 'events', omitted_bytes: omitted }), true);
    }
    if (this.passedBytes > 0) {
      const event: OutputEvent = { type: 'truncated', stream: 'events', omitted_bytes: this.passedBytes };
      this.view?.event(event, encodeLine(event));
    }
    for (const error of errors) this.log.append(encodeLine(error), true);
    this.endedAt = Date.now();
    const { createdAt, startedAt, endedAt, cpuMs, outputBytes, results } = this;
    const memoryPeakBytes = this.memoryPeakBytes ?? fields.memory_peak_bytes;
    const { termination, ...rest } = fields;
    this.ending = {
      termination,
      accounting: accountingOf({
        createdAt,
        startedAt,
        endedAt,
        cpuMs,
        memoryPeakBytes,
        outputBytes,
        results,
      }),
      ...rest,
    };
    const { view } = this;
    this.view = undefined;
    this.log.append(encodeLine({ type: 'end_of_execution', ...this.ending } satisfies OutputEvent), true);
    this.options.onEntry(this.endedEntry(this.ending));
    this.log.end();
    if (termination === 'sandbox_ended') view?.reset();
    else view?.end(plainErrors, this.ending);
    for (const text of Object.values(this.texts)) text.end();
    // The record stays for a while; the execution with its code need not.
    this.onInterrupt = undefined;
    this.onDrain = undefined;
    this.options.onEnd(this);
  }

  /** Text of a background thread that comes when the execution has ended. */
  late(stream: TextStream, text: string): void {
    if (this.lateBytes > MAX_LATE_BYTES) return;
    this.lateBytes += text.length;
    if (this.lateBytes > MAX_LATE_BYTES) {
      this.log.append(encodeLine({ type: 'truncated', stream, omitted_bytes: text.length }), true);
      return;
    }
    this.log.append(encodeLine({ type: 'late_output', stream, text, after_execution: this.id }), false);
  }

  /** The text of a stream so far, or as much of it as could be kept. */
  async output(stream: TextStream): Promise<RecordedText> {
    const text = this.texts[stream];
    const { keptBytes, bytes } = text;
    if (keptBytes === undefined) {
      const whole = await this.textOfEvents(stream);
      return {
        bytes: whole.length,
        lostBytes: 0,
        read: (start, end) => Readable.from([whole.subarray(start, end)]),
      };
    }
    await text.settled();
    const kept = text.keptBytes ?? 0; // less than it was when the disk failed
    return { bytes: kept, lostBytes: bytes - kept, read: (start, end) => text.read(start, end) };
  }

  /** For text that is short. */
  private async textOfEvents(stream: TextStream): Promise<Buffer> {
    let text = '';
    const pieces = this.log.read(0, new AbortController().signal, this.log.count);
    for await (const event of decodeLines(pieces) as AsyncIterable<OutputEvent>) {
      if (event.type === stream) text += event.text;
    }
    return Buffer.from(text);
  }

  async remove(): Promise<void> {
    await Promise.all([this.log.remove(), this.texts.stdout.remove(), this.texts.stderr.remove()]);
  }

  /** For the journal, when it begins to wait. */
  newEntry(): Entry {
    const { contextId, language, detached, timeoutMs } = this.options;
    return {
      type: 'new',
      id: this.id,
      context_id: contextId,
      language,
      detached,
      timeout_ms: timeoutMs,
      code_hash: this.codeHash,
      code_first_line: this.codeFirstLine,
      created_at: this.createdAt,
    };
  }

  private startedEntry(sent: SentRequest): Entry {
    return { type: 'started', id: this.id, at: this.startedAt ?? this.createdAt, ...sent };
  }

  private endedEntry(ending: Ending): EndedEntry {
    const { fileEvents, fileBytes, tail } = this.log.state;
    return {
      type: 'ended',
      id: this.id,
      at: this.endedAt ?? this.createdAt,
      started_at: this.startedAt ?? null,
      ...(this.kernelId !== undefined && { kernel_id: this.kernelId }),
      ending,
      file_events: fileEvents,
      file_bytes: fileBytes,
      tail,
      stdout: this.texts.stdout.state,
      stderr: this.texts.stderr.state,
    };
  }

  private resume(left: LeftBehind): void {
    const { started, ended } = left;
    this.log.resume(left.log);
    for (const stream of ['stdout', 'stderr'] as const) {
      const { state, fileBytes, text } = left.texts[stream];
      this.texts[stream].resume(state, fileBytes, text);
    }
    this.outputBytes = left.outputBytes;
    this.results = left.results;
    this.startedAt = started?.at;
    this.sent = started;
    this.kernelId = started?.kernel_id;
    if (ended === undefined) return;
    this.startedAt = ended.started_at ?? undefined;
    this.kernelId = ended.kernel_id;
    this.endedAt = ended.at;
    this.ending = ended.ending;
    this.log.end();
    for (const text of Object.values(this.texts)) text.end();
  }

  private publish(event: OutputEvent, essential: boolean): number {
    const line = encodeLine(event);
    this.log.append(line, essential);
    if (this.passing && this.view?.isFull === true && !essential) this.passedBytes += line.length;
    else this.view?.event(event, line);
    return line.length;
  }

  private sendText(stream: TextStream, event: Extract<OutputEvent, { type: TextStream }>): void {
    if (this.passing) this.passBy();
    const output = this.texts[stream];
    const before = output.bytes;
    const complete = output.omittedBytes === 0;
    const text = output.take(event.text);
    this.outputBytes += output.bytes - before;
    if (text !== '') this.publish(text === event.text ? event : { ...event, text }, false);
    if (complete && output.omittedBytes > 0) this.tellTruncation(stream);
  }

  private tellTruncation(stream: TextStream): void {
    const { omittedBytes, keptBytes } = this.texts[stream];
    const { sandboxId } = this.options;
    const artifact = `/v1/sandboxes/${sandboxId}/executions/${this.id}/output/${stream}`;
    this.publish(
      {
        type: 'truncated',
        stream,
        omitted_bytes: omittedBytes,
        artifact,
        ...(keptBytes !== undefined && { artifact_bytes: keptBytes }),
      },
      true,
    );
  }
}

function identityOf(
  code: string,
): Record<'id' | 'code_hash' | 'code_first_line', string> & { created_at: number } {
  return {
    id: randomUUID(),
    code_hash: createHash('sha256').update(code).digest('hex'),
    code_first_line: (/^\s*([^\n]*)/.exec(code)?.[1] ?? '').slice(0, FIRST_LINE_LENGTH),
    created_at: Date.now(),
  };
}
