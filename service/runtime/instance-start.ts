import http from 'node:http';
import { AGENT_PORT } from '../../protocol/routing';
import { ServiceError } from '../errors';
import { traced } from '../observability/scope';
import type { Instance, InstanceSpec, Resources } from './runtime';

/** What the start of an instance has in common, whichever runtime starts it. */

const ANSWER_TIMEOUT_MS = 10_000;
const WAKE_AFTER_MS = 50;
/** Of one variable. Linux takes 128 KiB. */
const MAX_VARIABLE_BYTES = 100 * 1024;

export function alreadyExists(id: string, cause?: unknown): ServiceError {
  return new ServiceError('already_exists', `An instance ${id} exists already`, { cause });
}

export function notFound(id: string, cause?: unknown): ServiceError {
  return new ServiceError('not_found', `No instance ${id} runs here`, { cause });
}

export function noSuchIsolation(level: string, levels: readonly string[], remedy?: string): ServiceError {
  return new ServiceError(
    'failed_precondition',
    `There is no isolation level ${level} here, only ${levels.join(', ')}`,
    remedy === undefined ? {} : { remedy },
  );
}

export function throwIfCancelled(signal: AbortSignal | undefined): void {
  if (signal?.aborted !== true) return;
  if (signal.reason instanceof ServiceError) throw signal.reason;
  throw new ServiceError('unavailable', 'The start was cancelled', { cause: signal.reason });
}

/**
 * Bytes of the largest file that a process may write, whatever limits all files together: one that grows without end is
 * the commonest accident. What is as large as the memory may be no file at all, but a piece of it that processes share.
 */
export function largestFileBytes({ diskSizeMB, memoryMB }: Resources): number {
  return Math.max(diskSizeMB, memoryMB) * 1_048_576;
}

/**
 * What a machine's first processes find in their environment, for the supervisor alone: the deadline and, where it fits,
 * what `/init` would say. A request for it costs a create 20 ms, as the machine's own start keeps the processors busy.
 */
export function startVariables(spec: InstanceSpec): Record<string, string> {
  return {
    CELLBOX_DEADLINE_AT: String(spec.deadlineAt),
    ...(isToldAtStart(spec) ? { CELLBOX_STATE: initText(spec) } : {}),
    ...(spec.gatewayWaits === true ? { CELLBOX_GATEWAY_WAITS: '1' } : {}),
  };
}

/** Whether `startVariables` say all that the agent must know. */
export function isToldAtStart(spec: InstanceSpec): boolean {
  return Buffer.byteLength(initText(spec)) <= MAX_VARIABLE_BYTES;
}

/** Tells a fresh agent its environment, its secret and its user. */
export function initAgent(instance: Instance, spec: InstanceSpec, signal: AbortSignal): Promise<void> {
  return postInit(instance, spec, new Date().toISOString(), signal);
}

/**
 * The same for an agent that was told before it was known whose sandbox it is. Without a time: where the clock was set
 * back in between, the agent would take this for the older one of the two and ignore it.
 */
export function initAgentAgain(
  instance: Instance,
  spec: Pick<InstanceSpec, 'env' | 'accessToken'>,
  signal: AbortSignal,
): Promise<void> {
  return postInit(instance, spec, undefined, signal);
}

/**
 * Asks a fresh agent something, and nobody waits for the answer: the first one takes 10 ms longer than all others, which a
 * claim or a first command would wait for. A moment later: the one who waits for the machine comes first.
 */
export function wakeAgent(instance: Instance): void {
  setTimeout(() => {
    pingAgent(instance, AbortSignal.timeout(ANSWER_TIMEOUT_MS)).catch(() => undefined); // whoever asks next is told
  }, WAKE_AFTER_MS).unref();
}

/** Rejects when the agent doesn't say that it is well. */
export async function pingAgent(instance: Instance, signal: AbortSignal): Promise<void> {
  const status = await askAgent(instance, { method: 'GET', path: '/health', signal });
  if (status !== 204) throw new ServiceError('unavailable', `The agent is not well (${status})`);
}

async function postInit(
  instance: Instance,
  spec: Pick<InstanceSpec, 'env' | 'accessToken'>,
  timestamp: string | undefined,
  signal: AbortSignal,
): Promise<void> {
  const body = initText(spec, timestamp);
  const status = await traced('agent.init', { 'cellbox.sandbox.id': instance.id }, () =>
    askAgent(instance, { method: 'POST', path: '/init', body, signal }),
  );
  if (status >= 300) throw new ServiceError('unavailable', `The agent refused its settings (${status})`);
}

/**
 * The body of `/init`. Without a time it is never older than another: what a machine found at its start must not count
 * more than what it is told after its clock was set back.
 */
function initText(
  { env, accessToken }: Pick<InstanceSpec, 'env' | 'accessToken'>,
  timestamp?: string,
): string {
  return JSON.stringify({ envVars: env, accessToken, defaultUser: 'user', timestamp });
}

/** One request over a connection of its own; the answer's status. */
async function askAgent(
  instance: Instance,
  { signal, body, ...target }: { method: string; path: string; body?: string; signal: AbortSignal },
): Promise<number> {
  const socket = await instance.dial(AGENT_PORT, { signal });
  try {
    return await new Promise<number>((resolve, reject) => {
      const request = http.request({
        ...target,
        headers: { host: 'sandbox', 'content-type': 'application/json', connection: 'close' },
        createConnection: () => socket,
        signal: AbortSignal.any([signal, AbortSignal.timeout(ANSWER_TIMEOUT_MS)]),
      });
      request.on('error', reject);
      request.on('response', (response) => {
        response.resume();
        response.on('error', reject);
        response.on('end', () => resolve(response.statusCode ?? 0));
      });
      request.end(body);
    });
  } finally {
    socket.destroy();
  }
}
