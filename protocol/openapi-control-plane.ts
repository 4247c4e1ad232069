import { z } from 'zod';
import {
  ApiError,
  ConnectSandbox,
  ConnectSandboxV2,
  LOG_LEVELS,
  LOG_LIMIT,
  LOG_SEARCH_MAX,
  ListedSandbox,
  NewSandbox,
  NewSandboxV2,
  PAGE_LIMIT,
  ResumeSandbox,
  SandboxAnswer,
  SandboxDetail,
  SandboxLogs,
  SandboxLogsV2,
  SandboxMetric,
  SandboxMetrics,
  SandboxNetworkUpdate,
  SandboxPause,
  SandboxRefresh,
  SandboxState,
  SandboxTimeout,
  TemplateAlias,
  TemplateAnswer,
  TemplateDetail,
  Unhealthy,
} from './control-plane';
import { empty, json } from './openapi-operation';
import type { HttpMethod, Operation } from './openapi-operation';

/** Names of the schemas under `components`: of what is asked, and of what is answered. */
export const CONTROL_PLANE_REQUESTS = {
  NewSandbox,
  NewSandboxV2,
  ConnectSandbox,
  ConnectSandboxV2,
  ResumeSandbox,
  SandboxTimeout,
  SandboxRefresh,
  SandboxPause,
  SandboxNetworkUpdate,
};
export const CONTROL_PLANE_ANSWERS = {
  Sandbox: SandboxAnswer,
  ListedSandbox,
  SandboxDetail,
  SandboxMetric,
  SandboxMetrics,
  SandboxLogs,
  SandboxLogsV2,
  Template: TemplateAnswer,
  TemplateDetail,
  TemplateAlias,
  Error: ApiError,
  Unhealthy,
};

const ANY_SANDBOX = [400, 404];
const NEXT_TOKEN = { 'X-Next-Token': 'Where the next page begins; absent on the last one.' };
const metadata = z.string().describe('`key=value&…`, encoded once more than the query itself').optional();
const page = {
  limit: z.int().min(1).max(PAGE_LIMIT).optional(),
  nextToken: z.string().optional(),
};

/** E2B's endpoints for sandboxes and templates, as far as they are served. */
export const CONTROL_PLANE_OPERATIONS: Operation[] = [
  {
    method: 'get',
    path: '/health',
    tag: 'Service',
    access: 'none',
    summary: 'Whether a sandbox could be created now',
    answers: [empty(204, 'It could'), json(503, 'It could not; which checks failed', Unhealthy)],
  },
  ...creates(),
  {
    method: 'get',
    path: '/sandboxes',
    tag: 'Sandboxes',
    summary: 'Running sandboxes',
    query: z.object({ metadata }),
    answers: [json(200, 'Newest first', z.array(ListedSandbox))],
    errors: [400],
  },
  {
    method: 'get',
    path: '/v2/sandboxes',
    tag: 'Sandboxes',
    summary: 'Sandboxes, page by page',
    query: z.object({
      metadata,
      state: z
        .string()
        .describe(`${SandboxState.options.join(' or ')}, or both with a comma; both when absent`)
        .optional(),
      order: z.enum(['asc', 'desc']).describe('By the time of the start; `desc` when absent').optional(),
      startedAfter: z.iso.datetime().describe('Inclusive').optional(),
      template: z.string().describe('Id or alias').optional(),
      ...page,
    }),
    answers: [
      {
        ...json(200, 'One page', z.array(ListedSandbox)),
        headers: {
          ...NEXT_TOKEN,
          'X-Total-Running': 'How many run, on all pages; only when running ones were asked for.',
        },
      },
    ],
    errors: [400],
  },
  {
    method: 'get',
    path: '/sandboxes/metrics',
    tag: 'Sandboxes',
    summary: 'What several sandboxes use now',
    query: z.object({ sandbox_ids: z.string().describe('At most 100, with commas') }),
    answers: [json(200, 'By id; those that are unknown or were not asked yet are left out', SandboxMetrics)],
    errors: [400],
  },
  {
    method: 'get',
    path: '/sandboxes/{sandboxID}',
    tag: 'Sandboxes',
    summary: 'One sandbox',
    answers: [json(200, 'It', SandboxDetail)],
    errors: ANY_SANDBOX,
  },
  {
    method: 'delete',
    path: '/sandboxes/{sandboxID}',
    tag: 'Sandboxes',
    summary: 'End a sandbox, running or paused',
    answers: [empty(204, 'It is gone')],
    errors: ANY_SANDBOX,
  },
  ...connects(),
  {
    method: 'post',
    path: '/sandboxes/{sandboxID}/timeout',
    tag: 'Sandboxes',
    summary: 'Set the deadline, sooner or later than before',
    body: SandboxTimeout,
    answers: [empty(204, 'Counted from now, in seconds')],
    errors: [...ANY_SANDBOX, 409],
  },
  {
    method: 'post',
    path: '/sandboxes/{sandboxID}/refreshes',
    tag: 'Sandboxes',
    summary: 'Make a sandbox live at least so long from now',
    body: SandboxRefresh,
    bodyOptional: true,
    answers: [empty(204, 'The deadline is never sooner than before')],
    errors: [...ANY_SANDBOX, 409],
  },
  {
    method: 'post',
    path: '/sandboxes/{sandboxID}/pause',
    tag: 'Sandboxes',
    summary: 'Freeze memory and processors; with memory: false, end all that runs and keep the files',
    body: SandboxPause,
    bodyOptional: true,
    answers: [empty(204, 'It is paused, and has no deadline')],
    errors: [...ANY_SANDBOX, 409, 501],
  },
  {
    method: 'post',
    path: '/sandboxes/{sandboxID}/resume',
    tag: 'Sandboxes',
    summary: 'Resume a paused sandbox (older form of connect)',
    body: ResumeSandbox,
    bodyOptional: true,
    answers: [json(201, 'It runs', SandboxAnswer)],
    errors: [...ANY_SANDBOX, 409],
  },
  {
    method: 'put',
    path: '/sandboxes/{sandboxID}/network',
    tag: 'Sandboxes',
    summary: 'Replace what a sandbox may reach, running or paused',
    body: SandboxNetworkUpdate,
    answers: [empty(204, 'It holds, also for connections that stand')],
    errors: [...ANY_SANDBOX, 409, 501, 503],
  },
  {
    method: 'get',
    path: '/sandboxes/{sandboxID}/metrics',
    tag: 'Sandboxes',
    summary: 'What a sandbox used',
    query: z.object({
      start: z.int().min(0).describe('Seconds since the epoch').optional(),
      end: z.int().min(0).describe('Seconds since the epoch').optional(),
    }),
    answers: [json(200, 'Oldest first', z.array(SandboxMetric))],
    errors: ANY_SANDBOX,
  },
  {
    method: 'get',
    path: '/sandboxes/{sandboxID}/logs',
    tag: 'Sandboxes',
    summary: 'Log of a sandbox: its life, and what its agent and gateway said; until a day after its end',
    query: z.object({
      start: z.int().min(0).describe('Milliseconds since the epoch').optional(),
      limit: z.int().min(1).max(LOG_LIMIT).describe(`Default ${LOG_LIMIT}`).optional(),
    }),
    answers: [json(200, 'Oldest first', SandboxLogs)],
    errors: ANY_SANDBOX,
  },
  {
    method: 'get',
    path: '/v2/sandboxes/{sandboxID}/logs',
    tag: 'Sandboxes',
    summary: 'Log of a sandbox, in either direction',
    query: z.object({
      cursor: z
        .int()
        .min(0)
        .describe('Milliseconds since the epoch: forward from then on, backward what was before')
        .optional(),
      limit: z.int().min(1).max(LOG_LIMIT).describe(`Default ${LOG_LIMIT}`).optional(),
      direction: z.enum(['forward', 'backward']).describe('Default backward: newest first').optional(),
      level: z.enum(LOG_LEVELS).describe('The least that is told').optional(),
      search: z.string().max(LOG_SEARCH_MAX).describe('In the message, letter case ignored').optional(),
    }),
    answers: [json(200, 'In the direction asked for', SandboxLogsV2)],
    errors: ANY_SANDBOX,
  },
  {
    method: 'get',
    path: '/templates',
    tag: 'Templates',
    summary: 'Templates',
    answers: [json(200, 'All of them', z.array(TemplateAnswer))],
  },
  {
    method: 'get',
    path: '/v2/templates',
    tag: 'Templates',
    summary: 'Templates, page by page',
    query: z.object(page),
    answers: [{ ...json(200, 'One page', z.array(TemplateAnswer)), headers: NEXT_TOKEN }],
    errors: [400],
  },
  {
    method: 'get',
    path: '/templates/aliases/{alias}',
    tag: 'Templates',
    summary: 'The template of a name',
    answers: [json(200, 'Its id', TemplateAlias)],
    errors: [400, 404],
  },
  {
    method: 'get',
    path: '/templates/{templateID}',
    tag: 'Templates',
    summary: 'One template with its builds',
    answers: [json(200, 'It', TemplateDetail)],
    errors: [400, 404],
  },
];

function creates(): Operation[] {
  const create = {
    method: 'post' as HttpMethod,
    tag: 'Sandboxes',
    headers: {
      'Idempotency-Key': '1 to 255 of `a-z0-9-`: the same key again answers with the same sandbox',
    },
    answers: [json(201, 'It runs, and its agent answers', SandboxAnswer)],
    errors: [400, 404, 409, 429, 501, 503, 504],
  };
  return [
    {
      ...create,
      path: '/sandboxes',
      summary: 'Create a sandbox (older form: secured when asked for)',
      body: NewSandbox,
    },
    { ...create, path: '/v2/sandboxes', summary: 'Create a sandbox', body: NewSandboxV2 },
  ];
}

function connects(): Operation[] {
  const connect = {
    method: 'post' as HttpMethod,
    tag: 'Sandboxes',
    answers: [
      json(200, 'It runs already; its time is extended, never shortened', SandboxAnswer),
      json(201, 'It was paused and runs again', SandboxAnswer),
    ],
    errors: [...ANY_SANDBOX, 409, 503, 504],
  };
  return [
    {
      ...connect,
      path: '/sandboxes/{sandboxID}/connect',
      summary: 'Make a sandbox usable (older form)',
      body: ConnectSandbox,
    },
    {
      ...connect,
      path: '/v2/sandboxes/{sandboxID}/connect',
      summary: 'Make a sandbox usable: resume or extend it',
      body: ConnectSandboxV2,
      bodyOptional: true,
    },
  ];
}
