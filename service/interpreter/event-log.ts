import type { DiskBudget } from './spool-file';
import { SpoolFile } from './spool-file';

/** Events of one execution that are kept in memory; what is older goes to the disk. */
const MEMORY_BYTES = 256 * 1024;
/** What a reader is given at a time. */
const PIECE_BYTES = 64 * 1024;
/** Between two entries of the file's index, at least. */
const INDEX_BYTES = 64 * 1024;
/** What nobody reads is on the disk so much later at the latest; most executions have ended by then. */
const FLUSH_AFTER_MS = 100;

/** How much of a log an earlier service left. */
export interface LogState {
  /** What its file has. */
  fileEvents: number;
  fileBytes: number;
  /** The events after those, without their numbers. */
  tail: string;
}

/**
 * The numbered events of one execution, as lines without their number. The newest are in memory; all but the newest,
 * and every event that a reader has been given, are on the disk, so that a number never means two things, whatever
 * becomes of this process. Any number of readers follow it, each at its own pace; none of them holds up who appends.
 */
export class EventLog {
  /** Events so far; the next one gets this number. */
  count = 0;
  /** Bytes of events that found no room. */
  omittedBytes = 0;
  private lines: string[] = [];
  private bytes = 0;
  /** Number of the first event in memory. */
  private base = 0;
  /** Events before this one are in the file, or on their way there. */
  private written = 0;
  /** Events before this one are in the file. */
  private safe = 0;
  private flushing: NodeJS.Timeout | undefined;
  /** Where in the file which event begins, every block of events. */
  private readonly index: Array<{ seq: number; offset: number }> = [];
  private readonly file: SpoolFile;
  private outOfRoom = false;
  private ended = false;
  private wake: (() => void) | undefined;
  private changed: Promise<void> | undefined;

  constructor(file: string, budget: DiskBudget, onFailure: (error: unknown) => void) {
    this.file = new SpoolFile(file, budget, onFailure);
  }

  get memoryBytes(): number {
    return this.bytes;
  }

  get isFull(): boolean {
    return this.file.isFull;
  }

  set onDrain(listener: () => void) {
    this.file.onDrain = listener;
  }

  /** Adds one encoded line. False when there was no room for it; one that is `essential` is always kept. */
  append(line: string, essential: boolean): boolean {
    if (this.outOfRoom && !essential && this.bytes + line.length > MEMORY_BYTES) {
      this.omittedBytes += line.length;
      return false;
    }
    this.lines.push(line);
    this.bytes += line.length;
    this.count++;
    if (this.bytes > MEMORY_BYTES && !this.outOfRoom) this.spill();
    else this.flushing ??= setTimeout(() => this.flush(), FLUSH_AFTER_MS).unref();
    this.notify();
    return true;
  }

  /** Moves what is in memory to the disk, where there is room. */
  spill(): void {
    if (this.lines.length === 0) return;
    this.flush();
    if (this.outOfRoom) return;
    this.base = this.count;
    this.lines = [];
    this.bytes = 0;
  }

  /** What is not in the file, for the journal of an execution that has ended. */
  get state(): LogState {
    return {
      fileEvents: this.written,
      fileBytes: this.file.bytes,
      tail: this.lines.slice(this.written - this.base).join(''),
    };
  }

  /** Goes on with what an earlier service left; before anything is appended. */
  resume({ fileEvents, fileBytes, tail }: LogState): void {
    this.file.resume(fileBytes);
    if (fileEvents > 0) this.index.push({ seq: 0, offset: 0 });
    this.lines = tail.split(/(?<=\n)/).filter((line) => line !== '');
    this.bytes = tail.length;
    this.base = this.written = this.safe = fileEvents;
    this.count = fileEvents + this.lines.length;
  }

  /** Resolves when what there is is on the disk, or never will be. */
  async settled(): Promise<void> {
    this.flush();
    await this.file.settled();
  }

  /**
   * No more will come, but for what is late: readers that have everything are done. By now what is not in the file is in
   * the journal.
   */
  end(): void {
    this.ended = true;
    clearTimeout(this.flushing);
    this.flushing = undefined;
    this.notify();
  }

  remove(): Promise<void> {
    this.lines = [];
    this.end();
    return this.file.remove();
  }

  /** Numbered lines from event `from` on, then those that come, until the end; or up to event `until`, left out. */
  async *read(from: number, signal: AbortSignal, until = Infinity): AsyncGenerator<string | Buffer> {
    let next = from;
    while (!signal.aborted && next < until) {
      if (next < this.base) {
        const before = next;
        for await (const { bytes, seq } of this.readFile(next)) {
          next = seq;
          yield bytes;
          if (signal.aborted) return;
        }
        if (next === before) throw new Error('the events were lost with the disk');
      } else if (next < this.readable) {
        let piece = '';
        while (next < this.readable && piece.length < PIECE_BYTES) {
          const line = this.lines[next - this.base];
          if (line === undefined) return; // removed meanwhile
          piece += numbered(next++, line);
        }
        yield piece;
      } else if (this.ended) {
        return;
      } else {
        this.flush();
        await this.nextChange(signal);
      }
    }
  }

  /** Readers may have the events before this one. */
  private get readable(): number {
    return this.ended || this.outOfRoom ? this.count : this.safe;
  }

  /** Puts what is only in memory on its way to the disk, too. */
  private flush(): void {
    clearTimeout(this.flushing);
    this.flushing = undefined;
    const { count } = this;
    if (this.written === count || this.outOfRoom) return;
    const offset = this.file.bytes;
    const from = this.written - this.base;
    const block = this.lines.slice(from).map((line, position) => numbered(this.written + position, line));
    if (this.file.isClosed || !this.file.append(block.join(''))) {
      this.outOfRoom = true;
      this.notify();
      return;
    }
    const last = this.index.at(-1);
    if (last === undefined || offset - last.offset >= INDEX_BYTES) {
      this.index.push({ seq: this.written, offset });
    }
    this.written = count;
    void this.file.settled().then(() => {
      this.safe = Math.max(this.safe, count);
      this.notify();
    });
  }

  /** What is on the disk from event `from` on, with the number of the event after each piece. */
  private async *readFile(from: number): AsyncGenerator<{ bytes: Buffer; seq: number }> {
    await this.file.settled();
    const end = this.file.bytes;
    const block = this.index.findLast(({ seq }) => seq <= from);
    if (block === undefined || block.offset >= end) return; // the disk was full
    let { seq } = block;
    for await (const chunk of this.file.read(block.offset, end) as AsyncIterable<Buffer>) {
      let start = 0;
      let at = -1;
      const skipped = seq < from;
      while ((at = chunk.indexOf(0x0a, at + 1)) !== -1) {
        if (++seq === from) start = at + 1;
      }
      if (seq < from) continue;
      yield { bytes: skipped ? chunk.subarray(start) : chunk, seq };
    }
  }

  private notify(): void {
    this.wake?.();
    this.wake = undefined;
    this.changed = undefined;
  }

  private async nextChange(signal: AbortSignal): Promise<void> {
    this.changed ??= new Promise((resolve) => (this.wake = resolve));
    let stop: (() => void) | undefined;
    const aborted = new Promise<void>((resolve) => {
      stop = resolve;
      signal.addEventListener('abort', resolve as () => void, { once: true });
    });
    try {
      await Promise.race([this.changed, aborted]);
    } finally {
      if (stop) signal.removeEventListener('abort', stop);
    }
  }
}

/** Every line is an object with at least a type. */
function numbered(seq: number, line: string): string {
  return `{"seq":${seq},${line.slice(1)}`;
}
