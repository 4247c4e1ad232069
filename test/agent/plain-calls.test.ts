import fs from 'node:fs/promises';
import path from 'node:path';
import { eventually, Machine } from './agent-fixture';
import type { Answer } from './agent-fixture';
import { envelope, framesOf } from './connect-frames';
import type { Frame } from './connect-frames';

/** Calls in JSON of known length have a way of their own; sent in chunks, they take the library's. */
describe('plain calls', () => {
  let machine: Machine;

  beforeAll(async () => {
    machine = await Machine.make();
    await machine.start('agent');
    await fs.mkdir(path.join(machine.home, 'kept', 'deeper'), { recursive: true });
    await fs.writeFile(path.join(machine.home, 'kept', 'a "quoted" näme €'), 'content');
    await fs.symlink('deeper', path.join(machine.home, 'kept', 'link'));
    await fs.utimes(path.join(machine.home, 'kept', 'deeper'), 1, 1.25);
  });

  afterAll(() => machine.close());

  type Way = (method: string, body: string, headers?: Record<string, string>) => Promise<Answer>;
  const json = { 'content-type': 'application/json', 'connect-protocol-version': '1' };
  const plain: Way = (method, body, headers = {}) =>
    machine.request('POST', `/${method}`, {
      headers: { ...json, 'content-length': String(Buffer.byteLength(body)), ...headers },
      body,
    });
  const library: Way = (method, body, headers = {}) =>
    machine.request('POST', `/${method}`, {
      headers: { ...json, 'transfer-encoding': 'chunked', ...headers },
      body,
    });
  const seen = ({ status, headers, body }: Answer) => {
    const { date, 'content-length': length, ...rest } = headers;
    expect([date, length]).toEqual([expect.any(String), String(body.length)]);
    return { status, headers: rest, message: JSON.parse(body.toString()) as unknown };
  };

  it.each([
    ['filesystem.Filesystem/Stat', { path: 'kept/link' }, {}],
    ['filesystem.Filesystem/Stat', { path: 'kept/a "quoted" näme €', unknownField: [1, 2] }, {}],
    ['filesystem.Filesystem/Stat', { path: 'kept' }, { 'content-type': 'application/json; charset=utf-8' }],
    ['filesystem.Filesystem/Stat', { path: 'kept' }, { 'connect-timeout-ms': '60000' }],
    ['filesystem.Filesystem/Stat', { path: 'kept' }, { 'user-agent': 'connect-python' }],
    ['filesystem.Filesystem/ListDir', { path: '/home/user/kept', depth: 2 }, {}],
    ['filesystem.Filesystem/ListDir', { path: 'kept' }, { 'user-agent': 'connect-python' }],
    ['filesystem.Filesystem/ListDir', { path: 'kept/deeper' }, {}],
    ['process.Process/List', {}, {}],
    // Failures of methods, of users, and of what is sent.
    ['filesystem.Filesystem/Stat', { path: 'missing' }, {}],
    ['filesystem.Filesystem/Stat', { path: 'nul\0' }, {}],
    ['filesystem.Filesystem/ListDir', { path: 'kept/a "quoted" näme €' }, {}],
    ['filesystem.Filesystem/MakeDir', { path: 'kept' }, {}],
    ['filesystem.Filesystem/Remove', { path: '' }, {}],
    ['filesystem.Filesystem/Move', { source: 'missing', destination: 'elsewhere' }, {}],
    ['filesystem.Filesystem/GetWatcherEvents', { watcherId: 'none' }, {}],
    ['process.Process/SendSignal', { process: { pid: 999_999 }, signal: 'SIGNAL_SIGKILL' }, {}],
    ['process.Process/SendInput', { process: { tag: 'none' }, input: { stdin: '!' } }, {}],
    ['process.Process/Nothing', {}, {}],
    ['filesystem.Filesystem/Stat', { path: 5 }, {}],
    ['filesystem.Filesystem/Stat', [], {}],
    ['filesystem.Filesystem/Stat', { path: 'kept' }, { 'connect-timeout-ms': '1x' }],
    ['filesystem.Filesystem/Stat', { path: 'kept' }, { 'connect-protocol-version': '2' }],
    ['filesystem.Filesystem/Stat', { path: 'kept' }, { authorization: `Basic ${btoa('nobody-here:')}` }],
  ])('%s of %j with %j is answered as by the library', async (method, message, headers) => {
    const body = JSON.stringify(message);
    expect(seen(await plain(method, body, headers))).toEqual(seen(await library(method, body, headers)));
  });

  it.each(['', '{', 'null', '"text"', '\ufeff{}', '{"path":"\ud800"}'])(
    'the body %j is answered as by the library',
    async (body) => {
      const method = 'filesystem.Filesystem/Stat';
      expect(seen(await plain(method, body))).toEqual(seen(await library(method, body)));
    },
  );

  it('changes what it is asked to', async () => {
    const made = await plain('filesystem.Filesystem/MakeDir', JSON.stringify({ path: 'made/below' }));
    expect(seen(made).message).toMatchObject({ entry: { path: '/home/user/made/below' } });
    expect(
      seen(await plain('filesystem.Filesystem/Remove', JSON.stringify({ path: 'made' }))).message,
    ).toEqual({});
    await expect(fs.access(path.join(machine.home, 'made'))).rejects.toThrow('ENOENT');
  });

  it('ends a call that waits at its time limit, as the library does', async () => {
    const start = Buffer.from(
      JSON.stringify({ process: { cmd: 'sleep', args: ['60'] }, stdin: true, tag: 'deaf' }),
    );
    const running = machine.request('POST', '/process.Process/Start', {
      headers: { 'content-type': 'application/connect+json' },
      body: Buffer.concat([Buffer.from([0, 0, 0, start.length >> 8, start.length & 0xff]), start]),
    });
    const selector = { process: { tag: 'deaf' } };
    // More than a pipe holds.
    const input = JSON.stringify({ ...selector, input: { stdin: Buffer.alloc(1 << 20).toString('base64') } });
    const send = (way: Way) => way('process.Process/SendInput', input, { 'connect-timeout-ms': '200' });
    await eventually(async () => expect((await send(plain)).status).not.toBe(404));
    const answer = seen(await send(plain));
    expect(answer.message).toMatchObject({ code: 'deadline_exceeded' });
    expect(answer).toEqual(seen(await send(library)));
    await plain('process.Process/SendSignal', JSON.stringify({ ...selector, signal: 'SIGNAL_SIGKILL' }));
    await running;
  });

  it('takes a compressed call as the library does', async () => {
    const headers = { 'content-encoding': 'br' };
    const answer = seen(await plain('filesystem.Filesystem/Stat', 'not brotli', headers));
    expect(answer).toEqual(seen(await library('filesystem.Filesystem/Stat', 'not brotli', headers)));
    expect(answer.status).toBeGreaterThanOrEqual(400);
  });

  describe('answered by a stream', () => {
    const streamType = { 'content-type': 'application/connect+json', 'connect-protocol-version': '1' };
    const ask = (method: string, body: Buffer, headers: Record<string, string>) =>
      machine.request('POST', `/${method}`, { headers: { ...streamType, ...headers }, body });
    const bothWays = async (method: string, body: Buffer, headers: Record<string, string> = {}) => {
      const answers = await Promise.all([
        ask(method, body, { 'content-length': String(body.length), ...headers }),
        ask(method, body, { 'transfer-encoding': 'chunked', ...headers }),
      ]);
      return answers.map(({ status, headers: { date, ...told }, body: answer }) => {
        expect(date).toEqual(expect.any(String));
        return { status, headers: told, frames: comparable(framesOf(answer)) };
      });
    };
    type Event = { start?: { pid: number }; data?: Record<string, string> };
    const eventOf = (frame?: Frame) => (frame?.message as { event?: Event } | undefined)?.event;
    const joined = (...parts: string[]) =>
      Buffer.concat(parts.map((part) => Buffer.from(part, 'base64'))).toString('base64');
    /** What both ways must say alike: not the process's number, nor how often its output was read. */
    const comparable = (frames: Frame[]): Frame[] => {
      const told: Frame[] = [];
      for (const frame of frames) {
        const { start, data = {} } = eventOf(frame) ?? {};
        if (start !== undefined) start.pid = 1;
        const [[kind, bytes] = ['', '']] = Object.entries(data);
        const before = eventOf(told.at(-1))?.data;
        if (before?.[kind] === undefined) told.push(frame);
        else before[kind] = joined(before[kind], bytes);
      }
      return told;
    };
    const shell = (line: string, more: object = {}) => ({
      process: { cmd: '/bin/sh', args: ['-c', line], ...more },
      stdin: false,
    });
    const START = 'process.Process/Start';

    it.each([
      [START, shell('echo "näme €"; sleep 0.1; echo two >&2; exit 3'), {}],
      [START, shell('kill -9 $$', { unknown: [1] }), {}],
      [START, { ...shell('tty >/dev/null; printf x'), pty: { size: { cols: 80, rows: 24 } } }, {}],
      // Ends two seconds after one keepalive and before the next.
      [START, shell('sleep 6'), { 'keepalive-ping-interval': '4' }],
      [START, shell('sleep 60'), { 'connect-timeout-ms': '2000' }],
      [START, shell('true'), { 'connect-timeout-ms': '60000' }],
      [START, shell('true'), { 'connect-accept-encoding': 'gzip' }],
      [START, shell('true'), { 'content-type': 'application/connect+json; charset=utf-8' }],
      // Failures of methods, of users, and of what is sent.
      [START, shell('true', { cwd: '/missing' }), {}],
      [START, { process: { cmd: '/missing' } }, {}],
      [START, {}, {}],
      [START, shell('true'), { 'connect-timeout-ms': '1x' }],
      [START, shell('true'), { 'connect-content-encoding': 'gzip' }],
      [START, shell('true'), { 'content-encoding': 'gzip' }],
      [START, shell('true'), { authorization: `Basic ${btoa('nobody-here:')}` }],
      [START, { process: { cmd: 5 } }, {}],
      [START, [], {}],
      ['process.Process/Connect', { process: { pid: 999_999 } }, {}],
      ['process.Process/Connect', {}, {}],
      ['filesystem.Filesystem/WatchDir', { path: 'missing' }, {}],
      ['filesystem.Filesystem/WatchDir', { path: 'kept/a "quoted" näme €' }, {}],
      ['filesystem.Filesystem/WatchDir', { path: 'kept' }, { 'connect-timeout-ms': '2000' }],
    ])('%s of %j with %j is answered as by the library', async (method, message, headers) => {
      const [plainly, byLibrary] = await bothWays(method, envelope(message), headers);
      expect(plainly).toEqual(byLibrary);
    });

    const fine = envelope(shell('echo fine'));
    it.each([
      ['nothing', Buffer.alloc(0)],
      ['a part of a head', fine.subarray(0, 3)],
      ['a part of a message', fine.subarray(0, -1)],
      ['two messages', Buffer.concat([fine, fine])],
      ['a message and a part', Buffer.concat([fine, fine.subarray(0, 7)])],
      ['a compressed message', envelope('{}', 1)],
      ['an end', envelope('{}', 2)],
      ['a message and an end', Buffer.concat([fine, envelope('{}', 2)])],
      ['text that is no JSON', envelope('{')],
      ['an empty text', envelope('')],
      ['half a character', envelope('{"tag":"\ud800"}')],
    ])('%s is answered as by the library', async (_what, body) => {
      const [plainly, byLibrary] = await bothWays(START, body);
      expect(plainly).toEqual(byLibrary);
    });
  });
});
