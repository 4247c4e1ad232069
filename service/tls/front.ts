import type http from 'node:http';
import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import tls from 'node:tls';
import type { Logger } from '../log';
import type { Credentials } from './credentials';
import { createHttp2 } from './http2';

/** How long a connection may be silent before its first byte: browsers open some ahead of need. */
const FIRST_BYTE_MS = 60_000;
const HANDSHAKE_MS = 10_000;
/** First byte of every TLS connection, and of no HTTP request. */
const TLS_HANDSHAKE = 0x16;
const KEEPALIVE_PROBE_MS = 20_000;

export interface TlsFrontOptions {
  /** Listens, or is going to. Goes on to serve plain HTTP; everything else ends up in it as HTTP/1.1, too. */
  server: http.Server;
  credentials: Credentials;
  logger: Logger;
  firstByteMs?: number;
  handshakeMs?: number;
}

/**
 * Adds TLS to an HTTP server's own port: the first byte of a connection tells which of the two it is. HTTP/2 and HTTP/1.1
 * are agreed on by ALPN.
 *
 * Plain HTTP stays open to programs on this machine (the health check, a proxy in front). Others are told to use
 * TLS: where it was asked for, an API key must not cross the network in the clear.
 */
export class TlsFront {
  private readonly tlsServer: tls.Server;
  private readonly http2: ReturnType<typeof createHttp2>;
  /** Connections that no HTTP server owns yet, or that belong to HTTP/2. */
  private readonly sockets = new Set<Socket>();

  constructor(private readonly options: TlsFrontOptions) {
    const { server, credentials, logger } = options;
    // The server's own reader is put behind ours. It stays the one that listens: that is what its time-outs hang on.
    const [own] = server.listeners('connection');
    if (own === undefined) throw new Error('not an HTTP server');
    const serve = (connection: Duplex): void => void own.call(server, connection);
    this.http2 = createHttp2(serve);
    this.tlsServer = tls.createServer({
      ...credentials,
      minVersion: 'TLSv1.2',
      ALPNProtocols: ['h2', 'http/1.1'],
      handshakeTimeout: options.handshakeMs ?? HANDSHAKE_MS,
    });
    this.tlsServer.on('secureConnection', (socket) => {
      if (socket.alpnProtocol === 'h2') this.http2.server.emit('connection', socket);
      else serve(socket);
    });
    this.tlsServer.on('tlsClientError', (error, socket) => {
      logger.debug({ err: error }, 'a TLS handshake failed');
      socket.destroy();
    });
    server.removeListener('connection', own as (socket: Socket) => void);
    server.on('connection', (socket) => this.dispatch(socket, serve));
  }

  /** For connections from now on; those at hand stay as they are. */
  setCredentials(credentials: Credentials): void {
    this.tlsServer.setSecureContext(credentials);
  }

  /** Breaks off what runs over TLS, and what has said nothing yet. Plain connections are the HTTP server's to close. */
  close(): void {
    this.http2.shutdown();
    for (const socket of this.sockets) socket.destroy();
  }

  private dispatch(socket: Socket, serve: (connection: Duplex) => void): void {
    this.sockets.add(socket);
    socket.once('close', () => this.sockets.delete(socket));
    const timer = setTimeout(() => socket.destroy(), this.options.firstByteMs ?? FIRST_BYTE_MS);
    const onError = (): void => {}; // followed by `close`
    const onReadable = (): void => {
      const start = socket.read() as Buffer | null;
      if (start === null) {
        stop();
        socket.destroy(); // ended without a byte
        return;
      }
      stop();
      socket.unshift(start);
      if (start[0] === TLS_HANDSHAKE) {
        socket.setKeepAlive(true, KEEPALIVE_PROBE_MS); // one connection carries many streams, some of them quiet
        this.tlsServer.emit('connection', socket);
      } else if (isFromHere(socket)) {
        this.sockets.delete(socket);
        serve(socket);
      } else {
        refusePlain(socket);
      }
    };
    const stop = (): void => {
      clearTimeout(timer);
      socket.off('readable', onReadable);
      socket.off('error', onError);
      socket.off('close', stop);
    };
    socket.on('error', onError);
    socket.on('close', stop);
    socket.on('readable', onReadable);
  }
}

/** Whether the other end is a program on this machine: on loopback, or at the very address that it connected to. */
export function isFromHere(socket: Pick<Socket, 'remoteAddress' | 'localAddress'>): boolean {
  const { remoteAddress, localAddress } = socket;
  if (remoteAddress === undefined) return false; // it has left
  return remoteAddress === localAddress || /^(127\.|::1$|::ffff:127\.)/.test(remoteAddress);
}

function refusePlain(socket: Socket): void {
  const text = 'This service is reached over TLS: use https://';
  socket.on('error', () => {}); // it may be gone already
  socket.resume();
  socket.end(
    'HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n' +
      `Content-Length: ${text.length}\r\n\r\n${text}`,
    () => socket.destroy(),
  );
}
