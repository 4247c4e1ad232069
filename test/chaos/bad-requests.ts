import { api, interpreter } from './http';
import type { World } from './world';

interface BadRequest {
  what: string;
  status: readonly number[];
  /** The name of an error in the stream that is as good. */
  event?: string;
  send(world: World, sandboxId: string): Promise<Response>;
}

const UNKNOWN = 'i0000000000000000nope';
const execute = (body: unknown): BadRequest['send'] => {
  return (world, id) => api(world, 'POST', `/v1/sandboxes/${id}/executions`, body);
};

/** Requests that are wrong in one way each, and the only right answers. */
const BAD_REQUESTS: readonly BadRequest[] = [
  {
    what: 'no key',
    status: [401],
    send: (world) => fetch(`${world.service.url}/v2/sandboxes`, { signal: AbortSignal.timeout(60_000) }),
  },
  {
    what: 'a wrong key',
    status: [401],
    send: (world) =>
      api(world, 'GET', '/v2/sandboxes', undefined, { headers: { 'x-api-key': 'e2b_0123456789' } }),
  },
  { what: 'no JSON', status: [400], send: execute('{"code": ') },
  { what: 'no code', status: [400], send: execute({ detached: true }) },
  { what: 'a negative limit', status: [400], send: execute({ code: '1', timeout_ms: -5 }) },
  { what: 'an unknown field', status: [400], send: execute({ code: '1', nope: true }) },
  { what: 'an unknown context', status: [404], send: execute({ code: '1', context_id: 'nope' }) },
  {
    what: 'an unknown language',
    status: [400, 404],
    // The verdict of a slow gateway comes when the stream has begun.
    event: 'ContextError',
    send: execute({ code: '1', language: 'klingon' }),
  },
  {
    what: 'an unknown execution',
    status: [404],
    send: (world, id) => api(world, 'GET', `/v1/sandboxes/${id}/executions/nope/events`),
  },
  {
    what: 'an unknown sandbox',
    status: [404],
    send: (world) => api(world, 'POST', `/v1/sandboxes/${UNKNOWN}/executions`, { code: '1' }),
  },
  {
    what: 'an unknown sandbox at the edge',
    status: [502],
    send: (world) => interpreter(world, UNKNOWN, 'POST', '/execute', { code: '1' }),
  },
  {
    what: 'an unknown template',
    status: [404],
    send: (world) => api(world, 'POST', '/v2/sandboxes', { templateID: 'nope' }),
  },
  {
    what: 'interrupting an unknown context',
    status: [404],
    send: (world, id) => api(world, 'POST', `/v1/sandboxes/${id}/contexts/nope/interrupt`),
  },
  {
    what: 'a body that is binary junk',
    status: [400],
    send: (world, id) => api(world, 'POST', `/v1/sandboxes/${id}/executions`, '\u0000\u0001\ufffd{{{'),
  },
  {
    what: 'both context and language',
    status: [400],
    send: (world, id) =>
      interpreter(world, id, 'POST', '/execute', { code: '1', context_id: 'nope', language: 'python' }),
  },
];

/** Sends one of them; returns what is wrong with the answer. Rejects when there is none. */
export async function sendBadRequest(
  world: World,
  sandboxId: string,
  number: number,
): Promise<string | undefined> {
  const bad = BAD_REQUESTS[number % BAD_REQUESTS.length];
  if (bad === undefined) return undefined;
  const response = await bad.send(world, sandboxId);
  const text = await response.text();
  if (bad.status.includes(response.status)) return undefined;
  if (bad.event !== undefined && text.includes(`"name":"${bad.event}"`)) return undefined;
  return `${bad.what}: ${response.status} ${text.slice(0, 200)}, not ${bad.status.join(' or ')}`;
}
