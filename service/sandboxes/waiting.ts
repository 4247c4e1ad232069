import { setTimeout as delay } from 'node:timers/promises';
import { ServiceError } from '../errors';

/** How long a start that was told to give up may take to do so before it is left behind and stopped from outside. */
const ABORT_GRACE_MS = 5_000;

/** `work`, or `deadline_exceeded` naming what took too long. The work itself goes on; its end is ignored then. */
export async function deadline<T>(work: Promise<T>, timeoutMs: number, what: string): Promise<T> {
  const timer = new AbortController();
  work.catch(() => undefined); // reported through the race; after the deadline nobody waits for it
  try {
    return await Promise.race([
      work,
      delay(timeoutMs, undefined, { signal: timer.signal }).then(() => {
        throw new ServiceError('deadline_exceeded', `${what} took more than ${timeoutMs / 1000} s`);
      }),
    ]);
  } finally {
    timer.abort();
  }
}

/** `work`, which was given `signal` itself: when it does not give up soon after the abort, it is left to itself. */
export async function giveUp<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  const timer = new AbortController();
  work.catch(() => undefined); // reported through the race; after the grace nobody waits for it
  let onAbort: () => void = () => undefined;
  const abandoned = new Promise<never>((_resolve, reject) => {
    onAbort = () => {
      delay(ABORT_GRACE_MS, undefined, { signal: timer.signal }).then(
        () => reject(new ServiceError('deadline_exceeded', 'The runtime did not give up in time')),
        () => undefined, // the work has settled
      );
    };
    if (signal.aborted) onAbort();
    else signal.addEventListener('abort', onAbort, { once: true });
  });
  try {
    return await Promise.race([work, abandoned]);
  } finally {
    timer.abort();
    signal.removeEventListener('abort', onAbort);
  }
}
