import http from 'node:http';
import net from 'node:net';
import type { AddressInfo } from 'node:net';
import zlib from 'node:zlib';
import { ServiceError } from '../../../service/errors';
import { eventually } from '../../agent/agent-fixture';
import { gate } from '../../fakes/fake-runtime';
import { ApiHarness, CONFIG, KEY } from './api-harness';

const GONE = { code: 404, message: `Sandbox "inone" doesn't exist or you don't have access to it` };
const ISO = expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);
const HEX = expect.stringMatching(/^[0-9a-f]{64}$/);

describe('control plane', () => {
  let api: ApiHarness;

  beforeEach(async () => {
    api = await ApiHarness.open();
  });

  afterEach(() => api.close());

  describe('authentication', () => {
    it.each([
      ['no key', null, {}, 'API key is missing: send it in the X-API-Key header'],
      ['an empty key', '', {}, 'API key is missing: send it in the X-API-Key header'],
      ['a wrong key', `${KEY}0`, {}, 'API key is not valid'],
      [
        'the key as a bearer',
        null,
        { authorization: `Bearer ${KEY}` },
        'API key is missing: send it in the X-API-Key header',
      ],
    ])('refuses %s', async (_what, key, headers, message) => {
      for (const [method, path] of [
        ['POST', '/sandboxes'],
        ['GET', '/v2/sandboxes'],
        ['GET', '/volumes'],
      ] as const) {
        const answer = await api.ask(method, path, { key, headers });
        expect([answer.status, answer.body]).toEqual([401, { code: 401, message }]);
      }
      expect(api.engine.started).toEqual([]);
    });

    it('tells it under /v1 in the words of the native API', async () => {
      const answer = await api.ask('GET', '/v1/info', { key: null });
      expect([answer.status, answer.body]).toEqual([
        401,
        { code: 401, error: 'unauthenticated', message: expect.any(String) },
      ]);
    });

    it('reads no body of a caller without a key', async () => {
      const answer = await api.ask('POST', '/sandboxes', { key: null, body: '{not json' });
      expect(answer.status).toBe(401);
    });
  });

  describe('create', () => {
    it.each([
      ['/sandboxes', { templateID: 'base' }, false, 15],
      ['/sandboxes', { templateID: 'base', timeout: 300, secure: true }, true, 300],
      ['/v2/sandboxes', { templateID: 'base' }, true, 300],
      ['/v2/sandboxes', { templateID: 'base', secure: false, metadata: {}, envVars: {} }, true, 300],
    ])('answers POST %s %j', async (path, body, secure, timeout) => {
      const answer = await api.ask('POST', path, { body });
      expect(answer.status).toBe(201);
      expect(answer.headers['content-type']).toMatch(/^application\/json/);
      expect(answer.headers['x-powered-by']).toBeUndefined();
      const id = (answer.body as { sandboxID: string }).sandboxID;
      expect(answer.body).toEqual({
        templateID: 'cellboxbase0template',
        sandboxID: expect.stringMatching(/^i[a-z0-9]{20}$/),
        alias: 'base',
        clientID: '6532622b',
        envdVersion: '0.6.13',
        ...(secure && { envdAccessToken: HEX }),
        trafficAccessToken: null,
        domain: 'box.example:8443',
      });
      expect(api.engine.machine(id).spec.accessToken !== undefined).toBe(secure);
      const sandbox = api.sandboxes.find(id);
      expect((sandbox?.endAt ?? 0) - (sandbox?.startedAt ?? 0)).toBe(timeout * 1000);
    });

    it('passes on environment, network and traffic settings', async () => {
      const answer = await api.ask('POST', '/v2/sandboxes', {
        body: {
          templateID: 'code-interpreter-v1',
          envVars: { A: 'x=y', Ü: '' },
          allow_internet_access: false,
          network: { allowPublicTraffic: false, allowOut: [], denyOut: null, rules: {} },
          mcp: null,
          volumeMounts: [],
          autoResume: { enabled: true },
          autoPause: true,
          metadata: { k: 'v' },
        },
      });
      expect(answer.body).toMatchObject({ trafficAccessToken: HEX });
      const id = (answer.body as { sandboxID: string }).sandboxID;
      expect(api.engine.machine(id).spec).toMatchObject({ network: 'none', env: { A: 'x=y', Ü: '' } });
      expect((await api.ask('GET', `/sandboxes/${id}`)).body).toMatchObject({
        allowInternetAccess: false,
        network: { allowPublicTraffic: false },
        lifecycle: { autoResume: true, onTimeout: 'pause' },
        metadata: { k: 'v' },
      });
    });

    it.each<[unknown, string]>([
      [{}, 'templateID'],
      [{ templateID: 7 }, 'templateID'],
      [{ templateID: '' }, 'templateID'],
      [{ templateID: 'base', timeout: '300' }, 'timeout'],
      [{ templateID: 'base', timeout: 1.5 }, 'timeout'],
      [{ templateID: 'base', timeout: 1e12 }, 'timeout'],
      [{ templateID: 'base', timeout: 0 }, 'Timeout must be greater than 0'],
      [{ templateID: 'base', timeout: -1 }, 'Timeout must be greater than 0'],
      [{ templateID: 'base', timeout: 86_401 }, 'Timeout cannot be greater than 24 hours'],
      [{ templateID: 'base', metadata: { a: 1 } }, 'metadata.a'],
      [{ templateID: 'base', metadata: [] }, 'metadata'],
      [{ templateID: 'base', envVars: { a: null } }, 'envVars.a'],
      [{ templateID: 'base', envVars: { 'A=B': '' } }, 'envVars'],
      [{ templateID: 'base', envVars: { '': '' } }, 'envVars'],
      [{ templateID: 'base', envVars: { A: 'a\0b' } }, 'envVars'],
      [{ templateID: 'base', envVars: { A: '\ud800' } }, 'envVars'],
      [{ templateID: 'base', envVars: { A: 'x'.repeat(131_072) } }, 'envVars'],
      [{ templateID: 'base', network: { allowPublicTraffic: 'no' } }, 'network.allowPublicTraffic'],
      [
        { templateID: 'base', network: { denyOut: ['a.example'] } },
        'network.denyOut: "a.example" is neither',
      ],
      [
        { templateID: 'base', network: { denyOut: ['1.2.3.4/33'] } },
        'network.denyOut: "1.2.3.4/33" is neither',
      ],
      [
        { templateID: 'base', network: { allowOut: ['1.2.3.999'] } },
        'network.allowOut: "1.2.3.999" is neither',
      ],
      [
        { templateID: 'base', network: { allowOut: ['::1'] } },
        'network.allowOut: "::1": sandboxes have no IPv6',
      ],
      [{ templateID: 'base', network: { allowOut: ['a.example'] } }, 'needs 0.0.0.0/0 in denyOut'],
      [{ templateID: 'base', network: { denyOut: Array(257).fill('1.1.1.1') } }, 'more than 256 entries'],
      [
        { templateID: 'base', network: { maskRequestHost: 'a b' } },
        'network.maskRequestHost: "a b" is neither',
      ],
      [
        { templateID: 'base', network: { maskRequestHost: 'a\r\nb: c' } },
        'network.maskRequestHost: "a\\r\\nb',
      ],
      [{ templateID: 'base', network: { maskRequestHost: 7 } }, 'network.maskRequestHost'],
      [{ templateID: 'base', network: { httpsPorts: [0] } }, 'network.httpsPorts: 0 is not a port'],
      [{ templateID: 'base', network: { httpsPorts: [443.5] } }, 'network.httpsPorts'],
      [{ templateID: 'base', network: { httpsPorts: [49983] } }, 'network.httpsPorts: 49983 is not for'],
      [{ templateID: 'base', network: { httpsPorts: Array(257).fill(1) } }, 'more than 256 entries'],
      [{ templateID: 'base', autoResume: true }, 'autoResume'],
      [{ templateID: 'base', autoPauseMemory: false }, 'autoPauseMemory'],
      [
        { templateID: 'base', autoPause: true, autoPauseMemory: false, autoResume: { enabled: true } },
        'autoPauseMemory',
      ],
      [[], 'expected object'],
      ['"text"', 'expected object'],
      [null, 'expected object'],
      ['{"templateID":', 'not valid JSON'],
      ['', 'templateID'],
      [Buffer.from('{"templateID":"\xff"}', 'latin1'), 'not valid UTF-8'],
    ])('refuses %j, naming %s', async (body, name) => {
      const answer = await api.ask('POST', '/v2/sandboxes', { body });
      expect(answer.status).toBe(400);
      expect(answer.body).toEqual({ code: 400, message: expect.stringContaining(name) });
      expect(api.engine.started).toEqual([]);
    });

    it('refuses private traffic on an unsecured sandbox', async () => {
      const answer = await api.ask('POST', '/sandboxes', {
        body: { templateID: 'base', network: { allowPublicTraffic: false } },
      });
      expect(answer.body).toEqual({ code: 400, message: expect.stringContaining('secure') });
    });

    it.each([
      [{ mcp: { browserbase: {} } }, 'mcp'],
      [{ iam: { tokens: { a: { audience: 'x', tokenType: 'JWT-SVID' } } } }, 'iam'],
      [{ volumeMounts: [{ name: 'v', path: '/v' }] }, 'volumeMounts'],
      [{ network: { egressProxy: { address: 'a:1' } } }, 'network.egressProxy'],
      [{ network: { rules: { 'a.example': [] } } }, 'network.rules'],
      [{ network: { dnsServers: ['1.1.1.1'] } }, 'network.dnsServers'],
    ])('does not accept %j in silence', async (fields, name) => {
      const answer = await api.ask('POST', '/v2/sandboxes', { body: { templateID: 'base', ...fields } });
      expect([answer.status, answer.body]).toEqual([
        501,
        { code: 501, message: `${name} is not implemented yet` },
      ]);
      expect(answer.headers['should-retry']).toBe('false');
      expect(api.engine.started).toEqual([]);
    });

    it('tells an unknown template', async () => {
      const answer = await api.ask('POST', '/v2/sandboxes', { body: { templateID: 'Nope:v1' } });
      expect([answer.status, answer.body]).toEqual([
        404,
        { code: 404, message: "template 'Nope:v1' not found" },
      ]);
    });

    it('tells the limit, when there is room at the latest, and not to try again at once', async () => {
      for (let count = 0; count < CONFIG.maxSandboxes; count++) await api.create({ timeout: 60 });
      const answer = await api.ask('POST', '/v2/sandboxes', { body: { templateID: 'base' } });
      expect([answer.status, answer.body]).toEqual([
        429,
        { code: 429, message: 'The limit of 5 concurrent sandboxes is reached' },
      ]);
      expect(answer.headers['should-retry']).toBe('false');
      const inSeconds = (Date.parse(String(answer.headers['retry-after'])) - Date.now()) / 1000;
      expect(inSeconds).toBeGreaterThan(50);
      expect(inSeconds).toBeLessThanOrEqual(60);
    });

    it.each([
      [
        new ServiceError('unavailable', 'the engine is gone'),
        503,
        'the engine is gone',
        'sandbox_capacity_unavailable',
      ],
      [new Error('/secret/path'), 500, 'The sandbox could not be started', 'sandbox_create_failed'],
    ])('tells a failed start once and for all (%#)', async (failure, code, message, error_code) => {
      api.engine.beforeStart = () => Promise.reject(failure);
      const answer = await api.ask('POST', '/v2/sandboxes', { body: { templateID: 'base' } });
      expect([answer.status, answer.body]).toEqual([code, { code, message, error_code }]);
      expect(answer.headers['should-retry']).toBe('false');
    });

    it('ends what it started when the client goes away', async () => {
      const reached = gate();
      const aborted = gate();
      api.engine.beforeStart = (_spec, signal) => {
        reached.open();
        return new Promise((resolve) =>
          signal?.addEventListener('abort', () => {
            aborted.open();
            resolve();
          }),
        );
      };
      const req = http.request(`${api.url}/v2/sandboxes`, { method: 'POST', headers: { 'x-api-key': KEY } });
      req.on('error', () => undefined); // it is we who hang up
      req.end('{"templateID":"base"}');
      await reached.opened;
      req.destroy();
      await aborted.opened;
      await api.sandboxes.close({ onStop: 'keep' });
      expect(api.engine.machines.size).toBe(0);
    });

    it('honours an Idempotency-Key and refuses a malformed one', async () => {
      const ask = (key: string) =>
        api.ask('POST', '/v2/sandboxes', {
          headers: { 'idempotency-key': key },
          body: { templateID: 'base' },
        });
      const [one, two] = await Promise.all([ask('a-1'), ask('a-1')]);
      expect(two.body).toEqual(one.body);
      expect((await ask('a-1')).body).toEqual(one.body);
      expect(((await ask('a-2')).body as { sandboxID: string }).sandboxID).not.toBe(
        (one.body as { sandboxID: string }).sandboxID,
      );
      expect((await ask('A_1')).body).toEqual({
        code: 400,
        message: expect.stringContaining('Idempotency-Key'),
      });
      expect((await ask('a'.repeat(256))).status).toBe(400);
    });
  });

  describe('bodies', () => {
    const body = JSON.stringify({ templateID: 'base' });

    it('takes them chunked, with a length, compressed, and under any content type', async () => {
      const variants: Array<[Record<string, string>, string | Buffer]> = [
        [{}, body],
        [{ 'content-length': String(body.length) }, body],
        [{ 'content-encoding': 'gzip' }, zlib.gzipSync(body)],
        [{ 'content-type': 'text/plain' }, body],
        [{ 'content-type': 'application/json; charset=utf-8' }, `\ufeff${body}`],
      ];
      for (const [headers, bytes] of variants) {
        const answer = await api.ask('POST', '/v2/sandboxes', { headers, body: bytes });
        expect([headers, answer.status]).toEqual([headers, 201]);
      }
    });

    it.each([
      ['plain', {}, Buffer.alloc(CONFIG.maxBodyBytes + 1, ' ')],
      [
        'once it is unpacked',
        { 'content-encoding': 'gzip' },
        zlib.gzipSync(Buffer.alloc(CONFIG.maxBodyBytes + 1, ' ')),
      ],
    ])('refuses one that is too large, %s', async (_how, headers, bytes) => {
      const answer = await api.ask('POST', '/v2/sandboxes', { headers, body: bytes });
      expect([answer.status, answer.body]).toEqual([
        413,
        { code: 413, message: `Request body is larger than the limit of ${CONFIG.maxBodyBytes} bytes` },
      ]);
    });

    it('refuses an unknown encoding', async () => {
      const answer = await api.ask('POST', '/v2/sandboxes', {
        headers: { 'content-encoding': 'x-own' },
        body,
      });
      expect(answer.status).toBe(415);
      expect(answer.body).toMatchObject({ code: 415 });
    });

    it('answers the next request after a client hung up in the middle of one', async () => {
      const socket = net.connect((api.server.address() as AddressInfo).port, '127.0.0.1');
      const closed = new Promise((resolve) =>
        api.server.once('request', (req) => req.once('close', resolve)),
      );
      socket.write(
        `POST /v2/sandboxes HTTP/1.1\r\nhost: x\r\nx-api-key: ${KEY}\r\ncontent-length: 99\r\n\r\n{"te`,
      );
      await new Promise((resolve) => api.server.once('request', resolve));
      socket.destroy();
      await closed;
      expect((await api.ask('GET', '/v2/sandboxes')).status).toBe(200);
    });
  });

  describe('one sandbox', () => {
    it('is told in full', async () => {
      const id = await api.create({ metadata: { 'a b': 'ü' } });
      const answer = await api.ask('GET', `/sandboxes/${id}`);
      expect([answer.status, answer.body]).toEqual([
        200,
        {
          templateID: 'cellboxbase0template',
          alias: 'base',
          sandboxID: id,
          clientID: '6532622b',
          startedAt: ISO,
          endAt: ISO,
          cpuCount: 2,
          memoryMB: 2048,
          diskSizeMB: 10_240,
          metadata: { 'a b': 'ü' },
          state: 'running',
          envdVersion: '0.6.13',
          volumeMounts: [],
          envdAccessToken: HEX,
          allowInternetAccess: true,
          domain: 'box.example:8443',
          network: { allowPublicTraffic: true },
          lifecycle: { autoResume: false, onTimeout: 'kill' },
        },
      ]);
      expect((await api.ask('GET', `/sandboxes/${id}-6532622b`)).body).toEqual(answer.body);
    });

    it('is killed once', async () => {
      const id = await api.create();
      const answer = await api.ask('DELETE', `/sandboxes/${id}`);
      expect([answer.status, answer.text]).toEqual([204, '']);
      expect((await api.ask('DELETE', `/sandboxes/${id}`)).body).toMatchObject({ code: 404 });
      expect((await api.ask('GET', `/sandboxes/${id}`)).status).toBe(404);
    });

    it.each<[string, string, unknown]>([
      ['GET', '/sandboxes/inone', undefined],
      ['DELETE', '/sandboxes/inone', undefined],
      ['POST', '/sandboxes/inone/connect', { timeout: 300 }],
      ['POST', '/v2/sandboxes/inone/connect', undefined],
      ['POST', '/sandboxes/inone/timeout', { timeout: 1 }],
      ['POST', '/sandboxes/inone/refreshes', undefined],
      ['PUT', '/sandboxes/inone/network', {}],
      ['POST', '/sandboxes/inone/pause', undefined],
      ['POST', '/sandboxes/inone/resume', {}],
      ['GET', '/sandboxes/inone/metrics', undefined],
      ['GET', '/sandboxes/inone/logs', undefined],
      ['GET', '/v2/sandboxes/inone/logs', undefined],
    ])('is not found by %s %s', async (method, path, body) => {
      const answer = await api.ask(method, path, { body });
      expect([answer.status, answer.body]).toEqual([404, GONE]);
      const malformed = await api.ask(method, path.replace('inone', 'A-b-c'), { body });
      expect([malformed.status, malformed.body]).toEqual([400, { code: 400, message: 'Invalid sandbox ID' }]);
    });

    it.each<[string, unknown, string]>([
      ['/sandboxes/ID/connect', {}, 'timeout'],
      ['/sandboxes/ID/connect', undefined, 'timeout'],
      ['/sandboxes/ID/connect', { timeout: -1 }, 'timeout'],
      ['/sandboxes/ID/connect', { timeout: 86_401 }, 'Timeout cannot be greater than 24 hours'],
      ['/v2/sandboxes/ID/connect', { timeout: 'x' }, 'timeout'],
      ['/sandboxes/ID/timeout', {}, 'timeout'],
      ['/sandboxes/ID/timeout', { timeout: -1 }, 'timeout'],
      ['/sandboxes/ID/refreshes', { duration: 3601 }, 'duration'],
      ['/sandboxes/ID/pause', { memory: 'no' }, 'memory'],
    ])('refuses POST %s %j, naming %s', async (path, body, name) => {
      const id = await api.create();
      const answer = await api.ask('POST', path.replace('ID', id), { body });
      expect(answer.body).toEqual({ code: 400, message: expect.stringContaining(name) });
      expect(answer.status).toBe(400);
    });

    it('tells how it is reached as it was given, also when its way out is replaced', async () => {
      const network = { maskRequestHost: 'localhost:${PORT}', httpsPorts: [443, 8443] };
      const id = await api.create({ network });
      const told = async () =>
        ((await api.ask('GET', `/sandboxes/${id}`)).body as { network: unknown }).network;
      expect(await told()).toEqual({ allowPublicTraffic: true, ...network });
      expect((await api.ask('PUT', `/sandboxes/${id}/network`, { body: {} })).status).toBe(204);
      expect(await told()).toEqual({ allowPublicTraffic: true, ...network });
      const plain = await api.create({ network: { maskRequestHost: '', httpsPorts: [] } });
      const { body } = await api.ask('GET', `/sandboxes/${plain}`);
      expect(body).toMatchObject({ network: { allowPublicTraffic: true } });
      expect((body as { network: object }).network).not.toHaveProperty('maskRequestHost');
    });

    it('tells its network as it was given, and replaces all of it', async () => {
      const network = { allowOut: ['1.1.1.1', '10.1.2.3/8'], denyOut: ['0.0.0.0/0', '::/0'] };
      const id = await api.create({ network });
      const settings = async () => {
        const { body } = await api.ask('GET', `/sandboxes/${id}`);
        const { allowInternetAccess, network } = body as Record<string, unknown>;
        return { allowInternetAccess, network, access: api.engine.machine(id).network };
      };
      const rules = { allowOut: ['1.1.1.1/32', '10.0.0.0/8'], denyOut: ['0.0.0.0/0'] };
      expect(await settings()).toEqual({
        allowInternetAccess: true,
        network: { allowPublicTraffic: true, ...network },
        access: rules,
      });
      const put = (body: unknown) => api.ask('PUT', `/sandboxes/${id}/network`, { body });
      const answer = await put({ allow_internet_access: false });
      expect([answer.status, answer.text]).toEqual([204, '']);
      expect(await settings()).toEqual({
        allowInternetAccess: false,
        network: { allowPublicTraffic: true },
        access: 'none',
      });
      expect((await put({ denyOut: ['8.8.8.8'], allowOut: null })).status).toBe(204);
      expect(await settings()).toEqual({
        allowInternetAccess: true,
        network: { allowPublicTraffic: true, denyOut: ['8.8.8.8'] },
        access: { allowOut: [], denyOut: ['8.8.8.8/32'] },
      });
      for (const [body, status, message] of [
        [{ denyOut: ['nonsense'] }, 400, 'denyOut: "nonsense" is neither'],
        [{ allowOut: 'x' }, 400, 'allowOut'],
        [
          { allowOut: ['a.example'], denyOut: ['8.8.8.8'] },
          400,
          'allowOut: a domain needs 0.0.0.0/0 in denyOut',
        ],
        [{ allowOut: ['*.'], denyOut: ['0.0.0.0/0'] }, 400, 'allowOut: "*." is neither'],
        [{ rules: { 'a.example': [] } }, 501, 'rules is not implemented yet'],
        [{ egressProxy: { address: 'a:1' } }, 501, 'egressProxy is not implemented yet'],
      ] as const) {
        const refused = await put(body);
        expect(refused.body).toEqual({ code: status, message: expect.stringContaining(message) });
      }
      expect((await settings()).access).toEqual({ allowOut: [], denyOut: ['8.8.8.8/32'] });
      expect((await put({})).status).toBe(204);
      expect((await settings()).access).toBe('full');
      await api.ask('POST', `/sandboxes/${id}/pause`);
      expect((await put({ allow_internet_access: false })).status).toBe(204);
      expect((await settings()).access).toBe('none');
    });

    it('takes domains where everything else is denied, once what they need is there', async () => {
      const network = { allowOut: ['B.example', '*.a.example', '1.1.1.1'], denyOut: ['0.0.0.0/0'] };
      const rules = {
        allowOut: ['1.1.1.1/32'],
        denyOut: ['0.0.0.0/0'],
        allowDomains: ['*.a.example', 'b.example'],
      };
      const prepared: unknown[] = [];
      api.engine.beforePrepareNetwork = (access) => Promise.resolve(void prepared.push(access));
      const id = await api.create({ network });
      expect([prepared, api.engine.machine(id).network]).toEqual([[rules], rules]);
      expect((await api.ask('GET', `/sandboxes/${id}`)).body).toMatchObject({ network });
      const put = (body: unknown) => api.ask('PUT', `/sandboxes/${id}/network`, { body });
      expect((await put({ allowOut: ['c.example'], allow_internet_access: false })).status).toBe(204);
      const changed = { allowOut: [], denyOut: ['0.0.0.0/0'], allowDomains: ['c.example'] };
      expect([prepared[1], api.engine.machine(id).network]).toEqual([changed, changed]);

      const message = 'The image of the proxy for domain rules is being built';
      api.engine.beforePrepareNetwork = () => Promise.reject(new ServiceError('unavailable', message));
      const refused = [
        await put({ allowOut: ['d.example'], denyOut: ['0.0.0.0/0'] }),
        await api.ask('POST', '/v2/sandboxes', { body: { templateID: 'base', network } }),
      ];
      for (const { status, body } of refused)
        expect([status, body]).toEqual([
          503,
          expect.objectContaining({ message: expect.stringContaining(message) }),
        ]);
      expect(api.engine.machine(id).network).toEqual(changed);
      expect(api.engine.machines.size).toBe(1);
    });

    it('is connected to, paused, resumed and extended with the exact statuses', async () => {
      const id = await api.create();
      const token = ((await api.ask('GET', `/sandboxes/${id}`)).body as { envdAccessToken: string })
        .envdAccessToken;
      const post = (path: string, body?: unknown) => api.ask('POST', path.replace('ID', id), { body });
      expect((await post('/sandboxes/ID/connect', { timeout: 300 })).status).toBe(200);
      expect((await post('/v2/sandboxes/ID/connect')).status).toBe(200);
      for (const [path, body] of [
        ['/sandboxes/ID/timeout', { timeout: 100 }],
        ['/sandboxes/ID/refreshes', undefined],
        ['/sandboxes/ID/refreshes', { duration: 200 }],
        ['/sandboxes/ID/pause', undefined],
      ] as const) {
        const answer = await post(path, body);
        expect([path, answer.status, answer.text]).toEqual([path, 204, '']);
      }
      expect((await post('/sandboxes/ID/pause', {})).body).toMatchObject({ code: 409 });
      expect((await post('/sandboxes/ID/timeout', { timeout: 5 })).status).toBe(404);
      expect((await api.ask('GET', `/sandboxes/${id}`)).body).toMatchObject({
        state: 'paused',
        pauseMode: 'full',
      });
      const resumed = await post('/v2/sandboxes/ID/connect', {});
      expect([resumed.status, resumed.body]).toEqual([
        201,
        expect.objectContaining({ envdAccessToken: token }),
      ]);
      expect((await post('/sandboxes/ID/resume', { timeout: 5 })).status).toBe(409);
      await post('/sandboxes/ID/pause');
      expect((await post('/sandboxes/ID/resume', { timeout: 5, autoPause: true })).status).toBe(201);
      expect((await api.ask('GET', `/sandboxes/${id}`)).body).toMatchObject({
        lifecycle: { onTimeout: 'pause' },
      });
    });

    it('moves its end as it is told: a time-out both ways, a refresh only later and by 15 s at least', async () => {
      const id = await api.create({ timeout: 100 });
      const end = async () => {
        const { endAt } = (await api.ask('GET', `/sandboxes/${id}`)).body as { endAt: string };
        return Date.parse(endAt);
      };
      const move = async (path: string, body: unknown): Promise<number> => {
        const before = Date.now();
        const answer = await api.ask('POST', `/sandboxes/${id}/${path}`, { body });
        expect([body, answer.status]).toEqual([body, 204]);
        return ((await end()) - before) / 1000;
      };
      const about = (seconds: number) => expect.closeTo(seconds, -1) as number; // within 5 s
      expect(await move('refreshes', {})).toEqual(about(100));
      expect(await move('timeout', { timeout: 5, unheardOf: true })).toEqual(about(5));
      expect(await move('refreshes', { duration: 0 })).toEqual(about(15));
      expect(await move('refreshes', { duration: null })).toEqual(about(15));
      expect(await move('refreshes', { duration: 3600 })).toEqual(about(3600));
      expect(await move('refreshes', { duration: 20 })).toEqual(about(3600));
      expect(await move('timeout', { timeout: 2 ** 31 - 1 })).toEqual(about(CONFIG.maxTimeoutSeconds));
      const last = await end();
      for (const [path, body] of [
        ...[3601, -1, 1.5, '10', true].map((duration) => ['refreshes', { duration }]),
        ...[-1, 1.5, '10', null, 2 ** 31, undefined].map((timeout) => ['timeout', { timeout }]),
      ] as Array<[string, object]>) {
        const answer = await api.ask('POST', `/sandboxes/${id}/${path}`, { body });
        expect([body, answer.status]).toEqual([body, 400]);
        expect(await end()).toBe(last);
      }
      await api.ask('POST', `/sandboxes/${id}/pause`);
      expect((await api.ask('POST', `/sandboxes/${id}/refreshes`)).status).toBe(404); // not running
      expect((await api.ask('POST', '/sandboxes/inone/refreshes')).status).toBe(404);
    });

    it('is paused without its memory, at its deadline too, and says so', async () => {
      const id = await api.create({ autoPause: true, autoPauseMemory: false, timeout: 300 });
      const post = (path: string, body?: unknown) => api.ask('POST', `/sandboxes/${id}/${path}`, { body });
      const detail = async () =>
        (await api.ask('GET', `/sandboxes/${id}`)).body as { pauseMode?: string; state: string };
      const pauseMode = async () => {
        const { pauseMode: mode } = await detail();
        const [listed] = (await api.ask('GET', '/v2/sandboxes')).body as Array<{ pauseMode?: string }>;
        expect(listed?.pauseMode).toBe(mode);
        return mode;
      };
      expect(await pauseMode()).toBeUndefined();
      expect((await post('pause', { memory: false })).status).toBe(204);
      expect([await pauseMode(), api.engine.machine(id).state]).toEqual(['filesystem', 'halted']);
      expect((await post('pause', { memory: false })).status).toBe(409);
      expect((await post('connect', { timeout: 60 })).status).toBe(201);
      expect([await pauseMode(), api.engine.machine(id).boots]).toEqual([undefined, 1]);
      await post('pause');
      expect(await pauseMode()).toBe('full');
      expect((await post('connect', { timeout: 60, memory: false })).status).toBe(201);
      expect(api.engine.machine(id).boots).toBe(2);
      expect((await post('connect', { timeout: 60, memory: false })).status).toBe(200);
      await post('pause');
      expect((await post('resume', { timeout: 60, memory: false })).status).toBe(201);
      expect(api.engine.machine(id).boots).toBe(3);
      await post('timeout', { timeout: 0 });
      // One answer at a time: the deadline may come between that of the sandbox and that of the list.
      for (const end = Date.now() + 5_000; (await detail()).state !== 'paused';)
        if (Date.now() > end) throw new Error('the deadline did not come');
      expect(await pauseMode()).toBe('filesystem');
    });

    it.each([['pause', { requireHealthyGuest: true }]])('refuses %s %j by name', async (action, body) => {
      const id = await api.create();
      const answer = await api.ask('POST', `/sandboxes/${id}/${action}`, { body });
      expect([answer.status, answer.body]).toEqual([
        501,
        {
          code: 501,
          message: expect.stringMatching(/^requireHealthyGuest.*is not implemented yet$/),
        },
      ]);
    });

    it('tells what it uses, and nothing about times before it was there', async () => {
      const id = await api.create();
      const metric = {
        timestamp: ISO,
        timestampUnix: expect.any(Number),
        cpuCount: 2,
        cpuUsedPct: 12.5,
        memUsed: 52_428_800,
        memTotal: 2_147_483_648,
        memCache: 10_485_760,
        diskUsed: 1_073_741_824,
        diskTotal: 10_737_418_240,
      };
      const metrics = async () => (await api.ask('GET', `/sandboxes/${id}/metrics`)).body;
      await eventually(async () => expect(await metrics()).toEqual([metric]));
      expect((await api.ask('GET', `/sandboxes/${id}/metrics?start=0&end=100`)).body).toEqual([]);
      expect((await api.ask('GET', `/sandboxes/${id}/metrics?start=x`)).status).toBe(400);
      expect((await api.ask('GET', `/sandboxes/${id}/metrics?start=2&end=1`)).status).toBe(400);
      expect((await api.ask('GET', `/sandboxes/metrics?sandbox_ids=${id},inone`)).body).toEqual({
        sandboxes: { [id]: metric },
      });
      expect((await api.ask('GET', '/sandboxes/metrics')).status).toBe(400);
      expect((await api.ask('GET', `/sandboxes/metrics?sandbox_ids=${'a,'.repeat(101)}`)).status).toBe(400);
    });
  });

  describe('lists', () => {
    const ids = (body: unknown) => (body as Array<{ sandboxID: string }>).map((each) => each.sandboxID);

    it('come in pages, newest first, with a token on every page but the last', async () => {
      const made: string[] = [];
      for (let count = 0; count < 5; count++) made.push(await api.create());
      for (const order of ['desc', 'asc']) {
        const seen: string[][] = [];
        let token: string | undefined;
        do {
          const next = token === undefined ? '' : `&nextToken=${encodeURIComponent(token)}`;
          const answer = await api.ask('GET', `/v2/sandboxes?limit=2&order=${order}${next}`);
          expect(answer.headers['x-total-running']).toBe('5');
          seen.push(ids(answer.body));
          token = answer.headers['x-next-token'] as string | undefined;
        } while (token !== undefined && seen.length < 9);
        expect(seen.map((page) => page.length)).toEqual([2, 2, 1]);
        // Some were made within the same millisecond: their order is any, but the same both ways.
        expect(seen.flat().sort()).toEqual([...made].sort());
      }
      const exact = await api.ask('GET', '/v2/sandboxes?limit=5');
      expect(exact.headers['x-next-token']).toBeUndefined();
      const forward = ids((await api.ask('GET', '/v2/sandboxes?order=asc')).body);
      expect(ids(exact.body)).toEqual([...forward].reverse());
    });

    it('go on after a sandbox that ended between two pages', async () => {
      const made = [await api.create(), await api.create(), await api.create()];
      const first = await api.ask('GET', '/v2/sandboxes?limit=1');
      await api.ask('DELETE', `/sandboxes/${ids(first.body)[0]}`);
      const rest = await api.ask('GET', `/v2/sandboxes?nextToken=${first.headers['x-next-token']}`);
      expect([...ids(first.body), ...ids(rest.body)].sort()).toEqual(made.sort());
    });

    it('tell exactly these fields', async () => {
      const id = await api.create();
      const expected = {
        templateID: 'cellboxbase0template',
        alias: 'base',
        sandboxID: id,
        clientID: '6532622b',
        startedAt: ISO,
        endAt: ISO,
        cpuCount: 2,
        memoryMB: 2048,
        diskSizeMB: 10_240,
        metadata: {},
        state: 'running',
        envdVersion: '0.6.13',
        volumeMounts: [],
      };
      expect((await api.ask('GET', '/v2/sandboxes')).body).toEqual([expected]);
      expect((await api.ask('GET', '/sandboxes')).body).toEqual([expected]);
    });

    it('are filtered by state, metadata, template and time', async () => {
      const a = await api.create({ metadata: { a: 'b c', x: 'y&z' } });
      const b = await api.create({ metadata: { a: 'b c' }, templateID: 'code-interpreter-v1' });
      await api.ask('POST', `/sandboxes/${b}/pause`);
      const list = async (query: string) => {
        const answer = await api.ask('GET', `/v2/sandboxes?${query}`);
        return answer.status === 200 ? ids(answer.body).sort() : answer.status;
      };
      expect(await list('')).toEqual([a, b].sort());
      expect(await list('state=running,paused')).toEqual([a, b].sort());
      expect(await list('state=running%2Cpaused')).toEqual([a, b].sort());
      expect(await list('state=running')).toEqual([a]);
      expect(await list('state=paused')).toEqual([b]);
      expect(await list('metadata=a%3Db%252520c%26x%3Dy%252526z')).toEqual([a]);
      expect(await list('metadata=a%3Db%252520c')).toEqual([a, b].sort());
      expect(await list('metadata=')).toEqual([a, b].sort());
      expect(await list('template=code-interpreter-v1')).toEqual([b]);
      expect(await list('template=cellboxbase0template')).toEqual([a]);
      expect(await list('template=unheard-of')).toEqual([]);
      expect(await list('startedAfter=2020-01-01T00:00:00Z')).toEqual([a, b].sort());
      expect(await list('startedAfter=2999-01-01T00:00:00%2B02:00')).toEqual([]);
      expect(ids((await api.ask('GET', '/sandboxes?metadata=a%3Db%252520c')).body)).toEqual([a]);
      expect((await api.ask('GET', '/v2/sandboxes?state=paused')).headers['x-total-running']).toBeUndefined();
    });

    it.each([
      'limit=0',
      'limit=-1',
      'limit=101',
      'limit=x',
      'limit=1.5',
      'state=dead',
      'order=up',
      'metadata=a',
      'metadata=a%3D%25zz',
      'startedAfter=yesterday',
      'startedAfter=1',
      'startedAfter=2026-01-01T00:00:00',
      'startedAfter=2026-01-01T00:00:00+02:00', // a plus sign that was not encoded is a space
      'nextToken=%00',
      'nextToken=A',
    ])('refuse %s', async (query) => {
      const answer = await api.ask('GET', `/v2/sandboxes?${query}`);
      expect(answer.status).toBe(400);
      expect(answer.body).toEqual({
        code: 400,
        message: expect.stringMatching(new RegExp(`^${query.split('=')[0]}: `)),
      });
    });
  });

  describe('templates', () => {
    it('are listed with every field that clients demand', async () => {
      const template = {
        templateID: 'cellboxbase0template',
        buildID: expect.any(String),
        cpuCount: 2,
        memoryMB: 2048,
        diskSizeMB: 10_240,
        public: true,
        aliases: ['base'],
        names: ['base'],
        createdAt: ISO,
        updatedAt: ISO,
        createdBy: null,
        lastSpawnedAt: null,
        spawnCount: 0,
        buildCount: 1,
        envdVersion: '0.6.13',
        buildStatus: 'ready',
      };
      const answer = await api.ask('GET', '/templates?teamID=x');
      expect(answer.body).toEqual([template, expect.objectContaining({ aliases: ['code-interpreter-v1'] })]);
      expect((await api.ask('GET', '/v2/templates')).body).toEqual(answer.body);
      const page = await api.ask('GET', '/v2/templates?limit=1');
      expect(page.body).toEqual([template]);
      const last = await api.ask('GET', `/v2/templates?limit=1&nextToken=${page.headers['x-next-token']}`);
      expect(last.body).toEqual([expect.objectContaining({ aliases: ['code-interpreter-v1'] })]);
      expect(last.headers['x-next-token']).toBeUndefined();
    });

    it.each([
      ['/templates/aliases/base', 200],
      ['/templates/aliases/default%2Fbase%3Adefault', 200],
      ['/templates/aliases/team%2Fbase%3Av1', 404],
      ['/templates/aliases/a%20b', 400],
      ['/templates/aliases/%zz', 400],
      ['/templates/cellboxbase0template', 200],
      ['/templates/nothing', 404],
    ])('answer GET %s with %i', async (path, status) => {
      const answer = await api.ask('GET', path);
      expect(answer.status).toBe(status);
      expect(answer.body).toMatchObject(
        status === 200 ? { templateID: 'cellboxbase0template', public: true } : { code: status },
      );
    });
  });

  describe('later features', () => {
    it.each([
      ['POST', '/sandboxes/i1/fork', 'Forking a sandbox'],
      ['POST', '/sandboxes/i1/snapshots', 'Snapshots'],
      ['GET', '/snapshots', 'Snapshots'],
      ['POST', '/v3/templates', 'Building templates'],
      ['POST', '/v2/templates', 'Building templates'],
      ['POST', '/templates', 'Building templates'],
      ['POST', '/templates/x', 'Building templates'],
      ['GET', `/templates/x/files/${'0'.repeat(64)}`, 'Building templates'],
      ['POST', '/v2/templates/x/builds/y', 'Building templates'],
      ['POST', '/templates/x/builds/y', 'Building templates'],
      ['GET', '/templates/x/builds/y/status', 'Building templates'],
      ['GET', '/templates/x/builds/y/logs', 'Building templates'],
      ['POST', '/templates/tags', 'Template tags'],
      ['DELETE', '/templates/tags', 'Template tags'],
      ['GET', '/templates/x/tags', 'Template tags'],
      ['DELETE', '/templates/ns%2Fx%3Ay', 'Deleting a template or snapshot'],
      ['PATCH', '/templates/x', 'Changing a template'],
      ['PATCH', '/v2/templates/x', 'Changing a template'],
      ['GET', '/volumes', 'Volumes'],
      ['POST', '/volumes', 'Volumes'],
      ['GET', '/volumes/x', 'Volumes'],
      ['DELETE', '/volumes/x', 'Volumes'],
      ['PUT', '/volumecontent/x/file', 'Volumes'],
      ['GET', '/secrets', 'Secrets'],
      ['POST', '/secrets', 'Secrets'],
      ['GET', '/secrets/x', 'Secrets'],
      ['POST', '/secrets/x', 'Secrets'],
      ['DELETE', '/secrets/x', 'Secrets'],
      ['GET', '/teams', 'Listing teams'],
      ['GET', '/teams/x/metrics', 'Team metrics'],
      ['GET', '/teams/x/metrics/max', 'Team metrics'],
      ['GET', '/api-keys', 'Managing API keys'],
      ['POST', '/api-keys', 'Managing API keys'],
      ['PATCH', '/api-keys/x', 'Managing API keys'],
      ['DELETE', '/api-keys/x', 'Managing API keys'],
      ['GET', '/nodes', 'Node administration'],
      ['GET', '/nodes/x', 'Node administration'],
      ['POST', '/nodes/x', 'Node administration'],
      ['POST', '/admin/teams/x/sandboxes/kill', 'Team administration'],
      ['GET', '/admin/sandboxes/running-counts', 'Team administration'],
      ['POST', '/admin/teams/x/builds/cancel', 'Team administration'],
      ['POST', '/admin/teams/x/api-keys', 'Team administration'],
      ['DELETE', '/admin/teams/x/api-keys/y', 'Team administration'],
    ])('are told by name: %s %s', async (method, path, feature) => {
      const answer = await api.ask(method, path, { ...(method !== 'GET' && { body: { any: 'thing' } }) });
      expect([answer.status, answer.body]).toEqual([
        501,
        { code: 501, message: `${feature} is not implemented yet` },
      ]);
      expect(answer.headers['should-retry']).toBe('false');
    });

    it('are not access tokens: those are gone', async () => {
      expect((await api.ask('POST', '/access-tokens', { body: {} })).body).toMatchObject({ code: 410 });
    });
  });

  describe('routes', () => {
    it.each([
      ['GET', '/', 404],
      ['GET', '/nothing', 404],
      ['GET', '/Sandboxes', 404],
      ['GET', '/v1/nothing', 404],
      ['PUT', '/sandboxes', 405],
      ['POST', '/health', 405],
      ['PATCH', '/sandboxes/i1', 405],
    ])('answer %s %s with %i in JSON', async (method, path, status) => {
      const answer = await api.ask(method, path);
      expect(answer.status).toBe(status);
      expect(answer.body).toMatchObject({ code: status, message: expect.any(String) });
    });

    it('name what is allowed where a method is not', async () => {
      expect((await api.ask('PUT', '/sandboxes')).headers['allow']).toBe('POST, GET, HEAD');
    });

    it('let browsers of any origin in', async () => {
      const answer = await api.ask('OPTIONS', '/v2/sandboxes', {
        key: null,
        headers: { origin: 'https://a.example', 'access-control-request-method': 'POST' },
      });
      expect([answer.status, answer.text]).toEqual([204, '']);
      expect(answer.headers).toMatchObject({
        'access-control-allow-origin': '*',
        'access-control-allow-headers': expect.stringContaining('X-API-Key'),
      });
      const failed = await api.ask('GET', '/v2/sandboxes', { key: null });
      expect(failed.headers['access-control-allow-origin']).toBe('*');
      expect(failed.headers['access-control-expose-headers']).toContain('X-Next-Token');
    });
  });
});

describe('GET /health', () => {
  it('succeeds without a key when every check does', async () => {
    const api = await ApiHarness.open();
    const answer = await api.ask('GET', '/health', { key: null });
    expect([answer.status, answer.text]).toEqual([204, '']);
    await api.close();
  });

  it('names the checks when one fails, and asks the runtime once for many', async () => {
    let asked = 0;
    const checks = [
      { name: 'engine', ok: true },
      { name: 'image', ok: false, detail: 'absent: run npm start' },
    ];
    const api = await ApiHarness.open({
      health: () => {
        asked++;
        return Promise.resolve(checks);
      },
    });
    const answers = await Promise.all([1, 2, 3].map(() => api.ask('GET', '/health', { key: null })));
    for (const answer of answers) {
      expect([answer.status, answer.body]).toEqual([
        503,
        { code: 503, message: "Sandboxes can't be created now: image", checks },
      ]);
    }
    expect(asked).toBe(1);
    await api.close();
  });

  it('fails when the check itself does, and keeps its reason for the log', async () => {
    const api = await ApiHarness.open({ health: () => Promise.reject(new Error('/secret/path')) });
    const answer = await api.ask('GET', '/health', { key: null });
    expect(answer.status).toBe(503);
    expect(answer.text).not.toContain('secret');
    await api.close();
  });
});

describe('GET /v1/info', () => {
  it('tells what runs here and its limits', async () => {
    const languages = [{ name: 'python' }, { name: 'r', missing: 'R is not installed' }];
    const api = await ApiHarness.open({ languages: () => languages });
    const limits = {
      cpu_count: 2,
      memory_bytes: 2_147_483_648,
      disk_bytes: 10_737_418_240,
      pids: 1024,
      open_files: 16_384,
    };
    expect((await api.ask('GET', '/v1/info')).body).toEqual({
      version: '1.2.3',
      runtime: 'fake',
      caveats: ['Nothing is isolated.'],
      isolation_levels: ['none'],
      domain: 'box.example:8443',
      templates: [
        { id: 'cellboxbase0template', alias: 'base', isolation: 'none', ...limits },
        { id: 'cellboxcodeinterp001', alias: 'code-interpreter-v1', isolation: 'none', ...limits },
      ],
      sizes: expect.arrayContaining([
        { ...limits, name: '1vcpu-2gb', cpu_count: 1 },
        { ...limits, name: '2vcpu-2gb' },
      ]),
      languages,
      limits: {
        max_sandboxes: 5,
        creates_per_minute: 0,
        max_timeout_ms: 86_400_000,
        ...limits,
        max_cpu_count: expect.any(Number),
        max_memory_bytes: expect.any(Number),
        max_disk_bytes: expect.any(Number),
        max_pids: 1024,
        max_open_files: 16_384,
        max_body_bytes: 262_144,
      },
    });
    await api.close();
  });
});
