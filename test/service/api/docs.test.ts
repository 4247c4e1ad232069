import { openApiPath } from '../../../service/api/docs';
import { ServiceMetrics } from '../../../service/observability/metrics';
import type { OpenApiDocument } from '../../../protocol/openapi';
import type { HttpMethod } from '../../../protocol/openapi-operation';
import { compile } from '../../json-schema';
import { ADMIN_TOKEN } from './api-harness';
import type { Answer, ApiHarness, Ask } from './api-harness';
import { ExecutionsHarness } from './executions-harness';

/** Sections 2.2 to 2.7 of E2B's control plane, and the native API: every row of the contract's tables. */
const CONTRACT = `
  GET /health
  POST /sandboxes; POST /v2/sandboxes; GET /sandboxes; GET /v2/sandboxes; GET /sandboxes/metrics
  GET /sandboxes/{sandboxID}; DELETE /sandboxes/{sandboxID}
  POST /sandboxes/{sandboxID}/connect; POST /v2/sandboxes/{sandboxID}/connect
  POST /sandboxes/{sandboxID}/timeout; POST /sandboxes/{sandboxID}/refreshes
  POST /sandboxes/{sandboxID}/pause; POST /sandboxes/{sandboxID}/resume
  POST /sandboxes/{sandboxID}/fork; POST /sandboxes/{sandboxID}/snapshots; GET /snapshots
  PUT /sandboxes/{sandboxID}/network; GET /sandboxes/{sandboxID}/metrics
  GET /sandboxes/{sandboxID}/logs; GET /v2/sandboxes/{sandboxID}/logs
  POST /v3/templates; POST /v2/templates; POST /templates; POST /templates/{templateID}
  GET /templates/{templateID}/files/{hash}; POST /v2/templates/{templateID}/builds/{buildID}
  POST /templates/{templateID}/builds/{buildID}; GET /templates/{templateID}/builds/{buildID}/status
  GET /templates/{templateID}/builds/{buildID}/logs; GET /templates/aliases/{alias}
  POST /templates/tags; DELETE /templates/tags; GET /templates/{templateID}/tags
  GET /templates; GET /v2/templates; GET /templates/{templateID}; DELETE /templates/{templateID}
  PATCH /templates/{templateID}; PATCH /v2/templates/{templateID}
  GET /volumes; POST /volumes; GET /volumes/{volumeID}; DELETE /volumes/{volumeID}
  GET /volumecontent/{volumeID}/path; PATCH /volumecontent/{volumeID}/path; DELETE /volumecontent/{volumeID}/path
  GET /volumecontent/{volumeID}/dir; POST /volumecontent/{volumeID}/dir
  GET /volumecontent/{volumeID}/file; PUT /volumecontent/{volumeID}/file
  GET /secrets; POST /secrets; GET /secrets/{secretID}; POST /secrets/{secretID}; DELETE /secrets/{secretID}
  GET /teams; GET /teams/{teamID}/metrics; GET /teams/{teamID}/metrics/max
  GET /api-keys; POST /api-keys; PATCH /api-keys/{apiKeyID}; DELETE /api-keys/{apiKeyID}
  POST /access-tokens; DELETE /access-tokens/{accessTokenID}
  GET /nodes; GET /nodes/{nodeID}; POST /nodes/{nodeID}
  POST /admin/teams/{teamID}/sandboxes/kill; GET /admin/sandboxes/running-counts
  POST /admin/teams/{teamID}/builds/cancel; POST /admin/teams/{teamID}/api-keys
  DELETE /admin/teams/{teamID}/api-keys/{apiKeyID}
  POST /v1/sandboxes/{sandboxID}/executions; GET /v1/sandboxes/{sandboxID}/executions
  GET /v1/sandboxes/{sandboxID}/executions/{executionID}
  GET /v1/sandboxes/{sandboxID}/executions/{executionID}/events
  POST /v1/sandboxes/{sandboxID}/executions/{executionID}/cancel
  GET /v1/sandboxes/{sandboxID}/executions/{executionID}/output/{stream}
  POST /v1/sandboxes/{sandboxID}/contexts/{contextID}/interrupt
  GET /v1/pools; PUT /v1/pools/{template}
  GET /v1/admin/teams; POST /v1/admin/teams
  GET /v1/admin/teams/{team}/keys; POST /v1/admin/teams/{team}/keys; DELETE /v1/admin/teams/{team}/keys/{key}
  GET /v1/info; GET /metrics; GET /docs; GET /docs/openapi.json`
  .split(/[;\n]/)
  .map((row) => row.trim())
  .filter((row) => row !== '');

const TEMPLATE = 'cellboxcodeinterp001';
const warmer = { warm: () => Promise.resolve(), isWarm: () => true, drop: () => undefined, underWay: 0 };

let metrics: ServiceMetrics;
let harness: ExecutionsHarness;
let api: ApiHarness;
let document: OpenApiDocument;

beforeAll(async () => {
  metrics = new ServiceMetrics('1.2.3');
  const sizes = new Map([[TEMPLATE, { min: 0, target: 1, max: 2 }]]);
  harness = await ExecutionsHarness.open({}, { metrics }, { warmer, sizes, freeMemoryMB: () => 8192 });
  api = harness.api;
  document = (await api.ask('GET', '/docs/openapi.json', { key: null })).body as OpenApiDocument;
});

afterAll(async () => {
  await harness.close();
  metrics.close();
});

function described(): string[] {
  return Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.keys(methods).map((method) => `${method.toUpperCase()} ${path}`),
  );
}

/** Every route of the router, as it is. */
function routed(): string[] {
  interface Layer {
    route?: { path: string; methods: Record<string, boolean> };
  }
  const [app] = api.server.listeners('request') as unknown as [{ router: { stack: Layer[] } }];
  return app.router.stack.flatMap(({ route }) => {
    const [method = '', ...more] = Object.keys(route?.methods ?? {});
    // One for all methods answers the methods that a path does not have.
    const isRoute = route !== undefined && more.length === 0;
    return isRoute ? [`${method.toUpperCase()} ${openApiPath(route.path)}`] : [];
  });
}

/** Asks, and holds the answer against its description: a status that is in it, a body as it says. */
async function check(
  method: HttpMethod,
  path: string,
  ask: Ask & { at?: Record<string, string> } = {},
): Promise<Answer> {
  const { at = {}, ...rest } = ask;
  const [pattern = '', query = ''] = path.split(/(?=\?)/);
  const where = pattern.replace(/\{(\w+)\}/g, (_, name: string) => at[name] ?? `no-${name}`) + query;
  const answer = await api.ask(method.toUpperCase(), where, rest);
  const operation = document.paths[pattern]?.[method];
  const response = operation?.responses[String(answer.status)];
  if (response === undefined) throw new Error(`${method} ${where} answered ${answer.status}: ${answer.text}`);
  const type = answer.headers['content-type']?.split(';')[0] ?? '';
  const schema = response.content?.[type]?.schema;
  if (schema === undefined) {
    expect([where, Object.keys(response.content ?? {}), answer.text]).toEqual([where, [], '']);
    return answer;
  }
  const valid = compile(document, schema);
  const bodies =
    type === 'application/x-ndjson'
      ? answer.text
          .trim()
          .split('\n')
          .map((line) => JSON.parse(line) as unknown)
      : [type === 'application/json' ? answer.body : answer.text];
  for (const body of bodies) expect([where, body, valid(body)]).toEqual([where, body, []]);
  return answer;
}

describe('the description of the API', () => {
  it('has every route of the contract', () => {
    const have = described();
    expect(CONTRACT.length).toBeGreaterThan(80);
    expect(CONTRACT.filter((row) => !have.includes(row))).toEqual([]);
  });

  it('has every route that exists, and no other', () => {
    expect(described().sort()).toEqual([...new Set(routed())].sort());
  });

  it('finds every route that it has by asking', async () => {
    const missing: string[] = [];
    for (const row of described()) {
      const [method = '', path = ''] = row.split(' ');
      const { status, text } = await api.ask(method, path.replace(/\{\w+\}/g, 'inone'), { key: null });
      if (text.includes('There is nothing at') || status === 405) missing.push(row);
    }
    expect(missing).toEqual([]);
  });

  it('says of what comes later that it does', async () => {
    for (const [path, methods] of Object.entries(document.paths)) {
      for (const [method, operation] of Object.entries(methods)) {
        if (operation.tags.includes('Later')) await check(method as HttpMethod, path, { body: {} });
      }
    }
  });

  it('is true of sandboxes', async () => {
    const { body } = await check('post', '/v2/sandboxes', {
      body: { templateID: 'base', metadata: { a: 'b' } },
    });
    const at = { sandboxID: (body as { sandboxID: string }).sandboxID };
    await check('post', '/sandboxes', { body: { templateID: 'base', timeout: 60 } });
    await check('post', '/v2/sandboxes', { body: { templateID: 'none' } });
    await check('post', '/v2/sandboxes', { body: { templateID: 7 } });
    await check('post', '/v2/sandboxes', { key: null });
    await check('get', '/sandboxes');
    const first = await check('get', '/v2/sandboxes?limit=1');
    expect(first.headers['x-next-token']).toBeDefined();
    await check('get', '/v2/sandboxes?limit=0');
    await check('get', '/sandboxes/{sandboxID}', { at });
    await check('get', '/sandboxes/{sandboxID}');
    await check('get', '/sandboxes/{sandboxID}/metrics', { at });
    await check('get', `/sandboxes/metrics?sandbox_ids=${at.sandboxID}`);
    await check('get', '/sandboxes/metrics');
    await check('get', '/sandboxes/{sandboxID}/logs', { at });
    await check('get', '/v2/sandboxes/{sandboxID}/logs', { at });
    await check('get', '/v2/sandboxes/{sandboxID}/logs?limit=0', { at });
    await check('post', '/sandboxes/{sandboxID}/connect', { at, body: { timeout: 60 } });
    await check('post', '/sandboxes/{sandboxID}/timeout', { at, body: { timeout: 60 } });
    await check('post', '/sandboxes/{sandboxID}/refreshes', { at });
    await check('put', '/sandboxes/{sandboxID}/network', { at, body: { denyOut: ['1.1.1.1'] } });
    await check('put', '/sandboxes/{sandboxID}/network', { at, body: { denyOut: ['x'] } });
    await check('post', '/sandboxes/{sandboxID}/pause', { at });
    await check('post', '/sandboxes/{sandboxID}/pause', { at });
    await check('post', '/v2/sandboxes/{sandboxID}/connect', { at });
    await check('post', '/v2/sandboxes/{sandboxID}/connect', { at });
    await check('post', '/sandboxes/{sandboxID}/resume', { at });
    await check('delete', '/sandboxes/{sandboxID}', { at });
    await check('delete', '/sandboxes/{sandboxID}', { at });
  });

  it('is true of templates and pools', async () => {
    await check('get', '/templates');
    expect((await check('get', '/v2/templates?limit=1')).headers['x-next-token']).toBe('1');
    await check('get', '/templates/{templateID}', { at: { templateID: 'base' } });
    await check('get', '/templates/{templateID}');
    await check('get', '/templates/aliases/{alias}', { at: { alias: 'base' } });
    await check('get', '/v1/pools');
    await check('put', '/v1/pools/{template}', { at: { template: 'base' }, body: { target: 0 } });
    await check('put', '/v1/pools/{template}', { body: { target: 0 } });
    await check('put', '/v1/pools/{template}', { at: { template: 'base' }, body: { target: -1 } });
  });

  it('is true of executions', async () => {
    const all = '/v1/sandboxes/{sandboxID}/executions';
    const one = `${all}/{executionID}`;
    const { sandboxId: sandboxID } = harness;
    const attached = await check('post', all, { at: { sandboxID }, body: { code: '1' } });
    expect(attached.text.split('\n').length).toBeGreaterThan(1);
    const started = await check('post', all, { at: { sandboxID }, body: { code: '1', detached: true } });
    const at = { sandboxID, executionID: (started.body as { execution_id: string }).execution_id };
    await check('get', `${one}/events`, { at }); // to its end
    await check('get', one, { at });
    await check('get', `${all}?limit=1`, { at });
    await check('post', `${one}/cancel`, { at });
    await check('get', `${one}/output/{stream}`, { at: { ...at, stream: 'stdout' } });
    await check('get', `${one}/output/{stream}`, { at: { ...at, stream: 'other' } });
    await check('get', `${one}/output/{stream}`, {
      at: { ...at, stream: 'stdout' },
      headers: { range: 'bytes=999-' },
    });
    await check('get', one, { at: { sandboxID } });
    await check('post', all, { at: { sandboxID }, body: { code: 1 } });
    await check('post', '/v1/sandboxes/{sandboxID}/contexts/{contextID}/interrupt', { at });
  });

  it('is true of what is for whoever runs the service', async () => {
    const headers = { 'x-admin-token': ADMIN_TOKEN };
    await check('get', '/v1/info');
    await check('get', '/health', { key: null });
    const page = await check('get', '/metrics', { key: null, headers });
    expect(page.text).toContain('cellbox_sandboxes{state="running"}');
    await check('get', '/v1/admin/teams', { headers });
    await check('post', '/v1/admin/teams', { headers, body: { name: 'blue' } });
    await check('post', '/v1/admin/teams', { headers, body: { name: 'blue' } });
    const at = { team: 'blue' };
    await check('get', '/v1/admin/teams/{team}', { headers, at });
    await check('patch', '/v1/admin/teams/{team}', { headers, at, body: { max_sandboxes: 3 } });
    const { body } = await check('post', '/v1/admin/teams/{team}/keys', {
      headers,
      at,
      body: { name: 'ci' },
    });
    await check('get', '/v1/admin/teams/{team}/keys', { headers, at });
    const key = (body as { key_id: string }).key_id;
    await check('delete', '/v1/admin/teams/{team}/keys/{key}', { headers, at: { ...at, key } });
    await check('get', '/v1/admin/teams/{team}', { headers });
  });

  it.each([[{}], [{ 'x-admin-token': 'wrong-wrong-wrong-wrong' }]])(
    'gives the metrics to nobody with %j, whatever the key',
    async (headers) => {
      const { body } = await check('get', '/metrics', { headers });
      expect(body).toMatchObject({ code: 401 });
    },
  );

  it('is a page that needs nothing but itself', async () => {
    const { status, text, headers } = await api.ask('GET', '/docs', { key: null });
    expect([status, headers['content-type']]).toEqual([200, 'text/html; charset=utf-8']);
    expect(headers['content-security-policy']).toContain("default-src 'none'");
    expect(text).not.toMatch(/<script|<link|src=|https?:\/\/|@import|url\(/);
    for (const path of Object.keys(document.paths)) expect(text).toContain(`<code>${path}</code>`);
    for (const name of Object.keys(document.components.schemas))
      expect(text).toContain(`id="schema-${name}"`);
  });
});
