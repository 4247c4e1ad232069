import { encodeLine } from '../../protocol/ndjson';
import type { Ending, OutputEvent, TextStream } from '../../protocol/interpreter';
import type { ErrorEvent } from './endings';
import type { EventStream } from './event-stream';
import { foldReturns, overwrites } from './terminal-fold';

/** Text with carriage returns is collected for this long, and folded. */
const FOLD_MS = 100;
/** Displays that may still change are held back up to this many bytes. */
const MAX_HELD_BYTES = 16 * 1024 * 1024;
const PLAIN_END = encodeLine({ type: 'end_of_execution' } satisfies OutputEvent);

type TextEvent = Extract<OutputEvent, { type: TextStream }>;
type Truncation = Extract<OutputEvent, { type: 'truncated' }>;
type DisplayEvent = Extract<OutputEvent, { type: 'display' | 'update_display' }>;

/**
 * What a client of E2B's API sees of an execution: its events, in its words. Displays that can change are sent once, as
 * they are at the end; text that a terminal would have overwritten is folded.
 */
export class PlainView {
  private readonly held: Array<{ id: string; line: string }> = [];
  private heldBytes = 0;
  /** The next output clears what is held. */
  private clearing = false;
  private folding: TextEvent | undefined;
  private timer: NodeJS.Timeout | undefined;
  private readonly atLineStart = { stdout: true, stderr: true };
  private readonly truncations = new Map<string, Truncation>();

  constructor(private readonly stream: EventStream) {}

  get isFull(): boolean {
    return this.stream.isFull;
  }

  /** Takes one event, with its line. */
  event(event: OutputEvent, line: string): void {
    switch (event.type) {
      case 'stdout':
      case 'stderr':
        this.clear();
        this.text(event, line);
        return;
      case 'display':
      case 'update_display':
        this.clear();
        this.hold(event);
        return;
      case 'clear_output':
        this.clearing = true;
        if (!event.wait) this.clear();
        return;
      case 'result':
        this.clear();
        break;
      case 'number_of_executions':
        this.flush();
        this.stream.writeSoon(line);
        return;
      case 'truncated':
        this.truncations.set(event.stream, event);
        break;
      case 'late_output':
      case 'reattached':
      case 'state_lost':
      case 'end_of_execution':
        return; // not part of E2B's stream, or told by `end`
      default:
        break;
    }
    this.flush();
    this.stream.write(line);
  }

  /** The end of an execution whose sandbox lives. */
  end(errors: readonly ErrorEvent[], ending: Ending): void {
    this.flush();
    let lines = '';
    for (const { line } of this.held) lines += line;
    for (const truncation of this.truncations.values()) lines += inWords(truncation);
    for (const error of errors) lines += encodeLine(error);
    const { termination } = ending;
    // The ordinary ends look as E2B's, to the byte.
    const isPlain = termination === 'ok' || termination === 'error';
    this.stream.end(
      lines +
        (isPlain ? PLAIN_END : encodeLine({ type: 'end_of_execution', ...ending } satisfies OutputEvent)),
    );
  }

  reset(): void {
    clearTimeout(this.timer);
    this.stream.reset();
  }

  private text(event: TextEvent, line: string): void {
    const { folding } = this;
    if (folding === undefined || folding.type !== event.type) {
      this.flush();
      if (!overwrites(event.text)) {
        this.atLineStart[event.type] = event.text.endsWith('\n');
        this.stream.write(line);
        return;
      }
      this.folding = { ...event };
      this.timer = setTimeout(() => this.flush(), FOLD_MS);
    } else {
      folding.text += event.text;
      if (folding.text.length > MAX_HELD_BYTES) this.flush();
    }
  }

  private flush(): void {
    const { folding } = this;
    if (folding === undefined) return;
    clearTimeout(this.timer);
    this.folding = undefined;
    const { type } = folding;
    const text = foldReturns(folding.text, this.atLineStart[type]);
    this.atLineStart[type] = folding.text.endsWith('\n');
    if (text !== '') this.stream.write(encodeLine({ ...folding, text }));
  }

  private hold(event: DisplayEvent): void {
    const { type, display_id: id, ...fields } = event;
    const line = encodeLine({ type: 'result', ...fields, is_main_result: false } satisfies OutputEvent);
    for (const each of this.held) {
      if (each.id !== id) continue;
      this.heldBytes += line.length - each.line.length;
      each.line = line;
    }
    if (type === 'display') {
      this.held.push({ id, line });
      this.heldBytes += line.length;
    }
    while (this.heldBytes > MAX_HELD_BYTES) {
      const first = this.held.shift();
      if (first === undefined) return;
      this.heldBytes -= first.line.length;
      this.flush();
      this.stream.write(first.line);
    }
  }

  private clear(): void {
    if (!this.clearing) return;
    this.clearing = false;
    this.held.length = 0;
    this.heldBytes = 0;
  }
}

/** Official clients don't know the event, so that they are told in the text itself. */
function inWords({ stream, omitted_bytes: omitted, artifact }: Truncation): string {
  if (stream === 'events') return ''; // nothing is missing here
  const where = artifact === undefined ? '' : `; the full text is at ${artifact}`;
  const text = `\n[${omitted} bytes of ${stream} are left out${where}]\n`;
  const timestamp = new Date().toISOString().replace('Z', '000+00:00');
  return encodeLine({ type: stream, text, timestamp });
}
