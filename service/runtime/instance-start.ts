import http from 'node:http';
import { AGENT_PORT } from '../../protocol/routing';
import { ServiceError } from '../errors';
import type { Instance, InstanceSpec } from './runtime';

/** What the start of an instance has in common, whichever runtime starts it. */

const INIT_TIMEOUT_MS = 10_000;

export function alreadyExists(id: string, cause?: unknown): ServiceError {
  return new ServiceError('already_exists', `An instance ${id} exists already`, { cause });
}

export function notFound(id: string, cause?: unknown): ServiceError {
  return new ServiceError('not_found', `No instance ${id} runs here`, { cause });
}

export function throwIfCancelled(signal: AbortSignal | undefined): void {
  if (signal?.aborted !== true) return;
  if (signal.reason instanceof ServiceError) throw signal.reason;
  throw new ServiceError('unavailable', 'The start was cancelled', { cause: signal.reason });
}

/** Tells a fresh agent its environment, its secret and its user. */
export async function initAgent(instance: Instance, spec: InstanceSpec, signal: AbortSignal): Promise<void> {
  const body = JSON.stringify({
    envVars: spec.env,
    accessToken: spec.accessToken,
    defaultUser: 'user',
    timestamp: new Date().toISOString(),
  });
  const socket = await instance.dial(AGENT_PORT, { signal });
  try {
    const status = await new Promise<number>((resolve, reject) => {
      const request = http.request({
        method: 'POST',
        path: '/init',
        headers: { host: 'sandbox', 'content-type': 'application/json', connection: 'close' },
        createConnection: () => socket,
        signal: AbortSignal.any([signal, AbortSignal.timeout(INIT_TIMEOUT_MS)]),
      });
      request.on('error', reject);
      request.on('response', (response) => {
        response.resume();
        response.on('error', reject);
        response.on('end', () => resolve(response.statusCode ?? 0));
      });
      request.end(body);
    });
    if (status >= 300) throw new ServiceError('unavailable', `The agent refused its settings (${status})`);
  } finally {
    socket.destroy();
  }
}
