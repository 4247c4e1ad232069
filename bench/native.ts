import http from 'node:http';
import type { IncomingMessage } from 'node:http';
import type { PoolInfo } from '../protocol/native';
import { HEADERS, INTERPRETER_PORT } from '../protocol/routing';
import { EXECUTION_TIMEOUT_MS } from './sdk-subject';
import type { Service } from './service';

/** The template of the code interpreter's SDK, which has a pool, and one that has none: each of its sandboxes starts cold. */
export const POOLED = 'code-interpreter-v1';
export const UNPOOLED = 'base';

const FILL_DEADLINE_MS = 300_000;
const POLL_MS = 100;
/** What a full pool and an ended sandbox still have to do in the background. */
const SETTLE_MS = 500;

export async function setPool(service: Service, target: number): Promise<void> {
  await ask(service, 'PUT', `/v1/pools/${POOLED}`, { target });
}

export async function poolOf(service: Service): Promise<PoolInfo> {
  const { items } = (await ask(service, 'GET', '/v1/pools')) as { items: PoolInfo[] };
  const pool = items.find((each) => each.template === POOLED);
  if (pool === undefined) throw new Error(`there is no pool of ${POOLED}`);
  return pool;
}

/** Waits until the pool is full and nothing else is under way. */
export async function quiet(service: Service): Promise<void> {
  const deadline = Date.now() + FILL_DEADLINE_MS;
  for (;;) {
    const { ready, starting, target, last_error } = await poolOf(service);
    if (ready === target && starting === 0) break;
    if (Date.now() > deadline) throw new Error(`the pool is not full: ${last_error ?? 'it says no why'}`);
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
  await new Promise((resolve) => setTimeout(resolve, SETTLE_MS));
}

/**
 * Runs code by E2B's `/execute` or by our own API; resolves with the answer's stream, unread, for whoever reads it at a
 * pace of his own.
 */
export function openStream(
  { url, apiKey }: Service,
  sandboxId: string,
  code: string,
  api: 'e2b' | 'native',
): Promise<IncomingMessage> {
  const path = api === 'e2b' ? '/execute' : `/v1/sandboxes/${sandboxId}/executions`;
  const headers =
    api === 'e2b'
      ? { [HEADERS.sandboxId]: sandboxId, [HEADERS.sandboxPort]: String(INTERPRETER_PORT) }
      : { [HEADERS.apiKey]: apiKey };
  return new Promise((resolve, reject) => {
    const request = http.request(url + path, {
      method: 'POST',
      agent: false,
      signal: AbortSignal.timeout(EXECUTION_TIMEOUT_MS),
      headers: { ...headers, 'content-type': 'application/json' },
    });
    request.on('error', reject);
    request.on('response', (response) => {
      if (response.statusCode === 200) resolve(response);
      else reject(new Error(`POST ${path} answered ${response.statusCode}`));
    });
    request.end(JSON.stringify({ code }));
  });
}

async function ask({ url, apiKey }: Service, method: string, path: string, body?: object): Promise<unknown> {
  const response = await fetch(url + path, {
    method,
    headers: { 'x-api-key': apiKey, 'content-type': 'application/json' },
    ...(body !== undefined && { body: JSON.stringify(body) }),
    signal: AbortSignal.timeout(10_000),
  });
  if (!response.ok)
    throw new Error(`${method} ${path} answered ${response.status}: ${await response.text()}`);
  return response.json();
}
