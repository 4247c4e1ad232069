import type { Readable } from 'node:stream';

/** Somebody who takes a stream at a pace of his own. */
export interface SlowReader {
  readonly takenBytes: number;
  /** The stream has ended. */
  readonly isOver: boolean;
  /** The first bytes were there. */
  readonly hasBegun: Promise<void>;
  /** Takes the rest as fast as it comes; resolves with all the bytes there were. */
  takeAll(): Promise<number>;
  close(): void;
}

const TICK_MS = 100;

/** Reads so many bytes a second and leaves the rest where it is, so that whoever sends is held back. Owns the stream. */
export function readSlowly(stream: Readable, bytesPerSecond: number): SlowReader {
  const piece = Math.ceil((bytesPerSecond * TICK_MS) / 1000);
  let taken = 0;
  let over = false;
  let begin: () => void = () => undefined;
  const hasBegun = new Promise<void>((resolve) => (begin = resolve));
  const ended = new Promise<void>((resolve, reject) => {
    stream.on('end', () => {
      over = true;
      resolve();
    });
    stream.on('error', reject);
    stream.on('close', () => reject(new Error('the stream broke off')));
  });
  ended.catch(() => undefined); // told by `takeAll`
  const take = (size?: number): void => {
    const chunk = stream.read(size) as Buffer | null;
    if (chunk === null) return;
    taken += chunk.length;
    begin();
  };
  const timer = setInterval(() => take(Math.min(piece, stream.readableLength) || undefined), TICK_MS);
  stream.on('readable', () => {
    if (taken === 0) take(Math.min(piece, stream.readableLength) || undefined); // the first at once
  });
  return {
    get takenBytes() {
      return taken;
    },
    get isOver() {
      return over;
    },
    hasBegun,
    takeAll: async () => {
      clearInterval(timer);
      stream.removeAllListeners('readable');
      stream.on('data', (chunk: Buffer) => (taken += chunk.length));
      stream.resume();
      await ended;
      return taken;
    },
    close: () => {
      clearInterval(timer);
      stream.destroy();
    },
  };
}
