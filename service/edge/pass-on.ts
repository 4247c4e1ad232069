import type { Readable, Writable } from 'node:stream';
import v8 from 'node:v8';
import vm from 'node:vm';

/**
 * Buffers of a body are garbage as soon as they are passed on, and V8 lets 32 MB of them pile up before it looks (twice
 * its default semi-space; no flag changes it in Node 20): a fifth of the service's memory. A look takes half a millisecond.
 */
const BYTES_BETWEEN_COLLECTIONS = 8 * 1024 * 1024;

let collectYoung: (() => void) | undefined;
let passedOn = 0;

/** Pipes, and has what was passed on freed soon. `options` are those of `pipe`. */
export function passOn(from: Readable, to: Writable, options?: { end?: boolean }): void {
  from.pipe(to, options);
  // After `pipe`: a chunk is counted when it has been written.
  from.on('data', (chunk: Buffer) => {
    passedOn += chunk.length;
    if (passedOn < BYTES_BETWEEN_COLLECTIONS) return;
    passedOn = 0;
    collectYoung ??= youngCollector();
    collectYoung();
  });
}

/** V8's own collection of what is young; nothing on a Node that doesn't give it. */
function youngCollector(): () => void {
  // Each context made meanwhile has it: this one alone.
  v8.setFlagsFromString('--expose-gc');
  const gc = vm.runInNewContext('globalThis.gc') as ((options: { type: 'minor' }) => void) | undefined;
  v8.setFlagsFromString('--no-expose-gc');
  return () => gc?.({ type: 'minor' });
}
