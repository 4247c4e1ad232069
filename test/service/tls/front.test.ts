import crypto from 'node:crypto';
import http from 'node:http';
import http2 from 'node:http2';
import https from 'node:https';
import { once } from 'node:events';
import type net from 'node:net';
import { WebSocket, WebSocketServer } from 'ws';
import { isFromHere } from '../../../service/tls/front';
import { answerTo, readAll } from '../edge/edge-fixture';
import { DOMAIN, http2Answer, TlsFixture } from './tls-fixture';

let fixture: TlsFixture;
beforeEach(async () => {
  fixture = new TlsFixture();
  await fixture.open();
});
afterEach(() => fixture.close());

const toSandbox = (port: number) => ({ 'e2b-sandbox-id': 'isb', 'e2b-sandbox-port': String(port) });

describe('one port', () => {
  it('serves plain HTTP, HTTP/1.1 over TLS and HTTP/2 alike', async () => {
    const plain = await answerTo(http.get({ host: '127.0.0.1', port: fixture.port, agent: false }));
    const socket = await fixture.connectTls({ ALPNProtocols: ['http/1.1'] });
    const secure = await answerTo(https.get({ createConnection: () => socket, host: `api.${DOMAIN}` }));
    const session = await fixture.connectHttp2();
    const second = await http2Answer(session.request({ ':path': '/' }));
    expect([plain.body, secure.body, second.body].map(String)).toEqual(Array(3).fill('control plane'));
  });

  it('serves several requests on one connection of each kind', async () => {
    for (const options of [{ ALPNProtocols: ['http/1.1'] }, {}]) {
      const socket = await fixture.connectTls(options);
      for (let round = 0; round < 2; round++) {
        socket.write('GET / HTTP/1.1\r\nHost: x\r\n\r\n');
        expect(String((await once(socket, 'data'))[0])).toMatch(/^HTTP\/1\.1 200 [^]*control plane$/);
      }
    }
    const session = await fixture.connectHttp2();
    const answers = Array.from({ length: 20 }, () => http2Answer(session.request({ ':path': '/' })));
    expect((await Promise.all(answers)).map((answer) => answer.status)).toEqual(Array(20).fill(200));
  });

  it('reads a request that arrives one byte at a time', async () => {
    const socket = fixture.connect();
    for (const byte of 'GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n') {
      socket.write(byte);
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect(await readAll(socket)).toMatch(/control plane$/);
  });

  it('carries a WebSocket over TLS', async () => {
    const sandbox = fixture.add('isb');
    const server = await fixture.serve(sandbox, 3000, () => {});
    const sockets = new WebSocketServer({ server });
    sockets.on('connection', (socket) => socket.on('message', (data) => socket.send(`echo ${String(data)}`)));
    const socket = new WebSocket(`wss://127.0.0.1:${fixture.port}/`, {
      ca: fixture.ca,
      headers: toSandbox(3000),
    });
    await once(socket, 'open');
    socket.send('hello');
    expect(String((await once(socket, 'message'))[0])).toBe('echo hello');
    socket.close();
    await once(socket, 'close');
    sockets.close();
  });

  it('breaks the connection off when a sandbox is dropped in the middle of an answer', async () => {
    const sandbox = fixture.add('isb');
    await fixture.serve(sandbox, 3000, (_req, res) => res.write('half'));
    const socket = await fixture.connectTls();
    const request = https.get({ createConnection: () => socket, headers: toSandbox(3000) });
    const [response] = (await once(request, 'response')) as [http.IncomingMessage];
    await once(response, 'data');
    fixture.edge.drop('isb');
    await expect(once(response, 'end')).rejects.toMatchObject({ code: 'ECONNRESET' });
  });

  it('goes on serving a connection when the certificate is replaced, and shows others the new one', async () => {
    const before = await fixture.connectTls();
    const other = new TlsFixture();
    await other.open();
    try {
      fixture.front.setCredentials(other.authority.read());
      const after = await fixture.connectTls({ ca: other.ca });
      expect(after.getPeerCertificate().fingerprint256).not.toBe(before.getPeerCertificate().fingerprint256);
      before.write('GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n');
      expect(await readAll(before)).toMatch(/control plane$/);
    } finally {
      await other.close();
    }
  });

  it.each(['TLSv1', 'TLSv1.1'] as const)('refuses %s', async (version) => {
    await expect(
      fixture.connectTls({ minVersion: version, maxVersion: version, ciphers: 'ALL:@SECLEVEL=0' }),
    ).rejects.toThrow();
  });
});

describe('who may speak plain HTTP', () => {
  it.each<[string | undefined, string, boolean]>([
    ['127.0.0.1', '127.0.0.1', true],
    ['127.8.8.8', '127.0.0.1', true],
    ['::1', '::1', true],
    ['::ffff:127.0.0.1', '::ffff:127.0.0.1', true],
    ['10.0.0.1', '10.0.0.1', true],
    ['10.0.0.1', '10.0.0.2', false],
    ['::ffff:10.0.0.127', '::ffff:10.0.0.1', false],
    ['1270::1', '::1', false],
    [undefined, '10.0.0.1', false],
  ])('%s at %s: %s', (remoteAddress, localAddress, allowed) =>
    expect(isFromHere({ remoteAddress, localAddress } as net.Socket)).toBe(allowed),
  );

  it('is told to others by the answer', async () => {
    // Node's socket takes its addresses from the operating system; this test has one machine only.
    fixture.server.prependListener('connection', (socket: net.Socket) =>
      Object.defineProperty(socket, 'remoteAddress', { value: '10.0.0.1' }),
    );
    const socket = fixture.connect();
    socket.write('GET / HTTP/1.1\r\nHost: x\r\n\r\n');
    expect(await readAll(socket)).toMatch(/^HTTP\/1\.1 400 [^]*use https:\/\/$/);
    const session = await fixture.connectHttp2();
    expect((await http2Answer(session.request({ ':path': '/' }))).status).toBe(200);
  });
});

describe('slow and hostile connections', () => {
  it('end when they never say anything, or never finish the handshake', async () => {
    // Each with the limit that it meets: past the other one its bytes would lie unread, and the end be a reset.
    for (const [limit, bytes] of [
      [{ firstByteMs: 50 }, []],
      [{ handshakeMs: 50 }, [0x16, 3, 1, 2, 0]],
    ] as const) {
      const hasty = new TlsFixture(limit);
      await hasty.open();
      try {
        const socket = hasty.connect();
        if (bytes.length > 0) socket.write(Buffer.from(bytes));
        await once(socket.resume(), 'end');
      } finally {
        await hasty.close();
      }
    }
  });

  it.each([
    ['noise instead of a handshake', Buffer.concat([Buffer.from([0x16]), crypto.randomBytes(2000)])],
    ['noise instead of a request', crypto.randomBytes(2000)],
    ['the preface of HTTP/2 without TLS', Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n')],
  ])('with %s leave the service as it was', async (_, bytes) => {
    const socket = fixture.connect();
    if (bytes[0] !== 0x16) bytes[0] = 0x50;
    socket.end(bytes);
    await once(socket.resume(), 'close');
    const plain = await answerTo(http.get({ host: '127.0.0.1', port: fixture.port, agent: false }));
    expect(plain.status).toBe(200);
  });

  it('with noise instead of HTTP/2 frames are closed alone', async () => {
    const good = await fixture.connectHttp2();
    const bad = await fixture.connectTls({ ALPNProtocols: ['h2'] });
    bad.write(crypto.randomBytes(4000));
    await once(bad.resume(), 'close');
    expect((await http2Answer(good.request({ ':path': '/' }))).status).toBe(200);
  });

  it('with endless headers over HTTP/2 are refused', async () => {
    const session = await fixture.connectHttp2();
    const headers = Object.fromEntries(
      Array.from({ length: 100 }, (_, index) => [`x-${index}`, 'a'.repeat(1000)]),
    );
    const stream = session.request({ ':path': '/', ...headers });
    await expect(http2Answer(stream)).rejects.toMatchObject({ code: 'ERR_HTTP2_STREAM_ERROR' });
  });
});

describe('close', () => {
  it('ends every kind of connection', async () => {
    const ended = (socket: net.Socket) => once(socket.resume(), 'end');
    const silent = fixture.connect();
    await once(silent, 'connect');
    const session = await fixture.connectHttp2();
    const plain = fixture.connect();
    plain.write('GET / HTTP/1.1\r\nHost: x\r\n\r\n');
    await once(plain, 'data');
    const done = Promise.all([ended(silent), once(session, 'close'), ended(plain)]);
    fixture.front.close();
    fixture.server.closeAllConnections();
    await done;
  });

  it('says GOAWAY to HTTP/2 clients', async () => {
    const session = await fixture.connectHttp2();
    const stream = session.request({ ':path': '/' });
    await http2Answer(stream);
    const goaway = once(session, 'goaway');
    fixture.front.close();
    expect((await goaway)[0]).toBe(http2.constants.NGHTTP2_NO_ERROR);
  });
});
