import fs from 'node:fs';
import { mkdir, open, rm } from 'node:fs/promises';
import path from 'node:path';
import type { Readable } from 'node:stream';

/** Bytes that wait for the disk from which on whoever produces them is to be held back. */
const HIGH_WATER_BYTES = 8 * 1024 * 1024;
/** What is written at a time, at most. */
const BLOCK_BYTES = 1024 * 1024;

/** Room on the disk that several files share. */
export interface DiskBudget {
  /** Takes room; false when there is none. */
  take(bytes: number): boolean;
  give(bytes: number): void;
}

/**
 * A file that only grows, written behind the back of whoever appends: `append` never waits, and `isFull` says when to
 * stop for a while. Made at the first write. The owner calls `remove`, which is idempotent.
 */
export class SpoolFile {
  /** Accepted so far; all of it is in the file once `settled` has resolved. */
  bytes = 0;
  onDrain: (() => void) | undefined;
  private pending: string[] = [];
  private pendingBytes = 0;
  private writing: Promise<void> | undefined;
  private refuses = false;
  private removed = false;

  constructor(
    private readonly file: string,
    private readonly budget: DiskBudget,
    private readonly onFailure: (error: unknown) => void,
  ) {}

  get isFull(): boolean {
    return this.pendingBytes > HIGH_WATER_BYTES;
  }

  /** Nothing more is taken: there was no room. */
  get isClosed(): boolean {
    return this.refuses;
  }

  /** Goes on with the file of an earlier service, of which `bytes` count. Before anything is appended. */
  resume(bytes: number): void {
    this.bytes = bytes;
    if (bytes === 0 || this.budget.take(bytes)) return;
    this.refuses = true;
    this.bytes = 0;
  }

  /** False when there is no room for it; from then on nothing more is taken, so that the file has no holes. */
  append(text: string): boolean {
    const bytes = Buffer.byteLength(text);
    if (this.refuses || this.removed || !this.budget.take(bytes)) {
      this.refuses = true;
      return false;
    }
    this.bytes += bytes;
    this.pending.push(text);
    this.pendingBytes += bytes;
    this.writing ??= this.write();
    return true;
  }

  /** Resolves when what was accepted is in the file, or never will be. */
  async settled(): Promise<void> {
    while (this.writing !== undefined) await this.writing;
  }

  /** Bytes from `start` up to, not including, `end`; both must be in the file. */
  read(start: number, end: number): Readable {
    return fs.createReadStream(this.file, { start, end: end - 1 });
  }

  async remove(): Promise<void> {
    if (this.removed) return;
    this.removed = true;
    this.pending = [];
    this.budget.give(this.bytes); // at once, as whoever removes it may need the room
    await this.settled();
    await rm(this.file, { force: true });
  }

  /** Writes until nothing waits. In the same moment it is no longer `writing`: what comes then begins anew. */
  private async write(): Promise<void> {
    // Not at once: what a burst of messages brings is one write.
    await new Promise((resolve) => setImmediate(resolve));
    try {
      await mkdir(path.dirname(this.file), { recursive: true, mode: 0o700 });
      while (this.pending.length > 0) await this.writeBurst();
    } catch (error) {
      // A full disk, most likely. What is in the file stays readable; the rest is told as left out.
      this.refuses = true;
      this.bytes -= this.pendingBytes;
      if (!this.removed) this.budget.give(this.pendingBytes);
      this.pending = [];
      this.pendingBytes = 0;
      this.onFailure(error);
      this.onDrain?.();
    }
    this.writing = undefined;
  }

  private async writeBurst(): Promise<void> {
    // Open for the burst only: there may be thousands of these files.
    const handle = await open(this.file, 'a', 0o600);
    try {
      while (this.pending.length > 0) {
        const block = this.takeBlock();
        await handle.appendFile(block);
        const wasFull = this.isFull;
        this.pendingBytes -= block.length;
        if (wasFull && !this.isFull) this.onDrain?.();
      }
    } finally {
      await handle.close();
    }
  }

  private takeBlock(): Buffer {
    let size = 0;
    let count = 0;
    while (count < this.pending.length && size < BLOCK_BYTES) size += (this.pending[count++] ?? '').length;
    return Buffer.from(this.pending.splice(0, count).join(''));
  }
}
