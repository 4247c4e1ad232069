import http from 'node:http';
import { once } from 'node:events';
import net from 'node:net';
import { Sandbox } from 'e2b';
import { ServiceError } from '../../../service/errors';
import { EdgeFixture, answerTo, makeSandbox, readAll } from './edge-fixture';

let fixture: EdgeFixture;
beforeEach(async () => {
  fixture = new EdgeFixture();
  await fixture.open();
});
afterEach(() => fixture.close());

const json = 'application/json; charset=utf-8';

describe('dispatch', () => {
  it.each<[string, Record<string, string>, string, number, string]>([
    ['a plain request to the control plane', {}, '/', 200, 'control plane'],
    ['a foreign host to the control plane', { host: '80-isb.other.example' }, '/', 200, 'control plane'],
    ['a sandbox host', { host: '3000-isb.localhost:3210' }, '/', 200, 'user server'],
    ['one routing header', { 'e2b-sandbox-id': 'isb' }, '/', 400, 'missing header'],
    ['a malformed id', { 'e2b-sandbox-id': 'I', 'e2b-sandbox-port': '1' }, '/', 400, 'Invalid sandbox ID'],
    ['a malformed port', { host: 'x-isb.localhost' }, '/', 400, 'Invalid sandbox port'],
  ])('sends %s where it belongs', async (_, headers, path, status, body) => {
    const sandbox = fixture.add('isb');
    await fixture.serve(sandbox, 3000, (_req, res) => res.end('user server'));
    const answer = await answerTo(
      http.get({ host: '127.0.0.1', port: fixture.port, path, headers, agent: false }),
    );
    expect([answer.status, answer.body.toString()]).toEqual([status, body]);
    if (status === 400) expect(answer.headers['content-type']).toBe('text/plain; charset=utf-8');
  });

  it('finds the sandbox of a signed file URL and passes the URL on unchanged', async () => {
    const sandbox = fixture.add('isb');
    await fixture.serve(sandbox, 49983, (req, res) => res.end(req.url));
    fixture.findBySignature = (query) =>
      query.path === '/a b' && query.operation === 'read' && query.signature === 'v1_ok'
        ? sandbox
        : undefined;
    const get = (path: string) =>
      answerTo(http.get({ host: '127.0.0.1', port: fixture.port, path, agent: false }));

    const found = await get('/files?path=%2Fa%20b&signature=v1_ok');
    expect([found.status, found.body.toString()]).toEqual([200, '/files?path=%2Fa%20b&signature=v1_ok']);
    const wrong = await get('/files?path=%2Fother&signature=v1_ok');
    expect([wrong.status, JSON.parse(wrong.body.toString())]).toEqual([
      401,
      { code: 401, message: 'invalid signature' },
    ]);
  });

  it('refuses uploads to a sandbox whose disk is full, and nothing else', async () => {
    const sandbox = fixture.add('isb');
    await fixture.serve(sandbox, 49983, (_req, res) => res.end('agent'));
    await fixture.serve(sandbox, 3000, (_req, res) => res.end('user server'));
    const ask = async (method: string, port: number, path: string) => {
      const request = fixture.request('isb', port, { method, path });
      request.end();
      const answer = await answerTo(request);
      return [answer.status, answer.body.toString()];
    };
    expect(await ask('POST', 49983, '/files?path=a')).toEqual([200, 'agent']);
    fixture.full.add('isb');
    const [status, body] = await ask('POST', 49983, '/files?path=a');
    expect([status, JSON.parse(String(body))]).toEqual([
      507,
      { code: 507, message: expect.stringContaining('not enough disk space available') },
    ]);
    expect(await ask('POST', 49983, '/files/compose')).toEqual([507, body]);
    expect(await ask('GET', 49983, '/files?path=a')).toEqual([200, 'agent']);
    expect(await ask('POST', 49983, '/filesystem.Filesystem/Remove')).toEqual([200, 'agent']);
    expect(await ask('POST', 3000, '/files')).toEqual([200, 'user server']);
  });

  it('refuses a request with two hosts, which two readers could read differently', async () => {
    fixture.add('isb');
    const socket = fixture.connect();
    socket.write(
      'GET / HTTP/1.1\r\nHost: 80-isb.localhost\r\nHost: 81-iother.localhost\r\nConnection: close\r\n\r\n',
    );
    expect(await readAll(socket)).toMatch(/^HTTP\/1\.1 400 [^]*Invalid host$/);
  });

  it.each([
    ['both lengths', 'Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n'],
    ['two lengths', 'Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello'],
    ['an obfuscated encoding', 'Transfer-Encoding: xchunked\r\n\r\nhello'],
  ])('never passes a request with %s to a sandbox', async (_, rest) => {
    const sandbox = fixture.add('isb');
    const socket = fixture.connect();
    socket.write(`POST / HTTP/1.1\r\nHost: 80-isb.localhost\r\n${rest}`);
    expect(await readAll(socket)).toMatch(/^HTTP\/1\.1 400 /);
    expect(sandbox.instance.dialled).toEqual([]);
  });

  it('refuses CONNECT', async () => {
    const socket = fixture.connect();
    socket.write('CONNECT 80-isb.localhost:80 HTTP/1.1\r\nHost: 80-isb.localhost\r\n\r\n');
    expect(await readAll(socket)).toBe('');
  });
});

describe('answers of the edge itself', () => {
  it('says 502 for an unknown sandbox, byte for byte', async () => {
    const answer = await answerTo(fixture.request('igone', 49983, { path: '/health' }).end());
    expect([answer.status, answer.headers['content-type'], answer.body.toString()]).toEqual([
      502,
      json,
      '{"sandboxId":"igone","message":"The sandbox was not found","code":502}',
    ]);
  });

  it('says 502 for a closed port after five attempts', async () => {
    const sandbox = fixture.add('isb');
    const answer = await answerTo(fixture.request('isb', 3000).end());
    expect([answer.status, answer.headers['content-type'], answer.body.toString()]).toEqual([
      502,
      json,
      '{"sandboxId":"isb","message":"The sandbox is running but port is not open","port":3000,"code":502}',
    ]);
    expect(sandbox.instance.dialled).toEqual([3000, 3000, 3000, 3000, 3000]);
  });

  it('reaches a port that opens between two attempts', async () => {
    const sandbox = fixture.add('isb');
    await fixture.serve(sandbox, 3000, (_req, res) => res.end('late'));
    const real = sandbox.instance.ports.get(3000) ?? 0;
    sandbox.instance.ports.clear();
    sandbox.instance.onDial = () => {
      if (sandbox.instance.dialled.length === 3) sandbox.instance.ports.set(3000, real);
    };
    expect((await answerTo(fixture.request('isb', 3000).end())).body.toString()).toBe('late');
    expect(sandbox.instance.dialled).toHaveLength(3);
  });

  it.each([
    ['unreachable', true, 'The sandbox is running but port is not open'],
    ['gone meanwhile', false, 'The sandbox was not found'],
  ])('says 502 at once when the machine is %s', async (_, stays, message) => {
    const sandbox = fixture.add('isb');
    sandbox.instance.failure = new ServiceError('unavailable', 'no answer');
    sandbox.instance.onDial = () => {
      if (!stays) fixture.sandboxes.delete('isb');
    };
    const answer = await answerTo(fixture.request('isb', 3000).end());
    expect(answer.status).toBe(502);
    expect(JSON.parse(answer.body.toString())).toMatchObject({ sandboxId: 'isb', message, code: 502 });
    expect(sandbox.instance.dialled).toEqual([3000]);
  });

  it('shows the kernel gateway as a closed port without dialling it', async () => {
    const sandbox = fixture.add('isb');
    await fixture.serve(sandbox, 8888, (_req, res) => res.end('gateway'));
    const answer = await answerTo(fixture.request('isb', 8888).end());
    expect([answer.status, JSON.parse(answer.body.toString())]).toEqual([
      502,
      { sandboxId: 'isb', message: 'The sandbox is running but port is not open', port: 8888, code: 502 },
    ]);
    expect(sandbox.instance.dialled).toEqual([]);
  });

  it.each(['/init', '//init', '/./init', '/%69nit', '/INIT', '/freeze', '/x/../collapse?y'])(
    'refuses %s on the port of the agent before looking the sandbox up',
    async (path) => {
      for (const method of ['GET', 'POST', 'OPTIONS']) {
        const answer = await answerTo(fixture.request('igone', 49983, { path, method }).end());
        expect([answer.status, JSON.parse(answer.body.toString())]).toEqual([
          404,
          {
            message: 'This path is not reachable from outside the sandbox',
            path: expect.stringMatching(/^\/(init|freeze|collapse)$/),
            code: 404,
          },
        ]);
      }
    },
  );

  it('passes the same paths on every other port', async () => {
    const sandbox = fixture.add('isb');
    await fixture.serve(sandbox, 3000, (req, res) => res.end(req.url));
    const answer = await answerTo(fixture.request('isb', 3000, { path: '/init' }).end());
    expect(answer.body.toString()).toBe('/init');
  });

  it.each<[string, Record<string, string>, boolean]>([
    ['a browser that navigates', { 'user-agent': 'Mozilla/5.0', accept: 'text/html,*/*;q=0.8' }, true],
    ['the same with fetch metadata', { 'user-agent': 'Mozilla/5.0', 'sec-fetch-mode': 'navigate' }, true],
    ['a fetch in a browser', { 'user-agent': 'Mozilla/5.0', 'sec-fetch-mode': 'cors' }, false],
    ['XMLHttpRequest', { 'user-agent': 'Mozilla/5.0', 'x-requested-with': 'XMLHttpRequest' }, false],
    ['a browser that wants JSON', { 'user-agent': 'Mozilla/5.0', accept: 'application/json' }, false],
    ['curl', { 'user-agent': 'curl/8.0', accept: '*/*' }, false],
    ['Node', { 'user-agent': 'node' }, false],
  ])('chooses between page and JSON for %s', async (_, headers, html) => {
    const answer = await answerTo(fixture.request('igone', 3000, { headers }).end());
    expect([answer.status, answer.headers['content-type']]).toEqual([
      502,
      html ? 'text/html; charset=utf-8' : json,
    ]);
    if (html)
      expect(answer.body.toString()).toMatch(/<h1>The sandbox was not found<\/h1>[^]*<code>igone<\/code>/);
  });
});

describe('traffic token', () => {
  const message = (text: string) => ({
    sandboxId: 'isb',
    message: `Sandbox is secured with traffic access token. ${text}`,
    code: 403,
  });
  const missing = message("Token header 'e2b-traffic-access-token' is missing");
  const wrong = message("Provided token in header 'e2b-traffic-access-token' is invalid");

  it.each<[number, Record<string, string>, number, object | string]>([
    [3000, {}, 403, missing],
    [3000, { 'e2b-traffic-access-token': 'secre' }, 403, wrong],
    [3000, { 'e2b-traffic-access-token': '' }, 403, wrong],
    [3000, { 'e2b-traffic-access-token': 'secret' }, 200, 'port 3000, token secret'],
    [49999, {}, 403, missing],
    [49999, { 'e2b-traffic-access-token': 'secret' }, 200, 'interpreted'],
    [8888, {}, 403, missing],
    [49983, {}, 200, 'port 49983, token undefined'],
  ])('guards port %i with headers %j: %i', async (port, headers, status, body) => {
    const sandbox = fixture.add('isb', { allowPublicTraffic: false, trafficToken: 'secret' });
    for (const each of [3000, 49983]) {
      await fixture.serve(sandbox, each, (req, res) =>
        res.end(`port ${each}, token ${String(req.headers['e2b-traffic-access-token'])}`),
      );
    }
    const answer = await answerTo(fixture.request('isb', port, { headers }).end());
    const text = answer.body.toString();
    expect([answer.status, status === 200 ? text : JSON.parse(text)]).toEqual([status, body]);
  });

  it('lets nobody in when public traffic is off and there is no token to match', async () => {
    fixture.add('isb', { allowPublicTraffic: false });
    const headers = { 'e2b-traffic-access-token': 'undefined' };
    expect((await answerTo(fixture.request('isb', 3000, { headers }).end())).status).toBe(403);
  });
});

describe('traffic for a paused sandbox', () => {
  function addSleeping(changes: Parameters<typeof makeSandbox>[1] = {}): ReturnType<typeof makeSandbox> {
    const sandbox = makeSandbox('isb', { state: 'paused', autoResume: true, ...changes });
    fixture.sleeping.set('isb', sandbox);
    return sandbox;
  }

  it('resumes it, and then is answered with its whole body', async () => {
    const sandbox = addSleeping();
    await fixture.serve(sandbox, 3000, (req, res) => req.pipe(res));
    const body = 'x'.repeat(300_000);
    const answer = await answerTo(fixture.request('isb', 3000, { method: 'POST' }).end(body));
    expect([answer.status, answer.body.toString() === body]).toEqual([200, true]);
    expect(fixture.sleeping.size).toBe(0);
  });

  it('reaches the interpreter, too', async () => {
    addSleeping();
    expect((await answerTo(fixture.request('isb', 49999).end())).body.toString()).toBe('interpreted');
  });

  const refused = {
    sandboxId: 'isb',
    message:
      "This sandbox can't be resumed with the credentials provided. Check your access token and try again.",
    code: 403,
  };

  it.each<[string, number, Record<string, string>, Parameters<typeof makeSandbox>[1]]>([
    ['the agent of a secured one, without its token', 49983, {}, { accessToken: 'secret' }],
    ['the agent, with a wrong one', 49983, { 'x-access-token': 'secre' }, { accessToken: 'secret' }],
    [
      'a port without public traffic, with the token of the agent',
      3000,
      { 'x-access-token': 'secret' },
      { accessToken: 'secret', trafficToken: 'other', allowPublicTraffic: false },
    ],
    [
      'a port that nobody may use',
      3000,
      { 'e2b-traffic-access-token': 'undefined' },
      { allowPublicTraffic: false },
    ],
  ])('does not resume it by %s', async (_title, port, headers, changes) => {
    addSleeping(changes);
    const answer = await answerTo(fixture.request('isb', port, { headers }).end());
    expect([answer.status, JSON.parse(answer.body.toString())]).toEqual([403, refused]);
    expect(fixture.sleeping.size).toBe(1);
  });

  it.each<[number, Record<string, string>]>([
    [49983, { 'x-access-token': 'secret' }],
    [3000, { 'e2b-traffic-access-token': 'other' }],
  ])('resumes it by port %i with %j', async (port, headers) => {
    const sandbox = addSleeping({ accessToken: 'secret', trafficToken: 'other', allowPublicTraffic: false });
    await fixture.serve(sandbox, port, (_req, res) => res.end('here'));
    expect((await answerTo(fixture.request('isb', port, { headers }).end())).body.toString()).toBe('here');
  });

  it.each<[ConstructorParameters<typeof ServiceError>[0], boolean, number, string]>([
    ['deadline_exceeded', true, 409, 'The sandbox is still transitioning. Try again in a moment.'],
    ['not_found', false, 502, 'The sandbox was not found'],
    ['unavailable', true, 500, 'The sandbox could not be resumed'],
  ])('is told when that fails: %s', async (code, stays, status, text) => {
    addSleeping();
    fixture.wake = () => {
      if (!stays) fixture.sleeping.clear();
      return Promise.reject(new ServiceError(code, 'internal words'));
    };
    const answer = await answerTo(fixture.request('isb', 3000).end());
    expect([answer.status, answer.body.toString()]).toEqual([status, expect.stringContaining(text)]);
  });

  it('is told that it is gone when it is paused again at once', async () => {
    addSleeping();
    let wakes = 0;
    fixture.wake = () => Promise.resolve(void wakes++);
    expect((await answerTo(fixture.request('isb', 3000).end())).status).toBe(502);
    expect(wakes).toBe(1);
  });

  it('may come as a change of protocols', async () => {
    const sandbox = addSleeping();
    const server = await fixture.serve(sandbox, 3000, (_req, res) => res.end());
    server.on('upgrade', (_req, socket) => {
      socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n');
      socket.pipe(socket);
    });
    const request = fixture
      .request('isb', 3000, { headers: { connection: 'Upgrade', upgrade: 'echo' } })
      .end();
    const [, socket] = (await once(request, 'upgrade')) as [unknown, net.Socket];
    socket.end('hello');
    expect(await readAll(socket)).toBe('hello');
  });
});

describe('interpreter', () => {
  it('is given port 49999 with the machine of the sandbox', async () => {
    const sandbox = fixture.add('isb');
    const answer = await answerTo(fixture.request('isb', 49999, { path: '/contexts?a=b' }).end());
    expect(answer.body.toString()).toBe('interpreted');
    expect(fixture.interpreted).toMatchObject([
      {
        url: '/contexts?a=b',
        machine: { id: 'isb', env: { COLOUR: 'blue' }, gatewayToken: 'gateway-token' },
      },
    ]);
    await fixture.interpreted[0]?.machine.dial(8888).catch(() => {});
    expect(sandbox.instance.dialled).toEqual([8888]);
  });

  it('is reached from inside the sandbox, without tokens, several times on one stream', async () => {
    const sandbox = fixture.add('isb', { allowPublicTraffic: false, trafficToken: 'secret' });
    const inside = net.createServer((socket) => fixture.edge.inbound(sandbox, 49999, socket)).listen(0);
    await once(inside, 'listening');
    const { port } = inside.address() as net.AddressInfo;
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    for (const path of ['/health', '/contexts']) {
      expect((await answerTo(http.get({ port, path, agent }))).body.toString()).toBe('interpreted');
    }
    expect(fixture.interpreted.map(({ url }) => url)).toEqual(['/health', '/contexts']);
    agent.destroy();
    inside.close();
  });

  it('is the only port that a sandbox reaches from inside', async () => {
    const sandbox = fixture.add('isb');
    const inside = net.createServer((socket) => fixture.edge.inbound(sandbox, 3210, socket)).listen(0);
    await once(inside, 'listening');
    const request = http.get({ port: (inside.address() as net.AddressInfo).port, agent: false });
    const [error] = (await once(request, 'error')) as [NodeJS.ErrnoException];
    expect(error.code).toBe('ECONNRESET');
    inside.close();
  });
});

describe('drop', () => {
  it('resets an answer that is being streamed', async () => {
    const sandbox = fixture.add('isb');
    await fixture.serve(sandbox, 3000, (_req, res) => res.write('begun'));
    const request = fixture.request('isb', 3000).end();
    const [response] = (await once(request, 'response')) as [http.IncomingMessage];
    expect(String((await once(response, 'data'))[0])).toBe('begun');
    const errors = [response, request].map(
      async (each) => ((await once(each, 'error')) as [NodeJS.ErrnoException])[0].code,
    );
    fixture.edge.drop('isb');
    expect(await Promise.all(errors)).toEqual(['ECONNRESET', 'ECONNRESET']);
  });

  it('resets a request that waits for a port, one at the interpreter, and one from inside', async () => {
    const sandbox = fixture.add('isb');
    const dialled = new Promise<void>((resolve) => (sandbox.instance.onDial = resolve));
    const interpreted = new Promise<void>((resolve) => (fixture.interpreter = () => resolve()));
    const inside = net.createServer((socket) => fixture.edge.inbound(sandbox, 49999, socket)).listen(0);
    await once(inside, 'listening');
    const requests = [
      fixture.request('isb', 3000).end(),
      fixture.request('isb', 49999).end(),
      http.get({ port: (inside.address() as net.AddressInfo).port, agent: false }),
    ];
    const errors = requests.map(
      async (request) => ((await once(request, 'error')) as [NodeJS.ErrnoException])[0].code,
    );
    await Promise.all([dialled, interpreted]);
    while (fixture.interpreted.length < 2) await new Promise((resolve) => setImmediate(resolve));
    fixture.edge.drop('isb');
    expect(await Promise.all(errors)).toEqual(['ECONNRESET', 'ECONNRESET', 'ECONNRESET']);
    inside.close();
  });

  it('leaves other sandboxes, and idle connections, alone', async () => {
    for (const id of ['isb', 'iother']) {
      await fixture.serve(fixture.add(id), 3000, (req, res) => res.end(id + String(req.url)));
    }
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    const sockets = new Set<net.Socket>();
    for (const id of ['isb', 'iother']) {
      const request = fixture.request(id, 3000, { agent });
      request.on('socket', (socket) => sockets.add(socket));
      expect((await answerTo(request.end())).body.toString()).toBe(`${id}/`);
      fixture.edge.drop('isb');
    }
    expect(sockets.size).toBe(1);
    agent.destroy();
  });
});

describe('official SDK', () => {
  it('sees a running sandbox, and then that it is not running any more', async () => {
    const sandbox = fixture.add('isb');
    await fixture.serve(sandbox, 49983, (_req, res) => res.writeHead(204).end());
    const api = await fixture.serve({ instance: sandbox.instance }, 1, (_req, res) => {
      res.setHeader('Content-Type', 'application/json');
      res.end(
        JSON.stringify({
          templateID: 'base',
          sandboxID: 'isb',
          clientID: '6532622b',
          envdVersion: '0.6.13',
          envdAccessToken: 'token',
        }),
      );
    });
    const box = await Sandbox.connect('isb', {
      apiKey: `e2b_${'0'.repeat(40)}`,
      apiUrl: `http://127.0.0.1:${(api.address() as net.AddressInfo).port}`,
      sandboxUrl: `http://127.0.0.1:${fixture.port}`,
    });
    expect(await box.isRunning()).toBe(true);
    fixture.sandboxes.delete('isb');
    fixture.edge.drop('isb');
    expect(await box.isRunning()).toBe(false);
  });
});
