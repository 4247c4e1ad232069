import type { Cell, Mark } from './cells';
import type { Log } from './log';
import type { ChaosService } from './service';

/** An execution that is under way, as its client knows it. */
export interface Running {
  sandboxId: string;
  contextId: string;
  executionId: string | undefined;
  cell: Cell;
  mark: Mark | undefined;
}

export interface LiveSandbox {
  id: string;
  owner: string;
  /** By id; the kernel's process as last told. */
  contexts: Map<string, { pid: number | undefined }>;
  /** A fault that takes the whole sandbox is under way or done. */
  doomed: boolean;
}

/** What clients and injector know of each other: who is there to be hit, and when to stop. */
export class World {
  readonly sandboxes = new Map<string, LiveSandbox>();
  readonly running = new Set<Running>();
  /** Every sandbox there ever was, to look for what is left of it. */
  readonly everKnown = new Set<string>();
  stopping = false;

  constructor(
    readonly log: Log,
    readonly service: ChaosService,
    readonly runtime: 'local' | 'docker',
    readonly memoryMb: number,
    /** Milliseconds since the epoch; no step begins after it. */
    readonly endsAt: number,
  ) {}
}

export class DeadlineError extends Error {}

/** Settles as the promise does, or rejects after the time. */
export async function within<Value>(ms: number, what: string, promise: Promise<Value>): Promise<Value> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new DeadlineError(`${what}: nothing for ${ms / 1000} s`)), ms);
  });
  promise.catch(() => undefined); // also awaited; this is for when the time is over first
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Asks until the answer is not undefined; undefined when the time is over. */
export async function until<Value>(
  ms: number,
  ask: () => Promise<Value | undefined> | Value | undefined,
  everyMs = 100,
): Promise<Value | undefined> {
  const deadline = Date.now() + ms;
  for (;;) {
    const value = await ask();
    if (value !== undefined || Date.now() > deadline) return value;
    await pause(everyMs);
  }
}

export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
