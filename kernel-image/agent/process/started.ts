import type { Exit } from './end-event';

export type Channel = 'stdout' | 'stderr' | 'pty';

/** One process as the operating system gives it, with pipes or with a terminal. Owned by `RunningProcess`. */
export interface Started {
  readonly pid: number;
  readonly isTerminal: boolean;
  /** When it ended and was reaped. Never rejects. */
  readonly exit: Promise<Exit>;
  /** When everything it (or whoever inherited its output) wrote was handed over. Never rejects. */
  readonly outputEnd: Promise<void>;
  pauseOutput(): void;
  resumeOutput(): void;
  /** Gives up whatever output is still to come. Idempotent. */
  closeOutput(): void;
  /** Resolves when the bytes are in the process's pipe or terminal. Rejects when that can't happen any more. */
  write(bytes: Uint8Array): Promise<void>;
  /** Idempotent. Bytes that were not written yet are dropped. */
  closeInput(): void;
  /** Whether there is (still) something to write to. */
  readonly hasInput: boolean;
  signal(signal: NodeJS.Signals): void;
  resize(cols: number, rows: number): void;
}

/** Called with bytes that are the receiver's to keep, in the order in which they were read. */
export type OnOutput = (channel: Channel, bytes: Buffer) => void;
