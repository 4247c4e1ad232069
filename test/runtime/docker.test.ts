import fs from 'node:fs';
import os from 'node:os';
import type { Socket } from 'node:net';
import net from 'node:net';
import path from 'node:path';
import Dockerode from 'dockerode';
import { AGENT_PORT } from '../../protocol/routing';
import { eventually, instanceSpec, request, runRuntimeSuite, within } from '../suites/runtime-suite';
import { harnessOfSuite, ignoreCalls, makeDockerHarness, whyNoDocker } from './docker-harness';
import type { DockerHarness } from './docker-harness';

const skip = whyNoDocker();

runRuntimeSuite('docker', makeDockerHarness, { skip });

const suite = skip === undefined ? describe : describe.skip;

suite(`docker only${skip === undefined ? '' : ` (skipped: ${skip})`}`, () => {
  let harness: DockerHarness;

  harnessOfSuite((made) => (harness = made));

  it('holds a container to the profile `standard`', async () => {
    const instance = await harness.runtime.start(instanceSpec());
    const { Config, HostConfig, Mounts, NetworkSettings } = await (
      await harness.container(instance.id)
    ).inspect();
    expect(HostConfig).toMatchObject({
      CapDrop: ['ALL'],
      Privileged: false,
      Memory: 1024 * 1024 * 1024,
      MemorySwap: 1024 * 1024 * 1024,
      NanoCpus: 1e9,
      PidsLimit: 256,
      RestartPolicy: { Name: 'no' },
      PidMode: '',
      UTSMode: '',
    });
    expect([...(HostConfig.CapAdd ?? [])].map((name) => name.replace(/^CAP_/, '')).sort()).toEqual(
      'AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL NET_BIND_SERVICE SETGID SETUID SYS_CHROOT'.split(
        ' ',
      ),
    );
    expect(HostConfig.SecurityOpt ?? []).toEqual([]);
    expect(NetworkSettings.Ports).toEqual({});
    expect(Mounts.map(({ Destination, RW }) => ({ Destination, RW }))).toEqual([
      { Destination: '/run/cellbox', RW: false },
    ]);
    expect(Config.Hostname).toBe('cellbox');
    const status = await harness.run(instance.id, ['cat', '/proc/self/status'], 'root');
    expect(status).toMatch(/^Seccomp:\s+2$/m);
    expect(BigInt(`0x${/^CapEff:\s+([0-9a-f]+)$/m.exec(status)?.[1] ?? '0'}`)).toBe(capabilityMask());
    expect(await harness.run(instance.id, ['sh', '-c', 'ulimit -n'])).toBe('1024\n');
  }, 60_000);

  it('runs a command as root through sudo, and installs nothing into the host by it', async () => {
    const instance = await harness.runtime.start(instanceSpec());
    expect(await harness.run(instance.id, ['sudo', 'id', '-u'])).toBe('0\n');
  }, 60_000);

  it('resolves names by the engine’s resolver on a network, and none without', async () => {
    const on = await harness.runtime.start(instanceSpec());
    expect(await harness.run(on.id, ['cat', '/etc/resolv.conf'])).toMatch(/nameserver 127\.0\.0\.11/);
    const off = await harness.runtime.start(instanceSpec({ network: 'none' }));
    await expect(harness.run(off.id, ['getent', 'hosts', 'example.com'])).rejects.toThrow('exit code');
  }, 60_000);

  it('clears what a crashed start left: a container that never ran is listed and can be stopped', async () => {
    const { id } = await harness.runtime.start(instanceSpec());
    const info = await (await harness.container(id)).inspect();
    await harness.runtime.stop(id);
    const orphan = await harness.docker.createContainer({
      name: info.Name.slice(1),
      Image: info.Image,
      Labels: info.Config.Labels,
    });
    expect(await harness.runtime.list()).toEqual([expect.objectContaining({ id, state: 'starting' })]);
    await expect(harness.runtime.adopt(id)).rejects.toMatchObject({ code: 'not_found' });
    await harness.runtime.stop(id);
    await expect(orphan.inspect()).rejects.toMatchObject({ statusCode: 404 });
  }, 60_000);

  it('makes the network again when somebody pruned it', async () => {
    await harness.docker.getNetwork(harness.networkName).remove();
    expect((await harness.runtime.check()).filter((check) => !check.ok)).toEqual([]);
    const instance = await harness.runtime.start(instanceSpec());
    expect(await request(instance, AGENT_PORT, '/health')).toMatchObject({ status: 204 });
  }, 60_000);

  it('sets the host’s rules once, however often the service starts', async () => {
    const rules = await harness.hostRules();
    expect(rules.filter((rule) => rule.startsWith('-A INPUT'))).toHaveLength(2); // IPv4's and IPv6's
    await harness.runtime.start(instanceSpec()); // keeps the network through the restart
    await harness.restart();
    expect(await harness.hostRules()).toEqual(rules);
  }, 60_000);

  it('keeps its sandboxes when the engine goes away, and learns afterwards which of them ended', async () => {
    const proxy = await EngineProxy.start();
    const other = await makeDockerHarness(ignoreCalls, { docker: proxy.client() });
    try {
      const [kept, killed] = await Promise.all([
        other.runtime.start(instanceSpec()),
        other.runtime.start(instanceSpec()),
      ]);
      const container = harness.docker.getContainer((await other.container(killed.id)).id);
      proxy.cut();
      const checks = await other.runtime.check();
      expect(checks).toEqual([
        { name: 'engine', ok: false, detail: expect.stringContaining('start Docker') },
      ]);
      await expect(other.runtime.start(instanceSpec())).rejects.toMatchObject({ code: 'unavailable' });
      await expect(other.runtime.list()).rejects.toMatchObject({ code: 'unavailable' });
      await expect(other.runtime.stop(kept.id)).rejects.toMatchObject({ code: 'unavailable' });
      await container.kill();
      proxy.mend();
      expect(await within('ended', 15_000, killed.ended)).toEqual({
        reason: 'exited',
        detail: expect.any(String),
      });
      // A stop that failed for want of an engine is done by asking again.
      await other.runtime.stop(kept.id);
      expect(await kept.ended).toEqual({ reason: 'stopped' });
      await eventually(async () => expect(await other.leftovers()).toEqual([]), 15_000);
    } finally {
      await other.close();
      await proxy.close();
    }
  }, 120_000);

  it('reaches a sandbox while the engine is away: the tunnel does not need it', async () => {
    const proxy = await EngineProxy.start();
    const other = await makeDockerHarness(ignoreCalls, { docker: proxy.client() });
    try {
      const instance = await other.runtime.start(instanceSpec());
      proxy.cut();
      expect(await request(instance, AGENT_PORT, '/health')).toMatchObject({ status: 204 });
      proxy.mend();
    } finally {
      await other.close();
      await proxy.close();
    }
  }, 120_000);

  for (const call of ['create', 'start']) {
    it(`gives a clear error and leaves nothing when the engine stops mid-${call}`, async () => {
      const proxy = await EngineProxy.start();
      const other = await makeDockerHarness(ignoreCalls, { docker: proxy.client() });
      try {
        proxy.cutAt(new RegExp(`^POST /[^ ]*containers/[^ ]*${call}`));
        await expect(other.runtime.start(instanceSpec())).rejects.toMatchObject({ code: 'unavailable' });
        proxy.mend();
        // The engine may have done it all the same: it is cleared once the engine answers.
        await eventually(async () => expect(await other.leftovers()).toEqual([]), 15_000);
        const instance = await other.runtime.start(instanceSpec());
        expect(await request(instance, AGENT_PORT, '/health')).toMatchObject({ status: 204 });
      } finally {
        await other.close();
        await proxy.close();
      }
    }, 120_000);
  }

  it('says that an image is missing, and how to get it', async () => {
    await expect(makeDockerHarness(ignoreCalls, { image: 'cellbox/none:such' })).rejects.toMatchObject({
      code: 'failed_precondition',
      message: 'The engine has no image cellbox/none:such',
      remedy: expect.stringContaining('docker pull'),
    });
  }, 60_000);

  it('clears at its start what a killed service left of sandboxes that are gone', async () => {
    fs.mkdirSync(path.join(harness.dataDir, 'tunnels', 'tgone'));
    const { id } = await harness.runtime.start(instanceSpec());
    await harness.restart();
    expect(fs.readdirSync(path.join(harness.dataDir, 'tunnels'))).toEqual([id]);
  }, 60_000);

  it('lives with a data directory too deep for socket paths', async () => {
    const deep = path.join(fs.mkdtempSync(path.join(os.tmpdir(), 'cbx-deep-')), 'x'.repeat(90));
    fs.mkdirSync(deep, { recursive: true });
    const other = await makeDockerHarness(ignoreCalls, { dataDir: deep });
    try {
      const instance = await other.runtime.start(instanceSpec());
      expect(await request(instance, AGENT_PORT, '/health')).toMatchObject({ status: 204 });
    } finally {
      await other.close();
      fs.rmSync(path.dirname(deep), { recursive: true, force: true });
    }
  }, 60_000);
});

/** Stands between the runtime and the engine, so that a test can take the engine away without stopping it. */
class EngineProxy {
  private readonly streams = new Set<Socket>();
  private isCut = false;
  private cutPattern: RegExp | undefined;

  private constructor(
    private readonly server: net.Server,
    private readonly socketPath: string,
  ) {
    server.on('connection', (client: Socket) => this.forward(client));
  }

  static async start(): Promise<EngineProxy> {
    const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'cbx-proxy-'));
    const server = net.createServer({ allowHalfOpen: true });
    const proxy = new EngineProxy(server, path.join(directory, 'engine.sock'));
    await new Promise<void>((resolve) => server.listen(proxy.socketPath, resolve));
    return proxy;
  }

  client(): Dockerode {
    return new Dockerode({ socketPath: this.socketPath });
  }

  cut(): void {
    this.isCut = true;
    for (const stream of this.streams) stream.destroy();
  }

  /** Cuts as soon as a request of this kind has been handed to the engine. */
  cutAt(pattern: RegExp): void {
    this.cutPattern = pattern;
  }

  mend(): void {
    this.isCut = false;
    this.cutPattern = undefined;
  }

  async close(): Promise<void> {
    this.cut();
    await new Promise((resolve) => this.server.close(resolve));
    fs.rmSync(path.dirname(this.socketPath), { recursive: true, force: true });
  }

  private forward(client: Socket): void {
    if (this.isCut) {
      client.destroy();
      return;
    }
    const engine = net.connect({ path: '/var/run/docker.sock', allowHalfOpen: true });
    for (const [from, to] of [
      [client, engine],
      [engine, client],
    ] as const) {
      this.streams.add(from);
      from.on('error', () => to.destroy());
      from.on('close', () => {
        this.streams.delete(from);
        to.destroy();
      });
      from.on('end', () => to.end());
      from.on('data', (chunk: Buffer) => {
        to.write(chunk, () => {
          if (from === client && this.cutPattern?.test(chunk.toString('latin1')) === true) this.cut();
        });
      });
    }
  }
}

/** Bits of the ten capabilities, by their numbers in Linux. */
function capabilityMask(): bigint {
  return [0, 1, 3, 4, 5, 6, 7, 10, 18, 29].reduce((mask, bit) => mask | (1n << BigInt(bit)), 0n);
}
