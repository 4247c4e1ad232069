import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { createSandboxMemory, ownMemoryGroups, SandboxMemory } from '../../kernel-image/agent/sandbox-memory';

const V2_EVENTS = 'low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 0\n';
const V1_CONTROL = 'oom_kill_disable 0\nunder_oom 0\noom_kill 4\n';
const V1_NO_LIMIT = '9223372036854771712\n';

describe('memory of a sandbox', () => {
  let directory: string;
  let proc: string;

  beforeEach(async () => {
    directory = await fs.mkdtemp(path.join(os.tmpdir(), 'sandbox-memory-'));
    proc = path.join(directory, 'proc');
    await write('proc', { vmstat: 'nr_free_pages 9\noom_kill 5\nnuma_hit 6\n' });
  });

  afterEach(() => fs.rm(directory, { recursive: true }));

  async function write(place: string, files: Record<string, string>): Promise<string> {
    for (const [name, text] of Object.entries(files)) {
      const file = path.join(directory, place, name);
      await fs.mkdir(path.dirname(file), { recursive: true });
      await fs.writeFile(file, text);
    }
    return path.join(directory, place);
  }

  async function all(groups: readonly string[]): Promise<object> {
    const memory = new SandboxMemory(groups, proc);
    return { oomKills: memory.oomKills(), ...(await memory.figures()) };
  }

  it('is read from a group of version 2', async () => {
    const group = await write('two', {
      'memory.events': V2_EVENTS,
      'memory.peak': '700\n',
      'memory.max': '1000\n',
    });
    expect(await all([group])).toEqual({ oomKills: 2, peakBytes: 700, limitBytes: 1000 });
  });

  it('is read from a group of version 1, found behind those of other controllers', async () => {
    const cpu = await write('cpu', { 'cpuacct.usage': '1\n' });
    const group = await write('one', {
      'memory.oom_control': V1_CONTROL,
      'memory.max_usage_in_bytes': '900\n',
      'memory.limit_in_bytes': V1_NO_LIMIT,
      'memory.stat': 'cache 1\nhierarchical_memory_limit 1000\n',
    });
    expect(await all([cpu, group])).toEqual({ oomKills: 4, peakBytes: 900, limitBytes: 1000 });
  });

  it('has no limit where a group has none, in the spelling of either version, and no peak on older kernels', async () => {
    const two = await write('two', { 'memory.events': V2_EVENTS, 'memory.max': 'max\n' });
    expect(await all([two])).toEqual({ oomKills: 2 });
    const one = await write('one', {
      'memory.oom_control': V1_CONTROL,
      'memory.limit_in_bytes': V1_NO_LIMIT,
      'memory.stat': `hierarchical_memory_limit ${V1_NO_LIMIT}`,
    });
    expect(await all([one])).toEqual({ oomKills: 4 });
  });

  it('counts the machine’s kills where no group counts any', async () => {
    const old = await write('old', { 'memory.oom_control': 'oom_kill_disable 0\nunder_oom 0\n' });
    expect(await all([path.join(directory, 'no-such-group'), old])).toEqual({ oomKills: 5 });
  });

  it('is unknown where nobody knows', async () => {
    await fs.rm(path.join(proc, 'vmstat'));
    expect(await all([])).toEqual({});
  });

  it('is counted anew each time', async () => {
    const group = await write('two', { 'memory.events': V2_EVENTS });
    const memory = new SandboxMemory([group], proc);
    expect(memory.oomKills()).toBe(2);
    await write('two', { 'memory.events': V2_EVENTS.replace('oom_kill 2', 'oom_kill 12') });
    expect(memory.oomKills()).toBe(12);
  });

  it('is that of the group that this process is in, and limited by those above, where the runtime made none', async () => {
    const mounted = path.join(directory, 'mounted');
    await write('proc/self', {
      cgroup: '0::/slice/box\n',
      mountinfo: `1 2 0:1 / / rw - ext4 /dev/vda rw\n2 1 0:2 / ${mounted} rw - cgroup2 cgroup rw\n`,
    });
    expect(ownMemoryGroups(proc)).toEqual([`${mounted}/slice/box`, `${mounted}/slice`, mounted]);
    await write('mounted', { 'slice/memory.max': '1000\n', 'slice/memory.events': 'oom_kill 8\n' });
    await write('mounted', { 'slice/box/memory.max': 'max\n', 'slice/box/memory.events': 'oom_kill 4\n' });
    expect(await all(ownMemoryGroups(proc))).toEqual({ oomKills: 4, limitBytes: 1000 });
  });

  it('is found at the mount where a version 1 engine shows this group alone under another name', async () => {
    await write('proc/self', {
      cgroup: '9:name=systemd:/\n4:memory:/engine/abc\n3:cpu,cpuacct:/engine/abc\n0::/\n',
      mountinfo: [
        '1 0 0:1 /engine/abc /groups/memory ro shared:9 - cgroup cgroup rw,memory',
        '2 0 0:2 /engine/abc /groups/cpu ro - cgroup cgroup rw,cpu,cpuacct',
        '3 0 0:3 /other /groups/elsewhere ro - cgroup cgroup rw,memory',
        '',
      ].join('\n'),
    });
    expect(ownMemoryGroups(proc)).toEqual(['/groups/elsewhere', '/groups/memory']);
  });

  it('is nowhere where there is no /proc', () => {
    expect(ownMemoryGroups(path.join(directory, 'nothing'))).toEqual([]);
  });

  it('is asked of the groups that the runtime made first', async () => {
    const group = await write('made', { 'memory.events': 'oom_kill 77\n' });
    expect(createSandboxMemory({ singleUser: true, cgroups: [group] }).oomKills()).toBe(77);
  });
});
