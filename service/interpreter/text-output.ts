import { Readable } from 'node:stream';
import type { TextState } from './journal';
import type { DiskBudget } from './spool-file';
import { SpoolFile } from './spool-file';

/** Text up to this length is found in the events; from there on all of it is in a file of its own, too. */
const SMALL_BYTES = 256 * 1024;

/**
 * The text of one stream of one execution: decides how much of it goes into the events, and keeps all of it in a file
 * once it is long.
 */
export class TextOutput {
  /** In UTF-8. */
  bytes = 0;
  /** Not in the events. */
  omittedBytes = 0;
  private head: string[] | undefined = [];
  private file: SpoolFile | undefined;
  private closed = false;

  constructor(
    private readonly path: string,
    private readonly inlineBytes: number,
    private readonly budget: DiskBudget,
    private readonly onFailure: (error: unknown) => void,
    private readonly onDrain: () => void,
  ) {}

  get isFull(): boolean {
    return this.file?.isFull === true;
  }

  /** Bytes in the file; undefined when the events have everything. */
  get keptBytes(): number | undefined {
    return this.file?.bytes;
  }

  /** What the journal says of it. */
  get state(): TextState {
    return { bytes: this.bytes, omitted_bytes: this.omittedBytes, kept_bytes: this.keptBytes ?? null };
  }

  /**
   * Goes on with what an earlier service left; `fileBytes`: what its file has now; `text`: all of it, when it has none. Before
   * anything is taken.
   */
  resume(state: TextState, fileBytes: number, text: string): void {
    this.bytes = state.bytes;
    this.omittedBytes = state.omitted_bytes;
    this.closed = state.omitted_bytes > 0;
    this.head = text === '' ? [] : [text];
    if (state.kept_bytes === null) return;
    this.head = undefined;
    this.file = new SpoolFile(this.path, this.budget, this.onFailure);
    this.file.onDrain = this.onDrain;
    this.file.resume(Math.min(fileBytes, state.kept_bytes));
  }

  /** Nothing more goes into the events. */
  closeInline(): void {
    this.closed = true;
  }

  /** Takes the next text; returns the part that goes into the events. */
  take(text: string): string {
    const size = Buffer.byteLength(text);
    const room = this.closed ? 0 : this.inlineBytes - this.bytes;
    this.bytes += size;
    this.keep(text);
    if (size <= room) return text;
    this.closed = true;
    const inline = withinBytes(text, room);
    this.omittedBytes += size - Buffer.byteLength(inline);
    return inline;
  }

  /** Resolves when the file has what was accepted for it. */
  async settled(): Promise<void> {
    await this.file?.settled();
  }

  /** Of the file, which must be there. */
  read(start: number, end: number): Readable {
    return this.file?.read(start, end) ?? Readable.from([]);
  }

  /** The execution has ended. */
  end(): void {
    this.head = undefined;
  }

  async remove(): Promise<void> {
    this.head = undefined;
    await this.file?.remove();
  }

  private keep(text: string): void {
    if (this.head !== undefined) {
      this.head.push(text);
      if (this.bytes <= Math.min(SMALL_BYTES, this.inlineBytes) && !this.closed) return;
      this.file = new SpoolFile(this.path, this.budget, this.onFailure);
      this.file.onDrain = this.onDrain;
      const { head } = this;
      this.head = undefined;
      for (const part of head) if (!this.file.append(part)) return; // told by `keptBytes`
    } else {
      this.file?.append(text);
    }
  }
}

/** The longest beginning of a text that fits, without half a character. */
function withinBytes(text: string, bytes: number): string {
  if (bytes <= 0) return '';
  let cut = text.slice(0, bytes); // no character has less than one byte
  while (Buffer.byteLength(cut) > bytes) cut = cut.slice(0, -Math.ceil((Buffer.byteLength(cut) - bytes) / 4));
  const last = cut.charCodeAt(cut.length - 1);
  return last >= 0xd800 && last <= 0xdbff ? cut.slice(0, -1) : cut;
}
