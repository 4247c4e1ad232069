import fs from 'node:fs';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { z } from 'zod';
import { Ending } from '../../protocol/interpreter';

/** From this size on, and then at twice what was left, it is written anew without what is forgotten. */
const REWRITE_BYTES = 4 * 1024 * 1024;
/** A full disk is not asked again before. */
const RETRY_MS = 2_000;

/** A request that was sent to a kernel, so that a later service can wait for its answer. */
export const SentRequest = z.object({
  kernel_id: z.string(),
  /** Of the connection: the gateway keeps what is said to it while nobody is there. */
  session: z.string(),
  message_id: z.string(),
  /** A client of E2B's API reads it: it ends with its connection. */
  is_plain: z.boolean(),
  /** Variables that were set by code and are to be restored. */
  env_names: z.array(z.string()),
});
export type SentRequest = z.infer<typeof SentRequest>;

const TextState = z.object({
  bytes: z.int(),
  omitted_bytes: z.int(),
  /** In a file of its own; null when the events have everything. */
  kept_bytes: z.int().nullable(),
});
export type TextState = z.infer<typeof TextState>;

const NewEntry = z.object({
  type: z.literal('new'),
  id: z.string(),
  context_id: z.string(),
  language: z.string(),
  detached: z.boolean(),
  timeout_ms: z.number(),
  code_hash: z.string(),
  code_first_line: z.string(),
  /** Times are milliseconds since the epoch. */
  created_at: z.number(),
});
const StartedEntry = SentRequest.extend({ type: z.literal('started'), id: z.string(), at: z.number() });
const EndedEntry = z.object({
  type: z.literal('ended'),
  id: z.string(),
  at: z.number(),
  started_at: z.number().nullable(),
  /** Absent when it never began, and in journals of earlier releases. */
  kernel_id: z.string().optional(),
  ending: Ending,
  /** Events that the file has, and its size then; what comes after them is in `tail`, as lines without numbers. */
  file_events: z.int(),
  file_bytes: z.int(),
  tail: z.string(),
  stdout: TextState,
  stderr: TextState,
});
const ForgottenEntry = z.object({ type: z.literal('forgotten'), id: z.string() });
const Entry = z.discriminatedUnion('type', [NewEntry, StartedEntry, EndedEntry, ForgottenEntry]);
export type NewEntry = z.infer<typeof NewEntry>;
export type StartedEntry = z.infer<typeof StartedEntry>;
export type EndedEntry = z.infer<typeof EndedEntry>;
export type Entry = z.infer<typeof Entry>;

/** All that a journal says of one execution. */
export interface JournalledExecution {
  created: NewEntry;
  started?: StartedEntry;
  ended?: EndedEntry;
}

/**
 * What became of one sandbox's executions, one line each time: it is in the file, and so survives the death of this
 * process, before anybody hears of it. Lines are short and go to the page cache, so they are written at once; nothing is
 * synced, as a machine that loses power loses its kernels, too. `close` leaves the file.
 */
export class Journal {
  private fd: number | undefined;
  private bytes = 0;
  private rewriteAt = REWRITE_BYTES;
  /** What was written last may be half a line, and what came then is missing; tried again from then on. */
  private retryAt: number | undefined;
  private closed = false;

  constructor(
    private readonly file: string,
    /** Everything that still counts, for a file without the rest. */
    private readonly entries: () => Iterable<Entry>,
    private readonly onFailure: (error: unknown) => void,
  ) {}

  /** The entry must be among `entries` already, or be about what is no longer. */
  append(entry: Entry): void {
    if (this.closed || (this.retryAt !== undefined && Date.now() < this.retryAt)) return;
    this.attempt(() => {
      if (this.retryAt !== undefined || this.bytes > this.rewriteAt) this.rewrite();
      else this.write(lineOf(entry));
    });
  }

  /** Writes the file anew: what an earlier service left may end in the middle of a line. */
  renew(): void {
    if (!this.closed) this.attempt(() => this.rewrite());
  }

  close(): void {
    this.closed = true;
    this.closeFile();
  }

  private attempt(work: () => void): void {
    try {
      work();
      this.retryAt = undefined;
    } catch (error) {
      if (this.retryAt === undefined) this.onFailure(error); // once per trouble: a full disk fails every line
      this.retryAt = Date.now() + RETRY_MS;
      this.closeFile();
    }
  }

  private write(text: string): void {
    this.fd ??= this.open();
    const bytes = Buffer.from(text);
    for (let written = 0; written < bytes.length;) written += fs.writeSync(this.fd, bytes, written);
    this.bytes += bytes.length;
  }

  private open(): number {
    fs.mkdirSync(path.dirname(this.file), { recursive: true, mode: 0o700 });
    const fd = fs.openSync(this.file, 'a', 0o600);
    this.bytes = fs.fstatSync(fd).size;
    return fd;
  }

  private rewrite(): void {
    const next = `${this.file}.new`;
    this.closeFile();
    const text = [...this.entries()].map(lineOf).join('');
    try {
      fs.mkdirSync(path.dirname(this.file), { recursive: true, mode: 0o700 });
      fs.writeFileSync(next, text, { mode: 0o600 });
      fs.renameSync(next, this.file);
    } catch (error) {
      fs.rmSync(next, { force: true }); // it takes room that there may not be
      throw error;
    }
    this.bytes = Buffer.byteLength(text);
    this.rewriteAt = Math.max(REWRITE_BYTES, 2 * this.bytes);
  }

  private closeFile(): void {
    if (this.fd !== undefined) fs.closeSync(this.fd);
    this.fd = undefined;
  }
}

/** What a service that has died wrote, oldest first. A half-written line, as at its death, is left out. */
export async function readJournal(file: string): Promise<JournalledExecution[]> {
  const found = new Map<string, JournalledExecution>();
  if (!fs.existsSync(file)) return [];
  for await (const line of createInterface({ input: fs.createReadStream(file), crlfDelay: Infinity })) {
    const entry = parse(line);
    if (entry === undefined) continue;
    if (entry.type === 'new') {
      found.set(entry.id, { created: entry });
    } else if (entry.type === 'forgotten') {
      found.delete(entry.id);
    } else {
      const execution = found.get(entry.id);
      if (execution !== undefined && entry.type === 'started') execution.started = entry;
      else if (execution !== undefined && entry.type === 'ended') execution.ended = entry;
    }
  }
  return [...found.values()];
}

function parse(line: string): Entry | undefined {
  try {
    return Entry.safeParse(JSON.parse(line)).data;
  } catch {
    return undefined; // half of a line
  }
}

function lineOf(entry: Entry): string {
  return `${JSON.stringify(entry)}\n`;
}
