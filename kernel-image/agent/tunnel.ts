import net from 'node:net';
import { formatHello, formatReply, LineBuffer, parseReply, parseRequest } from '../../protocol/tunnel';
import type { Hello, TunnelReply } from '../../protocol/tunnel';
import { Backoff } from './backoff';
import { log, reason } from './log';

/** Within this time the service accepts and greets; a loopback target accepts or refuses. */
const HANDSHAKE_TIMEOUT_MS = 5_000;
/** An idle connection that lived this long proves that the service is there. */
const SETTLED_MS = 1_000;
const DEFAULT_IDLE = 4;

/** Where the service listens: a Unix socket, or TCP where Unix sockets can't cross. */
export type TunnelEndpoint = { path: string } | { host: string; port: number };

/**
 * What a dialled port is: a stream that we answer ourselves, or a port of this machine's loopback. Whoever listens there may
 * take the stream itself: `handOver` tells whether it has.
 */
export type DialTarget =
  | { accept: (stream: net.Socket) => void }
  | { port: number; handOver?: (stream: net.Socket) => boolean }
  | undefined;

export interface TunnelClientOptions {
  endpoint: TunnelEndpoint;
  token: string;
  /** Decides what a dialled port is; `undefined` refuses it. */
  target: (port: number) => DialTarget;
  onDeadline: (at: number) => void;
  /** Told at every change: whether at least one idle connection to the service stands. */
  onContact: (connected: boolean) => void;
  idleConnections?: number;
}

/** Reads `unix:<path>` or `tcp:<host>:<port>`. */
export function parseEndpoint(text: string): TunnelEndpoint | undefined {
  if (text.startsWith('unix:/')) return { path: text.slice('unix:'.length) };
  const tcp = /^tcp:(.+):(\d{1,5})$/.exec(text);
  if (tcp?.[1] === undefined || tcp[2] === undefined) return undefined;
  return { host: tcp[1].replace(/^\[(.*)\]$/, '$1'), port: Number(tcp[2]) };
}

/**
 * The sandbox's end of the tunnel (protocol/tunnel.ts): keeps a few idle connections to the service, each of which
 * the service may turn into a stream to a port in here, and opens one more for each call in the other direction.
 *
 * It never gives up: without a service it tries on, quickly at first and once a second later. Streams that run are
 * not touched by that. `close` ends everything.
 */
export class TunnelClient {
  private readonly options: TunnelClientOptions;
  private readonly wanted: number;
  private readonly sockets = new Set<net.Socket>();
  private readonly idle = new Set<net.Socket>();
  private readonly backoff = new Backoff({ firstMs: 100, capMs: 1_000, quick: 20 });
  private opening = 0;
  private retry: NodeJS.Timeout | undefined;
  private contact = false;
  private closed = false;

  constructor(options: TunnelClientOptions) {
    this.options = options;
    this.wanted = options.idleConnections ?? DEFAULT_IDLE;
  }

  start(): void {
    this.fill();
  }

  /** Connects a program inside to a port that the service answers. Owns `caller` from here on. */
  async call(port: number, caller: net.Socket): Promise<void> {
    caller.on('error', () => caller.destroy());
    try {
      const connection = await this.open({ type: 'call', port, token: this.options.token });
      join(connection, caller);
    } catch (error) {
      log(`agent: call of port ${port} failed: ${reason(error)}`);
      caller.resetAndDestroy();
    }
  }

  close(): void {
    this.closed = true;
    clearTimeout(this.retry);
    for (const socket of this.sockets) socket.destroy();
  }

  /** Opens what is missing of the idle connections, unless a pause after a failure is running. */
  private fill(): void {
    if (this.closed || this.retry !== undefined) return;
    while (this.idle.size + this.opening < this.wanted) {
      this.opening += 1;
      void this.openIdle();
    }
  }

  private async openIdle(): Promise<void> {
    let connection: net.Socket;
    try {
      connection = await this.open({ type: 'idle', token: this.options.token });
    } catch {
      // No service, or one that doesn't want us, is an ordinary state in here: the pause is the answer.
      this.opening -= 1;
      this.later();
      return;
    }
    this.opening -= 1;
    this.idle.add(connection);
    this.tellContact();
    const settled = setTimeout(() => this.backoff.reset(), SETTLED_MS).unref();
    try {
      await this.await(connection);
      this.backoff.reset();
    } catch {
      // The service closed it (restart) or spoke out of turn: either way it is replaced after a pause.
      connection.destroy();
      this.later();
    } finally {
      clearTimeout(settled);
      this.idle.delete(connection);
      this.tellContact();
      this.fill();
    }
  }

  /** Serves requests on an idle connection until it is dialled; the stream runs on after that. */
  private async await(connection: net.Socket): Promise<void> {
    for (;;) {
      const request = parseRequest(await readLine(connection));
      if (request === undefined) throw new Error('unknown request');
      if (request.type === 'deadline') {
        this.options.onDeadline(request.at);
        reply(connection, { type: 'ok' });
        continue;
      }
      // The replacement first: under a burst of dials the next one is already waiting for it.
      this.idle.delete(connection);
      this.fill();
      void this.serve(connection, request.port);
      return;
    }
  }

  private async serve(connection: net.Socket, port: number): Promise<void> {
    const target = this.options.target(port);
    if (target === undefined) return refuse(connection, { type: 'refused' });
    if ('accept' in target) {
      reply(connection, { type: 'ok' });
      target.accept(connection);
      return;
    }
    if (target.handOver?.(connection) === true) {
      // The first bytes come after this reply, and are no longer ours.
      connection.write(formatReply({ type: 'ok' }), () => connection.destroy());
      return;
    }
    let stream: net.Socket;
    try {
      stream = await connectLoopback(target.port, connection);
    } catch (error) {
      const refused = (error as NodeJS.ErrnoException).code === 'ECONNREFUSED';
      return refuse(connection, refused ? { type: 'refused' } : { type: 'error', text: reason(error) });
    }
    reply(connection, { type: 'ok' });
    join(connection, stream);
  }

  /** Opens one connection to the service and waits for its `ok`. */
  private async open(hello: Hello): Promise<net.Socket> {
    if (this.closed) throw new Error('the agent is stopping');
    const socket = net.connect({ ...this.options.endpoint, allowHalfOpen: true });
    this.sockets.add(socket);
    socket.once('close', () => this.sockets.delete(socket));
    socket.on('error', () => socket.destroy());
    if ('port' in this.options.endpoint) {
      socket.setNoDelay(true);
      // A service whose machine vanished says no goodbye; without this an idle connection would stand for ever.
      socket.setKeepAlive(true, 15_000);
    }
    const timer = setTimeout(() => socket.destroy(), HANDSHAKE_TIMEOUT_MS);
    try {
      socket.write(formatHello(hello));
      const answer = parseReply(await readLine(socket));
      if (answer?.type !== 'ok')
        throw new Error(`the service answered ${answer?.type ?? 'something unknown'}`);
      return socket;
    } catch (error) {
      socket.destroy();
      throw error;
    } finally {
      clearTimeout(timer);
    }
  }

  private later(): void {
    if (this.closed || this.retry !== undefined) return;
    this.retry = setTimeout(() => {
      this.retry = undefined;
      this.fill();
    }, this.backoff.nextMs());
  }

  private tellContact(): void {
    const contact = this.idle.size > 0;
    if (contact === this.contact) return;
    this.contact = contact;
    this.options.onContact(contact);
  }
}

function reply(connection: net.Socket, answer: TunnelReply): void {
  connection.write(formatReply(answer));
}

function refuse(connection: net.Socket, answer: TunnelReply): void {
  connection.end(formatReply(answer), () => connection.destroy());
}

/** Connects to the port on IPv4 loopback, then on IPv6. Gives up when `client` goes away. */
async function connectLoopback(port: number, client: net.Socket): Promise<net.Socket> {
  try {
    return await connectTo('127.0.0.1', port, client);
  } catch (error) {
    try {
      return await connectTo('::1', port, client);
    } catch {
      // Without IPv6 the second attempt fails for its own reasons; the first one's is what the caller asked about.
      throw error;
    }
  }
}

function connectTo(host: string, port: number, client: net.Socket): Promise<net.Socket> {
  return new Promise((resolve, reject) => {
    const socket = net.connect({ host, port, allowHalfOpen: true, noDelay: true });
    const timer = setTimeout(
      () => fail(new Error(`port ${port} did not accept within ${HANDSHAKE_TIMEOUT_MS} ms`)),
      HANDSHAKE_TIMEOUT_MS,
    );
    const onClientGone = () => fail(new Error('the client went away'));
    const settle = () => {
      clearTimeout(timer);
      socket.off('error', fail);
      client.off('close', onClientGone);
    };
    const fail = (error: Error) => {
      settle();
      socket.on('error', () => {}); // destroyed below; what it still says is of no use to anyone
      socket.destroy();
      reject(error);
    };
    socket.once('error', fail);
    client.once('close', onClientGone);
    socket.once('connect', () => {
      settle();
      resolve(socket);
    });
  });
}

/**
 * Joins two streams byte for byte: each end passes on alone, back-pressure holds, and a stream that breaks takes the
 * other with it (by a reset where the transport has one).
 */
function join(a: net.Socket, b: net.Socket): void {
  for (const [one, other] of [
    [a, b],
    [b, a],
  ] as const) {
    one.on('error', () => abort(other));
    one.once('close', () => {
      if (!one.readableEnded || !one.writableFinished) abort(other);
    });
    one.pipe(other);
    if (one.destroyed) abort(other);
  }
}

function abort(socket: net.Socket): void {
  // Unix sockets have no reset: there the peer sees an end.
  if (socket.remotePort === undefined) socket.destroy();
  else socket.resetAndDestroy();
}

/** Reads one line; bytes behind it stay in the stream. Waits as long as the connection lives: its owner bounds that. */
function readLine(socket: net.Socket): Promise<string> {
  return new Promise((resolve, reject) => {
    const buffer = new LineBuffer();
    const settle = (act: () => void) => {
      socket.off('readable', onReadable);
      socket.off('end', onEnd);
      socket.off('close', onEnd);
      act();
    };
    const onEnd = () => settle(() => reject(new Error('the connection ended')));
    const onReadable = () => {
      let chunk: Buffer | null;
      while ((chunk = socket.read() as Buffer | null) !== null) {
        try {
          const found = buffer.push(chunk);
          if (found === undefined) continue;
          settle(() => {
            if (found.rest.length > 0) socket.unshift(found.rest);
            resolve(found.line);
          });
        } catch (error) {
          settle(() => reject(error));
        }
        return;
      }
    };
    if (socket.destroyed || socket.readableEnded) {
      reject(new Error('the connection is closed'));
      return;
    }
    socket.on('readable', onReadable);
    socket.on('end', onEnd);
    socket.on('close', onEnd);
    onReadable();
  });
}
