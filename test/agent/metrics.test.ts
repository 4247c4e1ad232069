import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { combine, cpuPercent, createMeter, diskFigures } from '../../kernel-image/agent/metrics';
import { AgentMetrics } from '../../protocol/agent-metrics';
import { eventually, Machine } from './agent-fixture';

const HOST = { cpuMs: 9e6, cpuCount: 8, memoryTotal: 1000, memoryUsed: 700, memoryCache: 100 };

describe('combine', () => {
  it('believes groups before processes before the host', () => {
    expect(combine(HOST, {}, {})).toEqual(HOST);
    const tree = { cpuMs: 5, memoryUsed: 50, memoryCache: 0 };
    expect(combine(HOST, tree, {})).toEqual({ ...HOST, ...tree });
    expect(combine(HOST, tree, { memoryUsed: 40, memoryCache: 4, memoryTotal: 500, cpuCount: 2 })).toEqual({
      cpuMs: 5,
      cpuCount: 2,
      memoryTotal: 500,
      memoryUsed: 40,
      memoryCache: 4,
    });
  });

  it('lets no limit reach beyond the host and no use beyond the limit', () => {
    expect(combine(HOST, {}, { memoryTotal: 9e18 }).memoryTotal).toBe(1000);
    expect(combine(HOST, { memoryUsed: 5000 }, { memoryTotal: 600 }).memoryUsed).toBe(600);
  });
});

describe('cpuPercent', () => {
  it.each([
    ['idle', 0, 0],
    ['one of two', 1000, 50],
    ['rounded', 1.2345, 0.06],
    ['more than there is', 9000, 100],
    ['less than before', -500, 0],
  ])('%s', (_title, usedMs, percent) => {
    const then = { at: 500, cpuMs: 700 };
    expect(cpuPercent(then, { at: 1500, cpuMs: 700 + usedMs, cpuCount: 2 })).toBe(percent);
  });
});

describe('diskFigures', () => {
  it('counts what is not available as used', () => {
    expect(diskFigures({ blocks: 100n, bavail: 60n, bsize: 4096n })).toEqual({
      disk_used: 40 * 4096,
      disk_total: 100 * 4096,
    });
  });

  it('tells exact use and a number that JSON can carry where a file system knows no bound', () => {
    const blocks = 2n ** 63n / 4096n;
    expect(diskFigures({ blocks, bavail: blocks - 3n, bsize: 4096n })).toEqual({
      disk_used: 3 * 4096,
      disk_total: Number.MAX_SAFE_INTEGER,
    });
  });
});

describe('the meter', () => {
  let directory: string;
  const write = (file: string, text: string) => fs.writeFile(path.join(directory, file), text);

  beforeEach(async () => {
    directory = await fs.mkdtemp(path.join(os.tmpdir(), 'metrics-'));
    await write('memory.max', '1048576');
    await write('memory.current', '4096');
    await write('cpu.max', '100000 100000');
    await write('cpu.stat', 'usage_usec 0');
  });

  afterEach(() => fs.rm(directory, { recursive: true }));

  it('reads the groups that it is told', async () => {
    const meter = createMeter({
      singleUser: true,
      cgroups: [directory],
      home: directory,
      isSupervised: false,
    });
    expect(await meter()).toMatchObject({
      cpu_count: 1,
      cpu_used_pct: 0,
      mem_total: 1048576,
      mem_used: 4096,
      mem_cache: 0,
      mem_total_mib: 1,
      mem_used_mib: 0,
    });
  });

  it('tells the load since the call before, and where two are too close together the figure before', async () => {
    let clock = 1000;
    const options = { singleUser: true, cgroups: [directory], home: directory, isSupervised: false };
    const meter = createMeter({ ...options, now: () => clock });
    const percent = async () => (await meter()).cpu_used_pct;
    expect(await percent()).toBe(0);
    clock += 1000;
    await write('cpu.stat', 'usage_usec 250000');
    expect(await percent()).toBe(25);
    clock += 10;
    await write('cpu.stat', 'usage_usec 260000');
    expect(await Promise.all([percent(), percent()])).toEqual([25, 25]);
    // The short one is not lost: it counts in the next.
    clock += 90;
    await write('cpu.stat', 'usage_usec 300000');
    expect(await percent()).toBe(50);
    clock += 1000;
    expect(await percent()).toBe(0);
  });

  it('counts on after a call that failed', async () => {
    let clock = 1000;
    const home = path.join(directory, 'home');
    await fs.mkdir(home);
    const meter = createMeter({
      singleUser: true,
      cgroups: [directory],
      home,
      isSupervised: false,
      now: () => clock,
    });
    await fs.rmdir(home);
    await expect(meter()).rejects.toThrow('ENOENT');
    await fs.mkdir(home);
    clock += 1000;
    await write('cpu.stat', 'usage_usec 500000');
    expect((await meter()).cpu_used_pct).toBe(50);
  });

  it('adds up its own processes where there is no group', async () => {
    const meter = createMeter({ singleUser: true, cgroups: [], home: directory, isSupervised: false });
    const { rss } = process.memoryUsage();
    const { mem_used: used, mem_total: total, cpu_count: cpus } = await meter();
    expect(used).toBeGreaterThan(rss / 2);
    expect(used).toBeLessThan(rss * 4);
    expect([total, cpus]).toEqual([os.totalmem(), os.availableParallelism()]);
  });
});

describe('GET /metrics', () => {
  let machine: Machine;

  beforeEach(async () => {
    machine = await Machine.make();
  });

  afterEach(() => machine.close());

  const read = async () => {
    const answer = await machine.request('GET', '/metrics');
    expect(answer).toMatchObject({ status: 200, headers: { 'cache-control': 'no-store' } });
    return AgentMetrics.strict().parse(JSON.parse(answer.body.toString()));
  };

  it('tells exactly the keys of the contract, about its own processes', async () => {
    await machine.start('agent');
    const metrics = await read();
    expect(Math.abs(metrics.ts - Date.now() / 1000)).toBeLessThan(5);
    // The agent alone: tens of megabytes, not what the whole host uses.
    expect(metrics.mem_used).toBeGreaterThan(10 * 1024 * 1024);
    expect(metrics.mem_used).toBeLessThan(500 * 1024 * 1024);
    expect(metrics.mem_total).toBe(os.totalmem());
    expect(metrics.mem_total_mib).toBe(Math.floor(metrics.mem_total / 1048576));
    expect(metrics.disk_used).toBeGreaterThan(0);
    expect(metrics.disk_total).toBeGreaterThan(metrics.disk_used);
    expect(metrics.cpu_used_pct).toBe(Math.round(metrics.cpu_used_pct * 100) / 100);
  });

  it('has no body when it fails, and goes on with the next call', async () => {
    await machine.start('agent');
    await read();
    await fs.rename(machine.home, `${machine.home}-away`);
    const failed = await machine.request('GET', '/metrics');
    expect([failed.status, failed.body.length]).toEqual([500, 0]);
    await fs.rename(`${machine.home}-away`, machine.home);
    await eventually(read);
  });
});
