import type { RequestHandler } from 'express';
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from '../log';
import type { Check } from '../runtime/runtime';

/** How long an answer is reused: probes may come from many places, and a check may ask an engine. */
const KEEP_MS = 2_000;
const TIMEOUT_MS = 5_000;

/**
 * `GET /health`: 204 when a sandbox could be created now, else 503 with the named checks and what to do. Asks for no
 * key; details of failures are for operators and name no secret.
 */
export function healthHandler(check: () => Promise<Check[]>, logger: Logger): RequestHandler {
  let latest: { at: number; checks: Promise<Check[]> } | undefined;
  return async (_req, res) => {
    if (latest === undefined || Date.now() - latest.at > KEEP_MS) {
      latest = { at: Date.now(), checks: attempt(check, logger) };
    }
    const checks = await latest.checks;
    const failed = checks.filter((each) => !each.ok);
    if (failed.length === 0) {
      res.status(204).end();
      return;
    }
    const names = failed.map((each) => each.name).join(', ');
    res.status(503).json({ code: 503, message: `Sandboxes can't be created now: ${names}`, checks });
  };
}

async function attempt(check: () => Promise<Check[]>, logger: Logger): Promise<Check[]> {
  const timer = new AbortController();
  try {
    return await Promise.race([
      check(),
      delay(TIMEOUT_MS, undefined, { signal: timer.signal }).then(() => [
        { name: 'runtime', ok: false, detail: `it did not answer within ${TIMEOUT_MS / 1000} s` },
      ]),
    ]);
  } catch (error) {
    logger.error({ err: error }, 'the health check failed');
    return [{ name: 'runtime', ok: false, detail: 'its check failed; the log says why' }];
  } finally {
    timer.abort();
  }
}
