import { once } from 'node:events';
import net from 'node:net';
import os from 'node:os';
import { AGENT_PORT } from '../../protocol/routing';
import { connectEngine } from '../../service/runtime/docker-engine';
import { runHelper } from '../../service/runtime/docker-helper';
import type { NetworkAccess } from '../../service/runtime/runtime';
import { execIn, makeDockerHarness, testImage, whyNoDocker } from '../runtime/docker-harness';
import type { DockerHarness } from '../runtime/docker-harness';
import { eventually, instanceSpec, newInstanceId, request } from '../suites/runtime-suite';
import { OutsideWorld, RESOLVED } from './outside-world';

const skip = whyNoDocker();
const suite = skip === undefined ? describe : describe.skip;

/** One attempt by TCP, UDP or ICMP: prints `open`, or the name of the error; `ETIMEDOUT` after ten seconds, which nothing here expects. */
const PROBE = `
import errno, socket, sys
kind, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
types = {'tcp': (socket.SOCK_STREAM, 0), 'udp': (socket.SOCK_DGRAM, 0), 'icmp': (socket.SOCK_DGRAM, socket.IPPROTO_ICMP)}
s = socket.socket(socket.AF_INET, *types[kind])
s.settimeout(10)
try:
    s.connect((host, port))
    # An echo request; its checksum and identifier are the system's business.
    s.send(bytes([8, 0, 0, 0, 0, 0, 0, 1]) + b'hello' if kind == 'icmp' else b'hello')
    print('open' if s.recv(100).endswith(b'hello') else 'other answer')
except TimeoutError:
    print('ETIMEDOUT')
except OSError as error:
    print(errno.errorcode.get(error.errno, str(error)))
`;
const KINDS = [
  ['tcp', 8000],
  ['udp', 8001],
  ['icmp', 0],
] as const;
const OPEN = { tcp: 'open', udp: 'open', icmp: 'open' };
/** Each kind learns at once that it is refused. */
const REFUSED = { tcp: 'ECONNREFUSED', udp: 'ECONNREFUSED', icmp: 'ECONNREFUSED' };
const EVERYTHING = '0.0.0.0/0';

suite(`network rules of sandboxes on docker${skip === undefined ? '' : ` (skipped: ${skip})`}`, () => {
  let harness: DockerHarness;
  let world: OutsideWorld;
  let hostServer: net.Server;
  const networks = new Map<string, NetworkAccess>();

  const probe = async (id: string, kind: string, host: string, port: number) =>
    (await harness.run(id, ['python3', '-c', PROBE, kind, host, String(port)])).trim();
  const reach = async (id: string, host: string) =>
    Object.fromEntries(
      await Promise.all(
        KINDS.map(async ([kind, port]) => [kind, await probe(id, kind, host, port)] as const),
      ),
    );
  const resolve = async (id: string, name: string) =>
    (await harness.run(id, ['sh', '-c', `getent ahostsv4 ${name} || true`])).split(' ')[0]?.trim();
  const start = async (network: NetworkAccess) => {
    const spec = instanceSpec({ network });
    networks.set(spec.id, network);
    await harness.runtime.start(spec);
    return spec.id;
  };
  const change = async (id: string, network: NetworkAccess) => {
    networks.set(id, network);
    await harness.runtime.setNetwork(id, network);
  };
  const tries = (id: string) => harness.run(id, ['cat', '/tmp/tries']).then(Number, () => 0); // none has ended yet
  /** Tries to get out all the time, so that a moment without rules is found. */
  const hammer = async (id: string, host: string) => {
    const program = `
import socket, time
end = time.time() + 60
tries = 0
while time.time() < end:
    s = socket.socket(); s.settimeout(1)
    try:
        s.connect(('${host}', 8000)); open('/tmp/got-out', 'w').write('yes')
    except OSError:
        time.sleep(0.002)
    s.close()
    tries += 1
    open('/tmp/tries.new', 'w').write(str(tries))
    os.replace('/tmp/tries.new', '/tmp/tries')
`;
    const container = await harness.container(id);
    const exec = await container.exec({ Cmd: ['python3', '-c', `import os${program}`], User: 'user' });
    (await exec.start({ Detach: true })).resume(); // else its connection stays open
    await eventually(async () => expect(await tries(id)).toBeGreaterThan(5), 10_000);
  };
  const goesOnInVain = async (id: string) => {
    const before = await tries(id);
    await eventually(async () => expect(await tries(id)).toBeGreaterThan(before + 5), 10_000);
    await expect(harness.run(id, ['cat', '/tmp/got-out'])).rejects.toThrow('exit code');
  };
  const ownChains = async () => (await harness.hostRules()).filter((rule) => /^-N .*-P\d+$/.test(rule));

  beforeAll(async () => {
    world = await OutsideWorld.open(connectEngine(), testImage() ?? '');
    harness = await makeDockerHarness(
      { onInbound: (_id, _port, stream) => stream.destroy() },
      { nameServers: [world.first], networks },
    );
    await world.connect(harness.bridge);
    hostServer = net.createServer((socket) => socket.on('error', () => undefined).pipe(socket));
    hostServer.listen(0, '0.0.0.0');
    await once(hostServer, 'listening');
  }, 120_000);

  afterEach(async () => {
    for (const { id } of await harness.runtime.list()) await harness.runtime.stop(id);
    networks.clear();
    await eventually(async () => expect(await ownChains()).toEqual([]), 10_000);
  }, 60_000);

  afterAll(async () => {
    hostServer?.close();
    await world?.close();
    await harness?.close();
  }, 60_000);

  it('reaches the world by every protocol without rules, or these tests would prove nothing', async () => {
    const id = await start('full');
    expect([await reach(id, world.first), await reach(id, world.second)]).toEqual([OPEN, OPEN]);
    expect(await resolve(id, 'open.example')).toBe(RESOLVED);
  }, 60_000);

  it('lets what is allowed out, and nothing else when everything is denied', async () => {
    const id = await start({ allowOut: [`${world.second}/32`], denyOut: [EVERYTHING] });
    expect([await reach(id, world.second), await reach(id, world.first)]).toEqual([OPEN, REFUSED]);
  }, 60_000);

  it('refuses what is denied, and lets everything else out', async () => {
    const id = await start({ allowOut: [], denyOut: [`${world.second}/32`] });
    expect([await reach(id, world.second), await reach(id, world.first)]).toEqual([REFUSED, OPEN]);
    expect(await resolve(id, 'denied-other.example')).toBe(RESOLVED);
  }, 60_000);

  it('closes name resolution with the network, and asks nobody outside', async () => {
    const [listed, changed, none] = await Promise.all([
      start({ allowOut: [`${world.second}/32`], denyOut: [EVERYTHING] }),
      start('full'),
      start('none'),
    ]);
    await change(changed, 'none');
    for (const id of [listed, changed, none]) {
      const secret = `secret-${id}.tunnel.example`;
      expect(await resolve(id, secret)).toBe('');
      // By hand, past the resolver.
      expect(['ECONNREFUSED', 'ENETUNREACH']).toContain(await probe(id, 'udp', world.first, 53));
    }
    await change(listed, { allowOut: [`${world.first}/32`], denyOut: [EVERYTHING] });
    expect(await resolve(listed, 'allowed-again.example')).toBe(RESOLVED);
    const questions = (await world.questions()).filter((name) => name.endsWith('.tunnel.example'));
    expect(questions).toEqual([]);
    expect(await world.questions()).toContain('allowed-again.example');
  }, 120_000);

  it('never opens the host, the service’s ports, metadata or a neighbour, whatever is allowed', async () => {
    const hostPort = (hostServer.address() as net.AddressInfo).port;
    const neighbour = await start('full');
    const { NetworkSettings } = await (await harness.container(neighbour)).inspect();
    const { IPAddress: beside = '', Gateway: gateway = '' } =
      Object.values(NetworkSettings.Networks)[0] ?? {};
    const addresses = Object.values(os.networkInterfaces())
      .flatMap((list) => list ?? [])
      .filter((each) => each.family === 'IPv4' && !each.internal)
      .map((each) => each.address);
    expect(addresses).toContain(gateway);
    const metadata = '169.254.169.254';
    const wanted = [...addresses, metadata, beside].map((address) => `${address}/32`);
    const id = await start({ allowOut: [...wanted, EVERYTHING], denyOut: [`${world.second}/32`] });
    expect((await reach(id, world.first)).tcp).toBe('open');
    for (const address of addresses)
      expect([address, await probe(id, 'tcp', address, hostPort)]).toEqual([address, 'ECONNREFUSED']);
    expect(await reach(id, metadata)).toEqual(REFUSED);
    const there = await reach(id, beside);
    expect(Object.values(there)).not.toContain('open');
    expect(await probe(id, 'tcp', gateway, 53)).toBe('ECONNREFUSED');
  }, 120_000);

  it('can’t be lifted from inside, not even as root', async () => {
    const id = await start({ allowOut: [], denyOut: [`${world.second}/32`] });
    for (const attempt of [
      'iptables -F',
      'iptables -I OUTPUT -j ACCEPT',
      // Another address, hardware or not, would be another sandbox's rules, or none.
      `python3 -c "import fcntl,socket,struct; fcntl.ioctl(socket.socket(), 0x8924, struct.pack('16sH14s', b'eth0', 1, bytes([10,1,1,1,1,1])))"`,
      `python3 -c "import fcntl,socket,struct; fcntl.ioctl(socket.socket(), 0x8916, struct.pack('16sHH4s8x', b'eth0', 2, 0, bytes([172,17,0,99])))"`,
      // Packets made by hand.
      `python3 -c "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)"`,
      `python3 -c "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)"`,
      'unshare --net true',
      'unshare --user --map-root-user --net true',
    ])
      await expect(harness.run(id, ['sh', '-c', attempt], 'root')).rejects.toThrow('exit code');
    const asRoot = await harness.run(id, ['python3', '-c', PROBE, 'tcp', world.second, '8000'], 'root');
    expect(asRoot.trim()).toBe('ECONNREFUSED');
  }, 60_000);

  it('has no IPv6 to get around them', async () => {
    const id = await start({ allowOut: [], denyOut: [EVERYTHING, '192.0.2.0/24'] });
    const addresses = await harness.run(id, ['sh', '-c', 'cat /proc/net/if_inet6 2>/dev/null || true']);
    expect(addresses.split('\n').filter((line) => line !== '' && !/\blo$/.test(line))).toEqual([]);
    const rules = await harness.hostRules();
    // IPv6's own table has them, too: whoever turns it on opens nothing.
    expect(rules.filter((rule) => rule.startsWith('-A INPUT'))).toHaveLength(2);
  }, 60_000);

  it('holds at once when it is changed, for connections that stand, too', async () => {
    const id = await start('full');
    const container = await harness.container(id);
    const talk = `
import socket, time
s = socket.create_connection(('${world.second}', 8000), 5)
s.settimeout(5)
try:
    while True:
        s.send(b'x'); s.recv(1)
        open('/tmp/talks', 'w').write('yes')
        time.sleep(0.02)
except OSError as error:
    open('/tmp/ended', 'w').write(type(error).__name__)
`;
    const exec = await container.exec({ Cmd: ['python3', '-c', talk], User: 'user' });
    (await exec.start({ Detach: true })).resume(); // else its connection stays open
    await eventually(async () => void (await execIn(container, ['cat', '/tmp/talks'])), 10_000);
    await change(id, { allowOut: [], denyOut: [`${world.second}/32`] });
    expect(await reach(id, world.second)).toEqual(REFUSED);
    const ended = await eventually(
      () => execIn(container, ['sh', '-c', 'test -s /tmp/ended && cat /tmp/ended']),
      10_000,
    );
    expect(['ConnectionResetError', 'ConnectionRefusedError', 'BrokenPipeError']).toContain(ended);
    await change(id, 'none');
    expect(await reach(id, world.first)).toEqual(REFUSED);
    await change(id, 'full');
    expect([await reach(id, world.first), await reach(id, world.second)]).toEqual([OPEN, OPEN]);
    await eventually(async () => expect(await ownChains()).toEqual([]), 10_000);
  }, 120_000);

  it('opens a sandbox that began without a network, in the bounds of its rules from the first packet on', async () => {
    const id = await start('none');
    await hammer(id, world.first);
    await change(id, { allowOut: [`${world.second}/32`], denyOut: [EVERYTHING] });
    await goesOnInVain(id);
    expect([await reach(id, world.second), await reach(id, world.first)]).toEqual([OPEN, REFUSED]);
    expect(await request(await harness.runtime.adopt(id), AGENT_PORT, '/health')).toMatchObject({
      status: 204,
    });
    await change(id, 'full');
    expect(await resolve(id, 'late.example')).toBe(RESOLVED);
    await change(id, 'none');
    expect(await reach(id, world.second)).toEqual(REFUSED);
  }, 120_000);

  it('survives a pause, and a restart of the service', async () => {
    const rules = { allowOut: [], denyOut: [`${world.second}/32`] };
    const [ruled, late] = await Promise.all([start(rules), start('none')]);
    await change(late, rules);
    const others = await start(rules);
    await hammer(others, world.second); // no moment of the restart is open, either
    await harness.runtime.pause(ruled);
    const set = await harness.hostRules();
    await harness.restart();
    await goesOnInVain(others);
    // In no order that matters: which chain is whose may change.
    expect((await harness.hostRules()).map(unnumbered).sort()).toEqual(set.map(unnumbered).sort());
    await Promise.all([harness.runtime.adopt(ruled), harness.runtime.adopt(late)]);
    await harness.runtime.resume(ruled);
    for (const id of [ruled, late])
      expect([await reach(id, world.second), await reach(id, world.first)]).toEqual([REFUSED, OPEN]);
  }, 120_000);

  it('is set again by the next look when somebody took rules away', async () => {
    const id = await start({ allowOut: [], denyOut: [`${world.second}/32`] });
    const chain = (await ownChains())[0]?.split(' ')[1] ?? '';
    const script = `iptables -w 5 -F ${chain}`;
    await runHelper(harness.docker, { image: testImage() ?? '', serviceId: 'tests', script });
    expect((await reach(id, world.second)).tcp).toBe('open');
    const real = Date.now;
    Date.now = () => real() + 61_000; // a look believes rules that are younger than a minute
    try {
      expect((await harness.runtime.check()).filter(({ ok }) => !ok)).toEqual([]);
    } finally {
      Date.now = real;
    }
    await eventually(async () => expect(await reach(id, world.second)).toEqual(REFUSED), 10_000);
  }, 60_000);

  it('goes with the sandbox, however that ends, and with a start that fails', async () => {
    const rules = { allowOut: [], denyOut: [EVERYTHING, `${world.second}/32`] };
    const [stopped, killed] = await Promise.all([start(rules), start(rules)]);
    expect(await ownChains()).toHaveLength(2);
    await harness.runtime.stop(stopped);
    await eventually(async () => expect(await ownChains()).toHaveLength(1), 10_000);
    await harness.killFromOutside?.(killed);
    await eventually(async () => expect(await ownChains()).toEqual([]), 10_000);
    const id = newInstanceId();
    const given = AbortSignal.timeout(1);
    await expect(harness.runtime.start(instanceSpec({ id, network: rules }), given)).rejects.toThrow();
    await eventually(async () => expect(await ownChains()).toEqual([]), 10_000);
  }, 60_000);

  it('belongs to one sandbox each, however many start at once', async () => {
    const denied = (index: number) => ({
      allowOut: [],
      denyOut: [`${index % 2 === 0 ? world.first : world.second}/32`],
    });
    const ids = await Promise.all([0, 1, 2, 3].map((index) => start(denied(index))));
    for (const [index, id] of ids.entries()) {
      const [closed, open] = index % 2 === 0 ? [world.first, world.second] : [world.second, world.first];
      expect([await probe(id, 'tcp', closed, 8000), await probe(id, 'tcp', open, 8000)]).toEqual([
        'ECONNREFUSED',
        'open',
      ]);
    }
  }, 120_000);
});

function unnumbered(rule: string): string {
  return rule.replace(/-P\d+/g, '-P');
}
