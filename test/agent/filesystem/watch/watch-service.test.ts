import type { MessageInitShape } from '@bufbuild/protobuf';
import { Code, ConnectError, createClient } from '@connectrpc/connect';
import type { CallOptions, Client } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-node';
import fs from 'node:fs';
import http from 'node:http';
import os from 'node:os';
import type net from 'node:net';
import path from 'node:path';
import { createUsers } from '../../../../kernel-image/agent/users';
import type { AgentContext } from '../../../../kernel-image/agent/app';
import { createWatchService } from '../../../../kernel-image/agent/filesystem/watch/watch-service';
import { createRpc } from '../../../../kernel-image/agent/rpc';
import { initialState } from '../../../../kernel-image/agent/state';
import { EventType, FileType, Filesystem } from '../../../../protocol/envd/gen/filesystem_pb';
import type {
  FilesystemEvent,
  WatchDirRequestSchema,
  WatchDirResponse,
} from '../../../../protocol/envd/gen/filesystem_pb';
import { AGENT_PORT } from '../../../../protocol/routing';
import { eventually, Machine } from '../../agent-fixture';
import { envelope } from '../../connect-frames';

const told = (events: FilesystemEvent[]) => events.map((event) => `${EventType[event.type]} ${event.name}`);

/** A watch that is read one message after another, and left when it is closed. */
class Stream {
  private readonly leaving = new AbortController();
  private readonly messages: AsyncIterator<WatchDirResponse>;

  constructor(
    client: Client<typeof Filesystem>,
    request: MessageInitShape<typeof WatchDirRequestSchema>,
    options: CallOptions = {},
  ) {
    const answer = client.watchDir(request, { ...options, signal: this.leaving.signal });
    this.messages = answer[Symbol.asyncIterator]();
  }

  /** The next message as a word; rejects when the stream ended with an error. */
  async next(): Promise<string> {
    const { value, done } = await this.messages.next();
    if (done === true) return 'end';
    const { event } = value;
    return event.case === 'filesystem'
      ? `${EventType[event.value.type]} ${event.value.name}`
      : String(event.case);
  }

  /** The next one that tells of something: on a slow machine keepalives may come in between. */
  async nextNews(): Promise<string> {
    for (;;) {
      const message = await this.next();
      if (message !== 'keepalive') return message;
    }
  }

  leave(): void {
    this.leaving.abort();
  }
}

async function codeOf(call: Promise<unknown>): Promise<{ code: string | undefined; message: string }> {
  try {
    await call;
  } catch (error) {
    const failure = ConnectError.from(error);
    return { code: Code[failure.code], message: failure.rawMessage };
  }
  throw new Error('the call succeeded');
}

/** Of a process: `T` is stopped, `S` and `R` are not. */
function threadStates(pid: number | undefined): Set<string | undefined> {
  const tasks = `/proc/${pid}/task`;
  const stats = fs.readdirSync(tasks).map((task) => fs.readFileSync(`${tasks}/${task}/stat`, 'utf8'));
  return new Set(stats.map((stat) => stat.slice(stat.lastIndexOf(')') + 2)[0]));
}

describe('watching through the agent', () => {
  let machine: Machine;
  let client: Client<typeof Filesystem>;

  beforeEach(async () => {
    machine = await Machine.make();
    await machine.start('agent');
    const nodeOptions: http.RequestOptions = {
      createConnection: (_options, done) => {
        machine.server.dial(AGENT_PORT).then(
          (socket) => done(null, socket),
          (error: Error) => done(error, undefined as unknown as net.Socket), // its type has no failures
        );
        return undefined;
      },
    };
    client = createClient(
      Filesystem,
      createConnectTransport({
        httpVersion: '1.1',
        baseUrl: 'http://sandbox',
        useBinaryFormat: false,
        nodeOptions,
      }),
    );
  });

  afterEach(() => machine.close());

  const onDisk = (name: string) => path.join(machine.home, name);
  const poll = async (watcherId: string) => told((await client.getWatcherEvents({ watcherId })).events);
  const upload = (name: string, body: string) =>
    machine.request('POST', `/files?path=${encodeURIComponent(name)}`, {
      headers: { 'content-type': 'application/octet-stream' },
      body,
    });
  /** How many inotify instances the agent has. */
  const instances = () => {
    const directory = `/proc/${machine.process?.pid}/fd`;
    const leadsToInotify = (fd: string) => {
      try {
        return fs.readlinkSync(`${directory}/${fd}`).includes('inotify');
      } catch {
        return false; // closed since the listing
      }
    };
    return fs.readdirSync(directory).filter(leadsToInotify).length;
  };

  it('has all events of an upload at the first question', async () => {
    for (let round = 0; round < 20; round += 1) {
      const { watcherId } = await client.createWatcher({ path: '/home/user' });
      expect(await poll(watcherId)).toEqual([]);
      expect((await upload(`file${round}`, 'hello')).status).toBe(200);
      expect(await poll(watcherId)).toEqual(
        ['CREATE', 'CHMOD', 'WRITE'].map((type) => `${type} file${round}`),
      );
      expect(await poll(watcherId)).toEqual([]);
      await client.removeWatcher({ watcherId });
      expect(await codeOf(poll(watcherId))).toMatchObject({ code: 'NotFound' });
    }
  });

  it('tells of new directories and files in them', async () => {
    const { watcherId } = await client.createWatcher({ path: '~', recursive: true });
    fs.mkdirSync(onDisk('nested'));
    expect(await poll(watcherId)).toEqual(['CREATE nested']);
    await upload('nested/file', 'x');
    expect(await poll(watcherId)).toEqual(['CREATE', 'CHMOD', 'WRITE'].map((type) => `${type} nested/file`));
  });

  it('tells about the file as long as there is one', async () => {
    const { watcherId } = await client.createWatcher({ path: '', recursive: true, includeEntry: true });
    fs.mkdirSync(onDisk('sub'));
    await poll(watcherId);
    fs.writeFileSync(onDisk('sub/file'), 'four');
    const { events } = await client.getWatcherEvents({ watcherId });
    const entry = { name: 'file', path: '/home/user/sub/file', type: FileType.FILE, owner: 'user' };
    expect(events).toMatchObject([
      { name: 'sub/file', type: EventType.CREATE, entry },
      { name: 'sub/file', type: EventType.WRITE, entry: { ...entry, size: 4n } },
    ]);
    fs.chmodSync(onDisk('sub/file'), 0o600);
    fs.renameSync(onDisk('sub/file'), onDisk('sub/name'));
    fs.writeFileSync(onDisk('sub/gone'), '');
    fs.unlinkSync(onDisk('sub/gone'));
    fs.unlinkSync(onDisk('sub/name'));
    const later = (await client.getWatcherEvents({ watcherId })).events;
    expect(told(later)).toEqual([
      'CHMOD sub/file',
      'RENAME sub/file',
      'CREATE sub/name',
      'CREATE sub/gone',
      'REMOVE sub/gone',
      'REMOVE sub/name',
    ]);
    for (const event of later) {
      if (event.type === EventType.REMOVE || event.type === EventType.RENAME)
        expect(event.entry).toBeUndefined();
    }
  });

  it('refuses what is not there, what is no directory and what can not be resolved', async () => {
    fs.writeFileSync(onDisk('file'), '');
    const refusals = async (at: string) => [
      (await codeOf(client.createWatcher({ path: at }))).code,
      (await codeOf(new Stream(client, { path: at }).next())).code,
    ];
    expect(await refusals('nowhere')).toEqual(['NotFound', 'NotFound']);
    expect(await refusals('file')).toEqual(['InvalidArgument', 'InvalidArgument']);
    expect(await refusals('~other')).toEqual(['InvalidArgument', 'InvalidArgument']);
    expect(await refusals('a\0b')).toEqual(['InvalidArgument', 'InvalidArgument']);
    expect((await codeOf(client.removeWatcher({ watcherId: 'w0' }))).code).toBe('NotFound');
    expect(instances()).toBe(0);
  });

  it('streams: first that it started, then the events, then keepalives while nothing happens', async () => {
    const stream = new Stream(
      client,
      { path: '/home/user', allowNetworkMounts: true },
      { headers: { 'Keepalive-Ping-Interval': '1' } },
    );
    expect(await stream.next()).toBe('start');
    fs.writeFileSync(onDisk('file'), 'x');
    expect(await stream.nextNews()).toBe('CREATE file');
    expect(await stream.nextNews()).toBe('WRITE file');
    expect(await stream.next()).toBe('keepalive');
    fs.unlinkSync(onDisk('file'));
    expect(await stream.nextNews()).toBe('REMOVE file');
    expect(instances()).toBe(1);
    stream.leave();
    await eventually(() => expect(instances()).toBe(0));
  });

  it('ends a stream at the deadline', async () => {
    const stream = new Stream(client, { path: '/home/user' }, { timeoutMs: 2_000 });
    expect(await stream.next()).toBe('start');
    expect((await codeOf(stream.next())).code).toBe('DeadlineExceeded');
    await eventually(() => expect(instances()).toBe(0));
  });

  it('tells when events were lost, on the stream and when asked, and watches anew after that', async () => {
    for (const name of ['1', '2']) fs.writeFileSync(onDisk(name), '');
    const { watcherId } = await client.createWatcher({ path: '/home/user' });
    const stream = new Stream(client, { path: '/home/user' });
    expect(await stream.next()).toBe('start');
    const limit = Number(fs.readFileSync('/proc/sys/fs/inotify/max_queued_events', 'utf8'));
    machine.process?.kill('SIGSTOP');
    // What one of its threads still read would be missing in the queue.
    await eventually(() => expect(threadStates(machine.process?.pid)).toEqual(new Set(['T'])));
    for (let count = 0; count <= limit; count += 1) fs.chmodSync(onDisk(count % 2 === 0 ? '1' : '2'), 0o600);
    machine.process?.kill('SIGCONT');
    let events = 0;
    const lost = { code: 'Internal', message: expect.stringContaining('some events are lost') as string };
    const readOn = async () => {
      for (; (await stream.next()).startsWith('CHMOD');) events += 1;
    };
    expect(await codeOf(readOn())).toEqual(lost);
    expect(events).toBe(limit);
    expect(await codeOf(poll(watcherId))).toEqual(lost);
    expect(await codeOf(poll(watcherId))).toEqual(lost);
    await client.removeWatcher({ watcherId });
    const next = await client.createWatcher({ path: '/home/user' });
    fs.writeFileSync(onDisk('3'), '');
    expect(await poll(next.watcherId)).toEqual(['CREATE 3']);
  });
});

describe('the watch service', () => {
  let server: http.Server;
  let home: string;
  let client: Client<typeof Filesystem>;
  let created: string[];

  async function serve(limits: Parameters<typeof createWatchService>[1]): Promise<void> {
    created = [];
    home = fs.mkdtempSync(path.join(os.tmpdir(), 'watch-service-'));
    const users = createUsers({ singleUser: true, home });
    // The parts that watching needs.
    const context = { state: initialState('user'), users } as AgentContext;
    const rpc = createRpc({ process: {}, filesystem: createWatchService(context, limits) });
    const caller = users.find('user');
    server = http.createServer((request, response) => rpc(request, response, caller));
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const { port } = server.address() as net.AddressInfo;
    client = createClient(
      Filesystem,
      createConnectTransport({ httpVersion: '1.1', baseUrl: `http://127.0.0.1:${port}` }),
    );
  }

  async function createWatcher(): Promise<string> {
    const { watcherId } = await client.createWatcher({ path: '~' });
    created.push(watcherId);
    return watcherId;
  }

  afterEach(async () => {
    // Some are gone already.
    for (const watcherId of created) await client.removeWatcher({ watcherId }).catch(() => {});
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
    fs.rmSync(home, { recursive: true });
  });

  it('has a limit of watchers, and a place again when one goes', async () => {
    await serve({ maxWatchers: 2, maxEvents: 10, idleMs: 60_000 });
    const watcherId = await createWatcher();
    const stream = new Stream(client, { path: '~' });
    expect(await stream.next()).toBe('start');
    expect(await codeOf(createWatcher())).toEqual({
      code: 'ResourceExhausted',
      message: 'this sandbox has 2 watchers, and may not have more',
    });
    expect((await codeOf(new Stream(client, { path: '~' }).next())).code).toBe('ResourceExhausted');
    await client.removeWatcher({ watcherId });
    await createWatcher();
    stream.leave();
    await eventually(createWatcher);
    expect((await codeOf(createWatcher())).code).toBe('ResourceExhausted');
  });

  it('forgets a watcher that nobody asks', async () => {
    await serve({ maxWatchers: 1, maxEvents: 10, idleMs: 50 });
    const watcherId = await createWatcher();
    await eventually(createWatcher);
    expect((await codeOf(client.getWatcherEvents({ watcherId }))).code).toBe('NotFound');
  });

  it('lets a watcher fail that nobody empties, and one that has room go on', async () => {
    await serve({ maxWatchers: 2, maxEvents: 10, idleMs: 60_000 });
    const full = await createWatcher();
    const read = await createWatcher();
    for (let count = 0; count < 20; count += 1) {
      fs.writeFileSync(path.join(home, String(count)), '');
      expect(told((await client.getWatcherEvents({ watcherId: read })).events)).toEqual([`CREATE ${count}`]);
    }
    expect(await codeOf(client.getWatcherEvents({ watcherId: full }))).toEqual({
      code: 'Internal',
      message: expect.stringMatching(/^more than 10 events wait to be read: some events are lost/) as string,
    });
  });

  it('frees the place of a client that stopped reading and left', async () => {
    await serve({ maxWatchers: 1, maxEvents: 100_000, idleMs: 60_000 });
    const { port } = server.address() as net.AddressInfo;
    const request = http.request({
      port,
      method: 'POST',
      path: '/filesystem.Filesystem/WatchDir',
      headers: { 'content-type': 'application/connect+json' },
    });
    request.end(envelope({ path: '~' }));
    const answer = await new Promise<http.IncomingMessage>((resolve) => request.once('response', resolve));
    answer.pause();
    // More than the buffers of both sockets hold.
    for (let round = 0; round < 40; round += 1) {
      const name = path.join(home, 'n'.repeat(250));
      for (let count = 0; count < 400; count += 1) {
        fs.writeFileSync(name, '');
        fs.unlinkSync(name);
      }
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect((await codeOf(createWatcher())).code).toBe('ResourceExhausted');
    request.destroy();
    await eventually(createWatcher);
  });
});
