import http from 'node:http';
import type { Socket } from 'node:net';
import type { Instance } from '../runtime/runtime';

/** Idle ones of one sandbox; more are in use at a time than come back to be kept. */
const MAX_IDLE = 4;

/** A connection to a sandbox's agent that serves one request after another; an `http.Agent` with that one socket. */
export class AgentConnection extends http.Agent {
  constructor(readonly socket: Socket) {
    super({ keepAlive: true, maxSockets: 1 });
  }

  override createConnection(): Socket {
    return this.socket;
  }
}

/**
 * Connections to agents between two requests. Opening one costs both sides a stream of the tunnel and its replacement,
 * a fifth of what a short command takes.
 *
 * Each is owned by whoever took it; when its request has ended well it comes back by itself. A connection that breaks
 * is forgotten, and all of them break with the instance.
 */
export class AgentConnections {
  private readonly idle = new WeakMap<Instance, AgentConnection[]>();

  /** An idle connection, the one used last. */
  take(instance: Instance): AgentConnection | undefined {
    return this.idle.get(instance)?.pop();
  }

  /** Makes a new connection one that is kept. */
  adopt(instance: Instance, socket: Socket): AgentConnection {
    const connection = new AgentConnection(socket);
    let idle = this.idle.get(instance);
    if (idle === undefined) this.idle.set(instance, (idle = []));
    const all = idle;
    const forget = (): void => {
      const at = all.indexOf(connection);
      if (at === -1) return; // in use: its request hears of it
      all.splice(at, 1);
      connection.destroy();
    };
    connection.on('free', () => {
      if (socket.destroyed || socket.readableEnded || all.length >= MAX_IDLE) connection.destroy();
      else all.push(connection);
    });
    // Half-open connections do not close by themselves when the other side ends.
    socket.once('end', forget);
    socket.once('close', forget);
    return connection;
  }
}
