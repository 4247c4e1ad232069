import { readdir, rm } from 'node:fs/promises';
import path from 'node:path';
import { ServiceError } from '../errors';
import type { Logger } from '../log';
import { tellUnstarted } from './endings';
import { ExecutionRecord } from './execution-record';
import type { LeftBehind, RecordOptions } from './execution-record';
import type { ExecutionTotals } from './execution-totals';
import { Journal } from './journal';
import { JOURNAL_FILE, readLeftBehind } from './left-behind';
import type { DiskBudget } from './spool-file';

/** Executions of a sandbox that may wait and run, whose code is in memory. */
const MAX_UNENDED = 1000;
/** Ended ones that are kept, and the memory that their events may take. */
const MAX_ENDED = 1000;
const MAX_MEMORY_BYTES = 4 * 1024 * 1024;

export interface RecordsOptions {
  sandboxId: string;
  /** Of this sandbox's own; made when it is needed. */
  directory: string;
  /** How long an execution is kept after its end. */
  keepMs: number;
  /** For all files of this sandbox's executions. */
  diskBytes: number;
  inlineBytes: number;
  totals: ExecutionTotals;
  logger: Logger;
}

type NewRecord = Pick<RecordOptions, 'contextId' | 'language' | 'detached' | 'timeoutMs'>;

/** That an execution began in a context. */
export interface LastUse {
  /** Milliseconds since the epoch. */
  at: number;
  /** Undefined when an earlier release has written it down. */
  kernelId: string | undefined;
}

/**
 * The executions of one sandbox: those that wait and run, and those that ended a while ago. When room runs out, the
 * oldest that ended go first. What becomes of them is in a journal, from which `restore` has them again after the death
 * of the service. `close` forgets all of them and removes their files, `leave` keeps those for the next service; both
 * are idempotent.
 */
export class ExecutionRecords {
  /** Oldest first. */
  private readonly records = new Map<string, ExecutionRecord>();
  private readonly ended: ExecutionRecord[] = [];
  private usedBytes = 0;
  private memoryBytes = 0;
  /** How many of `ended`, from the oldest on, have nothing in memory. */
  private spilled = 0;
  private expiry: NodeJS.Timeout | undefined;
  private readonly budget: DiskBudget;
  private readonly journal: Journal;
  private closed = false;

  constructor(private readonly options: RecordsOptions) {
    this.budget = {
      take: (bytes) => this.takeRoom(bytes),
      give: (bytes) => void (this.usedBytes -= bytes),
    };
    const { logger } = options;
    this.journal = new Journal(
      path.join(options.directory, JOURNAL_FILE),
      () =>
        this.list()
          .reverse()
          .flatMap((record) => record.entries),
      (error) => logger.error({ err: error }, 'what becomes of executions can not be written down'),
    );
  }

  /** @throws ServiceError `resource_exhausted` when too many wait and run already. */
  add(fields: NewRecord, code: string): ExecutionRecord {
    if (this.records.size - this.ended.length >= MAX_UNENDED) {
      throw new ServiceError(
        'resource_exhausted',
        `${MAX_UNENDED} executions of this sandbox wait or run already`,
        {
          remedy: 'Wait for some to end, or cancel them.',
        },
      );
    }
    const record = this.make(fields, code);
    this.journal.append(record.newEntry());
    return record;
  }

  /** Takes over what an earlier service left in the directory, once, before anything is added. */
  async restore(): Promise<void> {
    const { directory, keepMs, logger } = this.options;
    const left = await readLeftBehind(directory, (error, executionId) =>
      logger.warn({ err: error, executionId }, 'an execution of an earlier service could not be read'),
    );
    const oldest = Date.now() - keepMs;
    const kept = left.filter(({ ended }) => ended === undefined || ended.at > oldest);
    const records = kept.map((each) => {
      const { context_id, language, detached, timeout_ms } = each.created;
      return this.make({ contextId: context_id, language, detached, timeoutMs: timeout_ms }, each);
    });
    const ended = records.filter(({ endedAt }) => endedAt !== undefined);
    // In the order of their ends, as they are forgotten in that order.
    for (const record of ended.sort((a, b) => (a.endedAt ?? 0) - (b.endedAt ?? 0))) this.keepEnded(record);
    for (const record of records) if (record.state === 'queued') record.end(tellUnstarted());
    this.journal.renew();
    await this.removeStrays();
  }

  /** Those that an earlier service had sent to a kernel, and whose ends nobody knows. */
  get unanswered(): ExecutionRecord[] {
    return [...this.records.values()].filter((record) => record.unanswered !== undefined);
  }

  /** The last execution that began in a context, unless its variables were told as lost. */
  lastUse(contextId: string): LastUse | undefined {
    let last: ExecutionRecord | undefined;
    for (const record of this.records.values()) {
      if (record.options.contextId !== contextId || record.startedAt === undefined) continue;
      if (record.startedAt >= (last?.startedAt ?? 0)) last = record;
    }
    if (last?.startedAt === undefined || last.ending?.state_survived === false) return undefined;
    return { at: last.startedAt, kernelId: last.kernelId };
  }

  private make(fields: NewRecord, origin: string | LeftBehind): ExecutionRecord {
    const { sandboxId, directory, inlineBytes, logger } = this.options;
    const record = new ExecutionRecord(
      {
        ...fields,
        sandboxId,
        directory,
        inlineBytes,
        logger,
        budget: this.budget,
        onEntry: (entry) => this.journal.append(entry),
        onEnd: (ended) => this.onEnd(ended),
      },
      origin,
    );
    this.records.set(record.id, record);
    return record;
  }

  /** @throws ServiceError `not_found`. */
  get(id: string): ExecutionRecord {
    const record = this.records.get(id);
    if (record === undefined) {
      throw new ServiceError('not_found', `Execution ${JSON.stringify(id)} not found`, {
        remedy: 'Ended executions are kept for CELLBOX_EXECUTION_KEEP_MS, at most until their sandbox ends.',
      });
    }
    return record;
  }

  /** Newest first. */
  list(): ExecutionRecord[] {
    return [...this.records.values()].reverse();
  }

  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    clearTimeout(this.expiry);
    const all = [...this.records.values()];
    this.records.clear();
    this.ended.length = 0;
    this.journal.close();
    await Promise.allSettled(all.map((record) => record.remove()));
    await rm(this.options.directory, { recursive: true, force: true });
  }

  /** Forgets all of them as they are, for the next service: what runs is not told as ended. */
  async leave(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    clearTimeout(this.expiry);
    this.journal.close();
    await Promise.allSettled([...this.records.values()].map((record) => record.settled()));
  }

  private onEnd(record: ExecutionRecord): void {
    if (record.ending !== undefined) {
      this.options.totals.add(record.ending.termination, record.ending.accounting);
    }
    if (!this.closed) this.keepEnded(record);
  }

  private keepEnded(record: ExecutionRecord): void {
    this.ended.push(record);
    this.memoryBytes += record.log.memoryBytes;
    while (this.memoryBytes > MAX_MEMORY_BYTES && this.spilled < this.ended.length) this.spillOldest();
    if (this.ended.length > MAX_ENDED) this.forgetOldest();
    if (this.expiry === undefined) this.expireLater();
  }

  /** Makes memory free: by the disk, or where that takes nothing by forgetting. */
  private spillOldest(): void {
    const log = this.ended[this.spilled]?.log;
    const before = log?.memoryBytes ?? 0;
    log?.spill();
    if (this.ended[this.spilled]?.log !== log) return; // it was forgotten to make room
    if (log?.memoryBytes === 0) {
      this.spilled++;
      this.memoryBytes -= before;
    } else {
      this.forgetOldest();
    }
  }

  private expireLater(): void {
    const [oldest] = this.ended;
    this.expiry = undefined;
    if (oldest?.endedAt === undefined || this.closed) return;
    const wait = Math.max(0, oldest.endedAt + this.options.keepMs - Date.now());
    this.expiry = setTimeout(
      () => {
        this.forgetOldest();
        this.expireLater();
      },
      Math.min(wait, 2 ** 31 - 1),
    );
    this.expiry.unref(); // what is left at the end is removed by `close`
  }

  /** Files of executions that nobody knows: the service died between the journal and them. */
  private async removeStrays(): Promise<void> {
    const { directory } = this.options;
    for (const name of await readdir(directory).catch(() => [])) {
      const [id = ''] = name.split('.');
      if (name !== JOURNAL_FILE && !this.records.has(id))
        await rm(path.join(directory, name), { force: true });
    }
  }

  private forgetOldest(): boolean {
    const oldest = this.ended.shift();
    if (oldest === undefined) return false;
    if (this.spilled > 0) this.spilled--;
    else this.memoryBytes -= oldest.log.memoryBytes;
    this.records.delete(oldest.id);
    this.journal.append({ type: 'forgotten', id: oldest.id });
    oldest
      .remove()
      .catch((error: unknown) =>
        this.options.logger.warn({ err: error }, 'files of an execution could not be removed'),
      );
    return true;
  }

  private takeRoom(bytes: number): boolean {
    while (this.usedBytes + bytes > this.options.diskBytes) {
      if (!this.forgetOldest()) return false;
    }
    this.usedBytes += bytes;
    return true;
  }
}

/** Where the files of a sandbox's executions are. */
export function recordsDirectory(root: string, sandboxId: string): string {
  // Ids of machines are ours, but a path is no place for trust.
  return path.join(root, sandboxId.replace(/[^\w-]/g, '_'));
}
