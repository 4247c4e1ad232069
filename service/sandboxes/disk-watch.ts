import type { LogLevel } from '../../protocol/control-plane';
import { ServiceError } from '../errors';
import type { Logger } from '../log';
import { outsideScope } from '../observability/scope';
import type { Runtime } from '../runtime/runtime';
import type { Sandbox } from './sandbox';

export interface DiskWatchOptions {
  runtime: Pick<Runtime, 'diskUsage'>;
  logger: Logger;
  /** For the log of the sandbox. */
  note: (id: string, level: LogLevel, message: string, fields: Record<string, string>) => void;
  /** Ends the sandbox; `detail` says why. */
  end: (id: string, detail: string) => Promise<void>;
  /** Shortest and longest time between two looks at one sandbox. */
  everyMs?: { min: number; max: number };
}

interface Watched {
  readonly limitBytes: number;
  usedBytes: number;
  timer: NodeJS.Timeout | undefined;
}

/** So many times its limit a sandbox may use before it is ended: by then it fills the host's disk, not its own. */
const END_FACTOR = 2;
/** What a sandbox may be able to write. The more room it has, the later the next look. */
const BYTES_PER_MS = 512 * 1024;
const EVERY_MS = { min: 2_000, max: 30_000 };
/** A measurement that takes long is followed by a rest so many times as long: very many files are not to cost a processor. */
const REST_FACTOR = 3;
const GIB = 1024 ** 3;

/**
 * Limits the disk of sandboxes where the runtime can't: it measures one after another, tells whose disk is full, so that
 * nothing more is uploaded, and ends those that use twice what they may.
 *
 * It sees files, so what a program writes into one that it has deleted shows only when the host's disk runs full.
 * `close` ends all and is idempotent.
 */
export class DiskWatch {
  private readonly watched = new Map<string, Watched>();
  /** One measurement at a time, whatever the number of sandboxes. Never rejects. */
  private turn: Promise<void> = Promise.resolve();
  private closed = false;

  constructor(private readonly options: DiskWatchOptions) {}

  /** It runs, for the first time or again. */
  start(sandbox: Pick<Sandbox, 'id' | 'resources'>): void {
    if (this.closed) return;
    const before = this.watched.get(sandbox.id);
    clearTimeout(before?.timer);
    const limitBytes = sandbox.resources.diskSizeMB * 1_048_576;
    const each: Watched = { limitBytes, usedBytes: before?.usedBytes ?? 0, timer: undefined };
    this.watched.set(sandbox.id, each);
    this.lookLater(sandbox.id, each, 0);
  }

  /** It is frozen: nothing more is written, and what is full stays full. */
  pause(id: string): void {
    const each = this.watched.get(id);
    clearTimeout(each?.timer);
    if (each !== undefined) this.watched.set(id, { ...each, timer: undefined }); // what is under way is not its any more
  }

  forget(id: string): void {
    clearTimeout(this.watched.get(id)?.timer);
    this.watched.delete(id);
  }

  /** Whether it uses more than it may. */
  isFull(id: string): boolean {
    const each = this.watched.get(id);
    return each !== undefined && each.usedBytes > each.limitBytes;
  }

  close(): void {
    this.closed = true;
    for (const id of [...this.watched.keys()]) this.forget(id);
  }

  private lookLater(id: string, each: Watched, tookMs: number): void {
    if (this.watched.get(id) !== each) return;
    const { min, max } = this.options.everyMs ?? EVERY_MS;
    const { limitBytes, usedBytes } = each;
    const room = (usedBytes > limitBytes ? END_FACTOR : 1) * limitBytes - usedBytes;
    const soon = Math.min(Math.max(room / BYTES_PER_MS, min), max);
    each.timer = setTimeout(
      () => outsideScope(() => (this.turn = this.turn.then(() => this.look(id, each)))),
      Math.max(soon, tookMs * REST_FACTOR),
    ).unref();
  }

  /** Never rejects. */
  private async look(id: string, each: Watched): Promise<void> {
    if (this.watched.get(id) !== each) return;
    const began = performance.now();
    try {
      const usedBytes = await this.options.runtime.diskUsage(id);
      if (this.watched.get(id) === each) await this.judge(id, each, usedBytes);
    } catch (error) {
      if (ServiceError.from(error).code !== 'not_found') {
        this.options.logger.warn(
          { sandboxId: id, err: error },
          'the disk of a sandbox could not be measured',
        );
      }
    }
    this.lookLater(id, each, performance.now() - began);
  }

  private async judge(id: string, each: Watched, usedBytes: number): Promise<void> {
    const { note, end, logger } = this.options;
    const { limitBytes } = each;
    const wasFull = each.usedBytes > limitBytes;
    each.usedBytes = usedBytes;
    const fields = { diskUsedBytes: String(usedBytes), diskLimitBytes: String(limitBytes) };
    const use = `${toGiB(usedBytes)} of disk where it may use ${toGiB(limitBytes)}`;
    if (usedBytes > END_FACTOR * limitBytes) {
      this.forget(id);
      logger.warn({ sandboxId: id, ...fields }, 'a sandbox is ended for its use of disk');
      await end(id, `it used ${use}`);
    } else if (usedBytes > limitBytes && !wasFull) {
      logger.warn({ sandboxId: id, ...fields }, 'a sandbox uses more disk than it may');
      const then = `uploads are refused, and at ${toGiB(END_FACTOR * limitBytes)} it is ended`;
      note(id, 'error', `The sandbox uses ${use}: ${then}`, fields);
    } else if (usedBytes <= limitBytes && wasFull) {
      note(id, 'info', 'The sandbox has room on its disk again', fields);
    }
  }
}

function toGiB(bytes: number): string {
  return `${(bytes / GIB).toFixed(2)} GiB`;
}
