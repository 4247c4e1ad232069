import { Code, ConnectError } from '@connectrpc/connect';
import type { HandlerContext } from '@connectrpc/connect';
import fc from 'fast-check';
import { HttpError } from '../../kernel-image/agent/http-error';
import { toConnectError } from '../../kernel-image/agent/connect-error';
import { keepaliveMs, streamEvents, untilAborted } from '../../kernel-image/agent/rpc';
import { eventually, Machine } from './agent-fixture';
import { envelope, framesOf } from './connect-frames';

describe('the wire of RPCs', () => {
  let machine: Machine;

  beforeAll(async () => {
    machine = await Machine.make();
    await machine.start('agent');
  });

  afterAll(() => machine.close());

  const unary = (method: string, message: unknown, headers = {}) =>
    machine.request('POST', `/process.Process/${method}`, {
      headers: { 'content-type': 'application/json', 'connect-protocol-version': '1', ...headers },
      body: JSON.stringify(message),
    });
  const stream = (method: string, body: Buffer | string, headers = {}) =>
    machine.request('POST', `/process.Process/${method}`, {
      headers: { 'content-type': 'application/connect+json', 'connect-protocol-version': '1', ...headers },
      body,
    });
  const echo = { process: { cmd: 'echo', args: ['hello'] } };

  it('frames a stream exactly: no charset, no compression, an empty object at the end', async () => {
    const identity = { 'connect-content-encoding': 'identity', 'connect-accept-encoding': 'identity' };
    const answer = await stream('Start', envelope(echo), identity);
    expect(answer.status).toBe(200);
    expect(answer.headers['content-type']).toBe('application/connect+json');
    const found = framesOf(answer.body);
    expect(found.map(({ flags }) => flags)).toEqual([0, 0, 0, 2]);
    const [start, ...rest] = found.map(({ message }) => message);
    expect(start).toMatchObject({ event: { start: { pid: expect.any(Number) as number } } });
    expect(rest).toEqual([
      { event: { data: { stdout: Buffer.from('hello\n').toString('base64') } } },
      { event: { end: { exited: true, status: 'exit status 0' } } },
      {},
    ]);
  });

  it('spells the end of a signalled process out', async () => {
    const answer = await stream('Start', envelope({ process: { cmd: 'sh', args: ['-c', 'kill -9 $$'] } }));
    expect(framesOf(answer.body).at(-2)?.message).toEqual({
      event: { end: { exitCode: -1, status: 'signal: killed', error: 'signal: killed' } },
    });
  });

  it('reads an envelope wherever the network cuts it', async () => {
    const whole = envelope({ ...echo, unknownField: [1, 2] });
    await fc.assert(
      fc.asyncProperty(fc.array(fc.nat(whole.length), { maxLength: 4 }), async (cuts) => {
        const socket = await machine.server.dial(49_983);
        const ends = [...cuts.sort((a, b) => a - b), whole.length];
        let at = 0;
        socket.write(
          'POST /process.Process/Start HTTP/1.1\r\nhost: x\r\nconnection: close\r\n' +
            'content-type: application/connect+json\r\ntransfer-encoding: chunked\r\n\r\n',
        );
        for (const end of ends) {
          const piece = whole.subarray(at, end);
          at = end;
          if (piece.length === 0) continue;
          socket.write(
            Buffer.concat([Buffer.from(`${piece.length.toString(16)}\r\n`), piece, Buffer.from('\r\n')]),
          );
          await new Promise((resolve) => setImmediate(resolve)); // so that each goes out by itself
        }
        socket.write('0\r\n\r\n');
        const chunks: Buffer[] = [];
        for await (const chunk of socket) chunks.push(chunk as Buffer);
        const text = Buffer.concat(chunks).toString();
        expect(text).toContain('200 OK');
        expect(text).toContain(Buffer.from('hello\n').toString('base64'));
      }),
      { numRuns: 15 },
    );
  });

  it.each([
    ['nothing', ''],
    ['half an envelope', envelope(echo).subarray(0, 20)],
    ['two envelopes', Buffer.concat([envelope(echo), envelope(echo)])],
    ['something that is no JSON', Buffer.from('\0\0\0\0\x02{]')],
    ['a compressed message', envelope(echo, 1)],
  ])('answers %s on a stream with an error at its end', async (_name, body) => {
    const answer = await stream('Start', body);
    expect(answer.status).toBe(200);
    const found = framesOf(answer.body);
    expect(found).toHaveLength(1);
    expect(found[0]).toMatchObject({ flags: 2, message: { error: { code: expect.any(String) as string } } });
  });

  it.each([
    ['SendSignal', { process: { pid: 999_999 }, signal: 'SIGNAL_SIGKILL' }, 404, 'not_found'],
    ['SendSignal', { signal: 9 }, 501, 'unimplemented'],
    ['SendSignal', { process: { pid: 'x' } }, 400, 'invalid_argument'],
    ['SendSignal', [], 400, 'invalid_argument'],
    ['Nothing', {}, 501, 'unimplemented'],
  ])('answers %s with %j by %i %s', async (method, message, status, code) => {
    const answer = await unary(method, message);
    expect(answer.status).toBe(status);
    if (code === undefined) return;
    expect(answer.headers['content-type']).toBe('application/json');
    expect(JSON.parse(answer.body.toString())).toMatchObject({ code, message: expect.any(String) as string });
  });

  it('takes what proto3 allows: either spelling of names, numbers as text, URL-safe base64', async () => {
    const running = stream('Start', envelope({ process: { cmd: 'cat' }, stdin: true, tag: 'cat' }));
    const bytes = Buffer.from([0xfb, 0xff, 0xfe]);
    const send = () =>
      unary('SendInput', { process: { tag: 'cat' }, input: { stdin: bytes.toString('base64url') } });
    await eventually(async () => expect((await send()).status).toBe(200));
    const listed = JSON.parse((await unary('List', {})).body.toString()) as { processes: [{ pid: number }] };
    const closing = { process: { pid: String(listed.processes[0].pid) } };
    expect((await unary('CloseStdin', closing)).body.toString()).toBe('{}');
    expect(JSON.stringify(framesOf((await running).body))).toContain(bytes.toString('base64'));
  });

  it.each(['1x', '-5', '12345678901'])('refuses the time limit %s', async (timeout) => {
    const answer = await unary('List', {}, { 'connect-timeout-ms': timeout });
    expect([answer.status, JSON.parse(answer.body.toString())]).toMatchObject([
      400,
      { code: 'invalid_argument' },
    ]);
  });

  it('refuses a message beyond 64 MiB, and says so', async () => {
    const answer = await unary('SendInput', { input: { stdin: 'A'.repeat(65 * 1024 * 1024) } });
    expect([answer.status, JSON.parse(answer.body.toString())]).toMatchObject([
      429,
      { code: 'resource_exhausted' },
    ]);
  });

  it('tells of an unknown user where each kind of call expects it', async () => {
    const headers = { authorization: `Basic ${Buffer.from('nobody-here:').toString('base64')}` };
    const plain = await unary('List', {}, headers);
    expect([plain.status, JSON.parse(plain.body.toString())]).toMatchObject([
      401,
      { code: 'unauthenticated' },
    ]);
    const streamed = await stream('Start', envelope(echo), headers);
    expect(streamed.status).toBe(200);
    expect(framesOf(streamed.body)).toMatchObject([
      { flags: 2, message: { error: { code: 'unauthenticated' } } },
    ]);
  });
});

describe('keepaliveMs', () => {
  it('takes whole seconds, and 90 for anything else', () => {
    expect(['50', '1', '0', '-1', '', 'x', '1.5', ' 5', '12345678901', null].map(keepaliveMs)).toEqual([
      50_000, 1_000, 90_000, 90_000, 90_000, 90_000, 90_000, 90_000, 90_000, 90_000,
    ]);
  });

  it('is something that a timer can wait for, whatever was sent', () => {
    fc.assert(
      fc.property(fc.oneof(fc.string(), fc.nat().map(String), fc.bigInt().map(String)), (header) => {
        const ms = keepaliveMs(header);
        expect(ms).toBeGreaterThanOrEqual(1_000);
        expect(ms).toBeLessThanOrEqual(2_147_483_647);
      }),
    );
  });
});

describe('streamEvents', () => {
  const context = (signal: AbortSignal, seconds = '1') =>
    ({ signal, requestHeader: new Headers({ 'keepalive-ping-interval': seconds }) }) as HandlerContext;
  const never = () => new Promise<undefined>(() => {});

  it('passes events on in order and ends with the source', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(fc.record({ n: fc.nat() })), async (events) => {
        const left = [...events];
        const source = { next: async () => left.shift() };
        const told: object[] = [];
        const signal = new AbortController().signal;
        for await (const event of streamEvents(source, context(signal), () => ({ n: -1 }))) told.push(event);
        expect(told).toEqual(events);
      }),
    );
  });

  it('fails with the reason when the call ends, before and while it waits', async () => {
    const over = new ConnectError('over', Code.DeadlineExceeded);
    await expect(streamEvents({ next: never }, context(AbortSignal.abort(over)), Object).next()).rejects.toBe(
      over,
    );
    const ending = new AbortController();
    const waiting = streamEvents({ next: never }, context(ending.signal), Object).next();
    ending.abort(over);
    await expect(waiting).rejects.toBe(over);
  });

  it('pings while it is quiet', async () => {
    const events = streamEvents({ next: never }, context(new AbortController().signal), () => ({
      ping: true,
    }));
    expect(await events.next()).toEqual({ done: false, value: { ping: true } });
    await events.return(undefined);
  });
});

describe('untilAborted', () => {
  it('gives what comes first', async () => {
    const ending = new AbortController();
    expect(await untilAborted(ending.signal, Promise.resolve(1))).toBe(1);
    const waiting = untilAborted(ending.signal, new Promise(() => {}));
    ending.abort(new Error('left'));
    await expect(waiting).rejects.toThrow('left');
  });
});

describe('toConnectError', () => {
  it.each([
    [new HttpError(400, 'bad'), Code.InvalidArgument, 'bad'],
    [new HttpError(507, 'full'), Code.ResourceExhausted, 'full'],
    [new HttpError(418, 'odd'), Code.Internal, 'odd'],
    [new Error('unforeseen'), Code.Internal, 'unforeseen'],
    [new ConnectError('as it is', Code.Aborted), Code.Aborted, 'as it is'],
  ])('keeps the message and finds the code: %#', (error, code, message) => {
    const told = toConnectError(error);
    expect([told.code, told.rawMessage]).toEqual([code, message]);
  });
});
