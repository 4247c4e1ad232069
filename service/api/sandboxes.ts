import type { Request, RequestHandler } from 'express';
import {
  CLIENT_ID,
  ConnectSandbox,
  ConnectSandboxV2,
  DEFAULT_TIMEOUT_SECONDS,
  ENVD_VERSION,
  MIN_REFRESH_SECONDS,
  NewSandbox,
  NewSandboxV2,
  PAGE_LIMIT,
  ResumeSandbox,
  SandboxNetworkUpdate,
  SandboxPause,
  SandboxRefresh,
  SandboxTimeout,
  formatPageToken,
  parseMetadataFilter,
  parsePageToken,
  parseSandboxId,
} from '../../protocol/control-plane';
import type {
  ListedSandbox,
  SandboxAnswer,
  SandboxDetail,
  SandboxMetric,
} from '../../protocol/control-plane';
import { ServiceError } from '../errors';
import type { MetricSample } from '../sandboxes/metrics-history';
import type { CreateOptions, Sandbox } from '../sandboxes/sandbox';
import type { ListFilter, Sandboxes } from '../sandboxes/sandboxes';
import type { ResourceRequest } from '../sandboxes/sizes';
import type { Templates } from '../sandboxes/templates';
import { teamOf } from './auth';
import { markNotRepeatable } from './error-response';
import {
  badSandboxId,
  parseBody,
  parseOptionalBody,
  queryInteger,
  queryOf,
  queryWord,
  sandboxIdOf,
} from './input';
import { egressOf } from './network';

export interface SandboxRoutesOptions {
  sandboxes: Sandboxes;
  /** Domain of sandbox host names, with a port where it is not 443. */
  domain: string;
}

type Generation = keyof typeof DEFAULT_TIMEOUT_SECONDS;

const IDEMPOTENCY_KEY = /^[a-z0-9-]{1,255}$/;
const ENV_NAME = /^[^=\0]+$/;
const LONE_SURROGATE = /\p{Surrogate}/u;
/** Linux takes no longer `NAME=value` than this. */
const MAX_ENV_BYTES = 131_071;
/** All names and values together, of the environment and of metadata each. */
const MAX_MAP_BYTES = 1_048_576;
const MAX_SANDBOX_IDS = 100;
/** With a zone: without one it would mean another moment on every machine. */
const DATE_TIME = /^\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}.*(?:[Zz]|[+-]\d{2}:?\d{2})$/;

/** The handlers under `/sandboxes` and `/v2/sandboxes`: what a request says, asked of `Sandboxes`, told as E2B does. */
export function sandboxHandlers({ sandboxes, domain }: SandboxRoutesOptions) {
  const create =
    (generation: Generation): RequestHandler =>
    async (req, res) => {
      const options = createOptions(generation, req);
      markNotRepeatable(res);
      const gone = new AbortController();
      const onClose = () => gone.abort();
      res.once('close', onClose);
      try {
        const sandbox = await sandboxes.create(teamOf(res), options, gone.signal);
        res.status(201).json(answer(sandbox, domain));
      } finally {
        res.off('close', onClose);
      }
    };

  const connect =
    (generation: Generation): RequestHandler =>
    async (req, res) => {
      const body =
        generation === 'v1'
          ? parseBody(ConnectSandbox, req.body)
          : parseOptionalBody(ConnectSandboxV2, req.body);
      const id = sandboxIdOf(req);
      refuseWhen(body.memory === false, 'memory: false (a cold boot)');
      markNotRepeatable(res);
      const timeoutSeconds = body.timeout ?? DEFAULT_TIMEOUT_SECONDS.v2;
      const { sandbox, resumed } = await sandboxes.connect(teamOf(res), id, { timeoutSeconds });
      res.status(resumed ? 201 : 200).json(answer(sandbox, domain));
    };

  const resume: RequestHandler = async (req, res) => {
    const body = parseOptionalBody(ResumeSandbox, req.body);
    refuseWhen(body.memory === false, 'memory: false (a cold boot)');
    markNotRepeatable(res);
    const { sandbox } = await sandboxes.connect(teamOf(res), sandboxIdOf(req), {
      timeoutSeconds: body.timeout ?? DEFAULT_TIMEOUT_SECONDS.v1,
      mustBePaused: true,
      ...(body.autoPause !== undefined && { autoPause: body.autoPause }),
    });
    res.status(201).json(answer(sandbox, domain));
  };

  const pause: RequestHandler = async (req, res) => {
    const body = parseOptionalBody(SandboxPause, req.body);
    refuseWhen(body.memory === false, 'memory: false (a pause that keeps only files)');
    refuseWhen(body.requireHealthyGuest === true, 'requireHealthyGuest');
    await sandboxes.pause(teamOf(res), sandboxIdOf(req));
    res.status(204).end();
  };

  const get: RequestHandler = (req, res) => {
    res.json(detail(sandboxes.get(teamOf(res), sandboxIdOf(req)), domain));
  };

  const kill: RequestHandler = async (req, res) => {
    await sandboxes.kill(teamOf(res), sandboxIdOf(req));
    res.status(204).end();
  };

  const timeout: RequestHandler = async (req, res) => {
    const body = parseBody(SandboxTimeout, req.body);
    await sandboxes.setTimeout(teamOf(res), sandboxIdOf(req), body.timeout);
    res.status(204).end();
  };

  const refresh: RequestHandler = async (req, res) => {
    const body = parseOptionalBody(SandboxRefresh, req.body);
    await sandboxes.refresh(teamOf(res), sandboxIdOf(req), body.duration ?? MIN_REFRESH_SECONDS);
    res.status(204).end();
  };

  const network: RequestHandler = async (req, res) => {
    const body = parseBody(SandboxNetworkUpdate, req.body);
    const id = sandboxIdOf(req);
    const { allowOut, denyOut, allow_internet_access: allowInternetAccess, ...later } = body;
    for (const [name, value] of Object.entries(later)) refuseWhen(asked(value), name);
    await sandboxes.setNetwork(teamOf(res), id, egressOf({ allowOut, denyOut, allowInternetAccess }, ''));
    res.status(204).end();
  };

  const listRunning: RequestHandler = (req, res) => {
    const filter: ListFilter = { ...metadataFilter(queryOf(req)), states: ['running'] };
    res.json(sandboxes.list(teamOf(res), filter).map(listed));
  };

  const listAll: RequestHandler = (req, res) => {
    const query = queryOf(req);
    const filter = listFilter(query, sandboxes.templates);
    const limit = queryInteger(query, 'limit', { min: 1, max: PAGE_LIMIT }) ?? PAGE_LIMIT;
    // Both checked before an unknown template makes the list empty.
    const after = cursor(query, filter.order);
    const all = filter.templateId === 'unknown' ? [] : sandboxes.list(teamOf(res), filter);
    const rest = all.filter(after);
    const page = rest.slice(0, limit);
    const last = page[page.length - 1];
    if (last !== undefined && rest.length > page.length) res.setHeader('X-Next-Token', formatPageToken(last));
    if (filter.states === undefined || filter.states.includes('running')) {
      const count = all.filter((sandbox) => sandbox.state === 'running').length;
      res.setHeader('X-Total-Running', String(count));
    }
    res.json(page.map(listed));
  };

  const metrics: RequestHandler = async (req, res) => {
    const query = queryOf(req);
    const range = { min: 0, max: Number.MAX_SAFE_INTEGER };
    const start = queryInteger(query, 'start', range) ?? 0;
    const end = queryInteger(query, 'end', range) ?? Infinity;
    if (start > end) throw new ServiceError('invalid_argument', 'start: must not be after end');
    // To the end of the last second: a sample is in the second that its timestamp shows.
    const samples = await sandboxes.listMetrics(
      teamOf(res),
      sandboxIdOf(req),
      start * 1000,
      end * 1000 + 999,
    );
    res.json(samples.map(toMetric));
  };

  const allMetrics: RequestHandler = async (req, res) => {
    const ids = (queryOf(req).get('sandbox_ids') ?? '').split(',').filter((id) => id !== '');
    if (ids.length === 0) throw new ServiceError('invalid_argument', 'sandbox_ids: is missing');
    if (ids.length > MAX_SANDBOX_IDS) {
      throw new ServiceError('invalid_argument', `sandbox_ids: at most ${MAX_SANDBOX_IDS} at a time`);
    }
    const answers = await Promise.all(
      ids.map(async (text) => {
        const id = parseSandboxId(text);
        if (id === undefined) throw badSandboxId();
        try {
          const sample = await sandboxes.lastMetric(teamOf(res), id);
          return sample === undefined ? [] : [[id, toMetric(sample)] as const];
        } catch (error) {
          if (error instanceof ServiceError && error.code === 'not_found') return []; // ended in the meantime
          throw error;
        }
      }),
    );
    res.json({ sandboxes: Object.fromEntries(answers.flat()) });
  };

  return {
    create,
    connect,
    resume,
    pause,
    get,
    kill,
    timeout,
    refresh,
    network,
    listRunning,
    listAll,
    metrics,
    allMetrics,
  };
}

// --- reading a request ------------------------------------------------------------------------------------------

/** Accepting in silence what is not done would be worse than refusing it. */
function refuseWhen(asked: boolean, feature: string): void {
  if (asked) throw new ServiceError('unimplemented', `${feature} is not implemented yet`);
}

function asked(value: object | string | undefined): boolean {
  if (value === undefined) return false;
  return typeof value === 'string' ? value !== '' : Object.keys(value).length > 0;
}

function createOptions(generation: Generation, req: Request): CreateOptions {
  const body =
    generation === 'v1'
      ? parseBody(NewSandbox, req.body)
      : { ...parseBody(NewSandboxV2, req.body), secure: true };
  const timeoutSeconds = body.timeout ?? DEFAULT_TIMEOUT_SECONDS[generation];
  const autoPause = body.autoPause ?? false;
  const autoResume = body.autoResume?.enabled ?? false;
  if (timeoutSeconds <= 0) throw new ServiceError('invalid_argument', 'Timeout must be greater than 0');
  if (body.autoPauseMemory === false) {
    if (!autoPause) throw new ServiceError('invalid_argument', 'autoPauseMemory: needs autoPause');
    if (autoResume) {
      throw new ServiceError('invalid_argument', 'autoPauseMemory: can not be off together with autoResume');
    }
  }
  refuseWhen(body.mcp !== undefined, 'mcp');
  refuseWhen(asked(body.iam?.tokens), 'iam');
  refuseWhen(asked(body.volumeMounts), 'volumeMounts');
  refuseWhen(body.autoPauseMemory === false, 'autoPauseMemory: false (a pause that keeps only files)');
  const { allowPublicTraffic, allowOut, denyOut, ...later } = body.network ?? {};
  for (const [name, value] of Object.entries(later)) refuseWhen(asked(value), `network.${name}`);
  const allowInternetAccess = body.allow_internet_access;
  const egress = egressOf({ allowOut, denyOut, allowInternetAccess }, 'network.');

  const metadata = body.metadata ?? {};
  const env = body.envVars ?? {};
  checkMap('metadata', metadata);
  checkMap('envVars', env);
  checkEnv(env);
  const key = req.headers['idempotency-key'];
  if (key !== undefined && (typeof key !== 'string' || !IDEMPOTENCY_KEY.test(key))) {
    throw new ServiceError(
      'invalid_argument',
      'Idempotency-Key: must be 1 to 255 characters of a-z, 0-9 and -',
    );
  }
  return {
    template: body.templateID,
    timeoutSeconds,
    metadata,
    env,
    secure: body.secure ?? false,
    allowPublicTraffic: allowPublicTraffic ?? true,
    ...egress,
    autoPause,
    autoResume,
    ...resourcesAsked(body),
    ...(key !== undefined && { idempotencyKey: key }),
  };
}

/** Absent when nothing is asked for: the options of a create are compared with those of an earlier one. */
function resourcesAsked(body: ResourceRequest): { resources?: ResourceRequest } {
  const { size, cpuCount, memoryMB, diskSizeMB, pids, openFiles } = body;
  const asked = { size, cpuCount, memoryMB, diskSizeMB, pids, openFiles };
  return Object.values(asked).some((value) => value !== undefined) ? { resources: asked } : {};
}

function checkMap(field: string, map: Record<string, string>): void {
  let bytes = 0;
  for (const [name, value] of Object.entries(map))
    bytes += Buffer.byteLength(name) + Buffer.byteLength(value);
  if (bytes > MAX_MAP_BYTES) {
    throw new ServiceError('invalid_argument', `${field}: is larger than ${MAX_MAP_BYTES} bytes`);
  }
}

/** What no process could be started with is refused here, by name, and not by every command later. */
function checkEnv(env: Record<string, string>): void {
  for (const [name, value] of Object.entries(env)) {
    const field = `envVars: ${JSON.stringify(name)}`;
    if (!ENV_NAME.test(name)) {
      throw new ServiceError(
        'invalid_argument',
        `${field} is not a name: it is empty or has "=" or NUL in it`,
      );
    }
    if (value.includes('\0')) throw new ServiceError('invalid_argument', `${field} has NUL in its value`);
    if (LONE_SURROGATE.test(name + value)) {
      throw new ServiceError('invalid_argument', `${field} is not valid Unicode`);
    }
    if (Buffer.byteLength(name) + Buffer.byteLength(value) + 1 > MAX_ENV_BYTES) {
      throw new ServiceError('invalid_argument', `${field} is longer than ${MAX_ENV_BYTES} bytes`);
    }
  }
}

function metadataFilter(query: URLSearchParams): Pick<ListFilter, 'metadata'> {
  const text = query.get('metadata');
  if (text === null) return {};
  try {
    return { metadata: parseMetadataFilter(text) };
  } catch (error) {
    throw new ServiceError(
      'invalid_argument',
      error instanceof Error ? error.message : 'metadata: not valid',
    );
  }
}

function listFilter(query: URLSearchParams, templates: Templates): ListFilter {
  const states = query
    .getAll('state')
    .flatMap((each) => each.split(','))
    .filter((each) => each !== '')
    .map((each) => {
      if (each !== 'running' && each !== 'paused') {
        throw new ServiceError('invalid_argument', 'state: must be running or paused, or both with a comma');
      }
      return each;
    });
  const startedAfter = query.get('startedAfter');
  const since = startedAfter === null || startedAfter === '' ? undefined : Date.parse(startedAfter);
  if (since !== undefined && (Number.isNaN(since) || !DATE_TIME.test(startedAfter ?? ''))) {
    throw new ServiceError(
      'invalid_argument',
      'startedAfter: must be a date and time with a zone, as RFC 3339 has it',
    );
  }
  const template = query.get('template') ?? '';
  return {
    ...metadataFilter(query),
    ...(states.length > 0 && { states }),
    ...(since !== undefined && { startedAfter: since }),
    ...(template !== '' && { templateId: templates.find(template)?.id ?? 'unknown' }),
    order: queryWord(query, 'order', ['asc', 'desc']) ?? 'desc',
  };
}

/** Tells the sandboxes that come after the last page. It need not exist any more. */
function cursor(query: URLSearchParams, order: ListFilter['order']): (sandbox: Sandbox) => boolean {
  const text = query.get('nextToken');
  if (text === null || text === '') return () => true;
  const token = parsePageToken(text);
  if (token === undefined) throw new ServiceError('invalid_argument', 'nextToken: is not one of ours');
  const sign = order === 'asc' ? 1 : -1;
  return (sandbox) => {
    if (sandbox.startedAt !== token.startedAt) return sign * (sandbox.startedAt - token.startedAt) > 0;
    return sandbox.id !== token.id && sandbox.id > token.id === sign > 0;
  };
}

// --- telling a sandbox ------------------------------------------------------------------------------------------

function answer(sandbox: Sandbox, domain: string): SandboxAnswer {
  return {
    templateID: sandbox.templateId,
    sandboxID: sandbox.id,
    alias: sandbox.templateAlias,
    clientID: CLIENT_ID,
    envdVersion: ENVD_VERSION,
    ...(sandbox.accessToken !== undefined && { envdAccessToken: sandbox.accessToken }),
    trafficAccessToken: sandbox.trafficToken ?? null,
    domain,
  };
}

function toMetric({ at, ...figures }: MetricSample): SandboxMetric {
  return { timestamp: new Date(at).toISOString(), timestampUnix: Math.floor(at / 1000), ...figures };
}

function listed(sandbox: Sandbox): ListedSandbox {
  return {
    templateID: sandbox.templateId,
    alias: sandbox.templateAlias,
    sandboxID: sandbox.id,
    clientID: CLIENT_ID,
    startedAt: new Date(sandbox.startedAt).toISOString(),
    endAt: new Date(sandbox.endAt).toISOString(),
    cpuCount: sandbox.resources.cpuCount,
    memoryMB: sandbox.resources.memoryMB,
    diskSizeMB: sandbox.resources.diskSizeMB,
    metadata: sandbox.metadata,
    state: sandbox.state,
    envdVersion: ENVD_VERSION,
    volumeMounts: [],
  };
}

function detail(sandbox: Sandbox, domain: string): SandboxDetail {
  return {
    ...listed(sandbox),
    ...(sandbox.accessToken !== undefined && { envdAccessToken: sandbox.accessToken }),
    allowInternetAccess: sandbox.allowInternetAccess,
    domain,
    network: {
      allowPublicTraffic: sandbox.allowPublicTraffic,
      ...(sandbox.allowOut.length > 0 && { allowOut: [...sandbox.allowOut] }),
      ...(sandbox.denyOut.length > 0 && { denyOut: [...sandbox.denyOut] }),
    },
    lifecycle: { autoResume: sandbox.autoResume, onTimeout: sandbox.autoPause ? 'pause' : 'kill' },
    ...(sandbox.state === 'paused' && { pauseMode: 'full' }),
  };
}
