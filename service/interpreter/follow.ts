import type { ServerResponse } from 'node:http';
import { EventStream } from './event-stream';
import type { ExecutionRecord } from './execution-record';

/**
 * Sends a record's events from number `from` on, as NDJSON, until the execution has ended. The reader takes its time:
 * what it has not taken waits in the record. Its leaving ends nothing but this. Never rejects; owns `res`.
 */
export async function follow(
  record: ExecutionRecord,
  from: number,
  res: ServerResponse,
  keepaliveMs: number,
): Promise<void> {
  const isPast = record.ending !== undefined;
  const stream = new EventStream(res, keepaliveMs, record.id);
  const gone = new AbortController();
  let drained: (() => void) | undefined;
  stream.onDrain = () => drained?.();
  res.once('close', () => {
    gone.abort();
    drained?.();
  });
  try {
    for await (const lines of record.log.read(from, gone.signal)) {
      if (!stream.write(lines)) await new Promise<void>((resolve) => (drained = resolve));
      if (gone.signal.aborted) return;
    }
    // Whoever was there breaks off with the sandbox; whoever asks after a pause is told all there is.
    if (!isPast && record.ending?.termination === 'sandbox_ended') stream.reset();
    else stream.end();
  } catch {
    stream.reset(); // the files are gone, with the sandbox or with the disk: nobody must take this for the end
  }
}
