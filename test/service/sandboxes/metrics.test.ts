import { once } from 'node:events';
import http from 'node:http';
import net from 'node:net';
import { createLogger } from '../../../service/log';
import { ServiceError } from '../../../service/errors';
import { MetricsSampler } from '../../../service/sandboxes/metrics';
import type { Instance } from '../../../service/runtime/runtime';
import { eventually } from '../../agent/agent-fixture';
import { FAKE_METRICS } from '../../fakes/fake-runtime';

/** A machine whose agent is a server of this process. */
class TestMachine {
  readonly accessToken = 'secret';
  readonly seen: http.IncomingMessage[] = [];
  dials = 0;
  answer: (res: http.ServerResponse) => void = (res) => res.end(JSON.stringify(FAKE_METRICS));
  private readonly server = http.createServer((req, res) => {
    this.seen.push(req);
    this.answer(res);
  });
  private readonly streams = new Set<net.Socket>();

  constructor(readonly id: string) {}

  async listen(): Promise<this> {
    this.server.listen(0, '127.0.0.1');
    await once(this.server, 'listening');
    return this;
  }

  /** Connections that the sampler holds open. */
  get open(): number {
    return this.streams.size;
  }

  readonly instance = {
    dial: async (_port: number, options?: { signal?: AbortSignal }) => {
      this.dials++;
      if (options?.signal?.aborted) throw new ServiceError('unavailable', 'given up');
      const socket = net.connect((this.server.address() as net.AddressInfo).port, '127.0.0.1');
      this.streams.add(socket);
      socket.once('close', () => this.streams.delete(socket));
      await once(socket, 'connect');
      return socket;
    },
  } as unknown as Instance; // nothing else of a machine is used

  async close(): Promise<void> {
    this.server.closeAllConnections();
    await new Promise((resolve) => this.server.close(resolve));
  }
}

describe('MetricsSampler', () => {
  let sampler: MetricsSampler;
  let now: number;
  const machines: TestMachine[] = [];

  const make = async (id: string) => {
    const machine = await new TestMachine(id).listen();
    machines.push(machine);
    return machine;
  };
  const use = (intervalMs: number) => {
    sampler = new MetricsSampler({ intervalMs, logger: createLogger('silent'), now: () => now });
    return sampler;
  };

  beforeEach(() => {
    now = 1_000_000;
  });

  afterEach(async () => {
    sampler.close();
    await Promise.all(machines.splice(0).map((machine) => machine.close()));
  });

  it('has a sample as soon as somebody asks', async () => {
    const machine = await make('a');
    use(60_000).start(machine);
    const sample = {
      at: now,
      cpuCount: 2,
      cpuUsedPct: 12.5,
      memUsed: 52_428_800,
      memTotal: 2_147_483_648,
      memCache: 10_485_760,
      diskUsed: 1_073_741_824,
      diskTotal: 10_737_418_240,
    };
    expect(await sampler.between('a', 0, Infinity)).toEqual([sample]);
    expect(await sampler.last('a')).toEqual(sample);
    expect(await sampler.between('a', 0, now - 1)).toEqual([]);
    expect(machine.seen.map((req) => [req.method, req.url, req.headers['x-access-token']])).toEqual([
      ['GET', '/metrics', 'secret'],
    ]);
    expect(await sampler.between('unknown', 0, Infinity)).toEqual([]);
    await eventually(() => expect(machine.open).toBe(0));
  });

  it('asks again and again, and keeps what was told', async () => {
    const machine = await make('a');
    let used = 0;
    machine.answer = (res) => res.end(JSON.stringify({ ...FAKE_METRICS, mem_used: ++used }));
    use(5).start(machine);
    const found = await eventually(async () => {
      const samples = await sampler.between('a', 0, Infinity);
      expect(samples.length).toBeGreaterThan(3);
      return samples;
    });
    expect(found.slice(0, 3).map((each) => each.memUsed)).toEqual([1, 2, 3]);
  });

  it('leaves a paused one alone, keeps its history and goes on later', async () => {
    const machine = await make('a');
    use(5).start(machine);
    await sampler.last('a');
    sampler.pause('a');
    sampler.pause('a');
    const before = await sampler.between('a', 0, Infinity);
    const { dials } = machine;
    const other = await make('b');
    sampler.start(other);
    await eventually(() => expect(other.seen.length).toBeGreaterThan(5)); // time enough for the first one as well
    expect(machine.dials).toBe(dials);
    expect(await sampler.between('a', 0, Infinity)).toEqual(before);
    sampler.start(machine);
    await eventually(async () =>
      expect((await sampler.between('a', 0, Infinity)).length).toBeGreaterThan(before.length + 1),
    );
  });

  it('asks in one rhythm when it is told twice that a sandbox runs', async () => {
    const machine = await make('a');
    use(60_000).start(machine);
    sampler.start(machine);
    await sampler.last('a');
    await eventually(() => expect(machine.open).toBe(0));
    expect(machine.dials).toBe(2); // the first one was given up
    expect(await sampler.between('a', 0, Infinity)).toHaveLength(1);
  });

  it('gives up a question under way when the sandbox pauses, ends or all is over', async () => {
    const named = await Promise.all(['paused', 'ended', 'left'].map(make));
    for (const machine of named) machine.answer = () => undefined;
    use(60_000);
    for (const machine of named) sampler.start(machine);
    await eventually(() => expect(named.map((machine) => machine.seen.length)).toEqual([1, 1, 1]));
    const waits = named.map(({ id }) => sampler.between(id, 0, Infinity));
    sampler.pause('paused');
    sampler.forget('ended');
    sampler.close();
    sampler.close();
    expect(await Promise.all(waits)).toEqual([[], [], []]);
    await eventually(() => expect(named.map((machine) => machine.open)).toEqual([0, 0, 0]));
    sampler.start(named[0]!);
    expect(await sampler.between('paused', 0, Infinity)).toEqual([]);
    expect(named[0]!.dials).toBe(1);
  });

  it('lets more silent ones than it asks at once delay nobody for long', async () => {
    const silent = await Promise.all(Array.from({ length: 33 }, (_, index) => make(`silent${index}`)));
    for (const machine of silent) machine.answer = () => undefined;
    const good = await make('good');
    use(20);
    for (const machine of silent) sampler.start(machine);
    await eventually(() => expect(silent.filter(({ seen }) => seen.length > 0)).toHaveLength(32));
    sampler.start(good);
    // 2 s until the silent ones have had their time; from then on they wait and the good one doesn't.
    await eventually(() => expect(good.seen.length).toBeGreaterThan(10), 15_000); // 22 s if they kept their places
    // Ending those that have a place hands the places on.
    for (const machine of silent) sampler.forget(machine.id);
    const { length } = good.seen;
    await eventually(() => expect(good.seen.length).toBeGreaterThan(length + 3));
  });

  it.each<[string, (res: http.ServerResponse) => void]>([
    ['an error', (res) => res.writeHead(500).end()],
    ['what is no JSON', (res) => res.end('{"ts":')],
    ['a field too few', (res) => res.end(JSON.stringify({ ...FAKE_METRICS, mem_used: undefined }))],
    ['a number out of range', (res) => res.end(JSON.stringify({ ...FAKE_METRICS, cpu_used_pct: 1e9 }))],
    ['text for a number', (res) => res.end(JSON.stringify({ ...FAKE_METRICS, disk_used: '1' }))],
    [
      'a broken answer',
      (res) => res.writeHead(200, { 'content-length': 10 }).write('{', () => res.destroy()),
    ],
    [
      'an endless answer',
      (res) => {
        const more = () => {
          while (!res.destroyed && res.write(' '.repeat(4096)));
        };
        res.on('drain', more);
        more();
      },
    ],
  ])('keeps nothing of %s, and asks again', async (_title, answer) => {
    const machine = await make('a');
    machine.answer = answer;
    use(5).start(machine);
    expect(await sampler.between('a', 0, Infinity)).toEqual([]);
    await eventually(() => expect(machine.seen.length).toBeGreaterThan(1));
    machine.answer = (res) => res.end(JSON.stringify(FAKE_METRICS));
    await eventually(async () => expect(await sampler.last('a')).toMatchObject({ cpuUsedPct: 12.5 }));
  });
});
