import http from 'node:http';
import type { IncomingMessage, ServerOptions, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import {
  AGENT_PORT,
  GATEWAY_PORT,
  HEADERS,
  INTERPRETER_PORT,
  parseTarget,
  reservedAgentPath,
} from '../../protocol/routing';
import type { SignedQuery } from '../../protocol/routing';
import type { Logger } from '../log';
import { ServiceError } from '../errors';
import { REQUEST_ID_HEADER } from '../observability/request-observer';
import type { RequestKind, RequestObserver } from '../observability/request-observer';
import { currentScope } from '../observability/scope';
import type { Instance } from '../runtime/runtime';
import { maskedHost } from '../sandboxes/ingress';
import type { RunningSandbox, Sandbox } from '../sandboxes/sandbox';
import { sameSecret } from '../secrets';
import { AgentConnections } from './agent-connections';
import type { AgentConnection } from './agent-connections';
import { dialPatiently } from './dial';
import { sendError } from './error-response';
import type { EdgeError } from './error-response';
import { pairs } from './headers';
import { NoTlsError, speakTls } from './inner-tls';
import { exchange, hasBody, reset, responseOn } from './proxy';

/** What the interpreter is given of a sandbox: enough to reach its kernels, nothing of its record. */
export interface InterpreterMachine {
  readonly id: string;
  readonly env: Record<string, string>;
  readonly gatewayToken: string;
  readonly ended: Promise<unknown>;
  dial: Instance['dial'];
}

export interface EdgeOptions {
  /** Sandbox hosts are `<port>-<id>.<domain>`; may carry a port. */
  domain: string;
  sandboxes: {
    find(id: string): RunningSandbox | undefined;
    findBySignature(query: SignedQuery): RunningSandbox | undefined;
    /** One that does not run and wants to be resumed by traffic. */
    findSleeping(id: string): Sandbox | undefined;
    wake(id: string): Promise<void>;
  };
  interpreter: { handle(machine: InterpreterMachine, req: IncomingMessage, res: ServerResponse): void };
  /** Whether a sandbox has no room for uploads; where absent, its own disk says so. */
  isDiskFull?: (id: string) => boolean;
  logger: Logger;
  /** Sees every request; without it none has an id. */
  observer?: RequestObserver;
}

/**
 * Options for the HTTP server in front of the edge: bodies and streams take as long as they take, and an idle
 * connection outlives the pools of the clients (closing first would race with their next request).
 */
export const SERVER_OPTIONS: ServerOptions = {
  requestTimeout: 0,
  headersTimeout: 60_000,
  keepAliveTimeout: 620_000,
  maxHeaderSize: 64 * 1024,
};

/** The machine behind a sandbox, as the interpreter wants it. */
export function machineOf(sandbox: Pick<RunningSandbox, 'id' | 'env' | 'instance'>): InterpreterMachine {
  const { instance } = sandbox;
  return {
    id: sandbox.id,
    env: sandbox.env,
    gatewayToken: instance.gatewayToken,
    ended: instance.ended,
    dial: (port, options) => instance.dial(port, options),
  };
}

/**
 * The way into sandboxes: decides which sandbox and port a request is for, checks what may pass, and moves the bytes.
 *
 * Port 49999 is answered by the interpreter, the kernel gateway's port looks closed, all others are passed through
 * byte for byte. Every connection in use is known by its sandbox, so that `drop` can reset it.
 */
export class Edge {
  /** By sandbox id: what to call to break each of its connections off. */
  private readonly open = new Map<string, Set<() => void>>();
  /** Streams that came out of a sandbox, and whose they are. */
  private readonly inboundOwner = new WeakMap<Socket, RunningSandbox>();
  /** Never listens: it parses streams that it is handed. */
  private readonly streams = http.createServer(SERVER_OPTIONS, (req, res) => this.onStreamRequest(req, res));
  private readonly agents = new AgentConnections();
  private closed = false;

  constructor(private readonly options: EdgeOptions) {}

  /** Takes the request when it is for a sandbox and answers it; false leaves it untouched for the control plane. */
  handle(req: IncomingMessage, res: ServerResponse): boolean {
    const destination = this.resolve(req);
    if (destination === undefined) return false;
    this.observed(destination, req, res, undefined, () => this.answer(destination, req, res));
    return true;
  }

  /**
   * The same for a request to change protocols. Ports that never do (agent, interpreter) and requests that carry a
   * body are served as if no change had been asked for, which HTTP allows.
   */
  upgrade(req: IncomingMessage, socket: Duplex, head: Buffer): boolean {
    const destination = this.resolve(req);
    if (destination === undefined) return false;
    const value = req.headers.upgrade;
    const plain =
      destination.type === 'sandbox' &&
      (destination.port === AGENT_PORT || destination.port === INTERPRETER_PORT);
    if (value === undefined || plain || hasBody(req)) withoutUpgrade(this.streams, req, socket, head);
    else {
      const res = responseOn(req, socket);
      const upgrade = { value, socket, head };
      this.observed(destination, req, res, upgrade, () => this.answer(destination, req, res, upgrade));
    }
    return true;
  }

  /** Serves a stream that a program inside a sandbox opened to one of the service's ports. Owns the socket. */
  inbound(sandbox: RunningSandbox, port: number, socket: Socket): void {
    if (this.closed || port !== INTERPRETER_PORT) {
      reset(socket);
      return;
    }
    this.inboundOwner.set(socket, sandbox);
    socket.once(
      'close',
      this.track(sandbox.id, () => reset(socket)),
    );
    socket.on('error', () => {}); // followed by `close`
    this.streams.emit('connection', socket);
  }

  /** Resets every open connection of a sandbox, after which a client asks `/health` and learns that it is gone. */
  drop(sandboxId: string): void {
    const connections = this.open.get(sandboxId);
    this.open.delete(sandboxId);
    for (const breakOff of connections ?? []) breakOff();
  }

  /** Resets everything; later streams are refused. */
  close(): void {
    this.closed = true;
    for (const id of [...this.open.keys()]) this.drop(id);
  }

  private resolve(req: IncomingMessage): Destination | undefined {
    const { method = 'GET', url = '/', headers } = req;
    const target = parseTarget({ method, url, headers }, this.options.domain);
    switch (target.type) {
      case 'control-plane':
        return undefined;
      case 'invalid':
        return { type: 'error', error: { type: 'bad-request', message: target.message } };
      case 'signed-file': {
        const sandbox = this.options.sandboxes.findBySignature(target.query);
        return sandbox === undefined
          ? { type: 'error', error: { type: 'wrong-signature' } }
          : { type: 'sandbox', id: sandbox.id, port: AGENT_PORT };
      }
      case 'sandbox':
        return { type: 'sandbox', id: target.sandboxId, port: target.port };
    }
  }

  private observed(
    destination: Destination,
    req: IncomingMessage,
    res: ServerResponse,
    upgrade: Upgrade | undefined,
    work: () => void,
  ): void {
    const { observer } = this.options;
    if (observer === undefined) work();
    else {
      const sandboxId = destination.type === 'sandbox' ? destination.id : undefined;
      observer.run({ kind: kindOf(destination), sandboxId, req, res, socket: upgrade?.socket }, work);
    }
  }

  private answer(
    destination: Destination,
    req: IncomingMessage,
    res: ServerResponse,
    upgrade?: Upgrade,
    woken = false,
  ): void {
    const checked = destination.type === 'error' ? destination : this.admit(destination, req);
    if (checked.type === 'error') {
      const sleeping =
        destination.type === 'sandbox' && checked.error.type === 'gone' && !woken && !this.closed
          ? this.options.sandboxes.findSleeping(destination.id)
          : undefined;
      if (destination.type === 'sandbox' && sleeping !== undefined) {
        void this.wake(sleeping, destination, req, res, upgrade);
        return;
      }
      sendError(req, res, checked.error);
      return;
    }
    if (this.closed) {
      reset(upgrade?.socket ?? req.socket); // not a 502: the sandbox may live on
      return;
    }
    const { sandbox, port } = checked;
    if (port === INTERPRETER_PORT) {
      res.once(
        'close',
        this.track(sandbox.id, () => reset(req.socket)),
      );
      this.options.interpreter.handle(machineOf(sandbox), req, res);
      return;
    }
    void this.forward(sandbox, port, req, res, upgrade);
  }

  /** Resumes a sandbox for a request that may come in, then answers that. The body waits where it is. Never rejects. */
  private async wake(
    sandbox: Sandbox,
    destination: SandboxPort,
    req: IncomingMessage,
    res: ServerResponse,
    upgrade: Upgrade | undefined,
  ): Promise<void> {
    const { id } = sandbox;
    if (!mayWake(sandbox, destination.port, req)) {
      sendError(req, res, { type: 'resume-refused', sandboxId: id });
      return;
    }
    try {
      await this.options.sandboxes.wake(id);
    } catch (error) {
      const { code } = ServiceError.from(error);
      this.options.logger.warn({ sandboxId: id, code, err: error }, 'traffic could not resume a sandbox');
      if (code === 'deadline_exceeded') sendError(req, res, { type: 'resume-slow', sandboxId: id });
      else if (this.options.sandboxes.findSleeping(id) === undefined) {
        sendError(req, res, { type: 'gone', sandboxId: id });
      } else sendError(req, res, { type: 'resume-failed' });
      return;
    }
    if (res.destroyed || req.socket.destroyed) return; // the client did not wait; the next one finds it running
    this.answer(destination, req, res, upgrade, true);
  }

  /** All checks before a byte moves. Nothing is awaited, so what was true here is true when the request is passed on. */
  private admit({ id, port }: SandboxPort, req: IncomingMessage): Admitted | Refused {
    const refused = (error: EdgeError): Refused => ({ type: 'error', error });
    if (req.rawHeaders.filter((name, index) => index % 2 === 0 && name.toLowerCase() === 'host').length > 1) {
      return refused({ type: 'bad-request', message: 'Invalid host' }); // two readers could pick two sandboxes
    }
    const encoding = req.headers['transfer-encoding'];
    if (encoding !== undefined && encoding.toLowerCase() !== 'chunked') {
      return refused({ type: 'bad-request', message: 'Invalid transfer encoding' }); // two readers could see two lengths
    }
    if (port === AGENT_PORT) {
      const path = reservedAgentPath(req.url ?? '/');
      if (path !== undefined) return refused({ type: 'reserved-path', path });
    }
    const sandbox = this.options.sandboxes.find(id);
    if (sandbox === undefined) return refused({ type: 'gone', sandboxId: id });
    if (port === AGENT_PORT && isUpload(req) && this.options.isDiskFull?.(id) === true) {
      return refused({ type: 'disk-full' });
    }
    if (port !== AGENT_PORT && !sandbox.allowPublicTraffic) {
      const token = req.headers[HEADERS.trafficToken];
      if (token === undefined) return refused({ type: 'traffic-token-missing', sandboxId: id });
      const wanted = sandbox.trafficToken; // an absent one equals nothing
      if (typeof token !== 'string' || wanted === undefined || !sameSecret(token, wanted)) {
        return refused({ type: 'traffic-token-wrong', sandboxId: id });
      }
    }
    // Reaching the gateway would be code execution without the interpreter's rules, so it can't be told from a closed port.
    if (port === GATEWAY_PORT) return refused({ type: 'port-closed', sandboxId: id, port });
    return { type: 'admitted', sandbox, port };
  }

  /** Never rejects. */
  private async forward(
    sandbox: RunningSandbox,
    port: number,
    req: IncomingMessage,
    res: ServerResponse,
    upgrade: Upgrade | undefined,
  ): Promise<void> {
    const { id } = sandbox;
    const socket = upgrade?.socket ?? req.socket;
    const aborter = new AbortController();
    const untrack = this.track(id, () => {
      aborter.abort();
      reset(socket);
    });
    // An upgraded connection outlives its response.
    if (upgrade === undefined) res.once('close', untrack);
    else socket.once('close', untrack);
    res.once('close', () => aborter.abort());

    const masked =
      port === AGENT_PORT || sandbox.maskRequestHost === undefined
        ? undefined
        : maskedHost(sandbox.maskRequestHost, port);
    let upstream: Socket | AgentConnection;
    try {
      upstream = await this.connect(sandbox, port, masked ?? req.headers.host, aborter.signal);
    } catch (error) {
      if (aborter.signal.aborted) return;
      if (error instanceof NoTlsError) {
        sendError(req, res, { type: 'no-tls', port });
        return;
      }
      const { code } = ServiceError.from(error);
      this.options.logger.debug(
        { sandboxId: id, port, code, err: error },
        'could not reach a port of a sandbox',
      );
      // A sandbox that ended meanwhile is gone, one that only can't be reached is not: SDKs tell these apart.
      const alive = this.options.sandboxes.find(id) !== undefined;
      sendError(
        req,
        res,
        alive ? { type: 'port-closed', sandboxId: id, port } : { type: 'gone', sandboxId: id },
      );
      return;
    }
    if (aborter.signal.aborted || res.destroyed) {
      upstream.destroy();
      return;
    }
    exchange({
      req,
      res,
      upstream,
      upgrade,
      maskedHost: masked,
      // The agent's answers are ours in a way; those of other programs are passed on as they are.
      extraHeaders: port === AGENT_PORT ? requestIdHeader() : [],
      onBroken: () => reset(socket),
      onBadAnswer: () => sendError(req, res, { type: 'bad-answer', port }),
    });
  }

  /** Rejects as `dialPatiently` and `speakTls` do. `host` is what the program is going to be told. */
  private async connect(
    { instance, httpsPorts }: RunningSandbox,
    port: number,
    host: string | undefined,
    signal: AbortSignal,
  ): Promise<Socket | AgentConnection> {
    if (port !== AGENT_PORT) {
      const plain = await dialPatiently(instance, port, signal);
      return httpsPorts?.includes(port) ? speakTls(plain, host, signal) : plain;
    }
    const idle = this.agents.take(instance);
    if (idle !== undefined) return idle;
    const socket = await dialPatiently(instance, port, signal);
    // After a pause an idle one may be too old for the agent, which closes it while it gets the next request.
    socket.once(
      'close',
      this.track(instance.id, () => socket.destroy()),
    );
    return this.agents.adopt(instance, socket);
  }

  private onStreamRequest(req: IncomingMessage, res: ServerResponse): void {
    const sandbox = this.inboundOwner.get(req.socket);
    if (sandbox !== undefined) {
      const destination = { type: 'sandbox', id: sandbox.id, port: INTERPRETER_PORT } as const;
      this.observed(destination, req, res, undefined, () =>
        this.options.interpreter.handle(machineOf(sandbox), req, res),
      );
    }
    // Else it came through `upgrade`, which had it recognised as a sandbox's before.
    else if (!this.handle(req, res)) sendError(req, res, { type: 'bad-request', message: 'Invalid host' });
  }

  /** Registers a connection under its sandbox; the returned function forgets it. */
  private track(sandboxId: string, breakOff: () => void): () => void {
    let connections = this.open.get(sandboxId);
    if (connections === undefined) this.open.set(sandboxId, (connections = new Set()));
    connections.add(breakOff);
    const all = connections;
    return () => {
      all.delete(breakOff);
      if (all.size === 0 && this.open.get(sandboxId) === all) this.open.delete(sandboxId);
    };
  }
}

type Upgrade = { value: string; socket: Duplex; head: Buffer };
type SandboxPort = { type: 'sandbox'; id: string; port: number };
type Refused = { type: 'error'; error: EdgeError };
type Admitted = { type: 'admitted'; sandbox: RunningSandbox; port: number };
type Destination = SandboxPort | Refused;

/** Who may not use the port may not resume the sandbox for it. The agent looks at signatures itself, once it runs. */
function mayWake(sandbox: Sandbox, port: number, req: IncomingMessage): boolean {
  const isAgent = port === AGENT_PORT;
  const wanted = isAgent ? sandbox.accessToken : sandbox.trafficToken;
  if (wanted === undefined) return isAgent || sandbox.allowPublicTraffic;
  const given = req.headers[isAgent ? HEADERS.accessToken : HEADERS.trafficToken];
  return typeof given === 'string' && sameSecret(given, wanted);
}

function kindOf(destination: Destination): RequestKind {
  if (destination.type === 'error') return 'refused';
  if (destination.port === INTERPRETER_PORT) return 'interpreter';
  return destination.port === AGENT_PORT ? 'agent' : 'port';
}

function requestIdHeader(): string[] {
  const id = currentScope()?.request.id;
  return id === undefined ? [] : [REQUEST_ID_HEADER, id];
}

/**
 * Hands a request that asked to change protocols back to an HTTP server as if it had not, for answering it in
 * HTTP/1.1 (some clients offer `h2c` with every first request). The connection ends with the answer.
 */
export function withoutUpgrade(
  server: http.Server,
  req: IncomingMessage,
  socket: Duplex,
  head: Buffer,
): void {
  let text = `${req.method} ${req.url} HTTP/${req.httpVersion}\r\n`;
  for (const [name, value] of pairs(req.rawHeaders)) {
    if (!['connection', 'upgrade', 'http2-settings'].includes(name.toLowerCase()))
      text += `${name}: ${value}\r\n`;
  }
  text += 'Connection: close\r\n\r\n';
  socket.unshift(Buffer.concat([Buffer.from(text, 'latin1'), head]));
  server.emit('connection', socket);
}

/** Of files, by the agent's routes. */
function isUpload({ method, url = '/' }: IncomingMessage): boolean {
  return method === 'POST' && /^\/+files(?:[/?]|$)/.test(url);
}
