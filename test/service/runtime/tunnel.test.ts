import { once } from 'node:events';
import fs from 'node:fs/promises';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { formatHello } from '../../../protocol/tunnel';
import { createLogger } from '../../../service/log';
import { TunnelServer } from '../../../service/runtime/tunnel';

const TOKEN = 'right-token';

describe('TunnelServer', () => {
  let directory: string;
  let socketPath: string;
  let server: TunnelServer;
  let inbound: Array<{ id: string; port: number; stream: net.Socket }>;
  let peers: net.Socket[];

  beforeEach(async () => {
    directory = await fs.mkdtemp(path.join(os.tmpdir(), 'tunnel-'));
    socketPath = path.join(directory, 't', 'service.sock');
    inbound = [];
    peers = [];
    server = makeServer();
    await server.listen();
  });

  afterEach(async () => {
    for (const peer of peers) peer.destroy();
    await server.close();
    await fs.rm(directory, { recursive: true, force: true });
  });

  function makeServer(options: { socketPath?: string; dialTimeoutMs?: number } = {}): TunnelServer {
    return new TunnelServer({
      socketPath,
      token: TOKEN,
      instanceId: 'box1',
      onInbound: (id, port, stream) => inbound.push({ id, port, stream }),
      logger: createLogger('silent'),
      ...options,
    });
  }

  async function connect(): Promise<net.Socket> {
    const peer = net.connect({ path: socketPath, allowHalfOpen: true });
    peers.push(peer);
    peer.on('error', () => {}); // the tests look at `close`
    await once(peer, 'connect');
    return peer;
  }

  /** A peer that greeted as an idle connection and was accepted. */
  async function idlePeer(): Promise<net.Socket> {
    const peer = await connect();
    peer.write(formatHello({ type: 'idle', token: TOKEN }));
    expect(await text(peer)).toBe('ok\n');
    return peer;
  }

  const text = async (socket: net.Socket) => String((await once(socket, 'data'))[0]);
  const closed = (socket: net.Socket) =>
    socket.closed
      ? Promise.resolve()
      : new Promise<void>((done) => socket.resume().once('close', () => done()));
  /** The service destroyed its end; a half-open client sees that as an end. */
  const ended = (socket: net.Socket) =>
    new Promise<void>((done) =>
      socket
        .resume()
        .once('end', done)
        .once('close', () => done()),
    );

  it('turns an idle connection into a stream, with the first bytes of a peer that speaks at once', async () => {
    const peer = await idlePeer();
    const dialled = server.dial(8080);
    expect(await text(peer)).toBe('dial 8080\n');
    peer.write('ok\nSSH-2.0-');
    const stream = await dialled;
    expect(await text(stream)).toBe('SSH-2.0-');
    stream.write('hello');
    expect(await text(peer)).toBe('hello');
    stream.end();
    await once(peer, 'end');
    peer.write('still here');
    expect(await text(stream)).toBe('still here');
    stream.destroy();
  });

  it('keeps a dial waiting until the agent has a connection free', async () => {
    const dialled = server.dial(80);
    const peer = await idlePeerOrRequest();
    expect(peer.request).toBe('ok\ndial 80\n');
    peer.socket.write('ok\n');
    (await dialled).destroy();

    async function idlePeerOrRequest() {
      const socket = await connect();
      socket.write(formatHello({ type: 'idle', token: TOKEN }));
      let request = '';
      while (request.split('\n').length < 3) request += await text(socket);
      return { socket, request };
    }
  });

  it('tells a closed port from one that can not be reached', async () => {
    const first = await idlePeer();
    const refused = server.dial(80);
    await text(first);
    first.write('refused\n');
    await expect(refused).rejects.toMatchObject({ code: 'not_found' });
    const second = await idlePeer();
    const failed = server.dial(80);
    await text(second);
    second.write('error no route\n');
    await expect(failed).rejects.toMatchObject({ code: 'unavailable' });
  });

  it('replaces a connection that died while idle or while asked', async () => {
    const first = await idlePeer();
    const second = await idlePeer();
    const dialled = server.dial(80);
    await text(first);
    first.destroy();
    expect(await text(second)).toBe('dial 80\n');
    second.write('ok\n');
    (await dialled).destroy();
  });

  it.each([0, -1, 65_536, 1.5, Number.NaN])('refuses to dial port %s', async (port) => {
    await expect(server.dial(port)).rejects.toMatchObject({ code: 'invalid_argument' });
  });

  it('gives up a dial at its deadline and when the caller does, and closes the connection asked', async () => {
    await server.close();
    server = makeServer({ dialTimeoutMs: 50 });
    await server.listen();
    await expect(server.dial(80)).rejects.toMatchObject({ code: 'unavailable' });
    const silent = await idlePeer();
    await expect(server.dial(80)).rejects.toMatchObject({ code: 'unavailable' });
    await ended(silent);
    await expect(server.setDeadline(1)).rejects.toMatchObject({ code: 'unavailable' });
    await server.close();
    server = makeServer();
    await server.listen();
    const caller = new AbortController();
    const waiting = server.dial(80, { signal: caller.signal });
    caller.abort(new Error('changed my mind'));
    await expect(waiting).rejects.toThrow('changed my mind');
    await expect(server.dial(80, { signal: caller.signal })).rejects.toThrow('changed my mind');
  });

  it('tells the deadline on a connection that stays idle', async () => {
    const peer = await idlePeer();
    for (const at of [1_700_000_000_000, 1_800_000_000_000]) {
      const told = server.setDeadline(at);
      expect(await text(peer)).toBe(`deadline ${at}\n`);
      peer.write('ok\n');
      await told;
    }
    const dialled = server.dial(80);
    expect(await text(peer)).toBe('dial 80\n');
    peer.write('ok\n');
    (await dialled).destroy();
  });

  it('announces the first connection to those who wait for it and to those who come later', async () => {
    const waiting = server.firstConnection(AbortSignal.timeout(30_000));
    await idlePeer();
    await waiting;
    await server.firstConnection(AbortSignal.timeout(30_000));
  });

  it('stops waiting for a first connection at the signal and at close', async () => {
    await expect(server.firstConnection(AbortSignal.timeout(10))).rejects.toMatchObject({
      name: 'TimeoutError',
    });
    const waiting = server.firstConnection(AbortSignal.timeout(30_000));
    await server.close();
    await expect(waiting).rejects.toMatchObject({ code: 'unavailable' });
  });

  it('hands a call from inside to the receiver, and only for the port that the service answers', async () => {
    const peer = await connect();
    peer.write(`${formatHello({ type: 'call', port: 49999, token: TOKEN })}GET / HTTP/1.1\r\n`);
    expect(await text(peer)).toBe('ok\n');
    expect(inbound).toMatchObject([{ id: 'box1', port: 49999 }]);
    const stream = inbound[0]?.stream;
    expect(stream && (await text(stream))).toBe('GET / HTTP/1.1\r\n');
    stream?.destroy();
    const other = await connect();
    other.write(formatHello({ type: 'call', port: 3210, token: TOKEN }));
    expect(await text(other)).toBe('refused\n');
    await ended(other);
    expect(inbound).toHaveLength(1);
  });

  it('closes by resetting every stream and refusing what waits', async () => {
    const peer = await idlePeer();
    const dialled = server.dial(80);
    await text(peer);
    peer.write('ok\n');
    const stream = await dialled;
    const broken = once(stream, 'error');
    const idle = await idlePeer();
    const waiting = server.dial(81);
    await text(idle);
    await server.close();
    expect(await broken).toMatchObject([{ code: 'ECONNRESET' }]);
    await expect(waiting).rejects.toMatchObject({ code: 'unavailable' });
    await expect(server.dial(80)).rejects.toMatchObject({ code: 'unavailable' });
    await Promise.all([ended(peer), ended(idle)]);
    await expect(fs.stat(socketPath)).rejects.toMatchObject({ code: 'ENOENT' });
    await server.close();
  });

  it('takes the place of a socket that a crashed service left, and nothing else', async () => {
    await server.close();
    const left = net.createServer();
    await new Promise<void>((done) => left.listen(path.join(directory, 'left'), done));
    await fs.link(path.join(directory, 'left'), socketPath);
    left.close();
    server = makeServer();
    await server.listen();
    await idlePeer();
    const file = path.join(directory, 'file');
    await fs.writeFile(file, 'precious');
    await expect(makeServer({ socketPath: file }).listen()).rejects.toMatchObject({
      code: 'failed_precondition',
    });
    const link = path.join(directory, 'link');
    await fs.symlink(socketPath, link);
    await expect(makeServer({ socketPath: link }).listen()).rejects.toMatchObject({
      code: 'failed_precondition',
    });
    expect(await fs.readFile(file, 'utf8')).toBe('precious');
  });

  it('says when the path does not fit a socket address', async () => {
    const long = makeServer({ socketPath: path.join(directory, 'x'.repeat(108)) });
    await expect(long.listen()).rejects.toMatchObject({
      code: 'failed_precondition',
      message: expect.stringContaining('107 bytes') as string,
    });
    await long.close();
  });

  it('lets any user inside connect and nobody else list the directory', async () => {
    expect((await fs.stat(socketPath)).mode & 0o777).toBe(0o777);
    expect((await fs.stat(path.dirname(socketPath))).mode & 0o777).toBe(0o711);
  });

  describe('with a hostile sandbox', () => {
    it.each([
      ['garbage', Buffer.from([0, 255, 10, 13, 10, 0])],
      ['HTTP', Buffer.from('GET / HTTP/1.1\r\n\r\n')],
      ['a wrong token', Buffer.from(formatHello({ type: 'idle', token: 'wrong-token' }))],
      ['a token that only begins right', Buffer.from(formatHello({ type: 'idle', token: `${TOKEN}x` }))],
      ['an endless line', Buffer.alloc(1_000_000, 'x')],
      ['another version', Buffer.from(`CELLBOX/9 idle ${TOKEN}\n`)],
    ])('drops a peer that sends %s, and serves the next one', async (_what, bytes) => {
      const peer = await connect();
      peer.write(bytes);
      await ended(peer);
      await idlePeer();
      expect(inbound).toEqual([]);
    });

    it('drops an idle peer that talks out of turn, before or after its request', async () => {
      const talker = await idlePeer();
      talker.write('hello?');
      await ended(talker);
      const liar = await idlePeer();
      const dialled = server.dial(80);
      await text(liar);
      liar.write('maybe\n');
      await expect(dialled).rejects.toMatchObject({ code: 'unavailable' });
      await ended(liar);
    });

    it('keeps 64 idle connections and drops the rest', async () => {
      const first = await Promise.all(Array.from({ length: 64 }, () => idlePeer()));
      const extra = await connect();
      extra.write(formatHello({ type: 'idle', token: TOKEN }));
      await ended(extra);
      expect(first.every((peer) => !peer.destroyed)).toBe(true);
    });

    it('keeps 64 slow greeters at most, and still serves the connections that it has', async () => {
      const good = await idlePeer();
      const slow = await Promise.all(Array.from({ length: 64 }, () => connect()));
      let dropped = 0;
      for (const peer of slow) {
        peer.write('C');
        peer.resume().once('end', () => (dropped += 1));
      }
      const extra = await connect();
      await ended(extra);
      // At once, and not at the deadline that ends the slow ones too.
      expect(dropped).toBe(0);
      const dialled = server.dial(80);
      expect(await text(good)).toBe('dial 80\n');
      good.write('ok\n');
      (await dialled).destroy();
    });

    it('drops a greeter that never finishes', async () => {
      const slow = await connect();
      slow.write('CELLBOX/1 idle ');
      await ended(slow);
    }, 10_000);

    it('survives a receiver that throws and peers that vanish', async () => {
      await server.close();
      server = new TunnelServer({
        socketPath,
        token: TOKEN,
        instanceId: 'box1',
        onInbound: () => {
          throw new Error('receiver broke');
        },
        logger: createLogger('silent'),
      });
      await server.listen();
      const peer = await connect();
      peer.write(formatHello({ type: 'call', port: 49999, token: TOKEN }));
      await ended(peer);
      const vanishing = await idlePeer();
      const dialled = server.dial(80);
      await text(vanishing);
      vanishing.write('ok\n');
      const stream = await dialled;
      vanishing.destroy();
      stream.write('into the void');
      stream.write('twice');
      await closed(stream);
      await idlePeer();
    });
  });
});
