import diagnostics from 'node:diagnostics_channel';
import { now } from './log';
import type { World } from './world';

/** Generous: slowness is nobody's fault here, silence is. */
export const REQUEST_DEADLINE_MS = 90_000;

/** A request with the API key. Rejects when there is no answer. */
export function api(
  { service }: World,
  method: string,
  path: string,
  body?: unknown,
  init: { headers?: Record<string, string>; deadlineMs?: number; signal?: AbortSignal } = {},
): Promise<Response> {
  const deadline = AbortSignal.timeout(init.deadlineMs ?? REQUEST_DEADLINE_MS);
  return fetch(`${service.url}${path}`, {
    method,
    headers: { 'content-type': 'application/json', 'x-api-key': service.apiKey, ...init.headers },
    signal: init.signal === undefined ? deadline : AbortSignal.any([deadline, init.signal]),
    ...(body === undefined ? {} : { body: typeof body === 'string' ? body : JSON.stringify(body) }),
  });
}

/** The same for the interpreter's port of a sandbox. */
export function interpreter(
  world: World,
  sandboxId: string,
  method: string,
  path: string,
  body?: unknown,
  signal?: AbortSignal,
): Promise<Response> {
  return api(world, method, path, body, {
    headers: { 'e2b-sandbox-id': sandboxId, 'e2b-sandbox-port': '49999' },
    ...(signal && { signal }),
  });
}

/** The lines of a stream of JSON; `cut` says after which to hang up. */
export async function* lines(response: Response): AsyncGenerator<string, void> {
  if (response.body === null) return;
  const decoder = new TextDecoder();
  let rest = '';
  for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
    const parts = (rest + decoder.decode(chunk, { stream: true })).split('\n');
    rest = parts.pop() ?? '';
    for (const part of parts) if (part !== '') yield part;
  }
  if (rest !== '') yield rest;
}

interface FailedRequest {
  request: { method: string; path: string };
  error: Error & { code?: string };
}

const KEPT_FAILURES = 8;
const failures: string[] = [];

/** Notes why requests fail, the SDK's too, which only tells that they did. */
export function watchFailures(since: number): void {
  diagnostics.subscribe('undici:request:error', (message) => {
    const { request, error } = message as FailedRequest; // as undici documents it
    const seconds = ((now() - since) / 1000).toFixed(2);
    failures.push(
      `${seconds} s ${request.method} ${request.path.slice(0, 60)}: ${error.code ?? error.name} ${error.message}`,
    );
    if (failures.length > KEPT_FAILURES) failures.shift();
  });
}

export function lastFailures(): readonly string[] {
  return failures;
}
