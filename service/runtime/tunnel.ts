import { createHash, timingSafeEqual } from 'node:crypto';
import fs from 'node:fs/promises';
import net from 'node:net';
import path from 'node:path';
import { INTERPRETER_PORT } from '../../protocol/routing';
import {
  formatReply,
  formatRequest,
  LineBuffer,
  parseHello,
  parseReply,
  TunnelLineError,
} from '../../protocol/tunnel';
import type { Hello, TunnelReply, TunnelRequest } from '../../protocol/tunnel';
import { ServiceError } from '../errors';
import type { Logger } from '../log';
import { traced } from '../observability/scope';
import type { DialOptions, InboundHandler } from './runtime';

/** Longest path that fits a socket address on Linux, without its terminating NUL. */
export const MAX_SOCKET_PATH_BYTES = 107;

/** Caps per instance. Code inside is hostile, and every connection costs the service a file descriptor. */
const MAX_CONNECTIONS = 2048;
const MAX_GREETING = 64;
const MAX_IDLE = 64;
const MAX_INBOUND = 256;
const HELLO_TIMEOUT_MS = 5_000;
const DIAL_TIMEOUT_MS = 10_000;

export interface TunnelServerOptions {
  /** Where to listen. Its directory is this service's own and belongs to this one instance. */
  socketPath: string;
  /** What the agent must present; compared in constant time. */
  token: string;
  instanceId: string;
  onInbound: InboundHandler;
  logger: Logger;
  /** How long `dial` and `setDeadline` may take in all. */
  dialTimeoutMs?: number;
}

interface Waiter {
  resolve: (connection: net.Socket) => void;
  reject: (error: unknown) => void;
}

/**
 * The service's end of one instance's tunnel: listens, keeps the connections on which the agent waits, and turns one
 * into a byte stream per `dial`.
 *
 * The service only ever accepts here: it never connects to a path, because a path that a sandbox can write may be a
 * symbolic link to anything. What comes in is hostile until the token was seen, and lines stay hostile after it: the
 * sandbox's root knows the token. Anything unexpected closes that one connection.
 *
 * Streams handed out belong to their receiver, have a silent `error` listener of ours, so that a peer can't crash the service
 * by a reset, and are destroyed with ECONNRESET by `close`.
 */
export class TunnelServer {
  private readonly options: TunnelServerOptions;
  private readonly tokenDigest: Buffer;
  private readonly server: net.Server;
  private readonly connections = new Set<net.Socket>();
  private readonly idle: net.Socket[] = [];
  private readonly waiters = new Set<Waiter>();
  private readonly firsts = new Set<Waiter>();
  private greeting = 0;
  private inbound = 0;
  private warned = false;
  private closing: Promise<void> | undefined;

  constructor(options: TunnelServerOptions) {
    this.options = options;
    this.tokenDigest = digest(options.token);
    this.server = net.createServer({ allowHalfOpen: true }, (socket) => this.accept(socket));
    this.server.maxConnections = MAX_CONNECTIONS;
  }

  /** Binds the socket, replacing one that a crashed service left, and making the directory where it is missing. */
  async listen(): Promise<void> {
    const { socketPath } = this.options;
    if (Buffer.byteLength(socketPath) > MAX_SOCKET_PATH_BYTES) {
      throw new ServiceError(
        'failed_precondition',
        `The path of the tunnel socket is longer than ${MAX_SOCKET_PATH_BYTES} bytes: ${socketPath}`,
        { remedy: 'Set CELLBOX_DATA_DIR to a shorter path' },
      );
    }
    // Agents of another uid must reach the socket: the directory may be entered but not listed or written.
    await fs.mkdir(path.dirname(socketPath), { recursive: true, mode: 0o711 });
    await removeStaleSocket(socketPath);
    await new Promise<void>((resolve, reject) => {
      this.server.once('error', reject);
      // Connecting needs write permission on the socket. The token decides who is served.
      this.server.listen({ path: socketPath, readableAll: true, writableAll: true }, () => {
        this.server.off('error', reject);
        resolve();
      });
    });
    this.server.on('error', (error) => this.options.logger.warn({ err: error }, 'tunnel listener failed'));
  }

  /** Resolves once the agent has an idle connection here. The signal is the deadline; rejects with its reason. */
  async firstConnection(signal: AbortSignal): Promise<void> {
    if (this.closing !== undefined) throw gone();
    if (this.idle.length > 0) return;
    await traced('agent.connect', { 'cellbox.sandbox.id': this.options.instanceId }, () =>
      this.wait(this.firsts, signal),
    );
  }

  /** See `Instance.dial`. Rejects with the signal's reason when the signal gives up first. */
  async dial(port: number, { signal }: DialOptions = {}): Promise<net.Socket> {
    if (!Number.isInteger(port) || port < 1 || port > 65_535) {
      throw new ServiceError('invalid_argument', `Not a port: ${port}`);
    }
    return this.withDeadline(signal, async (deadline) => {
      const { connection, reply } = await this.ask({ type: 'dial', port }, deadline);
      if (reply.type === 'ok') return connection;
      connection.destroy();
      if (reply.type === 'refused') throw new ServiceError('not_found', `Nothing listens on port ${port}`);
      throw new ServiceError('unavailable', `Port ${port} could not be reached`, {
        cause: new Error(reply.text),
      });
    });
  }

  /** Tells the dead-man timer inside when the instance ends without us (milliseconds since the epoch). */
  async setDeadline(deadlineAt: number): Promise<void> {
    await this.withDeadline(undefined, async (deadline) => {
      const { connection, reply } = await this.ask({ type: 'deadline', at: deadlineAt }, deadline);
      if (reply.type === 'ok') {
        this.addIdle(connection);
        return;
      }
      connection.destroy();
      throw new ServiceError('unavailable', 'The sandbox did not take its new deadline');
    });
  }

  /** Ends every stream by a reset; the agent's next connections are taken as ever. */
  reset(): void {
    for (const connection of this.connections) connection.destroy(connectionReset());
    this.idle.length = 0; // else they would count until they have closed
  }

  /** Ends every stream by a reset and stops listening. Idempotent; resolves when the socket file is gone. */
  close(): Promise<void> {
    this.closing ??= new Promise((resolve) => {
      // The callback also comes, with an error, when `listen` never succeeded.
      this.server.close(() => resolve());
      for (const waiter of [...this.waiters, ...this.firsts]) waiter.reject(gone());
      for (const connection of this.connections) connection.destroy(connectionReset());
    });
    return this.closing;
  }

  private accept(socket: net.Socket): void {
    // Without a listener, a reset by the peer would end this process; whoever owns the stream sees `close`.
    socket.on('error', () => {});
    this.connections.add(socket);
    socket.once('close', () => {
      this.connections.delete(socket);
      const index = this.idle.indexOf(socket);
      if (index !== -1) this.idle.splice(index, 1);
    });
    if (this.closing !== undefined || this.greeting >= MAX_GREETING) {
      socket.destroy();
      return;
    }
    this.greeting += 1;
    void this.greet(socket)
      .catch((error: unknown) => {
        this.options.logger.debug(
          { err: error, instance: this.options.instanceId },
          'tunnel connection refused',
        );
        socket.destroy();
      })
      .finally(() => (this.greeting -= 1));
  }

  private async greet(socket: net.Socket): Promise<void> {
    const hello = parseHello(await readLine(socket, AbortSignal.timeout(HELLO_TIMEOUT_MS)));
    if (hello === undefined) throw new TunnelLineError('not a greeting');
    if (!timingSafeEqual(digest(hello.token), this.tokenDigest)) {
      if (!this.warned) {
        this.options.logger.warn(
          { instance: this.options.instanceId },
          'tunnel connection with a wrong token',
        );
      }
      this.warned = true;
      throw new TunnelLineError('wrong token');
    }
    if (hello.type === 'call') this.answerCall(socket, hello);
    else if (this.idle.length < MAX_IDLE) {
      socket.write(formatReply({ type: 'ok' }));
      this.addIdle(socket);
    } else throw new TunnelLineError('too many idle connections');
  }

  private answerCall(socket: net.Socket, hello: Extract<Hello, { type: 'call' }>): void {
    if (hello.port !== INTERPRETER_PORT || this.inbound >= MAX_INBOUND) {
      socket.end(formatReply({ type: 'refused' }));
      // Half-open sockets wait for the peer's end, which a hostile one never sends.
      socket.once('finish', () => socket.destroy());
      return;
    }
    this.inbound += 1;
    socket.once('close', () => (this.inbound -= 1));
    socket.write(formatReply({ type: 'ok' }));
    this.options.onInbound(this.options.instanceId, hello.port, socket);
  }

  /** Gives the connection to whoever has waited longest, or keeps it. */
  private addIdle(connection: net.Socket): void {
    if (connection.destroyed || this.closing !== undefined) {
      connection.destroy();
      return;
    }
    // `firstConnection` only asks whether there is one.
    for (const first of [...this.firsts]) first.resolve(connection);
    const [waiter] = this.waiters;
    if (waiter !== undefined) {
      waiter.resolve(connection);
      return;
    }
    this.idle.push(connection);
    connection.on('readable', dropTalker);
    connection.once('end', dropEnded);
  }

  private async takeIdle(signal: AbortSignal): Promise<net.Socket> {
    if (this.closing !== undefined) throw gone();
    const connection = this.idle.shift();
    if (connection === undefined) return this.wait(this.waiters, signal);
    connection.off('readable', dropTalker);
    connection.off('end', dropEnded);
    return connection;
  }

  private wait(queue: Set<Waiter>, signal: AbortSignal): Promise<net.Socket> {
    return new Promise((resolve, reject) => {
      const settle = () => {
        queue.delete(waiter);
        signal.removeEventListener('abort', onAbort);
      };
      const waiter: Waiter = {
        resolve: (connection) => (settle(), resolve(connection)),
        reject: (error) => (settle(), reject(error)),
      };
      const onAbort = () => waiter.reject(signal.reason);
      if (signal.aborted) {
        reject(signal.reason);
        return;
      }
      signal.addEventListener('abort', onAbort, { once: true });
      queue.add(waiter);
    });
  }

  /** Sends one request on an idle connection. A connection that turns out dead is replaced by the next one. */
  private async ask(
    request: TunnelRequest,
    signal: AbortSignal,
  ): Promise<{ connection: net.Socket; reply: TunnelReply }> {
    for (;;) {
      const connection = await this.takeIdle(signal);
      try {
        connection.write(formatRequest(request));
        const reply = parseReply(await readLine(connection, signal));
        if (reply === undefined) throw new TunnelLineError('not a reply');
        return { connection, reply };
      } catch (error) {
        connection.destroy();
        if (this.closing !== undefined) throw gone();
        if (error instanceof TunnelLineError) {
          throw new ServiceError('unavailable', 'The sandbox answered out of turn', { cause: error });
        }
        // A dead connection: the agent was killed while idle. The signal bounds how often this repeats.
        signal.throwIfAborted();
      }
    }
  }

  private async withDeadline<T>(
    outer: AbortSignal | undefined,
    work: (signal: AbortSignal) => Promise<T>,
  ): Promise<T> {
    outer?.throwIfAborted();
    const controller = new AbortController();
    const timeoutMs = this.options.dialTimeoutMs ?? DIAL_TIMEOUT_MS;
    const timer = setTimeout(() => {
      controller.abort(
        new ServiceError('unavailable', `The sandbox's agent did not answer within ${timeoutMs} ms`),
      );
    }, timeoutMs);
    const onAbort = () => controller.abort(outer?.reason);
    outer?.addEventListener('abort', onAbort, { once: true });
    try {
      return await work(controller.signal);
    } finally {
      clearTimeout(timer);
      outer?.removeEventListener('abort', onAbort);
    }
  }
}

/** An idle connection has nothing to say; one that talks is not in step with us. */
function dropTalker(this: net.Socket): void {
  if (this.read() !== null) this.destroy();
}

function dropEnded(this: net.Socket): void {
  this.destroy();
}

/**
 * Reads one line and leaves the bytes behind it in the stream, as if they had never been read. Works by `readable` and
 * not by `data`: the stream is handed on neither flowing nor paused.
 */
function readLine(socket: net.Socket, signal: AbortSignal): Promise<string> {
  return new Promise((resolve, reject) => {
    const buffer = new LineBuffer();
    const settle = (act: () => void) => {
      socket.off('readable', onReadable);
      socket.off('end', onEnd);
      socket.off('close', onEnd);
      signal.removeEventListener('abort', onAbort);
      act();
    };
    const onEnd = () => settle(() => reject(new Error('the connection ended before its line')));
    const onAbort = () => settle(() => reject(signal.reason));
    const onReadable = () => {
      let chunk: Buffer | null;
      while ((chunk = socket.read() as Buffer | null) !== null) {
        let found;
        try {
          found = buffer.push(chunk);
        } catch (error) {
          settle(() => reject(error));
          return;
        }
        if (found === undefined) continue;
        const { line, rest } = found;
        settle(() => {
          if (rest.length > 0) socket.unshift(rest);
          resolve(line);
        });
        return;
      }
    };
    if (signal.aborted || socket.destroyed || socket.readableEnded) {
      reject(signal.aborted ? signal.reason : new Error('the connection is closed'));
      return;
    }
    socket.on('readable', onReadable);
    socket.on('end', onEnd);
    socket.on('close', onEnd);
    signal.addEventListener('abort', onAbort, { once: true });
    onReadable();
  });
}

async function removeStaleSocket(socketPath: string): Promise<void> {
  let stat;
  try {
    stat = await fs.lstat(socketPath);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return;
    throw error;
  }
  if (!stat.isSocket()) {
    throw new ServiceError('failed_precondition', `Not a socket, so not replaced: ${socketPath}`, {
      remedy: 'Move it away; the service listens there',
    });
  }
  await fs.unlink(socketPath);
}

function digest(text: string): Buffer {
  return createHash('sha256').update(text, 'utf8').digest();
}

function gone(): ServiceError {
  return new ServiceError('unavailable', 'The sandbox is gone');
}

/** What a stream's owner sees as `error` when the sandbox ends under it. */
function connectionReset(): NodeJS.ErrnoException {
  return Object.assign(new Error('The sandbox ended'), { code: 'ECONNRESET' });
}
