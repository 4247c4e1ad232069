import {
  containerOptions,
  LABELS,
  resourceLimits,
  toOutput,
  toRecord,
  toStats,
} from '../../../service/runtime/docker-container';
import type { ContainerInput } from '../../../service/runtime/docker-container';
import type { InstanceSpec } from '../../../service/runtime/runtime';

const spec: InstanceSpec = {
  id: 'i1',
  env: { SECRET: 'of the user' },
  resources: { cpuCount: 2, memoryMB: 512, diskSizeMB: 1024, pids: 100, openFiles: 4096 },
  network: 'full',
  labels: { team: 'a "b"\n' },
  deadlineAt: 1,
};
const input: ContainerInput = {
  spec,
  name: 'cellbox-abc',
  image: 'sha256:1',
  serviceId: 's1',
  network: 'cellbox-net',
  mac: '0a:01:02:03:04:05',
  nameServers: [],
  tunnelDir: '/data/tunnels/i1',
  env: { CELLBOX_TUNNEL: 'unix:/run/cellbox/service.sock' },
  createdAt: 1_700_000_000_123,
  limits: { diskQuota: false },
  isolation: { name: 'runc', ociRuntime: 'runc', isHostKernel: true },
};

describe('containerOptions()', () => {
  it('drops every capability but the ten of the profile, and never loosens seccomp', () => {
    const { HostConfig } = containerOptions(input);
    expect(HostConfig?.CapDrop).toEqual(['ALL']);
    expect(HostConfig?.CapAdd).toHaveLength(10);
    for (const dangerous of ['SYS_ADMIN', 'NET_ADMIN', 'NET_RAW', 'SYS_PTRACE', 'MKNOD', 'SYS_MODULE'])
      expect(HostConfig?.CapAdd).not.toContain(dangerous);
    expect(HostConfig?.SecurityOpt).toBeUndefined();
    expect(HostConfig?.Privileged).toBe(false);
    expect(HostConfig?.PortBindings).toBeUndefined();
    expect(HostConfig?.Binds).toBeUndefined();
  });

  it('mounts nothing of the host but the tunnel’s directory, read-only', () => {
    expect(containerOptions(input).HostConfig?.Mounts).toEqual([
      { Type: 'bind', Source: '/data/tunnels/i1', Target: '/run/cellbox', ReadOnly: true },
    ]);
  });

  it('keeps the user’s environment out of the container’s configuration, which others may inspect', () => {
    expect(JSON.stringify(containerOptions(input))).not.toContain('of the user');
  });

  it('takes the network away when asked', () => {
    expect(containerOptions(input).HostConfig?.NetworkMode).toBe('cellbox-net');
    const none = containerOptions({ ...input, spec: { ...spec, network: 'none' } });
    expect(none.HostConfig?.NetworkMode).toBe('none');
    expect([none.MacAddress, none.NetworkingConfig]).toEqual([undefined, undefined]);
  });

  it('gives it the address that its rules go by, as every version of the engine wants it', () => {
    const { mac } = input;
    expect(containerOptions(input)).toMatchObject({
      MacAddress: mac,
      NetworkingConfig: { EndpointsConfig: { 'cellbox-net': { MacAddress: mac } } },
    });
  });

  it('names name servers, so that they are asked from inside and not from the host', () => {
    expect(containerOptions(input).HostConfig?.Dns).toBeUndefined();
    expect(containerOptions({ ...input, nameServers: ['192.0.2.53'] }).HostConfig?.Dns).toEqual([
      '192.0.2.53',
    ]);
  });

  it('takes the OCI runtime of its isolation level, and is labelled with the level', () => {
    const isolation = { name: 'gvisor', ociRuntime: 'runsc', isHostKernel: false };
    const { HostConfig, Labels } = containerOptions({ ...input, isolation });
    expect([HostConfig?.Runtime, Labels?.[LABELS.isolation]]).toEqual(['runsc', 'gvisor']);
  });

  it('mounts the names of the name servers, read-only, where the engine’s resolver is out of reach', () => {
    const resolvConf = '/data/tunnels/i1/resolv.conf';
    expect(containerOptions({ ...input, resolvConf }).HostConfig?.Mounts).toContainEqual({
      Type: 'bind',
      Source: resolvConf,
      Target: '/etc/resolv.conf',
      ReadOnly: true,
    });
  });
});

describe('resourceLimits()', () => {
  it('leaves no swap, and takes memory in bytes and CPU in billionths', () => {
    expect(resourceLimits(spec.resources, { diskQuota: false })).toEqual({
      Memory: 512 * 1024 * 1024,
      MemorySwap: 512 * 1024 * 1024,
      NanoCpus: 2_000_000_000,
      PidsLimit: 100,
      Ulimits: [
        { Name: 'nofile', Soft: 4096, Hard: 4096 },
        { Name: 'fsize', Soft: 1_073_741_824, Hard: 1_073_741_824 },
      ],
      ShmSize: 128 * 1024 * 1024,
    });
  });

  it('stays within what the engine can do, and asks for a disk limit only where there is one', () => {
    const limits = resourceLimits(spec.resources, { cpus: 1, openFiles: 1000, diskQuota: true });
    expect(limits).toMatchObject({
      NanoCpus: 1_000_000_000,
      Ulimits: expect.arrayContaining([{ Name: 'nofile', Soft: 1000, Hard: 1000 }]),
      StorageOpt: { size: '1024M' },
    });
  });
});

describe('toRecord()', () => {
  const Labels = containerOptions(input).Labels ?? {};

  it('gives back what was put into the labels', () => {
    expect(toRecord({ Labels, State: 'running', Created: 5 }, new Set())).toEqual({
      id: 'i1',
      state: 'running',
      startedAt: 1_700_000_000_123,
      labels: spec.labels,
    });
  });

  it.each([
    ['running', 'running'],
    ['paused', 'paused'],
    ['created', 'starting'],
    ['restarting', 'starting'],
    ['exited', 'halted'],
    ['dead', 'dead'],
    ['removing', 'dead'],
    ['something-new', 'dead'],
  ])('tells the engine’s %s as %s', (State, state) => {
    expect(toRecord({ Labels, State, Created: 5 }, new Set())?.state).toBe(state);
  });

  it('tells a machine that is being started as starting, though the engine says running', () => {
    expect(toRecord({ Labels, State: 'running', Created: 5 }, new Set(['i1']))?.state).toBe('starting');
  });

  it('survives labels that someone else wrote', () => {
    for (const text of ['{', '"text"', 'null', '[1]', '{"a":1,"b":"two"}']) {
      const record = toRecord(
        {
          Labels: { [LABELS.id]: 'x', [LABELS.labels]: text, [LABELS.createdAt]: 'soon' },
          State: 'running',
          Created: 7,
        },
        new Set(),
      );
      expect(record).toEqual({
        id: 'x',
        state: 'running',
        startedAt: 7000,
        labels: text.includes('two') ? { b: 'two' } : {},
      });
    }
    expect(toRecord({ Labels: {}, State: 'running', Created: 7 }, new Set())).toBeUndefined();
  });
});

describe('toStats()', () => {
  type Stats = Parameters<typeof toStats>[0];

  it.each([['total_inactive_file'], ['inactive_file']])('does not count file pages (%s)', (field) => {
    const stats = {
      cpu_stats: { cpu_usage: { total_usage: 2_500_000 } },
      memory_stats: { usage: 1000, limit: 5000, stats: { [field]: 300 } },
      pids_stats: { current: 7 },
    } as unknown as Stats;
    expect(toStats(stats)).toEqual({ cpuMs: 2.5, memoryBytes: 700, memoryLimitBytes: 5000, pids: 7 });
  });

  it('tells zeros of a machine that has just ended', () => {
    const stats = { cpu_stats: {}, memory_stats: {}, pids_stats: {} } as unknown as Stats;
    expect(toStats(stats)).toEqual({ cpuMs: 0, memoryBytes: 0, memoryLimitBytes: undefined, pids: 0 });
  });
});

describe('toOutput', () => {
  const frame = (text: string) => {
    const head = Buffer.from([2, 0, 0, 0, 0, 0, 0, 0]);
    head.writeUInt32BE(Buffer.byteLength(text), 4);
    return Buffer.concat([head, Buffer.from(text)]);
  };

  it('gives each line with the time that the engine noted', () => {
    const at = Date.parse('2026-11-21T10:00:00.123Z');
    const log = Buffer.concat([
      frame('2026-11-21T10:00:00.123456789Z first: ü  twice\n'),
      frame('2026-11-21T10:00:00.123456789Z \n'),
      frame('no time here\n'),
      frame(''),
      Buffer.from([1, 0, 0]),
    ]);
    expect(toOutput(log)).toEqual([
      { at, text: 'first: ü  twice\n' },
      { at, text: '\n' },
      { text: 'no time here\n' },
      { text: ' ' },
    ]);
    expect(toOutput(Buffer.alloc(0))).toEqual([]);
  });

  it('takes no more than there is of a piece that claims to be longer', () => {
    const [line] = toOutput(frame('2026-11-21T10:00:00Z cut off').fill(0xff, 4, 8));
    expect(line?.text).toBe('cut off');
  });
});
