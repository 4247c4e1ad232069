import { Duplex } from 'node:stream';

/**
 * Two connected streams in memory: what is written to one is read from the other. Keeps back-pressure and half-close; a
 * side that is destroyed before it ended resets the other, as a broken connection would.
 */
export function duplexPair(): [Duplex, Duplex] {
  const one = new Side();
  const other = new Side();
  one.peer = other;
  other.peer = one;
  return [one, other];
}

class Side extends Duplex {
  peer!: Side; // set by duplexPair before anybody holds this
  /** Tells the peer that its last write was taken. */
  private taken: ((error?: Error) => void) | undefined;

  constructor() {
    super({ allowHalfOpen: true });
    // A reset reaches also a side whose user has let go of it; who cares listens on their own.
    this.on('error', () => {});
  }

  override _read(): void {
    this.settle();
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, callback: (error?: Error) => void): void {
    if (this.peer.destroyed) callback(brokenPipe());
    else if (this.peer.push(chunk)) callback();
    else this.peer.taken = callback;
  }

  override _final(callback: (error?: Error) => void): void {
    if (!this.peer.destroyed) this.peer.push(null);
    callback();
  }

  override _destroy(error: Error | null, callback: (error: Error | null) => void): void {
    const ended = error === null && this.writableFinished; // the peer can still read what there is
    if (!ended) this.peer.destroy(brokenPipe());
    this.settle(brokenPipe());
    callback(error);
  }

  private settle(error?: Error): void {
    const { taken } = this;
    this.taken = undefined;
    taken?.(error);
  }
}

function brokenPipe(): Error {
  return Object.assign(new Error('the other side closed the stream'), { code: 'ECONNRESET' });
}
