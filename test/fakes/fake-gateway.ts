import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import http from 'node:http';
import net from 'node:net';
import type { AddressInfo, Socket } from 'node:net';
import type { WebSocket } from 'ws';
import { WebSocketServer } from 'ws';
import type { Machine } from '../../service/interpreter/contexts';
import { requestText } from './request-text';

export const V1_PROTOCOL = 'v1.kernel.websocket.jupyter.org';

interface Message {
  channel: string;
  header: Record<string, unknown> & { msg_id: string; msg_type: string };
  parent_header: Record<string, unknown>;
  metadata: Record<string, unknown>;
  content: Record<string, unknown>;
}

/** What the gateway was asked to start. */
export interface KernelBody {
  name?: string;
  env?: Record<string, string>;
  cwd?: string;
  metadata?: Record<string, unknown>;
}

export interface RestRequest {
  method: string;
  path: string;
  body: unknown;
  query: URLSearchParams;
}

/** One `execute_request` at the fake kernel: the script says what the kernel says. */
export class FakeExecution {
  readonly code: string;
  readonly silent: boolean;

  constructor(
    readonly kernel: FakeKernel,
    readonly request: Message,
  ) {
    this.code = String(request.content['code']);
    this.silent = request.content['silent'] === true;
  }

  busy(): this {
    return this.send('iopub', 'status', { execution_state: 'busy' });
  }

  idle(): this {
    return this.send('iopub', 'status', { execution_state: 'idle' });
  }

  /** Also counts, as a kernel does for requests that are not silent. */
  input(): this {
    return this.send('iopub', 'execute_input', { code: this.code, execution_count: ++this.kernel.count });
  }

  stdout(text: string): this {
    return this.send('iopub', 'stream', { name: 'stdout', text });
  }

  stderr(text: string): this {
    return this.send('iopub', 'stream', { name: 'stderr', text });
  }

  result(data: Record<string, unknown>): this {
    const { count } = this.kernel;
    return this.send('iopub', 'execute_result', { data, metadata: {}, execution_count: count });
  }

  display(data: Record<string, unknown>, display_id?: string): this {
    return this.send('iopub', 'display_data', { data, metadata: {}, transient: { display_id } });
  }

  updateDisplay(data: Record<string, unknown>, display_id: string): this {
    return this.send('iopub', 'update_display_data', { data, metadata: {}, transient: { display_id } });
  }

  error(ename: string, evalue: string, traceback: string[] = []): this {
    return this.send('iopub', 'error', { ename, evalue, traceback });
  }

  reply(content: Record<string, unknown> = { status: 'ok' }, metadata: Record<string, unknown> = {}): this {
    const full = { execution_count: this.kernel.count, payload: [], user_expressions: {}, ...content };
    return this.send('shell', 'execute_reply', full, metadata);
  }

  send(
    channel: string,
    type: string,
    content: Record<string, unknown>,
    metadata: Record<string, unknown> = {},
  ): this {
    this.kernel.send(channel, type, content, this.request.header, metadata);
    return this;
  }
}

/** A kernel as far as its clients can tell. `silence` makes it take requests and say nothing. */
export class FakeKernel {
  readonly id = randomUUID();
  readonly sockets = new Set<WebSocket>();
  /** Of each connection that was made. */
  readonly sessions: string[] = [];
  count = 0;
  state = 'idle';
  silent = false;
  /** Of its model: how a process of it ended, and when. */
  lastEnding: { at: number; [field: string]: unknown } | undefined;
  private session = randomUUID();

  constructor(readonly body: KernelBody) {}

  get name(): string {
    return this.body.name ?? 'python3';
  }

  /** What the gateway says when the process died and is started again; `cellbox`: how it died. */
  restarting(cellbox: object = {}): void {
    this.renew();
    this.send('iopub', 'status', { execution_state: 'restarting' }, {}, { cellbox });
  }

  dead(cellbox: object = {}): void {
    this.send('iopub', 'status', { execution_state: 'dead' }, {}, { cellbox });
  }

  renew(): void {
    this.count = 0;
    this.session = randomUUID();
  }

  send(
    channel: string,
    type: string,
    content: Record<string, unknown>,
    parent: Record<string, unknown> = {},
    metadata: Record<string, unknown> = {},
  ): void {
    const date = '2026-11-21T03:19:47.160917Z';
    const header = {
      msg_id: randomUUID(),
      msg_type: type,
      session: this.session,
      username: '',
      version: '5.3',
      date,
    };
    const message: Message = { channel, header, parent_header: parent, metadata, content };
    for (const socket of this.sockets) socket.send(encode(message, socket.protocol));
  }

  /** Closes the connections as a failing network does; the kernel runs on. */
  cut(): void {
    for (const socket of this.sockets) socket.terminate();
  }
}

/** The usual kernel: knows `1+1`, prints the mark of a drain request, answers everything else with nothing. */
export function obedient(execution: FakeExecution): void {
  execution.busy();
  if (!execution.silent) execution.input();
  if (execution.code === '1+1') execution.result({ 'text/plain': '2' });
  const marker = /cellbox:[-0-9a-f]{36}/.exec(execution.code);
  if (marker !== null) execution.stdout(marker[0]);
  execution.reply().idle();
}

/**
 * A Jupyter kernel gateway on a real HTTP and WebSocket server, with kernels that follow a script. Hand its `machine()`
 * to an interpreter. The owner calls `close`.
 */
export class FakeGateway {
  readonly token = 'gateway-token';
  readonly kernels = new Map<string, FakeKernel>();
  readonly requests: RestRequest[] = [];
  readonly executions: FakeExecution[] = [];
  /** What the kernels do. */
  script: (execution: FakeExecution) => void = obedient;
  /** The answer to a start, when it is not a kernel. */
  refuse: ((body: KernelBody) => { status: number; body: object } | undefined) | undefined;
  /** Called for each interrupt, before it is answered. */
  onInterrupt: ((kernel: FakeKernel) => void) | undefined;
  /** Starts wait for this. */
  gate: Promise<void> | undefined;
  /** Restarts do. */
  restartGate: Promise<void> | undefined;
  /** What the next kernels answer to `kernel_info_request`; undefined is silence. */
  info: ((kernel: FakeKernel) => Record<string, unknown> | undefined) | undefined;
  /** False: clients get the framing of old servers. */
  speaksV1 = true;
  /** False: nothing listens, as when the gateway is being started. */
  up = true;
  dials = 0;
  private readonly waiting = new Set<() => void>();
  private readonly sockets = new Set<Socket>();
  private readonly server: http.Server;
  private readonly webSockets: WebSocketServer;
  private endMachine!: () => void;
  private readonly ended = new Promise<void>((resolve) => (this.endMachine = resolve));

  private constructor() {
    this.server = http.createServer((req, res) => void this.serve(req, res));
    this.server.on('connection', (socket) => {
      this.sockets.add(socket);
      socket.on('error', () => undefined).once('close', () => this.sockets.delete(socket));
    });
    this.webSockets = new WebSocketServer({
      noServer: true,
      handleProtocols: (protocols) => (this.speaksV1 && protocols.has(V1_PROTOCOL) ? V1_PROTOCOL : false),
    });
    this.server.on('upgrade', (req, socket, head) => this.upgrade(req, socket as Socket, head));
  }

  static async start(): Promise<FakeGateway> {
    const gateway = new FakeGateway();
    gateway.server.listen(0, '127.0.0.1');
    await once(gateway.server, 'listening');
    return gateway;
  }

  get port(): number {
    return (this.server.address() as AddressInfo).port;
  }

  /** A sandbox whose every port is this gateway. */
  machine(env: Record<string, string> = {}, id = `sandbox${randomUUID().slice(0, 8)}`): Machine {
    return { id, env, gatewayToken: this.token, ended: this.ended, dial: () => this.dial() };
  }

  async dial(): Promise<Socket> {
    this.dials++;
    this.notify();
    if (!this.up) throw new Error('nothing listens');
    const socket = net.connect(this.port, '127.0.0.1');
    await once(socket, 'connect');
    return socket;
  }

  endSandbox(): void {
    this.endMachine();
  }

  /** The gateway process is killed: connections break, kernels are gone. */
  crash(): void {
    this.kernels.clear();
    for (const socket of this.sockets) socket.resetAndDestroy();
  }

  /** Resolves once `condition` gives a value; it is tried whenever something arrives here. */
  async until<Value>(condition: () => Value | undefined | false): Promise<Value> {
    for (;;) {
      const value = condition();
      if (value !== undefined && value !== false) return value;
      await new Promise<void>((resolve) => this.waiting.add(resolve));
    }
  }

  /** The first execution of this code that arrived, or will. */
  execution(code: string): Promise<FakeExecution> {
    return this.until(() => this.executions.find((execution) => execution.code === code));
  }

  rest(method: string, pattern: RegExp): RestRequest[] {
    return this.requests.filter((request) => request.method === method && pattern.test(request.path));
  }

  /** The kernel that runs a context. */
  kernelOf(contextId: string): FakeKernel | undefined {
    return [...this.kernels.values()].find((kernel) => {
      const record = kernel.body.metadata?.['cellbox'] as { id?: string } | undefined;
      return record?.id === contextId;
    });
  }

  async close(): Promise<void> {
    for (const socket of this.sockets) socket.destroy();
    this.webSockets.close();
    await new Promise((resolve) => this.server.close(resolve));
  }

  private notify(): void {
    for (const resolve of this.waiting) resolve();
    this.waiting.clear();
  }

  private async serve(req: http.IncomingMessage, res: http.ServerResponse): Promise<void> {
    const text = await requestText(req);
    if (text === undefined) return;
    const path = (req.url ?? '').replace(/\?.*/, '');
    const query = new URLSearchParams((req.url ?? '').split('?')[1] ?? '');
    const method = req.method ?? '';
    const body: unknown = text === '' ? undefined : JSON.parse(text);
    this.requests.push({ method, path, body, query });
    this.notify();
    const answer = (status: number, value?: object): void => {
      res.writeHead(status, { 'content-type': 'application/json' });
      res.end(value === undefined ? '' : JSON.stringify(value));
    };
    if (req.headers.authorization !== `token ${this.token}`) return answer(401, { message: 'Unauthorized' });
    const [, id = '', action] = /^\/api\/kernels(?:\/([^/]+)(?:\/(\w+))?)?$/.exec(path) ?? [];
    if (id === '') {
      if (method === 'GET') return answer(200, [...this.kernels.values()].map(model));
      await this.gate;
      const refusal = this.refuse?.(body as KernelBody);
      if (refusal !== undefined) return answer(refusal.status, refusal.body);
      const kernel = new FakeKernel(body as KernelBody);
      this.kernels.set(kernel.id, kernel);
      this.notify();
      return answer(201, model(kernel));
    }
    const kernel = this.kernels.get(id);
    if (kernel === undefined) return answer(404, { message: `Kernel does not exist: ${id}` });
    switch (action) {
      case 'restart':
        await this.restartGate;
        kernel.renew();
        return answer(200, model(kernel));
      case 'interrupt':
        this.onInterrupt?.(kernel);
        return answer(204);
      default:
        if (method === 'DELETE') this.kernels.delete(id);
        return answer(method === 'DELETE' ? 204 : 200, method === 'DELETE' ? undefined : model(kernel));
    }
  }

  private upgrade(req: http.IncomingMessage, socket: Socket, head: Buffer): void {
    const id = /^\/api\/kernels\/([^/]+)\/channels/.exec(req.url ?? '')?.[1] ?? '';
    const kernel = this.kernels.get(id);
    const authorized = req.headers.authorization === `token ${this.token}`;
    if (kernel === undefined || !authorized) {
      const status = authorized ? '404 Not Found' : '401 Unauthorized';
      socket.end(`HTTP/1.1 ${status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n`);
      return;
    }
    this.webSockets.handleUpgrade(req, socket, head, (webSocket) => {
      kernel.sockets.add(webSocket);
      kernel.sessions.push(new URL(req.url ?? '', 'ws://gateway').searchParams.get('session_id') ?? '');
      webSocket.on('close', () => {
        kernel.sockets.delete(webSocket);
        this.notify();
      });
      webSocket.on('error', () => undefined); // followed by `close`
      webSocket.on('message', (data, isBinary) => {
        const message = isBinary ? decode(data as Buffer) : (JSON.parse(String(data)) as Message);
        this.onMessage(kernel, message);
      });
      this.notify();
    });
  }

  private onMessage(kernel: FakeKernel, message: Message): void {
    switch (message.header.msg_type) {
      case 'kernel_info_request': {
        const content = this.info ? this.info(kernel) : { status: 'ok' };
        if (kernel.silent || content === undefined) return;
        const parent = message.header;
        kernel.send('iopub', 'status', { execution_state: 'busy' }, parent);
        kernel.send('shell', 'kernel_info_reply', { protocol_version: '5.3', ...content }, parent);
        kernel.send('iopub', 'status', { execution_state: 'idle' }, parent);
        return;
      }
      case 'execute_request': {
        const execution = new FakeExecution(kernel, message);
        this.executions.push(execution);
        if (!kernel.silent) this.script(execution);
        this.notify();
      }
    }
  }
}

function model(kernel: FakeKernel): object {
  const { id, name, state, body, lastEnding } = kernel;
  const { metadata } = body;
  return {
    ...{ id, name, execution_state: state, connections: kernel.sockets.size, metadata },
    last_ending: lastEnding ?? null,
  };
}

function encode(message: Message, protocol: string): string | Buffer {
  if (protocol !== V1_PROTOCOL) return JSON.stringify({ ...message, buffers: [] });
  const parts = [
    Buffer.from(message.channel),
    ...[message.header, message.parent_header, message.metadata, message.content].map((part) =>
      Buffer.from(JSON.stringify(part)),
    ),
  ];
  const head = Buffer.alloc(8 * (parts.length + 2));
  head.writeBigUInt64LE(BigInt(parts.length + 1), 0);
  let offset = head.length;
  parts.forEach((part, index) => {
    head.writeBigUInt64LE(BigInt(offset), 8 * (index + 1));
    offset += part.length;
  });
  head.writeBigUInt64LE(BigInt(offset), 8 * (parts.length + 1));
  return Buffer.concat([head, ...parts]);
}

function decode(bytes: Buffer): Message {
  const offset = (index: number): number => Number(bytes.readBigUInt64LE(8 * (index + 1)));
  const part = (index: number): string => bytes.toString('utf8', offset(index), offset(index + 1));
  const json = (index: number): never => JSON.parse(part(index)) as never;
  return {
    channel: part(0),
    header: json(1),
    parent_header: json(2),
    metadata: json(3),
    content: json(4),
  };
}
