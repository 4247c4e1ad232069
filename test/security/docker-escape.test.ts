import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import type Dockerode from 'dockerode';
import { AGENT_PORT } from '../../protocol/routing';
import type { Instance } from '../../service/runtime/runtime';
import { execIn, makeDockerHarness, testImage, whyNoDocker } from '../runtime/docker-harness';
import type { DockerHarness } from '../runtime/docker-harness';
import { instanceSpec, request } from '../suites/runtime-suite';

const skip = whyNoDocker();
const suite = skip === undefined ? describe : describe.skip;

/** Prints `connected`, or the error's code, of one attempt; `ETIMEDOUT` after ten seconds, which nothing here expects. */
const CONNECT = `
const [host, port] = process.argv.slice(1);
const socket = require('net').connect(Number(port), host);
const say = (word) => { console.log(word); process.exit(0); };
socket.on('connect', () => say('connected'));
socket.on('error', (error) => say(error.code));
setTimeout(() => say('ETIMEDOUT'), 10_000);
`;
const connect = (host: string, port: number) => ['node', '-e', CONNECT, host, String(port)];

/** Serves TCP inside on every address, until the sandbox ends; prints once it listens. */
const LISTEN = `require('net').createServer((s) => s.end()).listen(8000, '0.0.0.0')`;

suite(`a hostile sandbox on docker${skip === undefined ? '' : ` (skipped: ${skip})`}`, () => {
  let harness: DockerHarness;
  let hostile: Instance;
  let neighbour: Instance;
  /** A container beside Cellbox on the engine's default bridge, with a published port: what must stay out of reach. */
  let bystander: Dockerode.Container;
  let hostServer: net.Server;
  let hostPort: number;
  let hostAddresses: string[];

  const address = async (container: Dockerode.Container) => {
    const { NetworkSettings } = await container.inspect();
    return Object.values(NetworkSettings.Networks)[0]?.IPAddress ?? '';
  };
  const gateway = async (id: string) => {
    const { NetworkSettings } = await (await harness.container(id)).inspect();
    return Object.values(NetworkSettings.Networks)[0]?.Gateway ?? '';
  };
  const attempt = (id: string, host: string, port: number) =>
    harness.run(id, connect(host, port)).then((text) => text.trim());

  beforeAll(async () => {
    harness = await makeDockerHarness({ onInbound: (_id, _port, stream) => stream.destroy() });
    [hostile, neighbour] = await Promise.all([
      harness.runtime.start(instanceSpec()),
      harness.runtime.start(instanceSpec()),
    ]);
    bystander = await harness.docker.createContainer({
      Image: testImage(),
      Entrypoint: ['node', '-e', LISTEN],
      ExposedPorts: { '8000/tcp': {} },
      HostConfig: { AutoRemove: true, PortBindings: { '8000/tcp': [{ HostPort: '0' }] } },
    });
    await bystander.start();
    hostServer = net.createServer((socket) => socket.on('error', () => undefined).end());
    hostServer.listen(0, '0.0.0.0');
    await once(hostServer, 'listening');
    hostPort = (hostServer.address() as net.AddressInfo).port;
    hostAddresses = Object.values(os.networkInterfaces())
      .flatMap((list) => list ?? [])
      .filter((each) => each.family === 'IPv4' && !each.internal)
      .map((each) => each.address);
  }, 120_000);

  afterAll(async () => {
    hostServer?.close();
    await bystander?.remove({ force: true }).catch(() => undefined); // a failed beforeAll may not have started it
    await harness?.close();
  }, 60_000);

  it('reaches no address of the host, though the host listens there', async () => {
    // The control: without our rules, a container does reach each of them.
    for (const host of hostAddresses)
      expect([host, (await execIn(bystander, connect(host, hostPort))).trim()]).toEqual([host, 'connected']);
    expect(hostAddresses).toContain(await gateway(hostile.id));
    for (const host of hostAddresses)
      expect([host, await attempt(hostile.id, host, hostPort)]).toEqual([host, 'ECONNREFUSED']);
  }, 60_000);

  it('reaches neither another container nor its published port', async () => {
    const { NetworkSettings } = await bystander.inspect();
    const published = Number(NetworkSettings.Ports['8000/tcp']?.[0]?.HostPort);
    const host = await gateway(hostile.id);
    const direct = await attempt(hostile.id, await address(bystander), 8000);
    expect(['ECONNREFUSED', 'EHOSTUNREACH']).toContain(direct);
    expect(await attempt(hostile.id, host, published)).toBe('ECONNREFUSED');
    for (const each of hostAddresses) expect(await attempt(hostile.id, each, published)).toBe('ECONNREFUSED');
  }, 60_000);

  it('is refused the metadata services of clouds at once', async () => {
    for (const host of ['169.254.169.254', '169.254.170.2', '169.254.0.1'])
      expect([host, await attempt(hostile.id, host, 80)]).toEqual([host, 'ECONNREFUSED']);
  }, 30_000);

  it('reaches no other sandbox, and learns no id of one from the resolver', async () => {
    const container = await harness.container(neighbour.id);
    const exec = await container.exec({ Cmd: ['node', '-e', LISTEN], User: 'user' });
    (await exec.start({ Detach: true })).resume(); // else its connection stays open
    const own = await address(container);
    let control = '';
    // The listener tells nobody that it is up.
    for (let tries = 0; tries < 50 && control !== 'connected'; tries++)
      control = await attempt(neighbour.id, own, 8000);
    expect(control).toBe('connected');
    expect(await attempt(hostile.id, own, 8000)).toBe('ECONNREFUSED');

    const reverse = await harness.run(hostile.id, ['sh', '-c', `getent hosts ${own} || true`]);
    expect(reverse).not.toContain(neighbour.id);
  }, 60_000);

  it('has no IPv6 way out', async () => {
    const addresses = await harness.run(hostile.id, [
      'sh',
      '-c',
      'cat /proc/net/if_inet6 2>/dev/null || true',
    ]);
    expect(addresses.split('\n').filter((line) => line !== '' && !/\blo$/.test(line))).toEqual([]);
  }, 30_000);

  it('can’t change the tunnel’s directory, not even as root, and so reaches nothing through it', async () => {
    const directory = path.join(harness.dataDir, 'tunnels', hostile.id);
    const before = fs.readdirSync(directory);
    for (const command of [
      'rm -f /run/cellbox/service.sock',
      'mv /run/cellbox/service.sock /run/cellbox/other.sock',
      'ln -s /var/run/docker.sock /run/cellbox/service2.sock',
      'ln -sf /etc/shadow /run/cellbox/service.sock',
      'rm -rf /run/cellbox',
      'mv /run/cellbox /run/elsewhere',
      'mount -o remount,rw /run/cellbox',
      'mount -o remount,rw,bind /run/cellbox',
      'mount -t tmpfs none /run/cellbox',
      'mount --bind /tmp /run/cellbox',
      'umount /run/cellbox',
      'umount -l /run/cellbox',
      'unshare --mount true',
      'unshare --user --map-root-user --mount true',
      'chmod 0777 /run/cellbox',
      'chown user /run/cellbox/service.sock',
    ]) {
      await expect(harness.run(hostile.id, ['sh', '-c', command], 'root')).rejects.toThrow('exit code');
    }
    expect(fs.readdirSync(directory)).toEqual(before);
    expect(fs.lstatSync(path.join(directory, 'service.sock')).isSocket()).toBe(true);
    expect(await request(hostile, AGENT_PORT, '/health')).toMatchObject({ status: 204 });
    expect(await request(neighbour, AGENT_PORT, '/health')).toMatchObject({ status: 204 });
  }, 60_000);

  it('leaves the service and its neighbours alone when it floods the tunnel', async () => {
    const flood = `
      const net = require('net');
      const lines = ['', 'GET / HTTP/1.1\\r\\n\\r\\n', 'CELLBOX/1 idle wrong\\n', 'x'.repeat(100000), 'CELLBOX/1 call 22 x\\n'];
      let open = 300;
      for (let i = 0; i < 300; i++) {
        const socket = net.connect('/run/cellbox/service.sock', () => socket.write(lines[i % lines.length]));
        socket.on('error', () => undefined);
        socket.on('close', () => { if (--open === 0) process.exit(0); });
        socket.resume();
      }
      setTimeout(() => process.exit(0), 4000);
    `;
    await harness.run(hostile.id, ['node', '-e', flood], 'root');
    expect(await request(neighbour, AGENT_PORT, '/health')).toMatchObject({ status: 204 });
    expect(await request(hostile, AGENT_PORT, '/health')).toMatchObject({ status: 204 });
  }, 60_000);

  it('finds no engine socket, no device of the host, and may make none', async () => {
    const sockets = await harness.run(
      hostile.id,
      ['sh', '-c', 'find / -xdev -type s 2>/dev/null; ls -d /var/run/docker.sock 2>/dev/null || true'],
      'root',
    );
    expect(sockets).not.toMatch(/docker|containerd/);
    for (const command of [
      'mknod /tmp/disk b 254 0',
      'echo 1 > /proc/sys/kernel/panic',
      'echo c > /proc/sysrq-trigger',
      'nsenter --target 1 --net --mount true',
      'iptables -F',
      'ip link set lo down || ifconfig lo down',
      'chroot /proc/1/root/.. mount -t proc none /mnt',
    ])
      await expect(harness.run(hostile.id, ['sh', '-c', command], 'root')).rejects.toThrow('exit code');
  }, 60_000);

  it('closes the environment of the supervisor, with the secrets of the tunnel, to ordinary users', async () => {
    // Not one of ours that `run` starts: the engine gives those the container's whole environment.
    const answer = await harness.run(hostile.id, [
      'sh',
      '-c',
      // One stream only: the engine keeps no order between two.
      'stat -c %U /proc/1/environ; cat /proc/1/environ 2>/dev/null || echo closed',
    ]);
    expect(answer).toBe('root\nclosed\n');
  }, 30_000);

  it('gets no more processes than its limit, and its neighbour keeps its own', async () => {
    const bomb = `
      const { spawn } = require('child_process');
      let started = 0;
      const errors = new Set();
      for (let i = 0; i < 400; i++) {
        const child = spawn('sleep', ['5'], { stdio: 'ignore' });
        child.on('error', (error) => errors.add(error.code));
        if (child.pid !== undefined) started++;
      }
      setImmediate(() => { console.log(started, ...errors); process.exit(0); });
    `;
    const [started, ...errors] = (await harness.run(hostile.id, ['node', '-e', bomb])).trim().split(' ');
    expect(Number(started)).toBeLessThan(256);
    expect(errors).toEqual(['EAGAIN']);
    expect((await harness.runtime.stats(hostile.id)).pids).toBeLessThanOrEqual(256);
    expect(await request(neighbour, AGENT_PORT, '/health')).toMatchObject({ status: 204 });
  }, 60_000);
});
