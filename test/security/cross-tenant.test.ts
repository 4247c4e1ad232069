import fs from 'node:fs';
import path from 'node:path';
import { ROUTES as AGENT_ROUTES } from '../../kernel-image/agent/app';
import type { OpenApiDocument } from '../../protocol/openapi';
import { Filesystem } from '../../protocol/envd/gen/filesystem_pb';
import { Process } from '../../protocol/envd/gen/process_pb';
import { AGENT_PORT, GATEWAY_PORT, INTERPRETER_PORT } from '../../protocol/routing';
import { fileSignature } from '../../protocol/signature';
import { ServiceMetrics } from '../../service/observability/metrics';
import { Client } from '../e2e/client';
import { ApiHarness } from '../service/api/api-harness';
import { startService } from '../started-service';
import type { StartedService } from '../started-service';

jest.setTimeout(120_000);

/** In everything of the victim's that somebody could read: must never be seen by anybody else. */
const TAG = 'of-the-victim-only';
const SECRET_FILE = '/home/user/secret.txt';
const USER_PORT = 3456;

interface Route {
  method: string;
  path: string;
}

interface Tokens {
  sandboxId: string;
  access: string;
  traffic: string;
}

/** Every route that the API has, asked of the very thing that serves them, so that none can be forgotten here. */
async function routesOfApi(): Promise<Route[]> {
  const metrics = new ServiceMetrics('1.2.3');
  const api = await ApiHarness.open({ metrics });
  const { stack } = api.app.router as unknown as {
    stack: Array<{
      handle: { stack?: unknown };
      route?: { path: string; methods: Record<string, boolean> };
    }>;
  };
  await api.close();
  metrics.close();
  if (stack.some(({ handle, route }) => route === undefined && handle.stack !== undefined)) {
    throw new Error('a router within the router has routes that are not seen here');
  }
  return stack.flatMap(({ route }) => {
    if (route === undefined || route.methods['connect'] === true) return []; // those are for all methods, and answer 405
    return Object.keys(route.methods).map((method) => ({ method: method.toUpperCase(), path: route.path }));
  });
}

/** The same as a running service describes itself, for what only that has. */
async function describedRoutes(service: StartedService): Promise<Route[]> {
  const { paths } = (await (await fetch(`${service.url}/docs/openapi.json`)).json()) as OpenApiDocument;
  return Object.entries(paths).flatMap(([path, methods]) =>
    Object.keys(methods).map((method) => ({
      method: method.toUpperCase(),
      path: path.replace(/\{(\w+)\}/g, ':$1'),
    })),
  );
}

const nameOf = ({ method, path }: Route): string => `${method} ${path}`;

/** Bodies that would be obeyed, were the caller the owner: a 400 would prove nothing. */
const BODIES: Record<string, unknown> = {
  'POST /sandboxes/:sandboxID/timeout': { timeout: 1 },
  'POST /sandboxes/:sandboxID/refreshes': { duration: 3600 },
  'POST /sandboxes/:sandboxID/connect': { timeout: 7200 },
  'POST /v2/sandboxes/:sandboxID/connect': { timeout: 7200 },
  'PUT /sandboxes/:sandboxID/network': { allow_internet_access: false },
  'POST /v1/sandboxes/:sandboxID/executions': { code: 'kept = "changed"' },
  'PUT /v1/pools/:template': { target: 1 },
  'POST /v1/admin/teams': { name: 'mine' },
  'PATCH /v1/admin/teams/:team': { max_sandboxes: 1 },
  'POST /v1/admin/teams/:team/keys': { name: 'mine' },
};

/** What is everybody's with a key, or with none: nothing of a team is in the answer. The create is tested by itself. */
const COMMON = new Set([
  'GET /health',
  'GET /docs',
  'GET /docs/openapi.json',
  'GET /v1/info',
  'GET /templates',
  'GET /v2/templates',
  'GET /templates/aliases/:alias',
  'GET /templates/:templateID',
]);
const OWN = new Set(['GET /sandboxes', 'GET /v2/sandboxes', 'GET /sandboxes/metrics']);
const CREATES = new Set(['POST /sandboxes', 'POST /v2/sandboxes']);
/** The operator's: the admin token opens them, or the key of the default team. */
const OPERATORS = /^\/(metrics$|v1\/admin\/)/;
const DEFAULT_TEAMS = /^\/v1\/pools/;

describe('another team, with a key of its own,', () => {
  let service: StartedService;
  let owner: Client;
  let stranger: Client;
  let strangerKey: string;
  let victim: Tokens;
  let own: Tokens;
  let executionId: string;
  let contextId: string;
  let routes: Route[];

  const create = async (client: Client, fields: Record<string, unknown> = {}): Promise<Tokens> => {
    const answer = await client.api('POST', '/v2/sandboxes', {
      templateID: 'code-interpreter-v1',
      timeout: 3000,
      network: { allowPublicTraffic: false },
      ...fields,
    });
    expect(answer.status).toBe(201);
    const body = (await answer.json()) as Record<string, string>;
    return {
      sandboxId: body['sandboxID'] ?? '',
      access: body['envdAccessToken'] ?? '',
      traffic: body['trafficAccessToken'] ?? '',
    };
  };

  /** Executions of these tests' own. */
  let asked = 0;
  const inside = async (tokens: Tokens, code: string): Promise<string> => {
    asked++;
    const headers = { 'e2b-traffic-access-token': tokens.traffic, 'x-access-token': tokens.access };
    const answer = await owner.execute(tokens.sandboxId, { code }, { headers });
    return answer.text();
  };

  /** All that the owner can see of the sandbox, and what only its kernel knows. */
  const stateOfVictim = async (): Promise<unknown> => {
    const headers = { 'e2b-traffic-access-token': victim.traffic };
    const json = async (path: string) => (await owner.api('GET', path)).json() as Promise<unknown>;
    const list = (await json(`/v1/sandboxes/${victim.sandboxId}/executions`)) as { items: unknown[] };
    const text = await inside(victim, `print(kept, open(${JSON.stringify(SECRET_FILE)}).read())`);
    return {
      detail: await json(`/sandboxes/${victim.sandboxId}`),
      executions: list.items.length - asked,
      contexts: await (await owner.port(victim.sandboxId, INTERPRETER_PORT, '/contexts', { headers })).json(),
      kernel: text
        .split('\n')
        .filter((line) => line.includes('"stdout"'))
        .map((line) => (JSON.parse(line) as { text: string }).text)
        .join(''),
      sandboxes: ((await json('/v2/sandboxes')) as unknown[]).length,
      pools: await json('/v1/pools'),
    };
  };

  /** Puts the victim's names where the route has parameters. */
  const aim = (route: string): string =>
    route
      .replace(':sandboxID', victim.sandboxId)
      .replace(':executionID', executionId)
      .replace(':contextID', contextId)
      .replace(':stream', 'stdout')
      .replace(/:(alias|templateID|template)\b/, 'base')
      .replace(':team/keys/:key', 'default/keys/service-local')
      .replace(/:(team|teamID)\b/, 'default')
      .replace(/:\w+/g, 'x');

  const ask = (key: string, { method, path }: Route): Promise<Response> => {
    const query = path === '/sandboxes/metrics' ? `?sandbox_ids=${victim.sandboxId}` : '';
    const body = BODIES[`${method} ${path}`] ?? {};
    return fetch(`${service.url}${aim(path)}${query}`, {
      method,
      headers: { 'x-api-key': key, 'content-type': 'application/json' },
      ...(method !== 'GET' && { body: JSON.stringify(body) }),
    });
  };

  beforeAll(async () => {
    routes = await routesOfApi();
    service = await startService({ runtime: 'local' });
    const adminToken = fs.readFileSync(path.join(service.dataDir, 'admin-token'), 'utf8').trim();
    const admin = async (path: string, body: unknown): Promise<Record<string, string>> => {
      const headers = { 'x-admin-token': adminToken, 'content-type': 'application/json' };
      const answer = await fetch(`${service.url}/v1/admin/teams${path}`, {
        method: 'POST',
        headers,
        body: JSON.stringify(body),
      });
      return (await answer.json()) as Record<string, string>;
    };
    await admin('', { name: 'stranger' });
    strangerKey = (await admin('/stranger/keys', { name: 'test' }))['key'] ?? '';
    owner = new Client(service);
    stranger = new Client({ ...service, apiKey: strangerKey });
    victim = await create(owner, { metadata: { tag: TAG }, envVars: { TAG } });
    own = await create(stranger);
    await inside(victim, `kept = "${TAG}"; open(${JSON.stringify(SECRET_FILE)}, "w").write(kept)`);
    const started = await owner.api('POST', `/v1/sandboxes/${victim.sandboxId}/executions`, {
      code: `print(kept)`,
    });
    executionId = started.headers.get('x-execution-id') ?? '';
    await started.text();
    const headers = { 'e2b-traffic-access-token': victim.traffic };
    const contexts = await owner.port(victim.sandboxId, INTERPRETER_PORT, '/contexts', { headers });
    contextId = ((await contexts.json()) as Array<{ id: string }>)[0]?.id ?? '';
    expect([executionId, contextId]).not.toContain('');
  });

  afterAll(async () => {
    await service?.stop();
  });

  /** The end of the deadline would move by an extension, so equality is to the millisecond. */
  let before: unknown;
  beforeEach(async () => {
    before = await stateOfVictim();
    expect(JSON.stringify(before)).toContain(TAG);
  });
  afterEach(async () => {
    expect(await stateOfVictim()).toEqual(before);
  });

  it('is tried on every route that there is, served and described alike', async () => {
    const described = await describedRoutes(service);
    expect(described.map(nameOf).sort()).toEqual(routes.map(nameOf).sort());
  });

  it('is told of no sandbox, execution or context of others by any route, and changes nothing', async () => {
    const wrong: string[] = [];
    expect(routes.length).toBeGreaterThan(70);
    for (const route of routes) {
      const name = nameOf(route);
      if (CREATES.has(name)) continue;
      const answer = await ask(strangerKey, route);
      const text = await answer.text();
      const { status } = answer;
      const isLater = status === 501 || status === 410;
      let right: boolean;
      if (OPERATORS.test(route.path)) right = status === 401;
      else if (DEFAULT_TEAMS.test(route.path)) right = status === 403;
      else if (route.path.includes(':sandboxID')) right = status === 404 || isLater;
      else if (OWN.has(name)) right = status === 200;
      else right = COMMON.has(name) ? status < 300 : isLater;
      const isTold = status !== 404 && text.includes(victim.sandboxId); // a 404 repeats what was asked for
      const secrets = [TAG, victim.access, victim.traffic];
      if (!right || isTold || secrets.some((each) => text.includes(each)))
        wrong.push(`${name}: ${status} ${text}`);
    }
    expect(wrong).toEqual([]);
  });

  it('can not tell a sandbox of others from one that never was', async () => {
    for (const route of routes.filter((each) => each.path.includes(':sandboxID'))) {
      const real = await (await ask(strangerKey, route)).text();
      const invented = await fetch(
        `${service.url}${aim(route.path.replace(':sandboxID', 'i00000000000000000000'))}`,
        {
          method: route.method,
          headers: { 'x-api-key': strangerKey, 'content-type': 'application/json' },
          ...(route.method !== 'GET' && {
            body: JSON.stringify(BODIES[`${route.method} ${route.path}`] ?? {}),
          }),
        },
      );
      expect(real.replaceAll(victim.sandboxId, 'i00000000000000000000')).toBe(await invented.text());
    }
  });

  it('is refused by every route with no key and with a wrong one', async () => {
    const open = new Set(['GET /health', 'GET /docs', 'GET /docs/openapi.json']);
    const wrong: string[] = [];
    for (const route of routes) {
      const name = nameOf(route);
      if (open.has(name)) continue;
      for (const key of ['', `e2b_${'0'.repeat(40)}`]) {
        const { status } = await ask(key, route);
        if (status !== 401) wrong.push(`${name}: ${status}`);
      }
    }
    expect(wrong).toEqual([]);
  });

  it('lists and counts only what is its own', async () => {
    const lists = await Promise.all(
      ['/sandboxes', '/v2/sandboxes', `/v2/sandboxes?metadata=tag%3D${TAG}`].map((path) =>
        stranger.api('GET', path),
      ),
    );
    const ids = await Promise.all(
      lists.map(async (each) =>
        ((await each.json()) as Array<{ sandboxID: string }>).map((sandbox) => sandbox.sandboxID),
      ),
    );
    expect(ids).toEqual([[own.sandboxId], [own.sandboxId], []]);
    expect(lists[1]?.headers.get('x-total-running')).toBe('1');
  });

  it('gets a sandbox of its own for an Idempotency-Key that another team used', async () => {
    const repeat = async (apiKey: string): Promise<string> => {
      const answer = await fetch(`${service.url}/v2/sandboxes`, {
        method: 'POST',
        headers: {
          'x-api-key': apiKey,
          'content-type': 'application/json',
          'idempotency-key': 'the-same',
        },
        body: JSON.stringify({ templateID: 'base', timeout: 60 }),
      });
      expect(answer.status).toBe(201);
      return ((await answer.json()) as { sandboxID: string }).sandboxID;
    };
    const [first, second] = [await repeat(service.apiKey), await repeat(strangerKey)];
    expect(second).not.toBe(first);
    expect((await stranger.api('DELETE', `/sandboxes/${first}`)).status).toBe(404);
    await owner.kill(first);
    await stranger.kill(second);
  });

  describe('with the tokens of its own sandbox', () => {
    const headers = (): Record<string, string> => ({
      'x-api-key': strangerKey,
      'x-access-token': own.access,
      'e2b-traffic-access-token': own.traffic,
      authorization: `Basic ${Buffer.from('user:').toString('base64')}`,
    });

    it.each([
      ['POST', '/execute', { code: 'kept = 1' }],
      ['POST', '/execute', { code: 'kept = 1', language: 'bash' }],
      ['GET', '/contexts', undefined],
      ['POST', '/contexts', {}],
      ['DELETE', '/contexts/:contextID', undefined],
      ['POST', '/contexts/:contextID/restart', {}],
      ['GET', '/health', undefined],
    ])('gets 403 from the interpreter: %s %s', async (method, route, body) => {
      const answer = await owner.port(victim.sandboxId, INTERPRETER_PORT, aim(route), {
        method,
        headers: headers(),
        ...(body !== undefined && { body: JSON.stringify(body) }),
      });
      expect(answer.status).toBe(403);
      expect(await answer.text()).not.toContain(TAG);
    });

    it('gets 403 from every other port, the gateway included', async () => {
      for (const port of [GATEWAY_PORT, USER_PORT, 1, 65_535]) {
        const answer = await owner.port(victim.sandboxId, port, '/', { headers: headers() });
        expect([port, answer.status]).toEqual([port, 403]);
      }
    });

    it.each([
      ['GET', '/files?path=%2Fhome%2Fuser%2Fsecret.txt', 401],
      ['GET', '/files?path=%2Fhome%2Fuser%2Fsecret.txt&username=root', 401],
      ['POST', '/files?path=%2Fhome%2Fuser%2Fsecret.txt', 401],
      ['POST', '/files/compose', 401],
      ['GET', '/metrics', 401],
      ['GET', '/envs', 401],
      ['POST', '/init', 404], // the service's alone: for everybody else it is not there
    ])('is refused by the agent: %s %s with %i', async (method, route, status) => {
      const answer = await owner.port(victim.sandboxId, AGENT_PORT, route, {
        method,
        headers: headers(),
        ...(method === 'POST' && { body: '{}' }),
      });
      expect(answer.status).toBe(status);
      expect(await answer.text()).not.toContain(TAG);
    });

    it("gets 401 from every route of the agent but those that are everybody's or nobody's", async () => {
      const statuses: Record<string, number> = {};
      for (const [path, methods] of Object.entries(AGENT_ROUTES)) {
        for (const method of Object.keys(methods)) {
          const answer = await owner.port(victim.sandboxId, AGENT_PORT, path, {
            method,
            headers: headers(),
            ...(method === 'POST' && { body: '{}' }),
          });
          statuses[`${method} ${path}`] = answer.status;
          await answer.text();
        }
      }
      const { 'GET /health': health, 'POST /init': init, ...others } = statuses;
      expect([health, init]).toEqual([204, 404]);
      expect(Object.keys(others).length).toBeGreaterThan(4);
      expect(new Set(Object.values(others))).toEqual(new Set([401]));
    });

    it('gets 401 from every procedure of the agent', async () => {
      const procedures = [Process, Filesystem].flatMap((each) =>
        each.methods.map((method) => ({
          path: `/${each.typeName}/${method.name}`,
          isStream: method.methodKind !== 'unary',
        })),
      );
      expect(procedures.length).toBeGreaterThan(14);
      const wrong: string[] = [];
      for (const { path, isStream } of procedures) {
        const message = Buffer.from('{}');
        const envelope = Buffer.concat([Buffer.from([0, 0, 0, 0, message.length]), message]);
        const answer = await owner.port(victim.sandboxId, AGENT_PORT, path, {
          method: 'POST',
          headers: {
            ...headers(),
            'content-type': isStream ? 'application/connect+json' : 'application/json',
            'connect-protocol-version': '1',
          },
          body: isStream ? envelope : message,
        });
        if (answer.status !== 401) wrong.push(`${path}: ${answer.status} ${await answer.text()}`);
        else await answer.text();
      }
      expect(wrong).toEqual([]);
    });

    it('gets no file of others by a signature of its own, whomever the request names', async () => {
      const signed = (sandbox: Record<string, string>, operation: 'read' | 'write') => {
        const query = { operation, path: SECRET_FILE, username: 'user', expiration: undefined };
        const search = new URLSearchParams({
          path: SECRET_FILE,
          username: 'user',
          signature: fileSignature(query, own.access),
        });
        return fetch(`${service.url}/files?${search}`, {
          method: operation === 'read' ? 'GET' : 'POST',
          headers: sandbox,
          ...(operation === 'write' && { body: 'changed' }),
        });
      };
      const named = { 'e2b-sandbox-id': victim.sandboxId, 'e2b-sandbox-port': String(AGENT_PORT) };
      expect((await signed(named, 'read')).status).toBe(401);
      expect((await signed(named, 'write')).status).toBe(401);
      // Without a name it is for the sandbox whose token signed it: its own, which has no such file.
      const unnamed = await signed({}, 'read');
      expect([unnamed.status, (await unnamed.text()).includes(TAG)]).toEqual([404, false]);
    });
  });
});
