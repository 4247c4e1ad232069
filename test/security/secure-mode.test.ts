import { createHash } from 'node:crypto';
import { ROUTES as AGENT_ROUTES } from '../../kernel-image/agent/app';
import { Filesystem } from '../../protocol/envd/gen/filesystem_pb';
import { Process } from '../../protocol/envd/gen/process_pb';
import { AGENT_PORT, GATEWAY_PORT, INTERPRETER_PORT } from '../../protocol/routing';
import { fileSignature } from '../../protocol/signature';
import { describeOnRuntimes } from '../describe-on-runtimes';

jest.setTimeout(120_000);

/** In the file and in the environment of the secured sandbox: whoever is told it was let in. */
const TAG = 'seen-only-with-the-right-token';
const FILE = '/home/user/secret.txt';
const OTHER_FILE = '/home/user/other.txt';

interface Box {
  id: string;
  access: string;
  traffic: string;
}

type Headers = Record<string, string>;

const SETTINGS = { CELLBOX_LOG_LEVEL: 'debug' };

describeOnRuntimes('a secured sandbox on $runtime', { env: SETTINGS }, ({ runtime, service, client }) => {
  /** Whose secrets these are. */
  let secured: Box;
  /** Of the same team, with the same settings: its tokens are well-formed and real. */
  let other: Box;
  /** Neither access token nor traffic token. */
  let open: Box;
  /** Of a server in `secured` that counts its requests and answers with the tag. */
  let userPort: number;

  const create = async (path: string, fields: Record<string, unknown>): Promise<Box> => {
    const answer = await client.api('POST', path, {
      templateID: 'code-interpreter-v1',
      timeout: 3000,
      ...fields,
    });
    expect(answer.status).toBe(201);
    const body = (await answer.json()) as Record<string, string>;
    return {
      id: body['sandboxID'] ?? '',
      access: body['envdAccessToken'] ?? '',
      traffic: body['trafficAccessToken'] ?? '',
    };
  };

  const agent = (box: Box, path: string, headers: Headers = {}, init: RequestInit = {}) =>
    client.port(box.id, AGENT_PORT, path, { ...init, headers });

  const inside = async (code: string): Promise<string> => {
    const headers = { 'e2b-traffic-access-token': secured.traffic };
    const text = await (await client.execute(secured.id, { code }, { headers })).text();
    const lines = text
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as { type: string; text?: string });
    const failed = lines.find((line) => line.type === 'error');
    if (failed !== undefined) throw new Error(JSON.stringify(failed));
    return lines.map((line) => (line.type === 'stdout' ? line.text : '')).join('');
  };

  const contents = async (path: string): Promise<string> => {
    const query = new URLSearchParams({ path, username: 'user' });
    return (await agent(secured, `/files?${query}`, { 'x-access-token': secured.access })).text();
  };

  /** How many requests have reached the user's server. */
  const reached = async (): Promise<number> => Number(await inside('print(len(seen))'));

  beforeAll(async () => {
    const secure = { envVars: { TAG }, network: { allowPublicTraffic: false } };
    secured = await create('/v2/sandboxes', secure);
    other = await create('/v2/sandboxes', { network: { allowPublicTraffic: false } });
    open = await create('/sandboxes', { secure: false });
    expect([open.access, open.traffic]).toEqual(['', '']);
    userPort = Number(
      await inside(`
import http.server, threading
for path, text in ((${JSON.stringify(FILE)}, ${JSON.stringify(TAG)}), (${JSON.stringify(OTHER_FILE)}, 'other')):
    with open(path, 'w') as file: file.write(text)
seen = []
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        seen.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'${TAG}')
    do_POST = do_GET
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_port)`),
    );
    expect(userPort).toBeGreaterThan(1024);
    expect(await contents(FILE)).toBe(TAG);
  });

  /** What somebody may try who doesn't have the access token, or has it and spells it otherwise. */
  const wrongAccess = (): Array<[string, Headers]> => [
    ['none', {}],
    ['an empty one', { 'x-access-token': '' }],
    ['an invented one', { 'x-access-token': '0'.repeat(64) }],
    ["another sandbox's", { 'x-access-token': other.access }],
    ['its own traffic token', { 'x-access-token': secured.traffic }],
    ['the API key', { 'x-access-token': service.apiKey, 'x-api-key': service.apiKey }],
    ['the right one in capitals', { 'x-access-token': secured.access.toUpperCase() }],
    ['the right one and more', { 'x-access-token': `${secured.access}0` }],
    ['most of the right one', { 'x-access-token': secured.access.slice(0, -1) }],
    ['the right one twice', { 'x-access-token': `${secured.access}, ${secured.access}` }],
    ['the right one in quotes', { 'x-access-token': `"${secured.access}"` }],
    [
      'the right one elsewhere',
      { authorization: `Bearer ${secured.access}`, cookie: `x-access-token=${secured.access}` },
    ],
    [
      'the right one under another name',
      { x_access_token: secured.access, 'e2b-traffic-access-token': secured.access },
    ],
  ];

  const wrongTraffic = (): Array<[string, Headers]> => [
    ['none', {}],
    ['an empty one', { 'e2b-traffic-access-token': '' }],
    ["another sandbox's", { 'e2b-traffic-access-token': other.traffic }],
    [
      'its own access token',
      { 'e2b-traffic-access-token': secured.access, 'x-access-token': secured.access },
    ],
    ['the API key', { 'e2b-traffic-access-token': service.apiKey, 'x-api-key': service.apiKey }],
    ['the right one in capitals', { 'e2b-traffic-access-token': secured.traffic.toUpperCase() }],
    ['the right one twice', { 'e2b-traffic-access-token': `${secured.traffic}, ${secured.traffic}` }],
    ['most of the right one', { 'e2b-traffic-access-token': secured.traffic.slice(1) }],
    [
      'the right one elsewhere',
      { cookie: `e2b-traffic-access-token=${secured.traffic}`, authorization: `Bearer ${secured.traffic}` },
    ],
  ];

  describe('its agent', () => {
    const ROUTES: ReadonlyArray<readonly [method: string, path: string, type?: string]> = [
      // All that it has, but for what is everybody's and what is nobody's.
      ...Object.entries(AGENT_ROUTES)
        .filter(([path]) => path !== '/health' && path !== '/init')
        .flatMap(([path, methods]) =>
          Object.keys(methods).map(
            (method) =>
              [method, path === '/files' ? `/files?path=${encodeURIComponent(FILE)}` : path] as const,
          ),
        ),
      ...[Process, Filesystem].flatMap(({ typeName, methods }) =>
        methods.map(
          ({ name, methodKind }) =>
            ['POST', `/${typeName}/${name}`, methodKind === 'unary' ? 'json' : 'connect+json'] as const,
        ),
      ),
    ];

    it('answers every route and procedure with 401, whatever is given for the token', async () => {
      expect(ROUTES.length).toBeGreaterThan(20);
      const wrong: string[] = [];
      for (const [what, headers] of wrongAccess()) {
        for (const [method, path, type = 'json'] of ROUTES) {
          const init = { method, ...(method === 'POST' && { body: '{}' }) };
          const answer = await agent(
            secured,
            path,
            { 'content-type': `application/${type}`, ...headers },
            init,
          );
          const text = await answer.text();
          if (answer.status !== 401 || text.includes(TAG)) {
            wrong.push(`${what}: ${method} ${path}: ${answer.status} ${text}`);
          }
        }
      }
      expect(wrong).toEqual([]);
      expect(await contents(FILE)).toBe(TAG);
      const right = await agent(secured, '/envs', { 'x-access-token': secured.access });
      expect(await right.json()).toMatchObject({ TAG });
    });

    it('can not be asked without a token by any spelling of a path or method', async () => {
      const query = `?path=${encodeURIComponent(FILE)}`;
      const tries: Array<[string, string]> = [
        ...[
          '/envs/',
          '//envs',
          '/./envs',
          '/%65nvs',
          '/health/../envs',
          '/files/../envs',
          '/health/envs',
        ].map((path): [string, string] => ['GET', path]),
        ...['/health;/../envs', '/envs?/health', '/envs#/health', 'http://x/envs', '*', '/Files' + query].map(
          (path): [string, string] => ['GET', path],
        ),
        ...['HEAD', 'PUT', 'PATCH', 'DELETE', 'OPTIONS', 'QUERY', 'LINK'].map((method): [string, string] => [
          method,
          `/files${query}`,
        ]),
        ['OPTIONS', '/envs'],
        ['GET', '/process.Process/List?connect=v1&encoding=json&message=%7B%7D'],
        ['GET', `/files/${query}`],
        ['POST', '/files/compose/'],
      ];
      for (const [method, path] of tries) {
        const answer = await client.raw(
          `${method} ${path} HTTP/1.1\nHost: x\nE2b-Sandbox-Id: ${secured.id}\nE2b-Sandbox-Port: ${AGENT_PORT}\nConnection: close\n\n`,
        );
        const status = /^HTTP\/1\.1 (\d+)/.exec(answer)?.[1];
        // 400: no such request target at all.
        expect([method, path, status]).toEqual([method, path, path === '*' ? expect.anything() : '401']);
        expect(answer).not.toContain(TAG);
      }
    });

    it('answers a preflight without telling anything', async () => {
      const answer = await agent(
        secured,
        '/envs',
        { origin: 'http://evil.example', 'access-control-request-method': 'GET' },
        { method: 'OPTIONS' },
      );
      expect([answer.status, await answer.text()]).toEqual([204, '']);
      expect(answer.headers.get('access-control-allow-credentials')).toBeNull();
    });

    it('is not told a new token or environment from outside, not even with the right token', async () => {
      const body = JSON.stringify({ accessToken: secured.access, envVars: { TAG: 'replaced' } });
      const headers = { 'x-access-token': secured.access };
      for (const path of [
        '/init',
        '//init',
        '/init/',
        '/%69nit',
        '/./init',
        '/x/../init',
        '/INIT',
        '/init?a',
        '/freeze',
      ]) {
        const answer = await agent(secured, path, headers, { method: 'POST', body });
        expect([path, answer.status]).toEqual([path, 404]);
      }
      const anew = JSON.stringify({ accessToken: 'mine' });
      expect((await agent(open, '/init', {}, { method: 'POST', body: anew })).status).toBe(404);
      expect(await (await agent(secured, '/envs', headers)).json()).toMatchObject({ TAG });
      expect((await agent(open, '/envs')).status).toBe(200);
    });

    // On local the agent listens on no port that programs inside could ask.
    (runtime === 'docker' ? it : it.skip)('asks programs inside for the token, too', async () => {
      const tries = JSON.stringify([
        ['GET', '/envs', ''],
        ['POST', '/process.Process/List', '{}'],
        ['POST', '/init', '{}'],
        ['POST', '/init', '{"accessToken":"mine"}'],
        ['POST', '/init', '{"accessToken":null,"envVars":{}}'],
      ]);
      const statuses = await inside(`
import urllib.error, urllib.request
for method, path, body in ${tries}:
    request = urllib.request.Request('http://localhost:${AGENT_PORT}' + path, body.encode() or None, {'content-type': 'application/json'}, method=method)
    try: print(urllib.request.urlopen(request, timeout=10).status)
    except urllib.error.HTTPError as error: print(error.code)`);
      expect(statuses.trim().split('\n')).toEqual(Array(5).fill('401'));
      const right = await agent(secured, '/envs', { 'x-access-token': secured.access });
      expect(await right.json()).toMatchObject({ TAG });
    });

    it('is no nearer by an upgrade', async () => {
      for (const upgrade of ['websocket', 'h2c', 'TLS/1.0']) {
        const answer = await client.raw(
          `GET /envs HTTP/1.1\nHost: x\nE2b-Sandbox-Id: ${secured.id}\nE2b-Sandbox-Port: ${AGENT_PORT}\n` +
            `Connection: Upgrade\nUpgrade: ${upgrade}\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n\n`,
        );
        expect([upgrade, answer.split('\r\n', 1)[0]]).toEqual([upgrade, 'HTTP/1.1 401 Unauthorized']);
      }
    });

    it('takes no header for the token that is meant for one connection only', async () => {
      const ask = (connection: string) =>
        client.raw(
          `GET /envs HTTP/1.1\nHost: x\nE2b-Sandbox-Id: ${secured.id}\nE2b-Sandbox-Port: ${AGENT_PORT}\n` +
            `X-Access-Token: ${secured.access}\nConnection: ${connection}\n\n`,
        );
      expect(await ask('close')).toContain(TAG);
      expect(await ask('close, X-Access-Token')).toMatch(/^HTTP\/1\.1 401 /);
    });

    it('keeps its answers apart when a refused request has another one in its body', async () => {
      const hidden = `GET /envs HTTP/1.1\r\nHost: x\r\n\r\n`;
      const answers: string[] = [];
      for (let count = 0; count < 8; count++) {
        const refused = agent(secured, '/envs', {}, { method: 'POST', body: hidden });
        const health = agent(secured, '/health');
        const owner = agent(secured, '/envs', { 'x-access-token': secured.access });
        answers.push(`${(await refused).status} ${(await health).status} ${(await owner).status}`);
        expect(await (await owner).text()).toContain(TAG);
      }
      expect(new Set(answers)).toEqual(new Set(['401 204 200']));
    });
  });

  describe('its signed URLs', () => {
    interface Fields {
      path?: string;
      username?: string;
      signature?: string;
      signature_expiration?: string;
    }

    const soon = () => String(Math.floor(Date.now() / 1000) + 60);

    /** Good for what it says, unless a token of another sandbox signs it. */
    const sign = (
      operation: 'read' | 'write',
      { path = '', username = '', signature_expiration: expiration }: Fields,
      token = secured.access,
    ): string => fileSignature({ operation, path, username, expiration }, token);

    const query = (fields: Fields | Array<[string, string]>): string =>
      new URLSearchParams(fields as Record<string, string>).toString();

    /** Asks with and without saying which sandbox is meant; both must be answered alike. */
    const fetchBoth = async (text: string, init: RequestInit & { headers?: Headers } = {}) => {
      const unnamed = await fetch(`${service.url}/files?${text}`, init);
      const named = await agent(secured, `/files?${text}`, init.headers, init);
      return Promise.all(
        [unnamed, named].map(async (answer) => ({ status: answer.status, text: await answer.text() })),
      );
    };

    it('are good for exactly what was signed', async () => {
      const good = { path: FILE, username: 'user', signature_expiration: soon() };
      const signature = sign('read', good);
      for (const { status, text } of await fetchBoth(query({ ...good, signature }))) {
        expect([status, text]).toEqual([200, TAG]);
      }
      const { signature_expiration: until, ...forEver } = good;
      const wrong: Array<[string, Fields]> = [
        ['another path', { ...good, path: OTHER_FILE, signature }],
        ['a path that means the same', { ...good, path: `/home/user/./secret.txt`, signature }],
        ['a relative path that means the same', { ...good, path: 'secret.txt', signature }],
        ['no path', { username: 'user', signature_expiration: until, signature }],
        ['another user', { ...good, username: 'root', signature }],
        ['no user', { path: FILE, signature_expiration: until, signature }],
        ['a user in capitals', { ...good, username: 'USER', signature }],
        ['a later end', { ...good, signature_expiration: String(Number(until) + 1), signature }],
        ['no end', { ...forEver, signature }],
        ['the same end, spelt otherwise', { ...good, signature_expiration: `0${until}`, signature }],
        ['no signature', good],
        ['an empty signature', { ...good, signature: '' }],
        ['the hash without its version', { ...good, signature: signature.slice(3) }],
        ['another version', { ...good, signature: signature.replace('v1', 'v2') }],
        ['padding', { ...good, signature: `${signature}=` }],
        ['the other letter case', { ...good, signature: signature.toLowerCase() }],
        ['more behind it', { ...good, signature: `${signature}\0` }],
        ['a part of it', { ...good, signature: signature.slice(0, -1) }],
        ["another sandbox's", { ...good, signature: sign('read', good, other.access) }],
        ['the traffic token', { ...good, signature: sign('read', good, secured.traffic) }],
        ['one that was meant to write', { ...good, signature: sign('write', good) }],
        ['an empty token', { ...good, signature: sign('read', good, '') }],
        ['the text of no token', { ...good, signature: sign('read', good, 'undefined') }],
        ['the token itself', { ...good, signature: secured.access }],
      ];
      for (const [what, fields] of wrong) {
        for (const { status, text } of await fetchBoth(query(fields))) {
          // Asked without a name, one that nobody signed is the control plane's, and one that another sandbox signed its own.
          const isElsewhere = ['no signature', "another sandbox's"].includes(what) && status === 404;
          expect([what, isElsewhere ? 401 : status, text.includes(TAG)]).toEqual([what, 401, false]);
        }
      }
    });

    it('do not let one field run into the next', async () => {
      // Both hash `a:read:b:read:user:token`: one was signed, the other is asked for.
      const signature = sign('read', { path: 'a:read:b', username: 'user' });
      expect(signature).toBe(sign('read', { path: 'a', username: 'b:read:user' }));
      for (const { status } of await fetchBoth(query({ path: 'a', username: 'b:read:user', signature }))) {
        expect(status).toBe(401); // no user has a colon in its name
      }
      const read = sign('read', { path: `${OTHER_FILE}:write:x`, username: 'user' });
      const asWrite = query({ path: OTHER_FILE, username: 'x:read:user', signature: read });
      for (const { status } of await fetchBoth(asWrite, { method: 'POST', body: 'changed' })) {
        expect(status).toBe(401);
      }
      expect(await contents(OTHER_FILE)).toBe('other');
    });

    it('are not prolonged by what can be hashed behind an unknown token', async () => {
      // Who knows a SHA-256 can go on hashing behind its padding; what stands there then is no number.
      for (const expiration of [
        '\x80\0\0:9999999999',
        '9999999999999999',
        '1e12',
        '９９９９９９９９９９',
        ' 9999999999',
        '',
      ]) {
        const fields = { path: FILE, username: 'user', signature_expiration: expiration };
        const signature = sign('read', fields);
        for (const { status, text } of await fetchBoth(query({ ...fields, signature }))) {
          expect([expiration, status, text.includes(TAG)]).toEqual([expiration, 400, false]);
        }
      }
    });

    it('end when they say so, in the words that clients know', async () => {
      for (const expiration of ['0', '-1', '1', String(Math.floor(Date.now() / 1000) - 1)]) {
        const fields = { path: FILE, username: 'user', signature_expiration: expiration };
        for (const answer of await fetchBoth(query({ ...fields, signature: sign('read', fields) }))) {
          expect([answer.status, JSON.parse(answer.text)]).toEqual([
            401,
            { code: 401, message: 'signature is already expired' },
          ]);
        }
      }
    });

    it('are read in one way when a field is there twice: the first, which is the one that was checked', async () => {
      const good = { path: FILE, username: 'user' };
      const signature = sign('read', good);
      const twice = (name: string, value: string): string =>
        `${query({ ...good, signature })}&${query([[name, value]])}`;
      for (const text of [
        twice('path', OTHER_FILE),
        twice('username', 'root'),
        twice('signature', 'v1_x'),
        `${query({ ...good, signature })}&p%61th=${encodeURIComponent(OTHER_FILE)}`,
      ]) {
        for (const answer of await fetchBoth(text))
          expect([text, answer.status, answer.text]).toEqual([text, 200, TAG]);
      }
      for (const first of [
        `p%61th=${encodeURIComponent(OTHER_FILE)}`,
        'username=root',
        'signature=',
        'signature_expiration=1',
      ]) {
        for (const answer of await fetchBoth(`${first}&${query({ ...good, signature })}`)) {
          expect([first, answer.status, answer.text.includes(TAG)]).toEqual([first, 401, false]);
        }
      }
    });

    it('to read can not write, and to write can not read', async () => {
      const fields = { path: OTHER_FILE, username: 'user' };
      const read = query({ ...fields, signature: sign('read', fields) });
      const write = query({ ...fields, signature: sign('write', fields) });
      for (const method of ['POST', 'PUT', 'PATCH', 'DELETE']) {
        for (const { status } of await fetchBoth(read, { method, body: 'changed' })) {
          expect([method, status]).toEqual([method, 401]);
        }
      }
      for (const method of ['GET', 'HEAD']) {
        for (const { status } of await fetchBoth(write, { method }))
          expect([method, status]).toEqual([method, 401]);
      }
      for (const method of ['PUT', 'DELETE']) {
        for (const { status } of await fetchBoth(write, { method, body: 'changed' })) {
          expect([method, status]).toEqual([method, 401]);
        }
      }
      expect(await contents(OTHER_FILE)).toBe('other');
      const octets = { 'content-type': 'application/octet-stream' };
      for (const { status } of await fetchBoth(write, {
        method: 'POST',
        body: 'written',
        headers: octets,
      })) {
        expect(status).toBe(200);
      }
      expect(await contents(OTHER_FILE)).toBe('written');
      expect(await inside(`open(${JSON.stringify(OTHER_FILE)}, 'w').write('other')\nprint('ok')`)).toBe(
        'ok\n',
      );
    });

    it('to write one file write no other, whatever the form calls its parts', async () => {
      const fields = { path: OTHER_FILE, username: 'user' };
      const form = new FormData();
      form.append('file', new Blob(['by form']), FILE);
      form.append('file', new Blob(['second']), '/home/user/third.txt');
      const target = query({ ...fields, signature: sign('write', fields) });
      const answer = await fetch(`${service.url}/files?${target}`, { method: 'POST', body: form });
      expect(answer.status).toBe(400); // the second part is for the same file
      expect(await contents(FILE)).toBe(TAG);
      expect(
        (await agent(secured, '/files?path=/home/user/third.txt', { 'x-access-token': secured.access }))
          .status,
      ).toBe(404);
      await inside(`open(${JSON.stringify(OTHER_FILE)}, 'w').write('other')`);
    });

    it('are not looked at where a wrong token is given as well', async () => {
      const fields = { path: FILE, username: 'user' };
      const good = query({ ...fields, signature: sign('read', fields) });
      for (const { status } of await fetchBoth(good, { headers: { 'x-access-token': other.access } })) {
        expect(status).toBe(401);
      }
    });

    it('open nothing but /files', async () => {
      const fields = { path: FILE, username: 'user' };
      const good = query({ ...fields, signature: sign('read', fields) });
      for (const path of [
        '/envs',
        '/metrics',
        '/files/',
        '/files/compose',
        '/Files',
        '/filesystem.Filesystem/Stat',
      ]) {
        const named = await agent(secured, `${path}?${good}`);
        expect([path, named.status]).toEqual([path, 401]);
        const unnamed = await fetch(`${service.url}${path}?${good}`);
        expect([path, [401, 404].includes(unnamed.status), (await unnamed.text()).includes(TAG)]).toEqual([
          path,
          true,
          false,
        ]);
      }
      for (const port of [INTERPRETER_PORT, userPort]) {
        const answer = await client.port(secured.id, port, `/files?${good}`);
        expect([port, answer.status]).toEqual([port, 403]);
      }
    });

    it('of a sandbox without a token do not exist', async () => {
      for (const token of ['', 'undefined', 'null']) {
        const fields = { path: '/etc/passwd', username: 'user' };
        const answer = await fetch(
          `${service.url}/files?${query({ ...fields, signature: sign('read', fields, token) })}`,
        );
        expect([token, answer.status]).toEqual([token, 401]);
      }
    });
  });

  describe('its ports without public traffic', () => {
    const paths: ReadonlyArray<readonly [port: () => number, method: string, path: string]> = [
      [() => INTERPRETER_PORT, 'POST', '/execute'],
      [() => INTERPRETER_PORT, 'GET', '/contexts'],
      [() => INTERPRETER_PORT, 'POST', '/contexts'],
      [() => INTERPRETER_PORT, 'GET', '/health'],
      [() => INTERPRETER_PORT, 'OPTIONS', '/execute'],
      [() => userPort, 'GET', '/'],
      [() => userPort, 'POST', '/'],
      [() => userPort, 'OPTIONS', '/'],
      [() => GATEWAY_PORT, 'GET', '/api/kernels'],
      [() => 1, 'GET', '/'],
      [() => 65_535, 'GET', '/'],
    ];

    it('answer 403 to every token but their own, by header and by host', async () => {
      const before = await reached();
      const domain = `localhost:${new URL(service.url).port}`;
      for (const [what, headers] of wrongTraffic()) {
        for (const [port, method, path] of paths) {
          const lines = Object.entries(headers)
            .map(([name, value]) => `${name}: ${value}\n`)
            .join('');
          const body = method === 'POST' ? '{"code":"seen.append(1)"}' : '';
          const rest = `${lines}Content-Type: application/json\nContent-Length: ${body.length}\nConnection: close\n\n${body}`;
          for (const host of [
            `Host: x\nE2b-Sandbox-Id: ${secured.id}\nE2b-Sandbox-Port: ${port()}\n`,
            `Host: ${port()}-${secured.id}.${domain}\n`,
            `Host: ${port()}-${secured.id.toUpperCase()}.LOCALHOST.\n`,
          ]) {
            const answer = await client.raw(`${method} ${path} HTTP/1.1\n${host}${rest}`);
            expect([what, method, host, answer.split(' ')[1]]).toEqual([what, method, host, '403']);
            expect(answer).not.toContain(TAG);
          }
        }
      }
      expect(await reached()).toBe(before);
    });

    it('answer to their own, but for the gateway, which is closed to everybody', async () => {
      const headers = { 'e2b-traffic-access-token': secured.traffic };
      const before = await reached();
      expect(await (await client.port(secured.id, userPort, '/', { headers })).text()).toBe(TAG);
      expect(await reached()).toBe(before + 1);
      expect((await client.port(secured.id, INTERPRETER_PORT, '/contexts', { headers })).status).toBe(200);
      expect((await client.port(secured.id, GATEWAY_PORT, '/api/kernels', { headers })).status).toBe(502);
    });

    it('are not reached by an upgrade with another token', async () => {
      const before = await reached();
      for (const port of [userPort, INTERPRETER_PORT, GATEWAY_PORT]) {
        for (const token of ['', other.traffic, secured.access]) {
          for (const upgrade of ['websocket', 'h2c']) {
            const answer = await client.raw(
              `GET / HTTP/1.1\nHost: x\nE2b-Sandbox-Id: ${secured.id}\nE2b-Sandbox-Port: ${port}\n` +
                `E2B-Traffic-Access-Token: ${token}\nConnection: Upgrade\nUpgrade: ${upgrade}\n` +
                `Sec-WebSocket-Version: 13\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n\n`,
            );
            expect([port, upgrade, answer.split(' ')[1]]).toEqual([port, upgrade, '403']);
          }
        }
      }
      expect(await reached()).toBe(before);
    });
  });

  describe('and requests that two readers could read in two ways', () => {
    /** What the owner of `other` has. */
    const tokens = () => `X-Access-Token: ${other.access}\nE2B-Traffic-Access-Token: ${other.traffic}\n`;
    const get = `GET /files?path=${encodeURIComponent(FILE)} HTTP/1.1\n`;
    const own = () => `E2b-Sandbox-Id: ${other.id}\nE2b-Sandbox-Port: ${AGENT_PORT}\n`;
    const theirs = () => `E2b-Sandbox-Id: ${secured.id}\nE2b-Sandbox-Port: ${AGENT_PORT}\n`;
    const hostOf = (box: Box) => `${AGENT_PORT}-${box.id}.localhost`;

    it.each<[string, () => string, number[]]>([
      ['two hosts', () => `${get}Host: ${hostOf(other)}\nHost: ${hostOf(secured)}\n`, [400]],
      ['two ids', () => `${get}Host: x\n${own()}E2b-Sandbox-Id: ${secured.id}\n`, [400]],
      [
        'two ids in one line',
        () => `${get}Host: x\nE2b-Sandbox-Id: ${other.id}, ${secured.id}\nE2b-Sandbox-Port: ${AGENT_PORT}\n`,
        [400],
      ],
      ['two ports', () => `${get}Host: x\n${own()}E2b-Sandbox-Port: ${INTERPRETER_PORT}\n`, [400]],
      [
        'an id with a space before its colon',
        () => `${get}Host: x\n${own()}E2b-Sandbox-Id : ${secured.id}\n`,
        [400],
      ],
      [
        'an id with a folded line',
        () => `${get}Host: x\nE2b-Sandbox-Id: ${other.id}\n ${secured.id}\nE2b-Sandbox-Port: ${AGENT_PORT}\n`,
        [400],
      ],
      // The host wins, and its sandbox has no such file.
      ['a host of one and headers of the other', () => `${get}Host: ${hostOf(other)}\n${theirs()}`, [404]],
      ['headers of one and a host of the other', () => `${get}Host: ${hostOf(secured)}\n${own()}`, [401]],
      [
        'a target of the other',
        () =>
          `GET http://${hostOf(secured)}/files?path=${encodeURIComponent(FILE)} HTTP/1.1\nHost: ${hostOf(other)}\n`,
        [404],
      ],
      [
        'a target with the other for a user',
        () =>
          `GET http://${hostOf(secured)}@x/files?path=${encodeURIComponent(FILE)} HTTP/1.1\nHost: ${hostOf(other)}\n`,
        [404],
      ],
      ['a host with a user', () => `${get}Host: x@${hostOf(secured)}\n`, [400]],
      ['a host with a path', () => `${get}Host: ${hostOf(secured)}/.localhost\n`, [400, 401]],
      [
        'a forwarded host',
        () =>
          `${get}Host: x\nX-Forwarded-Host: ${hostOf(secured)}\nForwarded: host=${hostOf(secured)}\n${own()}`,
        [404],
      ],
      ['two tokens', () => `${get}Host: x\n${theirs()}X-Access-Token: ${secured.access}\n`, [401]],
      [
        'two lengths',
        () => `POST /execute HTTP/1.1\nHost: x\n${own()}Content-Length: 0\nContent-Length: 5\n`,
        [400],
      ],
      [
        'a length and chunks',
        () => `POST /execute HTTP/1.1\nHost: x\n${own()}Content-Length: 5\nTransfer-Encoding: chunked\n`,
        [400],
      ],
      [
        'chunks by another name',
        () => `POST /execute HTTP/1.1\nHost: x\n${own()}Transfer-Encoding: xchunked\n`,
        [400],
      ],
      [
        'chunks twice',
        () => `POST /execute HTTP/1.1\nHost: x\n${own()}Transfer-Encoding: chunked, chunked\n`,
        [400],
      ],
    ])('%s: get nothing of it', async (_what, head, allowed) => {
      const answer = await client.raw(`${head()}${tokens()}Connection: close\n\n`);
      expect(answer).not.toContain(TAG);
      expect(allowed).toContain(Number(/^HTTP\/1\.1 (\d+)/.exec(answer)?.[1]));
    });

    it('gives a second request on one connection no more rights than it has itself', async () => {
      const health = `GET /health HTTP/1.1\nHost: x\n`;
      const first = `${health}${own()}${tokens()}\n`;
      const withRight = `${health}${theirs()}X-Access-Token: ${secured.access}\n\n`;
      const second = `${get}Host: x\n${theirs()}Connection: close\n\n`;
      for (const before of [first, withRight]) {
        const answer = await client.raw(before + second);
        expect(answer).not.toContain(TAG);
        expect([...answer.matchAll(/HTTP\/1\.1 (\d+)/g)].map((match) => match[1])).toEqual(['204', '401']);
      }
      const hidden = `POST /envs HTTP/1.1\nHost: x\n${own()}${tokens()}Content-Length: 4\n\nabcd`;
      expect(await client.raw(hidden + second)).not.toContain(TAG);
    });
  });

  it('has left none of its secrets in the log of the service', async () => {
    const fields = { path: FILE, username: 'user', operation: 'read', expiration: undefined } as const;
    const log = service.output();
    expect(log).toContain(secured.id); // it is the log of all that was tried
    const hash = createHash('sha256').update(secured.access).digest('hex');
    for (const secret of [
      secured.access,
      secured.traffic,
      other.access,
      fileSignature(fields, secured.access),
      hash,
      TAG,
    ]) {
      expect(log.includes(secret)).toBe(false);
    }
  });
});
