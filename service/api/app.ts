import express from 'express';
import type { Express, RequestHandler } from 'express';
import { parseSandboxId } from '../../protocol/control-plane';
import type { LanguageInfo, ServiceInfo } from '../../protocol/native';
import type { Config } from '../config';
import { ServiceError } from '../errors';
import type { Logger } from '../log';
import { sendMetrics } from '../observability/metrics-endpoint';
import type { ServiceMetrics } from '../observability/metrics';
import type { RequestObserver } from '../observability/request-observer';
import { noteSandbox } from '../observability/scope';
import type { Check, Resources, Runtime } from '../runtime/runtime';
import { resourcesOf } from '../sandboxes/sandbox';
import type { Sandboxes } from '../sandboxes/sandboxes';
import type { Teams } from '../teams/teams';
import { adminHandlers } from './admin';
import { requireAdminToken } from './admin-token';
import { authenticate, teamOf } from './auth';
import { docsHandlers } from './docs';
import { HttpError, errorHandler } from './error-response';
import { executionHandlers } from './executions';
import type { ExecutionRunner } from './executions';
import { healthHandler } from './health';
import { logHandlers } from './logs';
import { poolHandlers } from './pools';
import { sandboxHandlers } from './sandboxes';
import { templateHandlers } from './templates';

export interface ApiOptions {
  config: Pick<
    Config,
    'maxTimeoutSeconds' | 'maxBodyBytes' | 'cpuCount' | 'memoryMB' | 'diskSizeMB' | 'pids' | 'openFiles'
  >;
  sandboxes: Sandboxes;
  teams: Teams;
  runtime: Pick<Runtime, 'name' | 'caveats' | 'isolationLevels' | 'check'>;
  logger: Logger;
  /** Domain of sandbox host names, with a port where it is not 443. */
  domain: string;
  /** Release of the service, as `/v1/info` tells it. */
  version?: string;
  /** What `/health` asks; the runtime's own checks where absent. */
  health?: () => Promise<Check[]>;
  languages?: () => LanguageInfo[] | Promise<LanguageInfo[]>;
  /** Sees every request; without it none has an id. */
  observer?: RequestObserver;
  /** What `/metrics` tells to whoever has the admin token; without it there is no `/metrics`. */
  metrics?: ServiceMetrics;
  adminToken?: string;
  /** Who runs code; without it `/v1/sandboxes/…` can't. */
  interpreter?: ExecutionRunner;
}

type Method = 'get' | 'post' | 'put' | 'patch' | 'delete';
type Route = readonly [method: Method, path: string, handler: RequestHandler];

const CORS_HEADERS = {
  'Access-Control-Allow-Origin': '*',
  'Access-Control-Allow-Methods': 'GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS',
  'Access-Control-Allow-Headers': [
    'Origin, Content-Length, Content-Type, User-Agent, Authorization, X-API-Key, X-Team-ID, Idempotency-Key',
    'browser, lang, lang_version, package_version, publisher, sdk_runtime, system',
    // A preflight for a sandbox's port names no sandbox, so it is answered here.
    'E2b-Sandbox-Id, E2b-Sandbox-Port, X-Access-Token, E2B-Traffic-Access-Token',
    'Connect-Protocol-Version, Connect-Timeout-Ms, Keepalive-Ping-Interval',
    'X-Request-Id, traceparent, tracestate',
  ].join(', '),
  'Access-Control-Expose-Headers': [
    'X-Request-Id, X-Next-Token, X-Total-Running, X-Execution-Id, Accept-Ranges, Content-Range, X-Lost-Bytes, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, Retry-After, Should-Retry',
  ].join(', '),
  'Access-Control-Max-Age': '600',
};

/**
 * The control plane and our own `/v1`: everything on the service's port that is not for one sandbox. Handlers throw
 * `ServiceError`; `error-response.ts` alone turns that into an answer.
 */
export function createApi(options: ApiOptions): Express {
  const { config, sandboxes, teams, runtime, logger, domain } = options;
  const app = express();
  app.disable('x-powered-by');
  app.disable('etag');
  app.enable('case sensitive routing');

  const { observer } = options;
  if (observer !== undefined) {
    app.use((req, res, next) => {
      const route = () => (req.route as { path?: string } | undefined)?.path;
      observer.run({ kind: 'control_plane', req, res, route }, () => next());
    });
  }
  app.use((req, res, next) => {
    res.set(CORS_HEADERS);
    if (req.method === 'OPTIONS') res.status(204).end();
    else next();
  });

  const utf8 = new TextDecoder('utf-8', { fatal: true });
  // Whatever the client calls it: some leave Content-Type out, and there is no other kind of body.
  const json = express.json({
    type: () => true,
    strict: false,
    limit: config.maxBodyBytes,
    verify: (_req, _res, body) => void utf8.decode(body),
  });
  const guard: RequestHandler[] = [
    (req, _res, next) => {
      const { sandboxID } = req.params;
      const id = typeof sandboxID === 'string' ? parseSandboxId(sandboxID) : undefined;
      if (id !== undefined) noteSandbox(id);
      next();
    },
    authenticate(teams),
    json,
  ];

  // Asks for no key.
  const open: Route[] = [
    ['get', '/health', healthHandler(options.health ?? (() => runtime.check()), logger)],
    ...docsRoutes(options),
  ];
  for (const [method, path, handler] of open) app[method](path, handler);
  const routes: Route[] = [
    ...coreRoutes(options),
    ...laterRoutes(),
    ['get', '/v1/info', infoHandler(options)],
    ...poolRoutes(options),
    ...executionRoutes(options),
  ];
  for (const [method, path, handler] of routes) app[method](path, ...guard, handler);
  const forOperator = [...adminRoutes(teams), ...metricsRoutes(options)];
  const adminGuard = [requireAdminToken(options.adminToken), json];
  for (const [method, path, handler] of forOperator) app[method](path, ...adminGuard, handler);
  const all = [...open, ...routes, ...forOperator];
  for (const path of new Set(all.map((route) => route[1]))) {
    const methods = all.filter((route) => route[1] === path).map((route) => route[0].toUpperCase());
    if (methods.includes('GET')) methods.push('HEAD');
    app.all(path, (req, res) => {
      res.setHeader('Allow', methods.join(', '));
      throw new HttpError(405, `${req.method} is not allowed on ${req.path}`);
    });
  }
  app.use((req) => {
    throw new ServiceError('not_found', `There is nothing at ${req.path}`);
  });
  app.use(errorHandler({ logger, roomAt: (teamId) => sandboxes.nextDeadlineOf(teamId) }));
  return app;

  function coreRoutes({ sandboxes }: ApiOptions): Route[] {
    const sandbox = sandboxHandlers({ sandboxes, domain });
    const log = logHandlers(sandboxes);
    const template = templateHandlers(sandboxes.templates);
    return [
      ['post', '/sandboxes', sandbox.create('v1')],
      ['post', '/v2/sandboxes', sandbox.create('v2')],
      ['get', '/sandboxes', sandbox.listRunning],
      ['get', '/v2/sandboxes', sandbox.listAll],
      ['get', '/sandboxes/metrics', sandbox.allMetrics],
      ['get', '/sandboxes/:sandboxID', sandbox.get],
      ['delete', '/sandboxes/:sandboxID', sandbox.kill],
      ['post', '/sandboxes/:sandboxID/connect', sandbox.connect('v1')],
      ['post', '/v2/sandboxes/:sandboxID/connect', sandbox.connect('v2')],
      ['post', '/sandboxes/:sandboxID/timeout', sandbox.timeout],
      ['post', '/sandboxes/:sandboxID/refreshes', sandbox.refresh],
      ['post', '/sandboxes/:sandboxID/pause', sandbox.pause],
      ['post', '/sandboxes/:sandboxID/resume', sandbox.resume],
      ['put', '/sandboxes/:sandboxID/network', sandbox.network],
      ['get', '/sandboxes/:sandboxID/metrics', sandbox.metrics],
      ['get', '/sandboxes/:sandboxID/logs', log.logs],
      ['get', '/v2/sandboxes/:sandboxID/logs', log.logsV2],
      ['get', '/templates', template.list],
      ['get', '/v2/templates', template.listPaged],
      ['get', '/templates/aliases/:alias', template.getByAlias],
      ['get', '/templates/:templateID', template.get],
    ];
  }
}

function docsRoutes({ version = 'unknown' }: ApiOptions): Route[] {
  const docs = docsHandlers({ version, later: laterOperations(), gone: GONE });
  return [
    ['get', '/docs', docs.page],
    ['get', '/docs/openapi.json', docs.openapi],
  ];
}

function metricsRoutes({ metrics }: ApiOptions): Route[] {
  if (metrics === undefined) return [];
  return [['get', '/metrics', (_req, res) => sendMetrics(metrics.registry, res)]];
}

function adminRoutes(teams: Teams): Route[] {
  const admin = adminHandlers(teams);
  const keys = '/v1/admin/teams/:team/keys';
  return [
    ['get', '/v1/admin/teams', admin.listTeams],
    ['post', '/v1/admin/teams', admin.createTeam],
    ['get', '/v1/admin/teams/:team', admin.getTeam],
    ['patch', '/v1/admin/teams/:team', admin.changeTeam],
    ['get', keys, admin.listKeys],
    ['post', keys, admin.createKey],
    ['delete', `${keys}/:key`, admin.revokeKey],
  ];
}

function poolRoutes({ sandboxes }: ApiOptions): Route[] {
  const pool = poolHandlers(sandboxes.pools, sandboxes.templates);
  return [
    ['get', '/v1/pools', pool.list],
    ['put', '/v1/pools/:template', pool.resize],
  ];
}

function executionRoutes({ sandboxes, interpreter }: ApiOptions): Route[] {
  const execution = executionHandlers(sandboxes, interpreter);
  const all = '/v1/sandboxes/:sandboxID/executions';
  const one = `${all}/:executionID`;
  return [
    ['post', all, execution.create],
    ['get', all, execution.list],
    ['get', one, execution.get],
    ['get', `${one}/events`, execution.events],
    ['post', `${one}/cancel`, execution.cancel],
    ['get', `${one}/output/:stream`, execution.output],
    ['post', '/v1/sandboxes/:sandboxID/contexts/:contextID/interrupt', execution.interrupt],
  ];
}

/** Operations of the contract that come later, and what they are part of. */
function laterOperations(): Array<[Method, string, string]> {
  const builds = 'Building templates';
  const tags = 'Template tags';
  return [
    ['post', '/sandboxes/:sandboxID/fork', 'Forking a sandbox'],
    ['post', '/sandboxes/:sandboxID/snapshots', 'Snapshots'],
    ['get', '/snapshots', 'Snapshots'],
    ['post', '/templates', builds],
    ['post', '/v2/templates', builds],
    ['post', '/v3/templates', builds],
    // Before the routes with a parameter in the same place.
    ['post', '/templates/tags', tags],
    ['delete', '/templates/tags', tags],
    ['get', '/templates/:templateID/tags', tags],
    ['post', '/templates/:templateID', builds],
    ['get', '/templates/:templateID/files/:hash', builds],
    ['post', '/templates/:templateID/builds/:buildID', builds],
    ['post', '/v2/templates/:templateID/builds/:buildID', builds],
    ['get', '/templates/:templateID/builds/:buildID/status', builds],
    ['get', '/templates/:templateID/builds/:buildID/logs', builds],
    ['delete', '/templates/:templateID', 'Deleting a template or snapshot'],
    ['patch', '/templates/:templateID', 'Changing a template'],
    ['patch', '/v2/templates/:templateID', 'Changing a template'],
    ['get', '/volumes', 'Volumes'],
    ['post', '/volumes', 'Volumes'],
    ['get', '/volumes/:volumeID', 'Volumes'],
    ['delete', '/volumes/:volumeID', 'Volumes'],
    ...(['get', 'patch', 'delete'] as const).map((method): [Method, string, string] => [
      method,
      '/volumecontent/:volumeID/path',
      'Volumes',
    ]),
    ['get', '/volumecontent/:volumeID/dir', 'Volumes'],
    ['post', '/volumecontent/:volumeID/dir', 'Volumes'],
    ['get', '/volumecontent/:volumeID/file', 'Volumes'],
    ['put', '/volumecontent/:volumeID/file', 'Volumes'],
    ['get', '/secrets', 'Secrets'],
    ['post', '/secrets', 'Secrets'],
    ['get', '/secrets/:secretID', 'Secrets'],
    ['post', '/secrets/:secretID', 'Secrets'],
    ['delete', '/secrets/:secretID', 'Secrets'],
    ['get', '/teams', 'Listing teams'],
    ['get', '/teams/:teamID/metrics', 'Team metrics'],
    ['get', '/teams/:teamID/metrics/max', 'Team metrics'],
    ['get', '/api-keys', 'Managing API keys'],
    ['post', '/api-keys', 'Managing API keys'],
    ['patch', '/api-keys/:apiKeyID', 'Managing API keys'],
    ['delete', '/api-keys/:apiKeyID', 'Managing API keys'],
    ['get', '/nodes', 'Node administration'],
    ['get', '/nodes/:nodeID', 'Node administration'],
    ['post', '/nodes/:nodeID', 'Node administration'],
    ['post', '/admin/teams/:teamID/sandboxes/kill', 'Team administration'],
    ['get', '/admin/sandboxes/running-counts', 'Team administration'],
    ['post', '/admin/teams/:teamID/builds/cancel', 'Team administration'],
    ['post', '/admin/teams/:teamID/api-keys', 'Team administration'],
    ['delete', '/admin/teams/:teamID/api-keys/:apiKeyID', 'Team administration'],
  ];
}

/** Operations of the contract that are no more. */
const GONE: ReadonlyArray<readonly [Method, string]> = [
  ['post', '/access-tokens'],
  ['delete', '/access-tokens/:accessTokenID'],
];

/** Each says by name that it comes later; none is accepted in silence. */
function laterRoutes(): Route[] {
  const gone: RequestHandler = () => {
    throw new HttpError(410, 'Access tokens no longer exist: use an API key');
  };
  return [
    ...laterOperations().map(([method, path, feature]): Route => [method, path, notYet(feature)]),
    ...GONE.map(([method, path]): Route => [method, path, gone]),
  ];
}

function notYet(feature: string): RequestHandler {
  return () => {
    throw new ServiceError('unimplemented', `${feature} is not implemented yet`);
  };
}

function infoHandler(options: ApiOptions): RequestHandler {
  const { config, runtime, teams } = options;
  const { all, sizes, maximum } = options.sandboxes.templates;
  const usual = resourcesOf(config);
  return async (_req, res) => {
    const { maxSandboxes, createsPerMinute } = teams.limitsOf(teamOf(res));
    const [usualLevel = 'none'] = runtime.isolationLevels;
    const info: ServiceInfo = {
      version: options.version ?? 'unknown',
      runtime: runtime.name,
      caveats: [...runtime.caveats],
      isolation_levels: [...runtime.isolationLevels],
      domain: options.domain,
      templates: all.map(({ id, alias, isolation = usualLevel, resources }) => ({
        id,
        alias,
        isolation,
        ...limitsOf(resources),
      })),
      sizes: [...sizes.all.keys()].map((name) => ({ name, ...limitsOf(sizes.apply(usual, { size: name })) })),
      languages: (await options.languages?.()) ?? [],
      limits: {
        max_sandboxes: maxSandboxes,
        creates_per_minute: createsPerMinute,
        max_timeout_ms: config.maxTimeoutSeconds * 1000,
        ...limitsOf(config),
        max_cpu_count: maximum.cpuCount,
        max_memory_bytes: maximum.memoryMB * 1_048_576,
        max_disk_bytes: maximum.diskSizeMB * 1_048_576,
        max_pids: maximum.pids,
        max_open_files: maximum.openFiles,
        max_body_bytes: config.maxBodyBytes,
      },
    };
    res.json(info);
  };
}

function limitsOf({ cpuCount, memoryMB, diskSizeMB, pids, openFiles }: Resources) {
  return {
    cpu_count: cpuCount,
    memory_bytes: memoryMB * 1_048_576,
    disk_bytes: diskSizeMB * 1_048_576,
    pids,
    open_files: openFiles,
  };
}
