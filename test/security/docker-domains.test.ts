import net from 'node:net';
import { connectEngine } from '../../service/runtime/docker-engine';
import { demultiplex } from '../../service/runtime/docker-helper';
import { EVERY_NAME, MACHINE_CONNECTIONS, PROXY_PORTS } from '../../service/runtime/docker-proxy-config';
import type { NetworkAccess } from '../../service/runtime/runtime';
import { execIn, makeDockerHarness, testImage, whyNoDocker } from '../runtime/docker-harness';
import type { DockerHarness } from '../runtime/docker-harness';
import { eventually, instanceSpec } from '../suites/runtime-suite';
import { OutsideWorld, RESOLVED, nameOf } from './outside-world';

const skip = whyNoDocker();
const suite = skip === undefined ? describe : describe.skip;

/**
 * Connects to an address or name, by TLS for a name when there is one, sends bytes and prints what came back until the end or
 * two seconds passed, or the name of the error.
 */
const TALK = `
import errno, socket, ssl, sys
host, port, name, payload = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4].encode().decode('unicode_escape').encode('latin1')
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
heard = b''
try:
    s = socket.create_connection((host, port), 10)
    if name != 'plain':
        s = context.wrap_socket(s, server_hostname=None if name == '' else name)
    s.sendall(payload)
    while True:
        data = s.recv(65536)
        if not data:
            break
        heard += data
        s.settimeout(2)
        if name != 'plain' and heard.endswith(b'\\n'):
            break
except TimeoutError:
    pass
except OSError as error:
    print(type(error).__name__ if error.errno is None or error.errno < 0 or isinstance(error, ssl.SSLError) else errno.errorcode.get(error.errno, str(error)))
print(heard.decode('latin1'))
`;
/** Of a TLS handshake that the proxy ends. */
const CUT = /^(ECONNRESET|SSLEOFError|SSLZeroReturnError|ConnectionResetError)/;
const EVERYTHING = '0.0.0.0/0';

suite(`domain rules of sandboxes on docker${skip === undefined ? '' : ` (skipped: ${skip})`}`, () => {
  let harness: DockerHarness;
  let world: OutsideWorld;
  const networks = new Map<string, NetworkAccess>();

  const domains = (...allowDomains: string[]) => ({
    allowOut: [],
    denyOut: [EVERYTHING],
    allowDomains: allowDomains.sort(),
  });
  const start = async (network: NetworkAccess) => {
    const spec = instanceSpec({ network });
    networks.set(spec.id, network);
    await harness.runtime.prepareNetwork(network);
    await harness.runtime.start(spec);
    return spec.id;
  };
  const change = async (id: string, network: NetworkAccess) => {
    networks.set(id, network);
    await harness.runtime.prepareNetwork(network);
    await harness.runtime.setNetwork(id, network);
  };
  const talk = async (id: string, host: string, port: number, name: string, payload = '') =>
    (await harness.run(id, ['python3', '-c', TALK, host, String(port), name, payload])).trim();
  /** `to` is where the connection is sent, which means nothing but to those who can see it. */
  const tls = (id: string, name: string, to = name) => talk(id, to, 443, name);
  const http = (id: string, name: string, to = name, more = '') =>
    talk(id, to, 80, 'plain', `GET / HTTP/1.1\\r\\nHost: ${name}\\r\\n${more}Connection: close\\r\\n\\r\\n`);
  const probe = async (id: string, kind: 'tcp' | 'udp', host: string, port: number) => {
    const program = `
import errno, socket
s = socket.socket(socket.AF_INET, socket.SOCK_${kind === 'tcp' ? 'STREAM' : 'DGRAM'}); s.settimeout(10)
try:
    s.connect(('${host}', ${port})); s.send(b'hello'); print('answer' if s.recv(10) else 'end')
except TimeoutError:
    print('ETIMEDOUT')
except OSError as error:
    print(errno.errorcode.get(error.errno, str(error)))
`;
    return (await harness.run(id, ['python3', '-c', program])).trim();
  };
  const resolve = async (id: string, name: string) =>
    (await harness.run(id, ['sh', '-c', `getent ahostsv4 ${name} || true`])).split(' ')[0]?.trim();
  const proxyContainer = () => harness.docker.getContainer(harness.proxy.network);
  const proxyAddress = async () =>
    (await proxyContainer().inspect()).NetworkSettings.Networks[harness.proxy.network]?.IPAddress ?? '';
  /** A connection that says a letter all the time, and what becomes of it. */
  const keepTalking = async (id: string, name: string) => {
    const container = await harness.container(id);
    const program = `
import os, socket, ssl, time
context = ssl._create_unverified_context()
s = context.wrap_socket(socket.create_connection(('${name}', 443), 5), server_hostname='${name}')
s.settimeout(5); count = 0
try:
    while True:
        s.send(b'x')
        if not s.recv(100): raise OSError('end')
        count += 1
        with open('/tmp/talks.next', 'w') as file: file.write(str(count))
        os.replace('/tmp/talks.next', '/tmp/talks'); time.sleep(0.02) # else 99, then 100, may be read as 990
except OSError as error:
    open('/tmp/ended', 'w').write(type(error).__name__)
`;
    await execIn(container, ['rm', '-f', '/tmp/talks', '/tmp/ended']);
    const exec = await container.exec({ Cmd: ['python3', '-c', program], User: 'user' });
    (await exec.start({ Detach: true })).resume(); // else its connection stays open
    const talks = async () => Number(await execIn(container, ['cat', '/tmp/talks']));
    const goesOn = async () => {
      const before = await eventually(talks, 10_000);
      await eventually(async () => expect(await talks()).toBeGreaterThan(before + 3), 10_000);
    };
    await goesOn();
    return {
      goesOn,
      ended: () =>
        eventually(() => execIn(container, ['sh', '-c', 'test -s /tmp/ended && cat /tmp/ended']), 20_000),
    };
  };

  beforeAll(async () => {
    world = await OutsideWorld.open(connectEngine(), testImage() ?? '');
    harness = await makeDockerHarness(
      { onInbound: (_id, _port, stream) => stream.destroy() },
      { nameServers: [world.first], networks },
    );
    for (const bridge of [harness.bridge, harness.proxy.bridge]) await world.connect(bridge);
  }, 120_000);

  afterEach(async () => {
    for (const { id } of await harness.runtime.list()) await harness.runtime.stop(id);
    networks.clear();
  }, 60_000);

  afterAll(async () => {
    await world?.close();
    await harness?.close();
  }, 60_000);

  it('reach what is named, by HTTP and TLS, and nothing else by either', async () => {
    const [first, second] = [nameOf(world.first), nameOf(world.second)];
    const id = await start(domains(second));
    expect(await http(id, second)).toContain(`http ${second}  at ${world.second}`);
    expect(await tls(id, second)).toBe(`tls ${second} at ${world.second}`);
    expect(await http(id, first)).toMatch(/^HTTP\/1\.1 403 [\s\S]*network rules of this sandbox/);
    expect(await tls(id, first)).toMatch(CUT);
    expect(await tls(id, `deep.${second}`)).toMatch(CUT);
  }, 120_000);

  it('know names in every spelling, and those below a star', async () => {
    const [exact, under] = [nameOf(world.second, 'exact'), nameOf(world.second, 'under')];
    const id = await start(domains(exact, `*.${under}`));
    for (const name of [exact.toUpperCase(), `${exact}.`, `${exact}:80`, `a.${under}`, `a.b.${under}.`])
      expect([name, await http(id, name, exact)]).toEqual([name, expect.stringContaining(`http ${name} `)]);
    expect(await tls(id, exact.toUpperCase())).toMatch(/^tls /);
    expect(await tls(id, `a.b.${under}`)).toMatch(/^tls /);
    for (const name of [
      under,
      `x${under}`,
      `.${under}`,
      `a${exact}`,
      `${exact}.evil.example`,
      `${exact}:0:80`,
    ])
      expect([name, await http(id, name, exact)]).toEqual([
        name,
        expect.stringMatching(/^HTTP\/1\.1 40[03] /),
      ]);
    expect(await tls(id, under)).toMatch(CUT);
  }, 120_000);

  it('take no word for an address: neither of a name that is allowed, nor of one that is not', async () => {
    const [first, second] = [nameOf(world.first), nameOf(world.second)];
    const id = await start(domains(second));
    const before = await world.reached();
    // An allowed name on the way to somebody else's address arrives where the name leads.
    expect(await tls(id, second, world.first)).toBe(`tls ${second} at ${world.second}`);
    expect(await http(id, second, world.first)).toContain(`at ${world.second}`);
    // Another name, none, or an address on the way to the allowed one arrives nowhere.
    expect(await tls(id, first, world.second)).toMatch(CUT);
    expect(await tls(id, '', world.second)).toMatch(CUT);
    for (const host of [first, world.second, world.first, '', 'localhost', '[::1]', '2130706433'])
      expect([host, await http(id, host, world.second)]).toEqual([
        host,
        expect.stringMatching(/^HTTP\/1\.1 40[03] /),
      ]);
    // Neither TLS nor HTTP.
    expect(await talk(id, world.second, 443, 'plain', 'hello hello hello\\n')).not.toContain('hello');
    expect(
      await talk(id, second, 443, 'plain', `GET / HTTP/1.1\\r\\nHost: ${second}\\r\\n\\r\\n`),
    ).not.toMatch(/http/i);
    expect(await talk(id, second, 80, 'plain', 'hello\\r\\n\\r\\n')).toMatch(/^HTTP\/1\.\d 400 /);
    const [beforeFirst = 0, beforeSecond = 0] = before;
    expect(await world.reached()).toEqual([beforeFirst, beforeSecond + 2]);
  }, 120_000);

  it('judge every request of a connection, and take none that can be read in two ways', async () => {
    const [first, second] = [nameOf(world.first), nameOf(world.second)];
    const id = await start(domains(second));
    const [beforeFirst] = await world.reached();
    const get = (head: string) => `${head}\\r\\n\\r\\n`;
    const good = get(`GET / HTTP/1.1\\r\\nHost: ${second}`);
    const pipelined = await talk(
      id,
      second,
      80,
      'plain',
      good + get(`GET / HTTP/1.1\\r\\nHost: ${first}`) + good,
    );
    expect(pipelined).toMatch(/ 200 [\s\S]* 403 /);
    expect(pipelined.match(/at [\d.]+/g)).toEqual(pipelined.match(/ 200 /g)?.map(() => `at ${world.second}`));
    for (const request of [
      `GET / HTTP/1.1\\r\\nHost: ${second}\\r\\nHost: ${first}`,
      `GET / HTTP/1.1\\r\\nHost: ${second}, ${first}`,
      `GET / HTTP/1.1\\r\\nHost: ${second} ${first}`,
      `GET / HTTP/1.1\\r\\nHost:`,
      `GET / HTTP/1.1`,
      `GET / HTTP/1.0`,
      `GET http://${first}/ HTTP/1.1\\r\\nHost: ${second}`,
      `GET http://${second}/ HTTP/1.1\\r\\nHost: ${first}`,
      `CONNECT ${first}:80 HTTP/1.1\\r\\nHost: ${second}`,
      `CONNECT ${second}:80 HTTP/1.1\\r\\nHost: ${second}`,
      `GET / HTTP/1.1\\r\\nHost: ${second}\\r\\nTransfer-Encoding: chunked\\r\\nTransfer-Encoding: x`,
      `GET / HTTP/1.1\\r\\nHost: ${second}@${first}`,
      'PRI * HTTP/2.0\\r\\n\\r\\nSM',
    ])
      expect([request, await talk(id, second, 80, 'plain', get(request))]).toEqual([
        request,
        expect.stringMatching(/^HTTP\/1\.\d 4\d\d /),
      ]);
    expect((await world.reached())[0]).toBe(beforeFirst);
    const h2c = 'Upgrade: h2c\\r\\nHTTP2-Settings: AAMAAABkAAQAAP__\\r\\n';
    const upgraded = get(
      `GET / HTTP/1.1\\r\\nHost: ${second}\\r\\n${h2c}Connection: Upgrade, HTTP2-Settings`,
    );
    expect(await talk(id, second, 80, 'plain', upgraded)).toMatch(/^HTTP\/1\.1 200 /);
  }, 120_000);

  it('pass on WebSockets and what they carry', async () => {
    const name = nameOf(world.second);
    const id = await start(domains(name));
    const key = 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\nSec-WebSocket-Version: 13';
    const ask = `GET / HTTP/1.1\\r\\nHost: ${name}\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n${key}\\r\\n\\r\\necho this`;
    expect(await talk(id, name, 80, 'plain', ask)).toMatch(/^HTTP\/1\.1 101 [\s\S]*echo this$/);
  }, 60_000);

  it('never lead to this host, private networks or metadata, whatever a name resolves to', async () => {
    await start(domains('a.example')); // there is a proxy from then on
    const { NetworkSettings } = await proxyContainer().inspect();
    const gateway = NetworkSettings.Networks[harness.proxy.network]?.Gateway ?? '';
    expect(net.isIPv4(gateway)).toBe(true);
    const addresses = [
      '169.254.169.254',
      '127.0.0.1',
      '0.0.0.0',
      '10.1.2.3',
      '192.168.1.1',
      '100.64.0.1',
      '255.255.255.255',
      EVERY_NAME,
      gateway,
      await proxyAddress(),
    ];
    const names = addresses.map((address) => nameOf(address, 'rebound'));
    const id = await start(domains(...names, 'localhost'));
    for (const name of names) {
      expect([name, await http(id, name)]).toEqual([
        name,
        expect.stringMatching(/^HTTP\/1\.1 403 [\s\S]*The address of this host/),
      ]);
      expect([name, await tls(id, name)]).toEqual([name, expect.stringMatching(CUT)]);
    }
    expect(await http(id, 'localhost', EVERY_NAME)).not.toMatch(/ 200 /);
  }, 180_000);

  it('give every name one answer that nobody outside is asked for', async () => {
    const name = nameOf(world.second);
    const id = await start(domains(name));
    const before = await world.questions();
    expect(await resolve(id, name)).toBe(EVERY_NAME);
    expect(await resolve(id, `secret-${id}.tunnel.example`)).toBe(EVERY_NAME);
    const ask = (type: number, over: 'udp' | 'tcp', server: string) => `
import socket, struct
name = b''.join(bytes([len(p)]) + p for p in b'secret.${type}.${id}.tunnel.example'.split(b'.')) + b'\\0'
query = struct.pack('>HHHHHH', 7, 0x100, 1, 0, 0, 0) + name + struct.pack('>HH', ${type}, 1)
s = socket.socket(socket.AF_INET, socket.SOCK_${over === 'udp' ? 'DGRAM' : 'STREAM'}); s.settimeout(10); s.connect(('${server}', 53))
s.send(query if '${over}' == 'udp' else struct.pack('>H', len(query)) + query)
answer = s.recv(4096)
if '${over}' == 'tcp':
    while len(answer) < 14: answer += s.recv(4096)
    answer = answer[2:]
print(answer[3] & 15, struct.unpack('>H', answer[6:8])[0])
`;
    // A, AAAA, TXT, NULL, HTTPS, ANY: to the name server, to another, to one that is no server.
    for (const [type, answers] of [
      [1, 1],
      [28, 0],
      [16, 0],
      [10, 0],
      [65, 0],
    ] as const)
      for (const server of [world.first, world.second, '8.8.8.8'])
        for (const over of ['udp', 'tcp'] as const)
          expect([
            type,
            server,
            over,
            (await harness.run(id, ['python3', '-c', ask(type, over, server)])).trim(),
          ]).toEqual([type, server, over, `0 ${answers}`]);
    await harness.run(id, ['python3', '-c', ask(255, 'udp', world.first)]);
    // Neither does a name that a connection is for, when it is not on the list.
    await tls(id, `secret-sni-${id}.tunnel.example`, EVERY_NAME);
    await http(id, `secret-host-${id}.tunnel.example`, EVERY_NAME);
    expect((await world.questions()).slice(before.length).filter((asked) => asked !== name)).toEqual([]);
    await http(id, name);
    expect(await world.questions()).toContain(name);
  }, 180_000);

  it('leave every other way out closed: other ports, UDP, ICMP, the proxy’s own and its neighbours’ ports', async () => {
    const name = nameOf(world.second);
    const [id, other, full] = await Promise.all([
      start(domains(name)),
      start(domains(nameOf(world.first))),
      start('full'),
    ]);
    for (const host of [world.second, EVERY_NAME])
      for (const [kind, port] of [
        ['tcp', 8000],
        ['udp', 8001],
        ['udp', 443],
        ['udp', 80],
      ] as const)
        expect([host, kind, port, await probe(id, kind, host, port)]).toEqual([
          host,
          kind,
          port,
          'ECONNREFUSED',
        ]);
    await expect(harness.run(id, ['ping', '-c', '1', '-W', '1', world.second])).rejects.toThrow();
    const proxy = await proxyAddress();
    const open = (await harness.hostRules()).flatMap(
      (rule) => /--to-destination [\d.]+:(\d+)/.exec(rule)?.[1] ?? [],
    );
    const ports = [...new Set(open.map(Number))].concat(
      PROXY_PORTS.tls,
      PROXY_PORTS.http,
      PROXY_PORTS.tls + 77,
      22,
    );
    expect(ports).toContain(PROXY_PORTS.names);
    expect(ports.length).toBeGreaterThan(8);
    for (const from of [id, other, full])
      for (const port of ports)
        expect([port, await probe(from, 'tcp', proxy, port)]).toEqual([port, 'ECONNREFUSED']);
    expect(await probe(full, 'udp', proxy, PROXY_PORTS.names)).toBe('ECONNREFUSED');
    // Each has its own list.
    expect(await tls(other, name)).toMatch(CUT);
    expect(await tls(id, nameOf(world.first))).toMatch(CUT);
    expect(await tls(other, nameOf(world.first))).toMatch(/^tls /);
    // Whoever has no domain rules resolves and connects as ever.
    expect(await resolve(full, 'open.example')).toBe(RESOLVED);
    expect(await tls(full, nameOf(world.second), world.second)).toMatch(/^tls /);
  }, 180_000);

  it('stand beside addresses: those are reached directly, and a name server that is allowed answers truly', async () => {
    const name = nameOf(world.second);
    const id = await start({ ...domains(name), allowOut: [`${world.first}/32`] });
    expect(await probe(id, 'tcp', world.first, 8000)).toBe('answer');
    expect(await talk(id, world.first, 443, 'any.name')).toBe(`tls any.name at ${world.first}`);
    expect(await resolve(id, 'true.example')).toBe(RESOLVED);
    expect(await tls(id, name)).toBe(`tls ${name} at ${world.second}`);
    expect(await tls(id, 'other.example', world.second)).toMatch(CUT);
  }, 60_000);

  it('hold at once when they change, for connections that stand, too', async () => {
    const [first, second] = [nameOf(world.first), nameOf(world.second)];
    const id = await start('full');
    await change(id, domains(second));
    expect([await tls(id, second), await tls(id, first)]).toEqual([
      `tls ${second} at ${world.second}`,
      expect.stringMatching(CUT),
    ]);
    const talking = await keepTalking(id, second);
    await change(id, domains(first));
    expect(await talking.ended()).toMatch(/Error$/);
    expect([await tls(id, first), await tls(id, second)]).toEqual([
      `tls ${first} at ${world.first}`,
      expect.stringMatching(CUT),
    ]);
    const again = await keepTalking(id, first);
    await change(id, 'none');
    expect(await again.ended()).toMatch(/Error$/);
    expect(await probe(id, 'tcp', EVERY_NAME, 443)).toBe('ECONNREFUSED');
    expect(await resolve(id, 'closed.example')).toBe('');
    await change(id, 'full');
    expect(await resolve(id, 'open.example')).toBe(RESOLVED);
    expect(await tls(id, 'any.name', world.first)).toMatch(/^tls /);
  }, 120_000);

  it('open a sandbox that began without a network', async () => {
    const name = nameOf(world.second);
    const id = await start('none');
    await change(id, domains(name));
    expect(await http(id, name)).toContain(`at ${world.second}`);
    expect(await http(id, nameOf(world.first))).toMatch(/^HTTP\/1\.1 403 /);
  }, 60_000);

  it('survive a pause and a restart of the service, connections that stand included', async () => {
    const name = nameOf(world.second);
    const [id, paused] = await Promise.all([start(domains(name)), start(domains(nameOf(world.first)))]);
    const talking = await keepTalking(id, name);
    await harness.runtime.pause(paused);
    const { Id } = await proxyContainer().inspect();
    await harness.restart();
    await Promise.all([harness.runtime.adopt(id), harness.runtime.adopt(paused)]);
    await harness.runtime.resume(paused);
    expect(await tls(paused, nameOf(world.first))).toMatch(/^tls /);
    expect(await tls(paused, name)).toMatch(CUT);
    const late = await start(domains(nameOf(world.first, 'late')));
    expect(await tls(late, nameOf(world.first, 'late'))).toMatch(/^tls /);
    await talking.goesOn();
    expect((await proxyContainer().inspect()).Id).toBe(Id);
  }, 120_000);

  it('come back when the proxy dies, and are closed until then', async () => {
    const name = nameOf(world.second);
    const id = await start(domains(name));
    expect(await tls(id, name)).toMatch(/^tls /);
    const { Id } = await proxyContainer().inspect();
    await harness.docker.getContainer(Id).kill();
    expect(await tls(id, nameOf(world.first))).not.toMatch(/^tls /);
    await eventually(async () => expect(await tls(id, name)).toMatch(/^tls /), 30_000);
    expect((await proxyContainer().inspect()).Id).not.toBe(Id);
    expect(await tls(id, nameOf(world.first))).toMatch(CUT);
    expect((await harness.runtime.check()).filter(({ ok }) => !ok)).toEqual([]);
  }, 120_000);

  it('keep a neighbour going while one takes all the connections that it can', async () => {
    const name = nameOf(world.second);
    const [greedy, neighbour] = await Promise.all([start(domains(name)), start(domains(name))]);
    const program = `
import socket, ssl, time
context = ssl._create_unverified_context()
held, refused = [], 0
for _ in range(${MACHINE_CONNECTIONS + 50}):
    try:
        held.append(context.wrap_socket(socket.create_connection(('${EVERY_NAME}', 443), 5), server_hostname='${name}'))
    except OSError:
        refused += 1
print(len(held), refused, flush=True)
time.sleep(60)
`;
    const container = await harness.container(greedy);
    const exec = await container.exec({ Cmd: ['python3', '-c', program], AttachStdout: true });
    const stream = await exec.start({ hijack: true, stdin: false });
    const [chunk] = await new Promise<Buffer[]>((done) =>
      stream.once('data', (data: Buffer) => done([data])),
    );
    const [held = 0, refused = 0] = demultiplex(chunk ?? Buffer.alloc(0))
      .trim()
      .split(' ')
      .map(Number);
    expect([held <= MACHINE_CONNECTIONS, held > 200, refused >= 50]).toEqual([true, true, true]);
    expect(await tls(neighbour, name)).toMatch(/^tls /);
    stream.destroy();
  }, 120_000);

  it('go with the sandboxes: nothing of them stays in the host’s rules, nor the proxy after the service', async () => {
    const id = await start(domains(nameOf(world.second)));
    const count = async () => (await harness.hostRules()).filter((rule) => rule.includes('DNAT --to')).length;
    expect(await count()).toBe(4);
    await harness.runtime.stop(id);
    await eventually(async () => expect(await count()).toBe(0), 10_000);
    await harness.restart();
    await expect(proxyContainer().inspect()).rejects.toMatchObject({ statusCode: 404 });
    expect(await harness.hostRules()).not.toContain(expect.stringContaining(harness.proxy.bridge));
  }, 60_000);
});
