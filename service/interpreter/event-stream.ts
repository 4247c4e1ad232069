import type { ServerResponse } from 'node:http';
import { encodeLine } from '../../protocol/ndjson';
import type { OutputEvent } from '../../protocol/interpreter';

/** Unsent bytes from which on the kernel is read no further until the client has taken what there is. */
const HIGH_WATER_BYTES = 1024 * 1024;

/**
 * The NDJSON answer of one execution. Sends a keepalive after each quiet `keepaliveMs`, from `open` on.
 *
 * Ends in one of three ways: `end` (the last line is `end_of_execution`), `reset` (the connection breaks), or the client
 * goes away first (`onGone`, once). After any of them everything is silently ignored.
 */
export class EventStream {
  onGone: (() => void) | undefined;
  /** The client has taken everything after `isFull` was true. */
  onDrain: (() => void) | undefined;
  private readonly quiet: NodeJS.Timeout;
  private over = false;

  /** Sends status and headers at once: the client's request timer runs until they arrive. */
  constructor(
    private readonly res: ServerResponse,
    keepaliveMs: number,
  ) {
    res.writeHead(200, { 'content-type': 'application/x-ndjson', 'cache-control': 'no-store' });
    res.flushHeaders();
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

  send(event: OutputEvent): void {
    if (this.over) return;
    this.quiet.refresh();
    this.res.write(encodeLine(event), 'latin1');
  }

  end(): void {
    if (this.over) return;
    this.finish();
    this.res.end(encodeLine({ type: 'end_of_execution' } satisfies OutputEvent), 'latin1');
  }

  reset(): void {
    if (this.over) return;
    this.finish();
    resetConnection(this.res);
  }

  private keepAlive(): void {
    // A client that does not take what it has is told nothing: that would only pile up.
    if (!this.res.writableNeedDrain) this.res.write(encodeLine({ type: 'keepalive' } satisfies OutputEvent));
  }

  private finish(): void {
    this.over = true;
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
