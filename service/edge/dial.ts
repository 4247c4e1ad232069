import type { Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { ServiceError } from '../errors';
import type { Instance } from '../runtime/runtime';

/** Pauses between attempts: a server that is just starting has about a second to open its port. */
const PAUSES_MS = [100, 200, 300, 400];

/**
 * Connects to a port of an instance, trying again while nothing listens there. The caller owns the socket.
 * Rejects as `Instance.dial` does, or with the signal's reason.
 */
export async function dialPatiently(instance: Instance, port: number, signal: AbortSignal): Promise<Socket> {
  for (let attempt = 0; ; attempt++) {
    signal.throwIfAborted();
    try {
      return await instance.dial(port, { signal });
    } catch (error) {
      const pause = PAUSES_MS[attempt];
      if (pause === undefined || !(error instanceof ServiceError) || error.code !== 'not_found') throw error;
      await delay(pause, undefined, { signal });
    }
  }
}
