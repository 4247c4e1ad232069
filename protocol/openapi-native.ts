import { z } from 'zod';
import { OutputEvent } from './interpreter';
import {
  CreatedTeamKey,
  ExecutionInfo,
  ExecutionList,
  ExecutionStarted,
  NativeError,
  NewExecution,
  NewTeam,
  NewTeamKey,
  PoolInfo,
  PoolList,
  PoolSizeRequest,
  ServiceInfo,
  TeamChanges,
  TeamInfo,
  TeamKeyInfo,
} from './native';
import { empty, json } from './openapi-operation';
import type { Operation, OperationAnswer } from './openapi-operation';

/** One line of the stream: an event with its number. A keepalive is none, and has no number. */
const ExecutionEvent = z.discriminatedUnion(
  'type',
  OutputEvent.options.map((event) =>
    event.shape.type.value === 'keepalive' ? event : event.extend({ seq: z.int().min(0) }),
  ) as [(typeof OutputEvent.options)[number], ...(typeof OutputEvent.options)[number][]], // there is at least one
);

export const NATIVE_REQUESTS = { NewExecution, PoolSize: PoolSizeRequest, NewTeam, TeamChanges, NewTeamKey };
export const NATIVE_ANSWERS = {
  ServiceInfo,
  ExecutionInfo,
  ExecutionList,
  ExecutionStarted,
  ExecutionEvent,
  Pool: PoolInfo,
  PoolList,
  TeamInfo,
  TeamKeyInfo,
  CreatedTeamKey,
  NativeError,
};

const EVENTS: OperationAnswer = {
  status: 200,
  description: 'One event a line, until the end',
  schema: ExecutionEvent,
  mediaType: 'application/x-ndjson',
  headers: { 'X-Execution-Id': 'Names the execution.' },
};
const TEXT = { schema: z.string(), mediaType: 'text/plain' };
const EXECUTIONS = '/v1/sandboxes/{sandboxID}/executions';
const EXECUTION = `${EXECUTIONS}/{executionID}`;

/** What E2B's API has no words for. */
export const NATIVE_OPERATIONS: Operation[] = [
  {
    method: 'get',
    path: '/v1/info',
    tag: 'Service',
    summary: 'Version, runtime, templates, languages and limits',
    answers: [json(200, 'What this service is', ServiceInfo)],
  },
  {
    method: 'post',
    path: EXECUTIONS,
    tag: 'Executions',
    summary: 'Run code',
    description: 'It runs to its end whether or not anybody reads.',
    body: NewExecution,
    answers: [EVENTS, json(202, '`detached`: it has its place in the queue', ExecutionStarted)],
    errors: [400, 404, 409, 429, 503],
  },
  {
    method: 'get',
    path: EXECUTIONS,
    tag: 'Executions',
    summary: 'Executions of a sandbox, newest first',
    query: z.object({ limit: z.int().min(1).max(100).optional(), next_token: z.string().optional() }),
    answers: [json(200, 'One page', ExecutionList)],
    errors: [400, 404],
  },
  {
    method: 'get',
    path: EXECUTION,
    tag: 'Executions',
    summary: 'One execution',
    answers: [json(200, 'It', ExecutionInfo)],
    errors: [400, 404],
  },
  {
    method: 'get',
    path: `${EXECUTION}/events`,
    tag: 'Executions',
    summary: 'Events of an execution, and then those that come',
    query: z.object({ from: z.int().min(0).describe('Number of the first one; 0 when absent').optional() }),
    answers: [EVENTS],
    errors: [400, 404],
  },
  {
    method: 'post',
    path: `${EXECUTION}/cancel`,
    tag: 'Executions',
    summary: 'Interrupt an execution; one that waits never starts',
    answers: [json(202, 'The kernel was told', ExecutionInfo)],
    errors: [400, 404, 409],
  },
  {
    method: 'get',
    path: `${EXECUTION}/output/{stream}`,
    tag: 'Executions',
    summary: 'The whole text of `stdout` or `stderr`',
    headers: { Range: 'One range of bytes' },
    answers: [
      {
        ...TEXT,
        status: 200,
        description: 'All of it',
        headers: { 'X-Lost-Bytes': 'What there was no room for; absent where there was.' },
      },
      { ...TEXT, status: 206, description: 'The part that was asked for' },
      empty(416, 'There is no such part'),
    ],
    errors: [400, 404],
  },
  {
    method: 'post',
    path: '/v1/sandboxes/{sandboxID}/contexts/{contextID}/interrupt',
    tag: 'Executions',
    summary: 'Interrupt what runs in a context',
    answers: [json(202, 'Whatever ran there was interrupted', z.object({}))],
    errors: [400, 404, 409],
  },
  {
    method: 'get',
    path: '/v1/pools',
    tag: 'Pools',
    summary: 'Sandboxes that are kept ready',
    answers: [json(200, 'One for each template', PoolList)],
    errors: [403],
  },
  {
    method: 'put',
    path: '/v1/pools/{template}',
    tag: 'Pools',
    summary: 'Set how many are kept ready, until the service ends',
    body: PoolSizeRequest,
    answers: [json(200, 'The pool', PoolInfo)],
    errors: [400, 403, 404, 501],
  },
  ...teams(),
  {
    method: 'get',
    path: '/metrics',
    tag: 'Service',
    access: 'admin',
    summary: 'Metrics of the service for Prometheus',
    answers: [{ ...TEXT, status: 200, description: 'Prometheus text' }],
  },
  {
    method: 'get',
    path: '/docs',
    tag: 'Service',
    access: 'none',
    summary: 'This description, to read',
    answers: [{ status: 200, description: 'A page', schema: z.string(), mediaType: 'text/html' }],
  },
  {
    method: 'get',
    path: '/docs/openapi.json',
    tag: 'Service',
    access: 'none',
    summary: 'This description, as OpenAPI 3.1',
    answers: [json(200, 'The document', z.looseObject({ openapi: z.string() }))],
  },
];

function teams(): Operation[] {
  const base = { tag: 'Teams', access: 'admin' } as const;
  const all = '/v1/admin/teams';
  const one = `${all}/{team}`;
  const keys = `${one}/keys`;
  const page = z.object({ limit: z.int().min(1).max(100).optional(), next_token: z.string().optional() });
  const listOf = (item: z.ZodType) => z.object({ items: z.array(item), next_token: z.string().nullable() });
  return [
    {
      ...base,
      method: 'get',
      path: all,
      summary: 'Teams, newest first',
      query: page,
      answers: [json(200, 'One page', listOf(TeamInfo))],
      errors: [400],
    },
    {
      ...base,
      method: 'post',
      path: all,
      summary: 'Create a team',
      body: NewTeam,
      answers: [json(201, 'It has no key yet', TeamInfo)],
      errors: [400, 409],
    },
    {
      ...base,
      method: 'get',
      path: one,
      summary: 'One team',
      answers: [json(200, 'It', TeamInfo)],
      errors: [404],
    },
    {
      ...base,
      method: 'patch',
      path: one,
      summary: 'Change the limits of a team',
      body: TeamChanges,
      bodyOptional: true,
      answers: [json(200, 'As it is now', TeamInfo)],
      errors: [400, 404],
    },
    {
      ...base,
      method: 'get',
      path: keys,
      summary: 'Keys of a team, newest first',
      query: page,
      answers: [json(200, 'One page; of a key, how it begins and ends', listOf(TeamKeyInfo))],
      errors: [400, 404],
    },
    {
      ...base,
      method: 'post',
      path: keys,
      summary: 'Create a key',
      body: NewTeamKey,
      answers: [json(201, 'The only time that the key is shown', CreatedTeamKey)],
      errors: [400, 404],
    },
    {
      ...base,
      method: 'delete',
      path: `${keys}/{key}`,
      summary: 'Revoke a key',
      answers: [empty(204, 'It works no longer')],
      errors: [404],
    },
  ];
}
