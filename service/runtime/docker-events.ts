import type { Readable } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import type Dockerode from 'dockerode';
import type { Logger } from '../log';
import { callEngine } from './docker-engine';

/** What the engine tells of one container. */
export interface EngineEvent {
  action: 'die' | 'oom';
  containerId: string;
  exitCode?: string;
}

/** One line of the engine's event stream; undefined for what we did not ask for. */
export function parseEvent(line: string): EngineEvent | undefined {
  try {
    const event = JSON.parse(line) as {
      Action?: unknown;
      Actor?: { ID?: unknown; Attributes?: { exitCode?: unknown } };
    } | null;
    const action = event?.Action;
    const containerId = event?.Actor?.ID;
    if ((action !== 'die' && action !== 'oom') || typeof containerId !== 'string') return undefined;
    const exitCode = event?.Actor?.Attributes?.exitCode;
    return { action, containerId, ...(typeof exitCode === 'string' ? { exitCode } : {}) };
  } catch {
    return undefined; // a line cut off by the end of the stream; the reconnect compares everything anyway
  }
}

export interface FollowOptions {
  docker: Dockerode;
  /** Labels of the containers that matter. */
  labels: readonly string[];
  signal: AbortSignal;
  logger: Logger;
  onEvent: (event: EngineEvent) => void;
  /** Each time that the engine is there; `isFirst` the first time. What rejects is tried again, as if it had gone away. */
  onConnected: (isFirst: boolean) => Promise<void>;
}

const MAX_PAUSE_MS = 5_000;

/** Follows the engine's events, through its restarts, until the signal aborts. Never rejects. */
export async function followEvents(options: FollowOptions): Promise<void> {
  const { docker, labels, signal, logger, onEvent, onConnected } = options;
  let isFirst = true;
  for (let failures = 0; !signal.aborted;) {
    try {
      const stream = (await callEngine(
        'follow events',
        docker.getEvents({
          abortSignal: signal,
          filters: { type: ['container'], event: ['die', 'oom'], label: [...labels] },
        }),
      )) as Readable;
      failures = 0;
      await onConnected(isFirst);
      isFirst = false;
      let rest = '';
      for await (const chunk of stream.setEncoding('utf8')) {
        const lines = (rest + String(chunk)).split('\n');
        rest = lines.pop() ?? '';
        for (const line of lines) {
          const event = parseEvent(line);
          if (event !== undefined) onEvent(event);
        }
      }
    } catch (error) {
      if (signal.aborted) break;
      logger.warn({ error }, 'the container engine went away; sandboxes are not given up for that');
    }
    failures++;
    const pauseMs = Math.min(MAX_PAUSE_MS, 100 * 2 ** Math.min(failures, 10));
    await delay(pauseMs, undefined, { signal }).catch(() => undefined); // closed: the loop ends
  }
}
