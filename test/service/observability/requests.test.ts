import http from 'node:http';
import type { IncomingMessage, ServerResponse } from 'node:http';
import net from 'node:net';
import type { AddressInfo } from 'node:net';
import { PassThrough } from 'node:stream';
import { AGENT_PORT } from '../../../protocol/routing';
import { Edge, SERVER_OPTIONS } from '../../../service/edge/edge';
import { createLogger } from '../../../service/log';
import { ServiceMetrics } from '../../../service/observability/metrics';
import { RequestObserver } from '../../../service/observability/request-observer';
import { makeSandbox } from '../edge/edge-fixture';

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/** One edge, one sandbox with an agent and a program of the user, and a log to look into. */
describe('a request', () => {
  const lines: Array<Record<string, unknown>> = [];
  const sink = new PassThrough().on('data', (chunk: Buffer) => {
    for (const line of chunk.toString().trim().split('\n'))
      lines.push(JSON.parse(line) as Record<string, unknown>);
  });
  const logger = createLogger('debug', sink);
  const sandbox = makeSandbox('inone');
  let metrics: ServiceMetrics;
  let server: http.Server;
  const others: net.Server[] = [];
  let interpret: (res: ServerResponse) => void;

  beforeEach(async () => {
    lines.length = 0;
    interpret = (res) => {
      logger.info('interpreting');
      res.end('interpreted');
    };
    metrics = new ServiceMetrics('1');
    const edge = new Edge({
      domain: 'localhost:3210',
      sandboxes: {
        find: (id) => (id === sandbox.id ? sandbox : undefined),
        findBySignature: () => undefined,
        findSleeping: () => undefined,
        wake: () => Promise.resolve(),
      },
      interpreter: { handle: (_machine, _req, res) => interpret(res) },
      logger,
      observer: new RequestObserver({ logger, metrics }),
    });
    server = http.createServer(SERVER_OPTIONS, (req, res) => {
      if (!edge.handle(req, res)) res.end();
    });
    server.on('upgrade', (req, socket, head) => edge.upgrade(req, socket, head));
    await listen(server);
    await serve(AGENT_PORT, (_req, res) => res.end('agent'));
    await serve(8000, (req, res) => {
      if (req.url === '/own') res.setHeader('X-Request-Id', 'theirs');
      res.statusCode = 299;
      res.end('user');
    });
  });

  afterEach(async () => {
    metrics.close();
    for (const each of [server, ...others.splice(0)]) {
      if (each instanceof http.Server) each.closeAllConnections();
      await new Promise((resolve) => each.close(resolve));
    }
  });

  function listen(each: net.Server): Promise<void> {
    return new Promise((resolve) => each.listen(0, '127.0.0.1', resolve));
  }

  async function serve(
    port: number,
    answer: (req: IncomingMessage, res: ServerResponse) => void,
  ): Promise<void> {
    const program = http.createServer(answer);
    program.on('upgrade', (_req, socket) => {
      socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n');
      socket.pipe(socket);
    });
    await listen(program);
    others.push(program);
    sandbox.instance.ports.set(port, (program.address() as AddressInfo).port);
  }

  async function ask(
    port: number,
    where = '/',
    headers: Record<string, string> = {},
    id = 'inone',
    method = 'GET',
  ): Promise<IncomingMessage> {
    const res = await new Promise<IncomingMessage>((resolve, reject) => {
      const target = { host: '127.0.0.1', port: (server.address() as AddressInfo).port, path: where, method };
      const routing = { 'e2b-sandbox-id': id, 'e2b-sandbox-port': String(port) };
      http
        .request({ ...target, agent: false, headers: { ...routing, ...headers } }, resolve)
        .on('error', reject)
        .end();
    });
    res.resume();
    await new Promise((resolve) => res.on('end', resolve));
    return res;
  }

  /** The line that says that it ended, when it comes. */
  async function ended(): Promise<Record<string, unknown>> {
    return eventually(() => lines.find((line) => line['msg'] === 'request ended'));
  }

  async function eventually<Value>(
    look: () => Value | undefined | Promise<Value | undefined>,
  ): Promise<Value> {
    for (const deadline = Date.now() + 5_000; Date.now() < deadline;) {
      const value = await look();
      if (value !== undefined) return value;
      await new Promise((resolve) => setImmediate(resolve));
    }
    throw new Error(`it did not come: ${JSON.stringify(lines)}`);
  }

  async function count(line: string): Promise<number | undefined> {
    const text = await metrics.registry.metrics();
    const found = text.split('\n').find((each) => each.startsWith(`${line} `));
    return found === undefined ? undefined : Number(found.slice(line.length + 1));
  }

  it('gets an id, which its answer and all its log lines carry', async () => {
    const { headers } = await ask(49999);
    expect(headers['x-request-id']).toMatch(UUID);
    expect(await ended()).toMatchObject({ kind: 'interpreter', method: 'GET', status: 200 });
    const known = { requestId: headers['x-request-id'], sandboxId: 'inone' };
    expect(lines).toEqual([
      expect.objectContaining({ msg: 'interpreting', ...known }),
      expect.objectContaining({ msg: 'request ended', ...known }),
    ]);
  });

  it.each([['a'], ['0af7651916cd43dd:b7ad/6b=='], ['x'.repeat(128)]])('keeps the id %j', async (id) => {
    const { headers } = await ask(49999, '/', { 'x-request-id': id });
    expect(headers['x-request-id']).toBe(id);
    expect((await ended())['requestId']).toBe(id);
  });

  it.each([['a b'], ['"}'], ['x'.repeat(129)], ['ü'], ['<script>']])('replaces the id %j', async (id) => {
    const given = Buffer.from(id).toString('latin1');
    const { headers } = await ask(49999, '/', { 'x-request-id': given });
    expect(headers['x-request-id']).toMatch(UUID);
  });

  it('has an id also when it is refused', async () => {
    const { headers, statusCode } = await ask(49999, '/', {}, 'ianother');
    expect(statusCode).toBe(502);
    expect(headers['x-request-id']).toMatch(UUID);
    expect(await ended()).toMatchObject({ status: 502, sandboxId: 'ianother' });
  });

  it('shows its id in the answers of the agent, and leaves those of other programs alone', async () => {
    expect((await ask(AGENT_PORT, '/health', { 'x-request-id': 'mine' })).headers['x-request-id']).toBe(
      'mine',
    );
    expect((await ask(8000, '/', { 'x-request-id': 'mine' })).headers['x-request-id']).toBeUndefined();
    expect((await ask(8000, '/own', { 'x-request-id': 'mine' })).headers['x-request-id']).toBe('theirs');
  });

  it('is counted by who answered and how', async () => {
    await ask(49999);
    await ask(AGENT_PORT, '/process.Process/Start', {}, 'inone', 'POST');
    await ask(8000);
    await ask(49999, '/', {}, 'ianother');
    await ask(8000, '/', { host: 'a..b:3210', 'e2b-sandbox-id': 'NOT-ONE' });
    await eventually(async () =>
      (await count('cellbox_requests_open{kind="refused"}')) === 0 ? true : undefined,
    );
    expect(await count('cellbox_requests_total{kind="interpreter",status="200"}')).toBe(1);
    expect(await count('cellbox_requests_total{kind="interpreter",status="502"}')).toBe(1);
    expect(await count('cellbox_requests_total{kind="agent",status="200"}')).toBe(1);
    expect(await count('cellbox_requests_total{kind="port",status="other"}')).toBe(1);
    expect(await count('cellbox_requests_total{kind="refused",status="400"}')).toBe(1);
    expect(await count('cellbox_commands_total{status="200"}')).toBe(1);
    expect(await count('cellbox_command_streams_open')).toBe(0);
  });

  it('counts as open while its answer goes on, and as aborted when its client leaves before one', async () => {
    let answer: ServerResponse | undefined;
    interpret = (res) => (answer = res);
    const socket = net.connect((server.address() as AddressInfo).port, '127.0.0.1');
    socket.write(
      'GET / HTTP/1.1\r\nHost: localhost\r\nE2b-Sandbox-Id: inone\r\nE2b-Sandbox-Port: 49999\r\n\r\n',
    );
    await eventually(() => answer);
    expect(await count('cellbox_requests_open{kind="interpreter"}')).toBe(1);
    socket.destroy();
    expect(await ended()).toMatchObject({ status: 'aborted' });
    expect(await count('cellbox_requests_open{kind="interpreter"}')).toBe(0);
  });

  it('counts as open as long as the connection that it was upgraded to', async () => {
    const socket = net.connect((server.address() as AddressInfo).port, '127.0.0.1');
    let received = '';
    socket.on('data', (chunk: Buffer) => (received += chunk.toString()));
    socket.write(
      'GET / HTTP/1.1\r\nHost: localhost\r\nE2b-Sandbox-Id: inone\r\nE2b-Sandbox-Port: 8000\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhello',
    );
    await eventually(() => (received.endsWith('hello') ? true : undefined));
    expect(await count('cellbox_requests_open{kind="port"}')).toBe(1);
    socket.destroy();
    expect(await ended()).toMatchObject({ status: 101, kind: 'port' });
    expect(await count('cellbox_requests_total{kind="port",status="101"}')).toBe(1);
    expect(await count('cellbox_requests_open{kind="port"}')).toBe(0);
  });

  it('is told apart from what it caused and what goes on after its answer', async () => {
    let later: () => void = () => undefined;
    interpret = (res) => {
      const wait = new Promise<void>((resolve) => (later = resolve));
      void wait.then(() => logger.info('afterwards'));
      res.end();
    };
    const { headers } = await ask(49999);
    await ended();
    later();
    const line = await eventually(() => lines.find(({ msg }) => msg === 'afterwards'));
    expect(line).toMatchObject({ causedBy: headers['x-request-id'], sandboxId: 'inone' });
    expect(line['requestId']).toBeUndefined();
  });
});
