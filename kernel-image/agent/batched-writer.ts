import type { FileHandle } from 'node:fs/promises';

/** A write waits for so much, or the end: a small file is then one write, which is one event to whoever watches. */
const MIN_BYTES = 64 * 1024;
/** So much may wait for the disk before `add` makes its caller wait, too. */
const MAX_BYTES = 1024 * 1024;

/**
 * Appends to a file in large pieces: the next one is collected while the last one is written. Holds at most about
 * twice `MAX_BYTES`. The file stays its owner's to close, after `end`.
 */
export class BatchedWriter {
  private readonly file: FileHandle;
  private chunks: Buffer[] = [];
  private length = 0;
  /** Never rejects: a failure waits in `failure` for the next call. */
  private writing: Promise<void> | undefined;
  private failure: unknown;

  constructor(file: FileHandle) {
    this.file = file;
  }

  /** Keeps the chunk until it is written. Rejects with the failure of an earlier one. */
  async add(chunk: Buffer): Promise<void> {
    this.chunks.push(chunk);
    this.length += chunk.length;
    if (this.length >= MAX_BYTES) await this.writing;
    if (this.failure !== undefined) throw this.failure;
    if (this.length >= MIN_BYTES && this.writing === undefined) this.flush();
  }

  /** Writes what is left. To be called after a failure of the source, too, so that what arrived is kept. */
  async end(): Promise<void> {
    await this.writing;
    if (this.failure === undefined && this.length > 0) this.flush();
    await this.writing;
    if (this.failure !== undefined) throw this.failure;
  }

  private flush(): void {
    const chunks = this.chunks;
    this.chunks = [];
    this.length = 0;
    this.writing = writeAll(this.file, chunks)
      .catch((error: unknown) => {
        this.failure = error;
      })
      .then(() => {
        this.writing = undefined;
      });
  }
}

async function writeAll(file: FileHandle, chunks: Buffer[]): Promise<void> {
  let left = chunks;
  while (left.length > 0) {
    let { bytesWritten } = await file.writev(left);
    const rest: Buffer[] = [];
    for (const chunk of left) {
      if (bytesWritten < chunk.length) rest.push(chunk.subarray(bytesWritten));
      bytesWritten = Math.max(0, bytesWritten - chunk.length);
    }
    left = rest;
  }
}
