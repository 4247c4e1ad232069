import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import {
  Cgroups,
  parseCgroup,
  parseMeminfo,
  parseProcess,
  readHost,
  sumTree,
} from '../../kernel-image/agent/usage';

const V2_STAT =
  'anon 314572800\nfile 52428800\nkernel 1048576\ninactive_file 20971520\nactive_file 31457280\n';
const V1_STAT = [
  'cache 4096',
  'inactive_file 1024',
  'hierarchical_memory_limit 1073741824',
  'hierarchical_memsw_limit 1073741824',
  'total_cache 52428800',
  'total_inactive_file 20971520',
  '',
].join('\n');

describe('parseCgroup', () => {
  it('reads version 2', () => {
    expect(
      parseCgroup({
        'cpu.max': '150000 100000\n',
        'cpu.stat': 'usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\nnr_periods 3\n',
        'memory.max': '2147483648\n',
        'memory.current': '387973120\n',
        'memory.stat': V2_STAT,
      }),
    ).toEqual({
      cpuMs: 2500,
      cpuCount: 2,
      memoryTotal: 2147483648,
      memoryUsed: 387973120 - 20971520,
      memoryCache: 52428800,
    });
  });

  it('reads version 1, whose cpu.stat has no use and whose limit may be of a group above', () => {
    expect(
      parseCgroup({
        'cpu.cfs_quota_us': '200000\n',
        'cpu.cfs_period_us': '100000\n',
        'cpu.stat': 'nr_periods 7\nnr_throttled 1\nthrottled_time 99\n',
        'cpuacct.usage': '2500000000\n',
        'memory.limit_in_bytes': '2147483648\n',
        'memory.usage_in_bytes': '387973120\n',
        'memory.stat': V1_STAT,
      }),
    ).toEqual({
      cpuMs: 2500,
      cpuCount: 2,
      memoryTotal: 1073741824,
      memoryUsed: 387973120 - 20971520,
      memoryCache: 52428800,
    });
  });

  it('tells no limit where there is none', () => {
    const two = parseCgroup({ 'cpu.max': 'max 100000\n', 'memory.max': 'max\n', 'memory.current': '5\n' });
    expect(two).toEqual({ memoryUsed: 5 });
    const one = parseCgroup({
      'cpu.cfs_quota_us': '-1\n',
      'cpu.cfs_period_us': '100000\n',
      'cpuacct.usage': '0\n',
      'memory.limit_in_bytes': '9223372036854771712\n',
      'memory.stat': 'hierarchical_memory_limit 9223372036854771712\n',
    });
    expect(one).toEqual({ cpuMs: 0 });
  });

  it('knows nothing from nothing, and from what makes no sense', () => {
    expect(parseCgroup({})).toEqual({});
    expect(
      parseCgroup({
        'cpu.max': '\n',
        'memory.current': 'many',
        'memory.stat': 'file\n',
        'cpuacct.usage': '',
      }),
    ).toEqual({});
  });

  it('never tells less than nothing: pages come back while the files are read', () => {
    expect(parseCgroup({ 'memory.current': '10', 'memory.stat': 'inactive_file 20' }).memoryUsed).toBe(0);
  });
});

describe('Cgroups', () => {
  it('takes each file from the first directory that has it, and leaves out what nobody has', async () => {
    const directory = await fs.mkdtemp(path.join(os.tmpdir(), 'usage-'));
    try {
      const [memory = '', cpu = ''] = ['memory', 'cpu'].map((name) => path.join(directory, name));
      await fs.mkdir(memory);
      await fs.mkdir(cpu);
      await fs.writeFile(path.join(memory, 'memory.usage_in_bytes'), '100\n');
      await fs.writeFile(path.join(cpu, 'cpuacct.usage'), '1000000\n');
      expect(new Cgroups([directory, memory, cpu]).read()).toEqual({ memoryUsed: 100, cpuMs: 1 });
      expect(new Cgroups([]).read()).toEqual({});
    } finally {
      await fs.rm(directory, { recursive: true });
    }
  });
});

describe('the host', () => {
  it('has what /proc/meminfo says', () => {
    const text =
      'MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    600 kB\nBuffers:          50 kB\nCached:          300 kB\nSwapCached:        9 kB\n';
    expect(parseMeminfo(text)).toEqual({ memoryTotal: 1024000, memoryUsed: 409600, memoryCache: 358400 });
  });

  it('has something also where there is no such text', () => {
    const { memoryTotal, memoryUsed, memoryCache } = parseMeminfo('');
    expect(memoryTotal).toBe(os.totalmem());
    expect(memoryUsed).toBeGreaterThan(0);
    expect(memoryCache).toBe(0);
  });

  it('can be read here', () => {
    const host = readHost();
    for (const value of Object.values(host)) expect(value).toBeGreaterThan(0);
  });
});

describe('a tree of processes', () => {
  const line = (pid: number, parent: number, name: string, ticks: string, pages: number) =>
    `${pid} (${name}) S ${parent} 1 1 0 -1 4194560 9 9 0 0 ${ticks} 20 0 1 0 5000 1000000 ${pages} 18446744073709551615`;

  it('is read from lines whose names hold anything', () => {
    expect(parseProcess(line(12, 3, 'a) R 7 (b', '10 5 3 2', 25))).toEqual({
      pid: 12,
      parentPid: 3,
      cpuMs: 200,
      memoryBytes: 102400,
    });
    expect(parseProcess('')).toBeUndefined();
    expect(parseProcess('12 (cut')).toBeUndefined();
  });

  it('is added up from its root on, leaving out strangers', () => {
    const at = (pid: number, parentPid: number, cpuMs: number, memoryBytes: number) => ({
      pid,
      parentPid,
      cpuMs,
      memoryBytes,
    });
    const table = [
      at(1, 0, 1000, 1000),
      at(5, 1, 1, 10),
      at(6, 5, 2, 20),
      at(7, 6, 4, 40),
      at(8, 5, 8, 80),
      at(9, 1, 500, 500),
    ];
    expect(sumTree(table, 5)).toEqual({ cpuMs: 15, memoryUsed: 150 });
    expect(sumTree(table, 77)).toEqual({});
    expect(sumTree([at(5, 6, 1, 1), at(6, 5, 1, 1)], 5)).toMatchObject({
      cpuMs: expect.any(Number) as number,
    });
  });
});
