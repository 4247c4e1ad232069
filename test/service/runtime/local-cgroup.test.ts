import { locateCgroups, unenforcedLimits } from '../../../service/runtime/local-cgroup';

describe('locateCgroups()', () => {
  it('finds our own group in each hierarchy of version 1, and in version 2 beside it', () => {
    const mountinfo = [
      '30 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro',
      '31 30 0:27 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory',
      '32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct',
      '33 30 0:29 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio',
      '34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw',
    ].join('\n');
    const own = '7:memory:/a/b:c\n6:cpu,cpuacct:/\n5:blkio:/\n0::/user.slice\n';
    expect(locateCgroups(mountinfo, own)).toEqual({
      v1: { memory: '/sys/fs/cgroup/memory/a/b:c', cpu: '/sys/fs/cgroup/cpu,cpuacct/' },
      v2: '/sys/fs/cgroup/unified/user.slice',
    });
  });

  it('takes off what a container mount has as its root already', () => {
    const mountinfo = '31 30 0:27 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw';
    expect(locateCgroups(mountinfo, '0::/docker/abc/sub')).toEqual({ v1: {}, v2: '/sys/fs/cgroup/sub' });
  });

  it('finds nothing where nothing is', () => {
    expect(locateCgroups('', '')).toEqual({ v1: {}, v2: undefined });
  });
});

describe('unenforcedLimits()', () => {
  it('names each limit that no directory stands for', () => {
    expect(unenforcedLimits(undefined)).toEqual(['memory', 'process count', 'CPU']);
    expect(unenforcedLimits({ version: 2, directories: { freezer: '/x', pids: '/x' } })).toEqual([
      'memory',
      'CPU',
    ]);
    expect(unenforcedLimits({ version: 1, directories: { memory: '/m', pids: '/p', cpu: '/c' } })).toEqual(
      [],
    );
  });
});
