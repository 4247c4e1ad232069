import http from 'node:http';
import type { IncomingMessage, ServerResponse } from 'node:http';
import net from 'node:net';
import type { AddressInfo } from 'node:net';
import { once } from 'node:events';
import { Edge, SERVER_OPTIONS } from '../../../service/edge/edge';
import type { EdgeOptions, InterpreterMachine } from '../../../service/edge/edge';
import { ServiceError } from '../../../service/errors';
import { createLogger } from '../../../service/log';
import type { Instance } from '../../../service/runtime/runtime';
import type { RunningSandbox } from '../../../service/sandboxes/sandbox';

/** An instance without a machine: `dial` connects to whatever local server the test opened under a port's number. */
export class FakeInstance implements Instance {
  readonly gatewayToken = 'gateway-token';
  readonly ended = new Promise<never>(() => {});
  readonly ports = new Map<number, number>();
  /** Every port that was asked for, in order. */
  readonly dialled: number[] = [];
  failure: ServiceError | undefined;
  /** Called before each dial, for tests that change something between attempts. */
  onDial: () => void = () => {};

  constructor(readonly id: string) {}

  async dial(port: number): Promise<net.Socket> {
    this.dialled.push(port);
    this.onDial();
    if (this.failure !== undefined) throw this.failure;
    const real = this.ports.get(port);
    if (real === undefined) throw new ServiceError('not_found', `port ${port} is closed`);
    const socket = net.connect({ port: real, host: '127.0.0.1', allowHalfOpen: true });
    await once(socket, 'connect');
    return socket;
  }

  async setDeadline(): Promise<void> {}
}

export function makeSandbox(
  id: string,
  changes: Partial<RunningSandbox> = {},
): RunningSandbox & { instance: FakeInstance } {
  return {
    id,
    teamId: 'team',
    templateId: 'template',
    templateAlias: 'base',
    state: 'running',
    startedAt: 0,
    runStartedAt: 0,
    autoPause: false,
    autoPauseMode: 'full',
    autoResume: false,
    timeoutSeconds: 300,
    endAt: Number.MAX_SAFE_INTEGER,
    metadata: {},
    env: { COLOUR: 'blue' },
    resources: { cpuCount: 1, memoryMB: 128, diskSizeMB: 128, pids: 64, openFiles: 256 },
    allowInternetAccess: true,
    allowOut: [],
    denyOut: [],
    allowPublicTraffic: true,
    accessToken: undefined,
    trafficToken: undefined,
    ...changes,
    instance: new FakeInstance(id),
  };
}

/** An edge behind a real HTTP server, and everything a test opens, closed together. */
export class EdgeFixture {
  readonly sandboxes = new Map<string, RunningSandbox & { instance: FakeInstance }>();
  /** Paused ones that traffic resumes. */
  readonly sleeping = new Map<string, RunningSandbox & { instance: FakeInstance }>();
  wake = (id: string): Promise<void> => {
    const sandbox = this.sleeping.get(id);
    if (sandbox === undefined) throw new ServiceError('not_found', 'nobody sleeps here');
    this.sleeping.delete(id);
    this.sandboxes.set(id, sandbox);
    return Promise.resolve();
  };
  /** Requests that reached the interpreter. */
  readonly interpreted: { machine: InterpreterMachine; url: string | undefined }[] = [];
  interpreter: (machine: InterpreterMachine, req: IncomingMessage, res: ServerResponse) => void = (
    _,
    __,
    res,
  ) => {
    res.end('interpreted');
  };
  findBySignature: EdgeOptions['sandboxes']['findBySignature'] = () => undefined;
  /** Ids of sandboxes that have no room for uploads. */
  readonly full = new Set<string>();
  readonly edge = new Edge({
    domain: 'localhost:3210',
    isDiskFull: (id) => this.full.has(id),
    sandboxes: {
      find: (id) => this.sandboxes.get(id),
      findBySignature: (query) => this.findBySignature(query),
      findSleeping: (id) => this.sleeping.get(id),
      wake: (id) => this.wake(id),
    },
    interpreter: {
      handle: (machine, req, res) => {
        this.interpreted.push({ machine, url: req.url });
        this.interpreter(machine, req, res);
      },
    },
    logger: createLogger('silent'),
  });
  readonly server = http.createServer(SERVER_OPTIONS, (req, res) => {
    if (!this.edge.handle(req, res)) res.end('control plane');
  });
  private readonly servers: net.Server[] = [];
  private readonly sockets = new Set<net.Socket>();

  constructor() {
    this.server.on('upgrade', (req, socket, head) => {
      if (!this.edge.upgrade(req, socket, head)) socket.destroy();
    });
  }

  get port(): number {
    return (this.server.address() as AddressInfo).port;
  }

  async open(): Promise<void> {
    await this.listen(this.server);
  }

  add(id: string, changes: Partial<RunningSandbox> = {}): RunningSandbox & { instance: FakeInstance } {
    const sandbox = makeSandbox(id, changes);
    this.sandboxes.set(id, sandbox);
    return sandbox;
  }

  /** Starts an HTTP server as a port of the sandbox. */
  async serve(
    sandbox: { instance: FakeInstance },
    port: number,
    handler: (req: IncomingMessage, res: ServerResponse) => void,
  ): Promise<http.Server> {
    const server = http.createServer({ requestTimeout: 0 }, handler);
    await this.listen(server);
    sandbox.instance.ports.set(port, (server.address() as AddressInfo).port);
    return server;
  }

  /** Starts a raw TCP server as a port of the sandbox. */
  async serveRaw(
    sandbox: { instance: FakeInstance },
    port: number,
    onConnection: (socket: net.Socket) => void,
  ): Promise<void> {
    const server = net.createServer({ allowHalfOpen: true }, onConnection);
    await this.listen(server);
    sandbox.instance.ports.set(port, (server.address() as AddressInfo).port);
  }

  /** A raw connection to the edge. */
  connect(): net.Socket {
    const socket = net.connect({ port: this.port, host: '127.0.0.1', allowHalfOpen: true });
    this.own(socket);
    return socket;
  }

  /** Sends a request for a port of a sandbox, routed by headers. */
  request(
    id: string,
    port: number,
    options: http.RequestOptions & { headers?: http.OutgoingHttpHeaders } = {},
  ): http.ClientRequest {
    return http.request({
      host: '127.0.0.1',
      port: this.port,
      agent: false,
      ...options,
      headers: { 'E2b-Sandbox-Id': id, 'E2b-Sandbox-Port': String(port), ...options.headers },
    });
  }

  async close(): Promise<void> {
    this.edge.close();
    for (const socket of this.sockets) socket.destroy();
    await Promise.all(this.servers.map((server) => new Promise((resolve) => server.close(resolve))));
  }

  private async listen(server: net.Server): Promise<void> {
    this.servers.push(server);
    server.on('connection', (socket: net.Socket) => this.own(socket));
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
  }

  private own(socket: net.Socket): void {
    this.sockets.add(socket);
    socket.on('close', () => this.sockets.delete(socket));
    socket.on('error', () => {}); // tests break connections on purpose and watch for it themselves
  }
}

export interface Answer {
  status: number;
  headers: http.IncomingHttpHeaders;
  rawHeaders: string[];
  trailers: NodeJS.Dict<string>;
  body: Buffer;
}

/** Waits for the whole answer; rejects when the connection breaks before its end. */
export async function answerTo(request: http.ClientRequest): Promise<Answer> {
  const [response] = (await once(request, 'response')) as [IncomingMessage];
  const chunks: Buffer[] = [];
  for await (const chunk of response) chunks.push(chunk as Buffer);
  return {
    status: response.statusCode ?? 0,
    headers: response.headers,
    rawHeaders: response.rawHeaders,
    trailers: response.trailers,
    body: Buffer.concat(chunks),
  };
}

/** Reads a socket up to its proper end; rejects when it breaks. */
export async function readAll(socket: net.Socket): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of socket) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks).toString('latin1');
}
