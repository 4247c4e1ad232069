import { rm } from 'node:fs/promises';
import path from 'node:path';
import { ServiceError } from '../errors';
import type { Logger } from '../log';
import { ExecutionRecord } from './execution-record';
import type { RecordOptions } from './execution-record';
import type { ExecutionTotals } from './execution-totals';
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

/**
 * The executions of one sandbox: those that wait and run, and those that ended a while ago. When room runs out, the
 * oldest that ended go first. `close` forgets all of them and removes their files; it is idempotent.
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
  private closed = false;

  constructor(private readonly options: RecordsOptions) {
    this.budget = {
      take: (bytes) => this.takeRoom(bytes),
      give: (bytes) => void (this.usedBytes -= bytes),
    };
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
    const { sandboxId, directory, inlineBytes, logger } = this.options;
    const record = new ExecutionRecord(
      {
        ...fields,
        sandboxId,
        directory,
        inlineBytes,
        logger,
        budget: this.budget,
        onEnd: (ended) => this.onEnd(ended),
      },
      code,
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
    await Promise.allSettled(all.map((record) => record.remove()));
    await rm(this.options.directory, { recursive: true, force: true });
  }

  private onEnd(record: ExecutionRecord): void {
    if (record.ending !== undefined) {
      this.options.totals.add(record.ending.termination, record.ending.accounting);
    }
    if (this.closed) return;
    this.ended.push(record);
    this.memoryBytes += record.log.memoryBytes;
    while (this.memoryBytes > MAX_MEMORY_BYTES && this.spilled < this.ended.length) {
      const log = this.ended[this.spilled++]?.log;
      this.memoryBytes -= log?.memoryBytes ?? 0;
      log?.spill();
    }
    if (this.ended.length > MAX_ENDED) this.forgetOldest();
    if (this.expiry === undefined) this.expireLater();
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

  private forgetOldest(): boolean {
    const oldest = this.ended.shift();
    if (oldest === undefined) return false;
    if (this.spilled > 0) this.spilled--;
    else this.memoryBytes -= oldest.log.memoryBytes;
    this.records.delete(oldest.id);
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
