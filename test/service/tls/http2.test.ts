import crypto from 'node:crypto';
import type http from 'node:http';
import type { IncomingMessage } from 'node:http';
import http2 from 'node:http2';
import type { ClientHttp2Session } from 'node:http2';
import { once } from 'node:events';
import { PassThrough, Readable } from 'node:stream';
import { WebSocketServer } from 'ws';
import { DOMAIN, http2Answer, TlsFixture } from './tls-fixture';

let fixture: TlsFixture;
let session: ClientHttp2Session;
let sandbox: ReturnType<TlsFixture['add']>;
beforeEach(async () => {
  fixture = new TlsFixture();
  await fixture.open();
  sandbox = fixture.add('isb');
  session = await fixture.connectHttp2();
});
afterEach(() => fixture.close());

const PORT = 3000;
const TO_SANDBOX = { 'e2b-sandbox-id': 'isb', 'e2b-sandbox-port': String(PORT) };

function request(headers: http2.OutgoingHttpHeaders = {}, options: http2.ClientSessionRequestOptions = {}) {
  return session.request({ ':path': '/', ...TO_SANDBOX, ...headers }, options);
}

/** Resolves when the stream is over, in whatever way. */
function closeOf(stream: http2.ClientHttp2Stream): Promise<void> {
  stream.on('error', () => {});
  return new Promise((resolve) => stream.once('close', resolve));
}

function* inChunks(bytes: Buffer): Generator<Buffer> {
  for (let from = 0; from < bytes.length; from += 65_536) yield bytes.subarray(from, from + 65_536);
}

async function bodyOf(req: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of req) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

describe('requests', () => {
  it('arrive as HTTP/1.1 with their host, and without what is only HTTP/2', async () => {
    let seen: IncomingMessage | undefined;
    await fixture.serve(sandbox, PORT, (req, res) => {
      seen = req;
      res.end();
    });
    const stream = request({
      ':path': '/a/../b?x=%20',
      ':authority': `some.${DOMAIN}:8443`,
      cookie: ['a=1', 'b=2'],
      'x-many': ['1', '2'],
      te: 'trailers',
    });
    expect((await http2Answer(stream)).status).toBe(200);
    expect([seen?.method, seen?.url]).toEqual(['GET', '/a/../b?x=%20']);
    expect(seen?.headersDistinct).toEqual({
      host: [`some.${DOMAIN}:8443`],
      'e2b-sandbox-id': ['isb'],
      'e2b-sandbox-port': [String(PORT)],
      cookie: ['a=1; b=2'],
      'x-many': ['1', '2'],
      te: ['trailers'],
      connection: ['close'],
    });
  });

  it('carry a body of either framing, and trailers', async () => {
    await fixture.serve(sandbox, PORT, (req, res) => {
      void bodyOf(req).then((body) => {
        const framing = req.headers['content-length'] ?? req.headers['transfer-encoding'] ?? 'none';
        res.end(`${framing} ${String(body)} ${JSON.stringify(req.trailers)}`);
      });
    });
    const counted = request({ ':method': 'POST', 'content-length': 5 });
    counted.end('hello');
    const chunked = request({ ':method': 'PUT' }, { waitForTrailers: true });
    chunked.on('wantTrailers', () => chunked.sendTrailers({ 'x-sum': '9' }));
    chunked.end('hello');
    const empty = request({ ':method': 'POST' }, { endStream: true });
    const bodies = await Promise.all([counted, chunked, empty].map(http2Answer));
    expect(bodies.map((answer) => String(answer.body))).toEqual([
      '5 hello {}',
      'chunked hello {"x-sum":"9"}',
      '0  {}',
    ]);
  });

  it('are told to go on when they ask', async () => {
    await fixture.serve(sandbox, PORT, (req, res) => void bodyOf(req).then((body) => res.end(body)));
    const stream = request({ ':method': 'POST', expect: '100-continue' });
    await once(stream, 'continue');
    stream.end('now');
    expect(String((await http2Answer(stream)).body)).toBe('now');
  });

  it('reach the sandbox before their body is complete, and may be answered before', async () => {
    await fixture.serve(sandbox, PORT, (_req, res) => res.end('early'));
    const stream = request({ ':method': 'POST' });
    stream.write('first');
    const answer = http2Answer(stream);
    await once(stream, 'response');
    stream.end(Buffer.alloc(1_000_000)); // more than the window: it has to be read away
    expect(String((await answer).body)).toBe('early');
    await once(stream, 'close');
    expect(stream.rstCode).toBe(http2.constants.NGHTTP2_NO_ERROR);
  });

  it('end inside the sandbox when the client resets them', async () => {
    let aborted: Promise<unknown> | undefined;
    await fixture.serve(sandbox, PORT, (req, res) => {
      aborted = once(req.socket, 'close');
      res.write('x');
    });
    const stream = request();
    await once(stream, 'data');
    stream.close(http2.constants.NGHTTP2_CANCEL);
    await aborted;
  });

  it.each<[string, http2.OutgoingHttpHeaders, number]>([
    ['CONNECT', { ':method': 'CONNECT', ':authority': 'x:80', ':path': undefined }, 405],
    ['two different hosts', { ':authority': 'a.example', host: 'b.example' }, 400],
  ])('with %s are refused', async (_, headers, status) => {
    const stream =
      headers[':method'] === 'CONNECT'
        ? session.request(headers)
        : session.request({ ':path': '/', ...headers });
    stream.end();
    expect((await http2Answer(stream)).status).toBe(status);
  });
});

describe('answers', () => {
  it('pass 20 MB both ways intact', async () => {
    await fixture.serve(sandbox, PORT, (req, res) => void req.pipe(res));
    const sent = crypto.randomBytes(20_000_000);
    const stream = request({ ':method': 'POST' });
    Readable.from(inChunks(sent)).pipe(stream);
    const { body } = await http2Answer(stream);
    expect(crypto.createHash('md5').update(body).digest('hex')).toBe(
      crypto.createHash('md5').update(sent).digest('hex'),
    );
  });

  it('do not outrun a client that stops reading', async () => {
    let written = 0;
    let full: (() => void) | undefined;
    const stalled = new Promise<void>((resolve) => (full = resolve));
    await fixture.serve(sandbox, PORT, (_req, res) => {
      const chunk = Buffer.alloc(64 * 1024);
      const more = (): void => {
        while (written < 200_000_000 && res.write(chunk)) written += chunk.length;
        const quiet = setTimeout(() => full?.(), 500); // nothing was taken for so long: everything on the way is full
        res.once('drain', () => {
          clearTimeout(quiet);
          more();
        });
      };
      more();
    });
    const stream = request();
    await once(stream, 'response');
    stream.pause();
    await stalled;
    expect(written).toBeLessThan(64_000_000); // socket buffers of the kernel, mostly
    stream.on('error', () => {});
    stream.destroy();
  });

  it('arrive chunk by chunk, head first', async () => {
    const steps = new PassThrough();
    await fixture.serve(sandbox, PORT, (_req, res) => {
      res.writeHead(200, { 'content-type': 'text/event-stream' });
      res.flushHeaders();
      steps.pipe(res);
    });
    const stream = request();
    const [headers] = (await once(stream, 'response')) as [http2.IncomingHttpHeaders];
    expect(headers['content-type']).toBe('text/event-stream');
    for (const word of ['one', 'two']) {
      steps.write(word);
      expect(String((await once(stream, 'data'))[0])).toBe(word);
    }
    steps.end();
    await once(stream, 'end');
  });

  it('keep duplicates, lose what belongs to the connection, and carry trailers', async () => {
    await fixture.serve(sandbox, PORT, (_req, res) => {
      res.sendDate = false;
      res.writeHead(418, 'Teapot', [
        ...['Set-Cookie', 'a=1', 'Set-Cookie', 'b=2', 'Keep-Alive', 'timeout=5', 'X-Hop', '1'],
        ...[
          'Connection',
          'keep-alive, X-Hop',
          'Trailer',
          'X-Sum',
          'Content-Type',
          'a/b',
          'Content-Type',
          'c/d',
        ],
      ]);
      res.write('body');
      res.addTrailers({ 'X-Sum': '9' });
      res.end();
    });
    const answer = await http2Answer(request());
    expect(Object.entries(answer.headers)).toEqual([
      [':status', 418],
      ['set-cookie', ['a=1', 'b=2']],
      ['content-type', 'a/b'],
      ['trailer', 'X-Sum'],
    ]);
    expect(String(answer.body)).toBe('body');
    expect(answer.trailers['x-sum']).toBe('9');
  });

  it.each([
    ['HEAD', 200, { 'content-length': '7' }],
    ['GET', 204, {}],
    ['GET', 304, {}],
  ])('to %s with %s have no body', async (method, status, headers) => {
    await fixture.serve(sandbox, PORT, (_req, res) => void res.writeHead(status, headers).end());
    const answer = await http2Answer(request({ ':method': method }));
    expect([answer.status, answer.body.length]).toEqual([status, 0]);
    expect(answer.headers).toMatchObject(headers);
  });

  it('may be preceded by early hints', async () => {
    await fixture.serve(sandbox, PORT, (_req, res) => {
      res.writeEarlyHints({ link: '</a.css>; rel=preload' });
      res.end();
    });
    const stream = request();
    const [headers] = (await once(stream, 'headers')) as [http2.IncomingHttpHeaders];
    expect([headers[':status'], headers['link']]).toEqual([103, '</a.css>; rel=preload']);
    expect((await http2Answer(stream)).status).toBe(200);
  });

  it('of the edge itself are the same as over HTTP/1.1', async () => {
    const gone = session.request({ ':path': '/', ':authority': '80-igone.localhost' });
    const answer = await http2Answer(gone);
    expect([answer.status, String(answer.body)]).toEqual([
      502,
      '{"sandboxId":"igone","message":"The sandbox was not found","code":502}',
    ]);
  });
});

describe('broken streams', () => {
  it.each<[string, (res: http.ServerResponse) => void]>([
    ['the sandbox is dropped', () => fixture.edge.drop('isb')],
    ['the server inside dies', (res) => res.destroy()],
  ])('are reset, and others not, when %s', async (_, breakIt) => {
    let response: http.ServerResponse | undefined;
    await fixture.serve(sandbox, PORT, (_req, res) => {
      response = res;
      res.write('half'); // without a length, so that only a reset tells it from a whole one
    });
    const stream = request();
    await once(stream, 'data');
    const closed = closeOf(stream);
    breakIt(response as http.ServerResponse);
    await closed;
    expect(stream.rstCode).toBe(http2.constants.NGHTTP2_INTERNAL_ERROR);
    expect((await http2Answer(session.request({ ':path': '/' }))).status).toBe(200);
  });

  it('are reset when the interpreter resets its connection', async () => {
    fixture.interpreter = (_machine, _req, res) => {
      res.write('line');
      res.socket?.destroy();
    };
    const stream = session.request({ ':path': '/', ...TO_SANDBOX, 'e2b-sandbox-port': '49999' });
    await expect(http2Answer(stream)).rejects.toMatchObject({ code: 'ERR_HTTP2_STREAM_ERROR' });
  });
});

describe('WebSocket over HTTP/2', () => {
  it('is carried both ways by an extended CONNECT', async () => {
    const server = await fixture.serve(sandbox, PORT, () => {});
    const sockets = new WebSocketServer({ server, handleProtocols: () => 'chat' });
    sockets.on('connection', (socket, req) =>
      socket.on('message', (data) => socket.send(`${req.url} ${String(data)}`)),
    );
    const stream = session.request({
      ':method': 'CONNECT',
      ':protocol': 'websocket',
      ':scheme': 'https',
      ':path': '/chat',
      ':authority': `${PORT}-isb.localhost`,
      'sec-websocket-version': '13',
      'sec-websocket-protocol': 'chat',
    });
    const [headers] = (await once(stream, 'response')) as [http2.IncomingHttpHeaders];
    expect([headers[':status'], headers['sec-websocket-protocol']]).toEqual([200, 'chat']);
    stream.write(Buffer.from([0x81, 0x82, 0, 0, 0, 0, 0x68, 0x69])); // a masked text frame: hi
    expect((await once(stream, 'data'))[0]).toEqual(Buffer.from([0x81, 8, ...Buffer.from('/chat hi')]));
    const closed = closeOf(stream);
    fixture.edge.drop('isb');
    await closed;
    sockets.close();
  });

  it('is refused when the server inside refuses it', async () => {
    await fixture.serve(sandbox, PORT, (_req, res) => res.writeHead(426).end());
    const stream = session.request({
      ':method': 'CONNECT',
      ':protocol': 'websocket',
      ':scheme': 'https',
      ':path': '/',
      ':authority': `${PORT}-isb.localhost`,
      'sec-websocket-version': '13',
    });
    expect((await http2Answer(stream)).status).toBe(426);
  });
});

describe('a sandbox without public traffic', () => {
  const RIGHT = 'right-token';

  beforeEach(async () => {
    const secured = fixture.add('ipr', { allowPublicTraffic: false, trafficToken: RIGHT });
    await fixture.serve(secured, PORT, (_req, res) => res.end('inside'));
  });

  const ask = (headers: http2.OutgoingHttpHeaders) =>
    http2Answer(session.request({ ':path': '/', ':authority': `${PORT}-ipr.localhost`, ...headers }));

  it.each<[string, http2.OutgoingHttpHeaders, number]>([
    ['the right token', { 'e2b-traffic-access-token': RIGHT }, 200],
    ['no token', {}, 403],
    ['a wrong one', { 'e2b-traffic-access-token': 'wrong' }, 403],
    ['the right one in a cookie', { cookie: `e2b-traffic-access-token=${RIGHT}` }, 403],
    [
      'no token, to change protocols',
      { ':method': 'CONNECT', ':protocol': 'websocket', ':scheme': 'https' },
      403,
    ],
    // The authority wins over headers that name another sandbox.
    ['no token and the name of an open one', TO_SANDBOX, 403],
  ])('answers a request with %s as over HTTP/1.1', async (_what, headers, status) => {
    const answer = await ask(headers);
    expect(answer.status).toBe(status);
    if (status !== 200) expect(String(answer.body)).not.toContain('inside');
  });

  it('takes no second token, nor another host beside the authority', async () => {
    const twice = await ask({ 'e2b-traffic-access-token': [RIGHT, 'wrong'] });
    expect(twice.status).toBe(403);
    const host = { host: `${PORT}-isb.localhost`, 'e2b-traffic-access-token': RIGHT };
    expect((await ask(host)).status).toBe(400);
  });
});
