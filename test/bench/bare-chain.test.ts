import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs/promises';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { startBareServer } from '../../bench/bare-chain';
import { endChild } from '../../bench/child';
import { connectRival } from '../../bench/rival';

const ROOT = path.join(__dirname, '..', '..');

/** Frames of one message on the Unix socket, each behind its length, all behind theirs. */
function encode(frames: readonly string[]): Buffer {
  const body = Buffer.concat(
    frames.flatMap((frame) => [length(Buffer.byteLength(frame)), Buffer.from(frame)]),
  );
  return Buffer.concat([length(body.length), body]);
}

function length(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

function decode(message: Buffer): unknown[] {
  const frames: unknown[] = [];
  for (let at = 4; at < message.length;) {
    const end = at + 4 + message.readUInt32BE(at);
    frames.push(JSON.parse(message.toString('utf8', at + 4, end)));
    at = end;
  }
  return frames;
}

/** What a kernel says about one request: a topic stands in front on IOPub only, as it does there. */
function said(request: Request, type: string, content: object): Buffer {
  const topic = type === 'execute_reply' ? [] : [`kernel.${type}`];
  const parts = [{ msg_type: type }, { msg_id: request.header.msg_id }, {}, content];
  return encode([...topic, '<IDS|MSG>', 'signature', ...parts.map((part) => JSON.stringify(part))]);
}

interface Request {
  header: { msg_id: string; msg_type: string };
  content: { code: string; silent: boolean };
}

/** A gateway with no kernel behind it: says of each request what it is told to. */
async function listen(
  file: string,
  answer: (request: Request, connection: net.Socket) => void,
): Promise<{ requests: Request[]; connections: net.Socket[]; close(): Promise<void> }> {
  const requests: Request[] = [];
  const connections: net.Socket[] = [];
  const server = net.createServer((connection) => {
    connections.push(connection);
    connection.on('data', (message) => {
      const [header, , , content] = decode(message);
      const request = { header, content } as Request;
      requests.push(request);
      answer(request, connection);
    });
  });
  server.listen(file);
  await once(server, 'listening');
  return {
    requests,
    connections,
    close: async () => {
      for (const connection of connections) connection.destroy();
      server.close();
      await once(server, 'close');
    },
  };
}

describe('the service of the bare chain', () => {
  let directory: string;
  let gateway: Awaited<ReturnType<typeof listen>>;
  let server: { child: ChildProcess; url: string };
  let answer: (request: Request, connection: net.Socket) => void;

  const say = (request: Request, connection: net.Socket, ...messages: [string, object][]): void => {
    for (const [type, content] of messages) connection.write(said(request, type, content));
  };
  const END: [string, object][] = [
    ['execute_reply', { status: 'ok' }],
    ['status', { execution_state: 'idle' }],
  ];

  beforeEach(async () => {
    directory = await fs.mkdtemp(path.join(os.tmpdir(), 'cellbox-test-'));
    answer = (request, connection) => say(request, connection, ...END);
    const file = path.join(directory, 'gateway.sock');
    gateway = await listen(file, (request, connection) => answer(request, connection));
    server = await startBareServer(ROOT, file);
  });

  afterEach(async () => {
    await endChild(server.child);
    await gateway.close();
    await fs.rm(directory, { recursive: true });
  });

  it('makes one request of a cell, and outputs of what the kernel says about it', async () => {
    const chain = await connectRival(server.url);
    answer = (request, connection) =>
      say(
        request,
        connection,
        ['status', { execution_state: 'busy' }],
        ['execute_input', { execution_count: 2 }],
        ['stream', { name: 'stdout', text: 'hello\n' }],
        ['execute_result', { data: { 'text/plain': '2' } }],
        ...END,
      );
    expect(await chain.run('1+1')).toEqual({
      ms: expect.any(Number) as number,
      stdout: 'hello\n',
      types: ['text'],
    });
    expect(gateway.connections).toHaveLength(1);
    expect(gateway.requests.map(({ header, content }) => [header.msg_type, content.code])).toEqual([
      ['execute_request', '1'],
      ['execute_request', '1+1'],
    ]);
    expect(new Set(gateway.requests.map(({ header }) => header.msg_id)).size).toBe(2);
  });

  it.each([
    ['reply', END],
    ['idle', [...END].reverse()],
  ])(
    'ends the answer with the second of the two that end a cell, when the first is the %s',
    async (_, ends) => {
      const [first, second] = ends;
      let last: (() => void) | undefined;
      answer = (request, connection) => {
        if (first === undefined || second === undefined) throw new Error('a cell has two ends');
        // The result behind the first end is part of the answer only if that has not ended it.
        say(request, connection, first, ['execute_result', { data: { 'text/plain': '2' } }]);
        last = () => say(request, connection, second);
      };
      const response = await fetch(`${server.url}/execute`, { method: 'POST', body: '{"code":"1+1"}' });
      const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
      expect((await reader?.read())?.value).toBe('{"type":"result","text":"2","is_main_result":true}\n');
      last?.();
      expect((await reader?.read())?.value).toBe('{"type":"end_of_execution"}\n');
      expect((await reader?.read())?.done).toBe(true);
    },
  );

  it('takes nothing for an output that belongs to another request', async () => {
    const chain = await connectRival(server.url);
    answer = (request, connection) => {
      const other = { ...request, header: { ...request.header, msg_id: 'other' } };
      say(other, connection, ['stream', { name: 'stdout', text: 'not ours' }], ...END);
      say(request, connection, ['stream', { name: 'stdout', text: 'ours' }], ...END);
    };
    expect(await chain.run('1+1')).toMatchObject({ stdout: 'ours' });
  });

  it('tells of an error, so that a failure is no fast answer', async () => {
    const chain = await connectRival(server.url);
    answer = (request, connection) =>
      say(request, connection, ['error', { ename: 'ValueError', evalue: 'no', traceback: [] }], ...END);
    await expect(chain.run('fail')).rejects.toThrow('ValueError: no');
  });

  it('reads a message that arrives in pieces', async () => {
    const chain = await connectRival(server.url);
    answer = (request, connection) => {
      const all = [['stream', { name: 'stdout', text: 'hello\n' }] as [string, object], ...END];
      const bytes = Buffer.concat(all.map(([type, content]) => said(request, type, content)));
      connection.write(bytes.subarray(0, 2));
      // The rest when the other side has surely read the first two, as it answers something else meanwhile.
      void fetch(server.url).then(() => connection.write(bytes.subarray(2)));
    };
    expect(await chain.run('1+1')).toMatchObject({ stdout: 'hello\n' });
  });

  it('ends with its gateway', async () => {
    const exited = once(server.child, 'exit');
    for (const connection of gateway.connections) connection.destroy();
    expect(await exited).toEqual([1, null]);
  });

  it('ends with whoever started it', async () => {
    const exited = once(server.child, 'exit');
    server.child.stdin?.end();
    expect(await exited).toEqual([0, null]);
  });
});
