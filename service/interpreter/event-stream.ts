import type { ServerResponse } from 'node:http';
import { encodeLine } from '../../protocol/ndjson';
import type { OutputEvent } from '../../protocol/interpreter';

/** Unsent bytes from which on the kernel is read no further until the client has taken what there is. */
const HIGH_WATER_BYTES = 1024 * 1024;

/**
 * What nobody acts upon, the head and the number of the cell, waits so long for the first line that somebody does: each
 * write wakes the client, which a cell of a few milliseconds feels.
 */
const HOLD_MS = 20;

/** Names the execution, for whoever wants to find its record. */
export const EXECUTION_ID_HEADER = 'x-execution-id';

const KEEPALIVE = encodeLine({ type: 'keepalive' } satisfies OutputEvent);

/**
 * The NDJSON answer of one execution. Sends a keepalive after each quiet `keepaliveMs`, from the start on.
 *
 * Ends in one of three ways: `end`, `reset` (the connection breaks), or the client goes away first (`onGone`, once).
 * After any of them everything is silently ignored.
 */
export class EventStream {
  onGone: (() => void) | undefined;
  /** The client has taken everything after `isFull` was true. */
  onDrain: (() => void) | undefined;
  private readonly quiet: NodeJS.Timeout;
  /** Runs while something may be held back. */
  private holding: NodeJS.Timeout | undefined;
  private over = false;

  /** Sends status and headers within `HOLD_MS`: the client's request timer runs until they arrive. */
  constructor(
    private readonly res: ServerResponse,
    keepaliveMs: number,
    executionId: string,
  ) {
    res.writeHead(200, {
      'content-type': 'application/x-ndjson',
      'cache-control': 'no-store',
      [EXECUTION_ID_HEADER]: executionId,
    });
    res.cork();
    res.flushHeaders();
    this.holding = setTimeout(() => this.release(), HOLD_MS);
    this.quiet = setInterval(() => this.keepAlive(), keepaliveMs);
    res.on('drain', () => this.onDrain?.());
    res.on('close', () => {
      if (this.over) return;
      this.finish();
      this.onGone?.();
    });
    res.on('error', () => undefined); // followed by `close`
  }

  get isFull(): boolean {
    return this.res.writableLength > HIGH_WATER_BYTES;
  }

  get isOver(): boolean {
    return this.over;
  }

  /** Sends encoded lines. False when the client has not taken them at once. */
  write(lines: string | Buffer): boolean {
    if (this.over) return true;
    this.quiet.refresh();
    const taken = typeof lines === 'string' ? this.res.write(lines, 'latin1') : this.res.write(lines);
    this.release();
    return taken;
  }

  /** Sends an encoded line that can wait a moment: with what follows it, if the answer has only begun. */
  writeSoon(line: string): void {
    if (this.holding === undefined) this.write(line);
    else this.res.write(line, 'latin1');
  }

  end(line = ''): void {
    if (this.over) return;
    this.finish();
    this.res.end(line, 'latin1');
  }

  reset(): void {
    if (this.over) return;
    this.finish();
    resetConnection(this.res);
  }

  private keepAlive(): void {
    // A client that does not take what it has is told nothing: that would only pile up.
    if (!this.res.writableNeedDrain) this.res.write(KEEPALIVE);
  }

  private release(): void {
    if (this.holding === undefined) return;
    clearTimeout(this.holding);
    this.holding = undefined;
    this.res.uncork();
  }

  private finish(): void {
    this.over = true;
    clearTimeout(this.holding); // the end of an answer sends all of it
    this.holding = undefined;
    clearInterval(this.quiet);
  }
}

/** Breaks a connection so that the client sees an error and not an end. */
export function resetConnection(res: ServerResponse): void {
  const { socket } = res;
  try {
    if (socket !== null && !socket.destroyed) socket.resetAndDestroy();
  } catch {
    // Only TCP knows resets; a closed Unix socket in the middle of a chunked body is an error to its reader, too.
  }
  res.destroy();
}
