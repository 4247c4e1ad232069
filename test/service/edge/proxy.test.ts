import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { Agent } from 'node:http';
import type http from 'node:http';
import type { IncomingMessage } from 'node:http';
import type net from 'node:net';
import { gunzipSync, gzipSync } from 'node:zlib';
import { WebSocket, WebSocketServer } from 'ws';
import { EdgeFixture, answerTo, readAll } from './edge-fixture';
import type { FakeInstance } from './edge-fixture';
import type { RunningSandbox } from '../../../service/sandboxes/sandbox';

const PORT = 3000;
let fixture: EdgeFixture;
let sandbox: RunningSandbox & { instance: FakeInstance };
beforeEach(async () => {
  fixture = new EdgeFixture();
  await fixture.open();
  sandbox = fixture.add('isb');
});
afterEach(() => fixture.close());

const sha256 = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex');
const HEAD = `Host: ${PORT}-isb.localhost\r\n`;

/** A raw server in the sandbox that answers its first bytes with fixed text and, by default, ends. */
async function answerRaw(text: string, after: (socket: net.Socket) => void = (socket) => socket.end()) {
  await fixture.serveRaw(sandbox, PORT, (socket) => {
    socket.once('data', () => {
      socket.write(text, 'latin1');
      after(socket);
    });
  });
}

describe('requests', () => {
  it('arrive as they were sent: method, path, host, duplicates, case', async () => {
    let seen: IncomingMessage | undefined;
    await fixture.serve(sandbox, PORT, (req, res) => {
      seen = req;
      res.end();
    });
    const socket = fixture.connect();
    socket.write(
      `PURGE //a/../b/./%2e%2f?x=http://y/?z&&q HTTP/1.1\r\n${HEAD}X-Dup: 1\r\nx-dup: 2\r\n` +
        'X-Forwarded-For: 6.6.6.6\r\nE2b-Traffic-Access-Token: t\r\nConnection: close\r\n\r\n',
    );
    await readAll(socket);
    expect([seen?.method, seen?.url]).toEqual(['PURGE', '//a/../b/./%2e%2f?x=http://y/?z&&q']);
    expect(seen?.rawHeaders).toEqual([
      ...['Host', `${PORT}-isb.localhost`, 'X-Dup', '1', 'x-dup', '2', 'E2b-Traffic-Access-Token', 't'],
      ...['Connection', 'close', 'Content-Length', '0'],
    ]);
  });

  it('in absolute form arrive in origin form', async () => {
    await fixture.serve(sandbox, PORT, (req, res) => res.end(req.url));
    const answer = await answerTo(fixture.request('isb', PORT, { path: 'http://any.example/p?q' }).end());
    expect(answer.body.toString()).toBe('/p?q');
  });

  it.each(['OPTIONS', 'DELETE', 'PATCH', 'GET'])(
    '%s is the sandbox’s to answer, chunked body included',
    async (method) => {
      await fixture.serve(sandbox, PORT, async (req, res) => {
        let body = '';
        for await (const chunk of req) body += String(chunk);
        res.writeHead(202, 'Fine By Me').end(`${req.method} ${body}`);
      });
      const request = fixture.request('isb', PORT, { method, headers: { 'Transfer-Encoding': 'chunked' } });
      request.write('one ');
      request.end('two');
      const [response] = (await once(request, 'response')) as [IncomingMessage];
      expect([response.statusCode, response.statusMessage]).toEqual([202, 'Fine By Me']);
      expect(String((await once(response, 'data'))[0])).toBe(`${method} one two`);
    },
  );

  it('without a body say so when their method usually has one', async () => {
    await fixture.serve(sandbox, PORT, (req, res) => res.end(JSON.stringify(req.headers)));
    const socket = fixture.connect();
    socket.write(`POST / HTTP/1.1\r\n${HEAD}Connection: close\r\n\r\n`);
    const answer = await readAll(socket);
    expect(answer).toContain('"content-length":"0"');
    expect(answer).not.toContain('transfer-encoding":"chunked');
  });

  it('carry their trailers', async () => {
    const seen = new Promise<NodeJS.Dict<string>>((resolve) => {
      void fixture.serve(sandbox, PORT, (req, res) => {
        req.resume().on('end', () => {
          resolve(req.trailers);
          res.end();
        });
      });
    });
    await fixture.serve(sandbox, PORT + 1, () => {}); // the first one listens by now
    const request = fixture.request('isb', PORT, { method: 'POST', headers: { Trailer: 'X-Sum' } });
    request.write('body');
    request.addTrailers({ 'X-Sum': 'abc' });
    await answerTo(request.end());
    expect(await seen).toEqual({ 'x-sum': 'abc' });
  });

  it('that expect 100-continue are told to go on, once, and arrive whole', async () => {
    await fixture.serve(sandbox, PORT, async (req, res) => {
      let body = '';
      for await (const chunk of req) body += String(chunk);
      res.end(`${String(req.headers.expect)} ${body}`);
    });
    const headers = { Expect: '100-continue', 'Content-Length': 4 };
    const request = fixture.request('isb', PORT, { method: 'PUT', headers });
    let continues = 0;
    request.on('continue', () => {
      continues++;
      request.end('body');
    });
    request.flushHeaders();
    expect((await answerTo(request)).body.toString()).toBe('undefined body');
    expect(continues).toBe(1);
  });

  it('reach the sandbox before their body is complete', async () => {
    await fixture.serve(sandbox, PORT, (req, res) => {
      res.write('head seen');
      req.on('data', (chunk: Buffer) => res.write(chunk));
      req.on('end', () => res.end());
    });
    const request = fixture.request('isb', PORT, { method: 'POST' });
    request.flushHeaders();
    const [response] = (await once(request, 'response')) as [IncomingMessage];
    expect(String((await once(response, 'data'))[0])).toBe('head seen');
    for (const text of ['a', 'b']) {
      request.write(text);
      expect(String((await once(response, 'data'))[0])).toBe(text);
    }
    request.end();
    await once(response, 'end');
  });

  it('do not outrun a sandbox that stops reading', async () => {
    const sandbox = fixture.add('isb');
    await fixture.serveRaw(sandbox, 3000, (socket) => socket.pause());
    const request = fixture.request('isb', 3000, { method: 'POST' });
    request.on('error', () => {}); // it is broken off below
    let written = 0;
    await new Promise<void>((resolve) => {
      const chunk = Buffer.alloc(64 * 1024);
      const more = (): void => {
        while (written < 200_000_000 && request.write(chunk)) written += chunk.length;
        const quiet = setTimeout(resolve, 500); // nothing was taken for so long: everything on the way is full
        request.once('drain', () => {
          clearTimeout(quiet);
          more();
        });
      };
      more();
    });
    expect(written).toBeLessThan(64_000_000); // socket buffers of the kernel, mostly
    request.destroy();
  });

  it('leave the connection usable when they are answered before their end', async () => {
    await fixture.serve(sandbox, PORT, (req, res) => {
      if (req.url === '/early') res.writeHead(413).end('too much');
      else res.end('next');
    });
    const agent = new Agent({ keepAlive: true, maxSockets: 1 });
    const request = fixture.request('isb', PORT, { agent, method: 'POST', path: '/early' });
    request.write('begun');
    const [response] = (await once(request, 'response')) as [IncomingMessage];
    expect(response.statusCode).toBe(413);
    response.resume();
    request.end(Buffer.alloc(1_000_000));
    await once(response, 'end');
    const next = await answerTo(fixture.request('isb', PORT, { agent }).end());
    expect(next.body.toString()).toBe('next');
    agent.destroy();
  });
});

describe('answers', () => {
  it('pass 20 MB both ways intact', async () => {
    await fixture.serve(sandbox, PORT, (req, res) => void req.pipe(res));
    const bytes = randomBytes(20 * 1024 * 1024);
    const answer = await answerTo(fixture.request('isb', PORT, { method: 'POST' }).end(bytes));
    expect(answer.body.length).toBe(bytes.length);
    expect(sha256(answer.body)).toBe(sha256(bytes));
  });

  it('do not outrun a client that stops reading', async () => {
    let written = 0;
    let full: () => void = () => {};
    const stopped = new Promise<void>((resolve) => (full = resolve));
    await fixture.serve(sandbox, PORT, (_req, res) => {
      const fill = (): void => {
        while (res.write(Buffer.alloc(256 * 1024))) written += 256 * 1024;
        full();
        res.once('drain', fill);
      };
      fill();
    });
    const request = fixture.request('isb', PORT).end();
    const [response] = (await once(request, 'response')) as [IncomingMessage];
    await stopped;
    const quiet = async (): Promise<void> => {
      // Settled when a whole turn of reading, piping and writing brings nothing new.
      for (let before = -1; before !== written;) {
        before = written;
        for (let turn = 0; turn < 200; turn++) await new Promise((resolve) => setImmediate(resolve));
      }
    };
    await quiet();
    expect(written).toBeLessThan(64 * 1024 * 1024); // the kernel's buffers on the way, not the whole answer
    response.destroy();
  });

  it('arrive chunk by chunk, head first', async () => {
    let push: (text: string) => void = () => {};
    await fixture.serve(sandbox, PORT, (_req, res) => {
      res.writeHead(200, { 'Content-Type': 'text/event-stream' }).flushHeaders();
      push = (text) => res.write(text);
    });
    const request = fixture.request('isb', PORT).end();
    const [response] = (await once(request, 'response')) as [IncomingMessage];
    expect(response.headers['content-type']).toBe('text/event-stream');
    for (const text of ['data: 1\n\n', 'data: 2\n\n', 'data: 3\n\n']) {
      push(text);
      expect(String((await once(response, 'data'))[0])).toBe(text);
    }
    request.destroy();
  });

  it('pass unchanged: status text, duplicates, encoding, no header added', async () => {
    const zipped = gzipSync('hello');
    await fixture.serve(sandbox, PORT, (_req, res) => {
      res.sendDate = false;
      res.writeHead(299, 'Odd But Mine', [
        ...['Set-Cookie', 'a=1', 'Set-Cookie', 'b=2', 'Content-Encoding', 'gzip', 'X-Case', 'Kept'],
        ...['Content-Length', String(zipped.length)],
      ] as unknown as http.OutgoingHttpHeaders);
      res.end(zipped);
    });
    const answer = await answerTo(fixture.request('isb', PORT).end());
    expect(answer.status).toBe(299);
    expect(answer.rawHeaders.slice(0, 10)).toEqual([
      ...['Set-Cookie', 'a=1', 'Set-Cookie', 'b=2', 'Content-Encoding', 'gzip', 'X-Case', 'Kept'],
      ...['Content-Length', String(zipped.length)],
    ]);
    expect(answer.rawHeaders.slice(10).map((each) => each.toLowerCase())).toEqual(['connection', 'close']);
    expect(gunzipSync(answer.body).toString()).toBe('hello');
  });

  it('carry their trailers', async () => {
    await fixture.serve(sandbox, PORT, (_req, res) => {
      res.writeHead(200, { Trailer: 'X-Sum' });
      res.write('body');
      res.addTrailers({ 'X-Sum': 'abc' });
      res.end();
    });
    const answer = await answerTo(fixture.request('isb', PORT).end());
    expect([answer.body.toString(), answer.headers['trailer'], answer.trailers]).toEqual([
      'body',
      'X-Sum',
      { 'x-sum': 'abc' },
    ]);
  });

  it('to HEAD have their headers and no body', async () => {
    await answerRaw('HTTP/1.1 200 OK\r\nContent-Length: 1234\r\nTrailer: X\r\n\r\n');
    const answer = await answerTo(fixture.request('isb', PORT, { method: 'HEAD' }).end());
    expect([answer.status, answer.headers['content-length'], answer.body.length]).toEqual([200, '1234', 0]);
  });

  it.each([204, 304])('with status %i have their headers and no body', async (status) => {
    await answerRaw(`HTTP/1.1 ${status} Fine\r\nETag: "e"\r\nTrailer: X\r\n\r\n`);
    const answer = await answerTo(fixture.request('isb', PORT).end());
    expect([answer.status, answer.headers.etag, answer.body.length]).toEqual([status, '"e"', 0]);
    expect(answer.headers['transfer-encoding']).toBeUndefined();
  });

  it('may be preceded by early hints', async () => {
    await fixture.serve(sandbox, PORT, (_req, res) => {
      res.writeProcessing();
      res.writeEarlyHints({ link: '</a.css>; rel=preload' });
      res.end('done');
    });
    const request = fixture.request('isb', PORT).end();
    const hints: unknown[] = [];
    request.on('information', (info) => hints.push([info.statusCode, info.headers.link]));
    expect((await answerTo(request)).body.toString()).toBe('done');
    expect(hints).toEqual([
      [102, undefined],
      [103, '</a.css>; rel=preload'],
    ]);
  });

  it('that end with the connection arrive whole', async () => {
    await answerRaw('HTTP/1.0 200 OK\r\n\r\nup to the end');
    expect((await answerTo(fixture.request('isb', PORT).end())).body.toString()).toBe('up to the end');
  });

  it('to an HTTP/1.0 client are not chunked', async () => {
    await answerRaw(
      'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n2\r\nhi\r\n0\r\nX: 1\r\n\r\n',
    );
    const socket = fixture.connect();
    socket.write(`GET / HTTP/1.0\r\n${HEAD}\r\n`);
    expect(await readAll(socket)).toBe('HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhi');
  });

  it('that are no HTTP become a 500 that says so', async () => {
    await answerRaw('SSH-2.0-OpenSSH_9.9\r\n');
    const answer = await answerTo(fixture.request('isb', PORT).end());
    expect([answer.status, answer.body.toString()]).toEqual([
      500,
      'Port 3000 of the sandbox did not answer in valid HTTP',
    ]);
  });

  it.each([
    ['a status that does not exist', 'HTTP/1.1 099 Huh\r\nContent-Length: 0\r\n\r\n'],
    ['two framings', 'HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n'],
    ['headers without end', `HTTP/1.1 200 OK\r\nX-Long: ${'x'.repeat(300_000)}`],
  ])('with %s become a 500', async (_, text) => {
    await answerRaw(text, () => {});
    expect((await answerTo(fixture.request('isb', PORT).end())).status).toBe(500);
  });
});

describe('broken connections', () => {
  const outcome = async (request: http.ClientRequest): Promise<string | undefined> =>
    answerTo(request).then(
      () => 'answered',
      (error: NodeJS.ErrnoException) => error.code,
    );

  it.each<[string, string, (socket: net.Socket) => void]>([
    ['closes before its answer', '', (socket) => socket.end()],
    ['resets before its answer', '', (socket) => socket.resetAndDestroy()],
    [
      'ends in the middle of a counted body',
      'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf',
      (socket) => socket.end(),
    ],
    [
      'ends in the middle of a chunked body',
      'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n',
      (socket) => socket.end(),
    ],
  ])('reach the client as a reset when the sandbox %s', async (_, text, after) => {
    await answerRaw(text, after);
    const request = fixture.request('isb', PORT).end();
    request.on('error', () => {}); // told once more to those who wait for the body
    expect(await outcome(request)).toBe('ECONNRESET');
  });

  it('are not mistaken for a proper end when the sandbox resets an uncounted body', async () => {
    let upstream: net.Socket | undefined;
    await answerRaw('HTTP/1.1 200 OK\r\n\r\nhalf', (socket) => (upstream = socket));
    const request = fixture.request('isb', PORT).end();
    request.on('error', () => {});
    const [response] = (await once(request, 'response')) as [IncomingMessage];
    await once(response, 'data');
    upstream?.resetAndDestroy();
    const [error] = (await once(response, 'error')) as [NodeJS.ErrnoException];
    expect(error.code).toBe('ECONNRESET');
  });

  it('end the request inside the sandbox when the client leaves', async () => {
    let left: () => void = () => {};
    const gone = new Promise<void>((resolve) => (left = resolve));
    await fixture.serve(sandbox, PORT, (req, res) => {
      res.write('begun');
      req.socket.on('close', left);
    });
    const request = fixture.request('isb', PORT).end();
    const [response] = (await once(request, 'response')) as [IncomingMessage];
    await once(response, 'data');
    request.destroy();
    await gone;
  });

  it('end the request inside the sandbox when the client leaves during its upload', async () => {
    let left: () => void = () => {};
    const gone = new Promise<void>((resolve) => (left = resolve));
    const request = fixture.request('isb', PORT, { method: 'POST', headers: { 'Content-Length': 10 } });
    request.on('error', () => {});
    await fixture.serve(sandbox, PORT, (req) => {
      req.on('error', left);
      req.once('data', () => request.destroy());
    });
    request.write('half');
    await gone;
  });
});

describe('upgrades', () => {
  const url = () => `ws://127.0.0.1:${fixture.port}/socket?x=1`;
  const options = { headers: { 'E2b-Sandbox-Id': 'isb', 'E2b-Sandbox-Port': String(PORT) } };

  async function echo(): Promise<WebSocketServer> {
    const server = await fixture.serve(sandbox, PORT, (_req, res) => res.writeHead(404).end('no upgrade'));
    const sockets = new WebSocketServer({ server });
    sockets.on('connection', (socket, req) => {
      socket.send(`${req.url} ${String(req.headers['sec-websocket-protocol'])}`);
      socket.on('message', (data, binary) => socket.send(data, { binary }));
    });
    return sockets;
  }

  it('carry a WebSocket both ways, protocol and path included', async () => {
    await echo();
    const socket = new WebSocket(url(), ['chat'], options);
    expect(String((await once(socket, 'message'))[0])).toBe('/socket?x=1 chat');
    const bytes = randomBytes(3_000_000);
    socket.send(bytes);
    const [echoed] = (await once(socket, 'message')) as [Buffer];
    expect(sha256(echoed)).toBe(sha256(bytes));
    socket.close(4001, 'bye');
    expect((await once(socket, 'close'))[0]).toBe(4001);
  });

  it('are reset when their sandbox is dropped', async () => {
    await answerRaw('HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n', () => {});
    const socket = fixture.connect();
    socket.write(`GET / HTTP/1.1\r\n${HEAD}Connection: Upgrade\r\nUpgrade: raw\r\n\r\n`);
    await once(socket, 'data');
    fixture.edge.drop('isb');
    await expect(readAll(socket)).rejects.toMatchObject({ code: 'ECONNRESET' });
  });

  it('are reset when the sandbox resets, and the other way round', async () => {
    const inside: net.Socket[] = [];
    await answerRaw('HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n', (each) =>
      inside.push(each),
    );
    const open = async (): Promise<net.Socket> => {
      const socket = fixture.connect();
      socket.write(`GET / HTTP/1.1\r\n${HEAD}Connection: Upgrade\r\nUpgrade: raw\r\n\r\n`);
      await once(socket, 'data');
      return socket;
    };
    const first = await open();
    inside[0]?.resetAndDestroy();
    await expect(readAll(first)).rejects.toMatchObject({ code: 'ECONNRESET' });
    const second = await open();
    const told = once(inside[1] as net.Socket, 'error');
    second.resetAndDestroy();
    expect((await told)[0]).toMatchObject({ code: 'ECONNRESET' });
  });

  it('that the sandbox declines get its plain answer', async () => {
    await fixture.serve(sandbox, PORT, () => {});
    const port = sandbox.instance.ports.get(PORT);
    await fixture.serve(sandbox, PORT, (req, res) => {
      res.writeHead(418, { 'X-Upgrade': String(req.headers.upgrade) }).end('a teapot');
    });
    expect(sandbox.instance.ports.get(PORT)).not.toBe(port);
    const headers = { Connection: 'Upgrade', Upgrade: 'websocket' };
    const answer = await answerTo(fixture.request('isb', PORT, { headers }).end());
    expect([answer.status, answer.headers['x-upgrade'], answer.body.toString()]).toEqual([
      418,
      'websocket',
      'a teapot',
    ]);
    expect(answer.headers.connection).toBe('close');
  });

  it.each([
    ['an unknown sandbox', 'igone', PORT, 502, 'The sandbox was not found'],
    ['a closed port', 'isb', 1, 502, 'The sandbox is running but port is not open'],
    ['the kernel gateway', 'isb', 8888, 502, 'The sandbox is running but port is not open'],
  ])('to %s are answered as any request', async (_, id, port, status, message) => {
    const headers = { Connection: 'Upgrade', Upgrade: 'websocket' };
    const answer = await answerTo(fixture.request(id, port, { headers }).end());
    expect([answer.status, JSON.parse(answer.body.toString())]).toMatchObject([status, { message }]);
  });

  it.each([
    ['the interpreter', 49999, 'interpreted'],
    ['the agent', 49983, 'agent undefined'],
  ])('offered to %s are passed over, with the body kept', async (_, port, expected) => {
    await fixture.serve(sandbox, 49983, (req, res) => res.end(`agent ${String(req.headers.upgrade)}`));
    let body = '';
    fixture.interpreter = (_machine, req, res) => {
      req.on('data', (chunk) => (body += String(chunk)));
      req.on('end', () => res.end('interpreted'));
    };
    const headers = { Connection: 'Upgrade, HTTP2-Settings', Upgrade: 'h2c', 'HTTP2-Settings': 'AAMAAABk' };
    const request = fixture.request('isb', port, { method: 'POST', headers });
    request.write('first ');
    request.end('second');
    expect((await answerTo(request)).body.toString()).toBe(expected);
    if (port === 49999) expect(body).toBe('first second');
  });

  it('keep half-close: each side may end while the other still talks', async () => {
    await fixture.serveRaw(sandbox, PORT, (socket) => {
      let text = '';
      socket.on('data', (chunk) => {
        text += String(chunk);
        if (text.endsWith('\r\n\r\n')) {
          socket.write('HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n');
        }
      });
      socket.on('end', () => socket.end(`got ${text.split('\r\n\r\n')[1]}`));
    });
    const socket = fixture.connect();
    socket.write(`GET / HTTP/1.1\r\n${HEAD}Connection: Upgrade\r\nUpgrade: raw\r\n\r\n`);
    expect(String((await once(socket, 'data'))[0])).toBe(
      'HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n',
    );
    socket.end('words');
    expect(await readAll(socket)).toBe('got words');
  });
});
