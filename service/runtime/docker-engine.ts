import { setTimeout as delay } from 'node:timers/promises';
import Dockerode from 'dockerode';
import { ServiceError } from '../errors';

/** How long one call to the engine may take unless the caller knows better. Creating under load takes seconds. */
export const ENGINE_TIMEOUT_MS = 30_000;
const FREEZE_TIMEOUT_MS = 10_000;
const FREEZE_RETRY_MS = 50;

/** A client for the engine that `DOCKER_HOST` names, else for the one on the default socket. Connects to nothing yet. */
export function connectEngine(): Dockerode {
  return new Dockerode();
}

/** Whether an engine answers now; the reason when not. Never rejects. */
export async function pingEngine(
  docker: Dockerode,
  timeoutMs = 2_000,
): Promise<{ ok: true } | { ok: false; detail: string }> {
  try {
    await callEngine('ping', docker.ping(), timeoutMs);
    return { ok: true };
  } catch (error) {
    return { ok: false, detail: engineDetail(error) };
  }
}

/** HTTP status of the engine's answer; undefined when it gave none. */
export function engineStatus(error: unknown): number | undefined {
  const source = error instanceof ServiceError ? error.cause : error;
  const status = (source as { statusCode?: unknown } | undefined)?.statusCode;
  return typeof status === 'number' ? status : undefined;
}

/** What the engine said, for the log and for the operator; may name paths of the host. */
export function engineDetail(error: unknown): string {
  const source = error instanceof ServiceError && error.cause !== undefined ? error.cause : error;
  if (!(source instanceof Object)) return String(source);
  const { message, reason, json } = source as { message?: string; reason?: string; json?: unknown };
  const text = (json as { message?: string } | null | undefined)?.message ?? message ?? reason;
  return (text ?? String(source)).replace(/\s+/g, ' ').trim();
}

/**
 * Awaits one call to the engine, with a deadline, and turns its failure into a ServiceError.
 *
 * - 404 is `not_found`, 409 `failed_precondition`; everything else, no answer included, is `unavailable`
 * - the message names `what` only: the engine's own text goes into `cause`, because it may name paths of the host
 * - past the deadline the call itself goes on: whoever creates something must still look at what became of it
 */
export async function callEngine<T>(
  what: string,
  call: Promise<T>,
  timeoutMs = ENGINE_TIMEOUT_MS,
): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(
      () => reject(new ServiceError('unavailable', `The container engine did not answer in time (${what})`)),
      timeoutMs,
    );
  });
  try {
    return await Promise.race([call, late]);
  } catch (error) {
    if (error instanceof ServiceError) throw error;
    const status = engineStatus(error);
    if (status === 404) throw new ServiceError('not_found', `Not found: ${what}`, { cause: error });
    if (status === 409) throw new ServiceError('failed_precondition', `Conflict: ${what}`, { cause: error });
    throw new ServiceError(
      'unavailable',
      status === undefined
        ? `The container engine does not answer (${what})`
        : `The container engine failed (${what})`,
      { cause: error },
    );
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Freezes all processes of a container; fails as `callEngine` does.
 *
 * With cgroup v1 the engine gives up within a second when one of them waits for a disk or begins just then, and lets
 * them go on. Nothing is wrong with such a container, so it is tried again, until the deadline.
 */
export async function freeze(
  container: Pick<Dockerode.Container, 'pause'>,
  timeoutMs = FREEZE_TIMEOUT_MS,
): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    try {
      await callEngine('pause sandbox', container.pause());
      return;
    } catch (error) {
      if (!engineDetail(error).includes('unable to freeze') || performance.now() >= deadline) throw error;
    }
    await delay(FREEZE_RETRY_MS);
  }
}
