import { once } from 'node:events';
import http from 'node:http';
import type { IncomingMessage } from 'node:http';
import https from 'node:https';
import type net from 'node:net';
import type { AddressInfo } from 'node:net';
import type tls from 'node:tls';
import { WebSocket, WebSocketServer } from 'ws';
import { AGENT_PORT } from '../../../protocol/routing';
import { DOMAIN, http2Answer, TlsFixture } from '../tls/tls-fixture';
import { answerTo, readAll } from './edge-fixture';

const PORT = 3000;
const MASK = 'localhost:${PORT}';
const TO_SANDBOX = { 'e2b-sandbox-id': 'isb', 'e2b-sandbox-port': String(PORT) };

let fixture: TlsFixture;
beforeEach(async () => {
  fixture = new TlsFixture();
  await fixture.open();
});
afterEach(() => fixture.close());

/** What a program was told of where a request came from. */
const origin = ({ headers }: IncomingMessage) => ({
  host: headers.host,
  forwarded: headers['x-forwarded-host'],
});

describe('a masked host', () => {
  /** Answers with `origin`. */
  async function masked(port = PORT, mask = MASK) {
    const sandbox = fixture.add('isb', { maskRequestHost: mask });
    await fixture.serve(sandbox, port, (req, res) => res.end(JSON.stringify(origin(req))));
    return sandbox;
  }

  it('is what the program sees, with the one that was asked for beside it', async () => {
    await masked();
    const host = `${PORT}-isb.localhost:3210`;
    const byHost = await answerTo(
      http.get({ host: '127.0.0.1', port: fixture.port, headers: { host }, agent: false }),
    );
    expect(JSON.parse(byHost.body.toString())).toEqual({ host: 'localhost:3000', forwarded: host });
    const byHeaders = await answerTo(fixture.request('isb', PORT, { headers: { host: 'gw' } }).end());
    expect(JSON.parse(byHeaders.body.toString())).toEqual({ host: 'localhost:3000', forwarded: 'gw' });
  });

  it('comes alone where the client named none, which HTTP/1.0 may', async () => {
    await masked();
    const socket = fixture.connect();
    socket.write(`GET / HTTP/1.0\r\nE2b-Sandbox-Id: isb\r\nE2b-Sandbox-Port: ${PORT}\r\n\r\n`);
    expect(await readAll(socket)).toContain('{"host":"localhost:3000"}');
  });

  it('is seen by every request of a connection that is kept', async () => {
    await masked();
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    for (const method of ['GET', 'POST', 'DELETE']) {
      const answer = await answerTo(fixture.request('isb', PORT, { agent, method }).end());
      expect(JSON.parse(answer.body.toString())).toMatchObject({ host: 'localhost:3000' });
    }
    agent.destroy();
  });

  it('is seen by requests in HTTP/2', async () => {
    await masked();
    const session = await fixture.connectHttp2();
    const answer = await http2Answer(session.request({ ':path': '/', ...TO_SANDBOX }));
    expect(JSON.parse(answer.body.toString())).toEqual({
      host: 'localhost:3000',
      forwarded: `api.${DOMAIN}:443`,
    });
  });

  it('is seen by WebSockets', async () => {
    const sandbox = fixture.add('isb', { maskRequestHost: 'app-${PORT}.example' });
    const sockets = new WebSocketServer({ server: await fixture.serve(sandbox, PORT, () => {}) });
    sockets.on('connection', (socket, req) => socket.send(JSON.stringify(origin(req))));
    const address = `127.0.0.1:${fixture.port}`;
    const socket = new WebSocket(`ws://${address}/`, { headers: TO_SANDBOX });
    const [text] = (await once(socket, 'message')) as [Buffer];
    expect(JSON.parse(text.toString())).toEqual({ host: 'app-3000.example', forwarded: address });
    socket.terminate();
  });

  it('is not for the agent', async () => {
    await masked(AGENT_PORT);
    const answer = await answerTo(fixture.request('isb', AGENT_PORT, { headers: { host: 'gw' } }).end());
    expect(JSON.parse(answer.body.toString())).toEqual({ host: 'gw' });
  });

  it.each([
    ['claims of its own', 'X-Forwarded-Host: evil\r\nForwarded: host=evil\r\nX-Forwarded-For: 1.2.3.4\r\n'],
    ['claims in another spelling', 'x_forwarded_host: evil\r\nX-Forwarded_Host: evil\r\n'],
    ['headers to be dropped on the way', 'Connection: close, X-Forwarded-Host, Host\r\n'],
    ['a target that names another host', ''],
  ])('can not be changed by a client with %s', async (what, headers) => {
    const sandbox = fixture.add('isb', { maskRequestHost: MASK });
    let seen: string[] = [];
    await fixture.serve(sandbox, PORT, (req, res) => {
      seen = req.rawHeaders;
      res.end();
    });
    const target = what.startsWith('a target') ? 'http://evil/' : '/';
    const socket = fixture.connect();
    socket.write(
      `GET ${target} HTTP/1.1\r\nHost: gw\r\n${headers}E2b-Sandbox-Id: isb\r\nE2b-Sandbox-Port: ${PORT}\r\n` +
        (headers.includes('Connection') ? '\r\n' : 'Connection: close\r\n\r\n'),
    );
    expect(await readAll(socket)).toMatch(/^HTTP\/1\.1 200 /);
    expect(seen.join('\n')).not.toMatch(/evil|1\.2\.3\.4/);
    const told = seen.filter((_, index) => /host/i.test(seen[index - 1] ?? '') && index % 2 === 1);
    expect(told).toEqual(['localhost:3000', 'gw']);
  });

  it('can not be changed by trailers', async () => {
    const sandbox = fixture.add('isb', { maskRequestHost: MASK });
    let seen: string[] = [];
    await fixture.serve(sandbox, PORT, (req, res) => {
      req.resume();
      req.on('end', () => {
        seen = req.rawTrailers;
        res.end();
      });
    });
    const socket = fixture.connect();
    socket.write(
      `POST / HTTP/1.1\r\nHost: gw\r\nE2b-Sandbox-Id: isb\r\nE2b-Sandbox-Port: ${PORT}\r\nConnection: close\r\n` +
        'Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Forwarded-Host: evil\r\nHost: evil\r\nX-Sum: 1\r\n\r\n',
    );
    expect(await readAll(socket)).toMatch(/^HTTP\/1\.1 200 /);
    expect(seen).toEqual(['X-Sum', '1']);
  });

  it('is not there without a mask, and the host is the one that was asked for', async () => {
    const sandbox = fixture.add('isb');
    await fixture.serve(sandbox, PORT, (req, res) => res.end(JSON.stringify(origin(req))));
    const headers = { host: 'gw', 'x-forwarded-host': 'evil' };
    const answer = await answerTo(fixture.request('isb', PORT, { headers }).end());
    expect(JSON.parse(answer.body.toString())).toEqual({ host: 'gw' });
  });
});

describe('a port that speaks TLS', () => {
  /** Its certificate is for other names, by an authority that nobody knows. */
  async function secured(handler: http.RequestListener, options: https.ServerOptions = {}) {
    const server = https.createServer({ ...fixture.authority.read(), ...options }, handler);
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    return server;
  }

  async function add(server: net.Server, maskRequestHost?: string) {
    const sandbox = fixture.add('isb', { httpsPorts: [PORT], maskRequestHost });
    sandbox.instance.ports.set(PORT, (server.address() as AddressInfo).port);
    return sandbox;
  }

  it('is reached by plain requests, bodies included, whoever its certificate is for', async () => {
    const server = await secured((req, res) => req.pipe(res));
    await add(server);
    const body = Buffer.alloc(3_000_000, 'tls');
    const answer = await answerTo(fixture.request('isb', PORT, { method: 'POST' }).end(body));
    expect(answer.body.equals(body)).toBe(true);
    server.close();
  });

  it('is reached by HTTP/2 and by WebSockets', async () => {
    const server = await secured((_req, res) => res.end('over TLS'));
    await add(server);
    const sockets = new WebSocketServer({ server });
    sockets.on('connection', (socket) => socket.on('message', (data) => socket.send(data)));
    const session = await fixture.connectHttp2();
    expect((await http2Answer(session.request({ ':path': '/', ...TO_SANDBOX }))).body.toString()).toBe(
      'over TLS',
    );
    const socket = new WebSocket(`ws://127.0.0.1:${fixture.port}/`, { headers: TO_SANDBOX });
    await once(socket, 'open');
    socket.send('hello');
    expect(String((await once(socket, 'message'))[0])).toBe('hello');
    const closed = once(socket, 'close');
    fixture.edge.drop('isb');
    await closed;
    server.close();
  });

  it.each([
    [`${PORT}-isb.localhost:3210`, undefined, `${PORT}-isb.localhost`],
    [`${PORT}-isb.localhost`, 'app.example:${PORT}', 'app.example'],
    [`${PORT}-isb.localhost`, '127.0.0.1:${PORT}', false],
  ])('is asked for the name that it is told (%s, %s)', async (host, mask, expected) => {
    const server = await secured((req, res) => {
      res.end(JSON.stringify({ name: (req.socket as tls.TLSSocket).servername, host: req.headers.host }));
    });
    await add(server, mask);
    const answer = await answerTo(
      http.get({ host: '127.0.0.1', port: fixture.port, headers: { host }, agent: false }),
    );
    expect(JSON.parse(answer.body.toString())).toEqual({
      name: expected,
      host: mask?.replace('${PORT}', String(PORT)) ?? host,
    });
    server.close();
  });

  it.each<[string, (socket: net.Socket) => void]>([
    ['speaks plain HTTP', (socket) => socket.once('data', () => socket.end('HTTP/1.1 400 Bad\r\n\r\n'))],
    ['closes', (socket) => socket.end()],
    ['resets', (socket) => socket.once('data', () => socket.resetAndDestroy())],
  ])('is told apart when its program %s', async (_, handler) => {
    const sandbox = fixture.add('isb', { httpsPorts: [PORT] });
    await fixture.serveRaw(sandbox, PORT, handler);
    const answer = await answerTo(fixture.request('isb', PORT).end());
    expect([answer.status, answer.body.toString()]).toEqual([
      500,
      'Port 3000 of the sandbox is one of its httpsPorts, but does not speak TLS',
    ]);
  });

  it('is left when the client leaves while its program is silent', async () => {
    const sandbox = fixture.add('isb', { httpsPorts: [PORT] });
    let left: () => void = () => {};
    const gone = new Promise<void>((resolve) => (left = resolve));
    const request = fixture.request('isb', PORT).end();
    request.on('error', () => {});
    await fixture.serveRaw(sandbox, PORT, (socket) => {
      socket.on('close', left);
      socket.on('end', () => socket.end());
      socket.once('data', () => request.destroy()); // the first words of the handshake
    });
    await gone;
  });

  it('passes a broken answer on as a reset', async () => {
    const server = await secured((req, res) => {
      res.writeHead(200, { 'content-length': 10 }).write('half', () => req.socket.destroy());
    });
    await add(server);
    const request = fixture.request('isb', PORT).end();
    request.on('error', () => {});
    await expect(answerTo(request)).rejects.toMatchObject({ code: 'ECONNRESET' });
    server.close();
  });

  it('is only the one that was named', async () => {
    const sandbox = fixture.add('isb', { httpsPorts: [PORT + 1] });
    await fixture.serve(sandbox, PORT, (_req, res) => res.end('plain'));
    expect((await answerTo(fixture.request('isb', PORT).end())).body.toString()).toBe('plain');
  });
});
