import { once } from 'node:events';
import type http from 'node:http';
import type net from 'node:net';
import { AGENT_PORT } from '../../../protocol/routing';
import type { RunningSandbox } from '../../../service/sandboxes/sandbox';
import { EdgeFixture, answerTo } from './edge-fixture';
import type { FakeInstance } from './edge-fixture';

let fixture: EdgeFixture;
let sandbox: RunningSandbox & { instance: FakeInstance };
/** Those to the agent that are open. */
let connections: Set<net.Socket>;

async function agent(handler: http.RequestListener): Promise<void> {
  const server = await fixture.serve(sandbox, AGENT_PORT, handler);
  server.on('connection', (socket: net.Socket) => {
    connections.add(socket);
    socket.once('close', () => connections.delete(socket));
  });
}

const ask = async (options: { path?: string; method?: string } = {}, body?: string): Promise<string> =>
  (await answerTo(fixture.request('isb', AGENT_PORT, options).end(body))).body.toString();

/** Not by `once`, which an error before it would make fail. */
const hasClosed = (socket: net.Socket): Promise<void> =>
  new Promise((resolve) => socket.once('close', () => resolve()));

beforeEach(async () => {
  connections = new Set();
  fixture = new EdgeFixture();
  await fixture.open();
  sandbox = fixture.add('isb');
});
afterEach(() => fixture.close());

it('serve one request after another, with and without a body', async () => {
  await agent((req, res) => {
    req.resume().on('end', () => res.end(`${req.method} ${req.url}`));
  });
  expect(await ask({ path: '/a' })).toBe('GET /a');
  expect(await ask({ path: '/b', method: 'POST' }, 'body')).toBe('POST /b');
  expect(await ask({ path: '/c' })).toBe('GET /c');
  expect(sandbox.instance.dialled).toEqual([AGENT_PORT]);
});

it('are as many as requests run at a time, and are kept for the next ones', async () => {
  const waiting: http.ServerResponse[] = [];
  await agent((_req, res) => {
    waiting.push(res);
    if (waiting.length === 2) for (const each of waiting.splice(0)) each.end('ok');
  });
  for (let round = 0; round < 3; round++) await Promise.all([ask(), ask()]);
  expect(sandbox.instance.dialled).toHaveLength(2);
});

it('that the agent closed are not used again', async () => {
  await agent((_req, res) => res.end('ok'));
  await ask();
  const closed = Promise.all([...connections].map(hasClosed));
  for (const socket of connections) socket.destroy();
  await closed;
  expect(await ask()).toBe('ok');
  expect(sandbox.instance.dialled).toHaveLength(2);
});

it('do not outlast a pause of the sandbox', async () => {
  await agent((_req, res) => res.end('ok'));
  await ask();
  const closed = Promise.all([...connections].map(hasClosed));
  fixture.edge.drop('isb');
  await closed;
  expect(await ask()).toBe('ok');
  expect(sandbox.instance.dialled).toHaveLength(2);
});

it('are not kept when the agent says that it closes', async () => {
  await agent((_req, res) => res.setHeader('Connection', 'close').end('ok'));
  await ask();
  expect(await ask()).toBe('ok');
  expect(sandbox.instance.dialled).toHaveLength(2);
});

it('end with a client that leaves in the middle of its answer', async () => {
  const closed = new Promise<void>((resolve) => {
    void agent((req, res) => {
      if (req.url === '/long') res.on('close', resolve).write('beginning');
      else res.end('ok');
    });
  });
  const request = fixture.request('isb', AGENT_PORT, { path: '/long' }).end();
  request.on('error', () => {});
  const [response] = (await once(request, 'response')) as [http.IncomingMessage];
  response.on('error', () => {});
  request.destroy();
  await closed;
  expect(await ask()).toBe('ok');
  expect(sandbox.instance.dialled).toHaveLength(2);
});

it('end when the answer came before the whole request, whose rest nobody sends', async () => {
  await agent((req, res) => {
    if (req.method === 'POST') res.writeHead(413).end('too long');
    else res.end('ok');
  });
  const request = fixture.request('isb', AGENT_PORT, {
    method: 'POST',
    headers: { 'Content-Length': 1000 },
  });
  request.on('error', () => {});
  request.write('part');
  expect((await answerTo(request)).status).toBe(413);
  const closed = Promise.all([...connections].map(hasClosed));
  request.destroy();
  await closed;
  expect(await ask()).toBe('ok');
  expect(sandbox.instance.dialled).toHaveLength(2);
});

it('are not made of connections to other ports', async () => {
  await fixture.serve(sandbox, 3000, (req, res) => res.end(req.headers.connection));
  for (let round = 0; round < 2; round++) {
    const answer = await answerTo(fixture.request('isb', 3000).end());
    expect(answer.body.toString()).toBe('close');
  }
  expect(sandbox.instance.dialled).toEqual([3000, 3000]);
});
