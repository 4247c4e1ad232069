import { execFileSync } from 'node:child_process';
import crypto from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import type Dockerode from 'dockerode';
import { createLogger } from '../../service/log';
import { createDockerRuntime } from '../../service/runtime/docker';
import { LABELS } from '../../service/runtime/docker-container';
import { connectEngine } from '../../service/runtime/docker-engine';
import { demultiplex, runHelper } from '../../service/runtime/docker-helper';
import { networkNames, proxyNetworkNames } from '../../service/runtime/docker-network';
import type { InboundHandler, NetworkAccess, Runtime } from '../../service/runtime/runtime';
import type { RuntimeHarness } from '../suites/runtime-suite';
import { prepared } from '../started-service';

/** The kernel image of the tests: `CELLBOX_TEST_IMAGE`, else the one that `test/prepare.js` built. */
export function testImage(): string | undefined {
  if (process.env['CELLBOX_TEST_IMAGE']) return process.env['CELLBOX_TEST_IMAGE'];
  try {
    return prepared().images.slim;
  } catch {
    return undefined; // nothing prepared: the caller skips, or fails where docker is demanded
  }
}

/** Why the docker cases can't run here; undefined when they can, and when their absence must be a failure. */
export function whyNoDocker(): string | undefined {
  if (process.env['CELLBOX_REQUIRE_DOCKER'] === '1') return undefined;
  try {
    execFileSync('docker', ['version', '--format', '{{.Server.Version}}'], { stdio: 'pipe', timeout: 5_000 });
  } catch {
    if (!fs.existsSync('/var/run/docker.sock') || process.env['DOCKER_HOST'] !== undefined)
      return 'no container engine answers';
  }
  return testImage() === undefined ? 'no kernel image; `node test/prepare.js` builds it' : undefined;
}

/** The image of the proxy for domain rules that `test/prepare.js` built. */
function testProxyImage(): Promise<string> {
  const image = prepared().images.proxy;
  if (image === undefined) throw new Error('no image of the proxy: run `node test/prepare.js`');
  return Promise.resolve(image);
}

/** Why the gVisor cases can't run here; undefined when they can, and when their absence must be a failure. */
export function whyNoGvisor(): string | undefined {
  const noDocker = whyNoDocker();
  if (noDocker !== undefined || process.env['CELLBOX_REQUIRE_GVISOR'] === '1') return noDocker;
  return engineRuntimes().includes('runsc') ? undefined : 'the engine has no runtime runsc';
}

/** OCI runtimes by the engine's names for them. */
export function engineRuntimes(): string[] {
  const format = '{{range $name, $_ := .Runtimes}}{{$name}} {{end}}';
  return execFileSync('docker', ['info', '--format', format], { encoding: 'utf8', timeout: 10_000 })
    .trim()
    .split(' ');
}

/** For harnesses whose machines' calls nobody answers. */
export const ignoreCalls: { onInbound: InboundHandler } = {
  onInbound: (_id, _port, stream) => void stream.destroy(),
};

/** Gives a suite its harness; each test must leave nothing behind but machines that run, which are ended here. */
export function harnessOfSuite(give: (harness: DockerHarness) => void): void {
  let harness: DockerHarness | undefined;

  beforeAll(async () => {
    harness = await makeDockerHarness(ignoreCalls);
    give(harness);
  }, 120_000);

  afterEach(async () => {
    if (harness === undefined) return;
    for (const { id } of await harness.runtime.list()) await harness.runtime.stop(id);
    expect(await harness.leftovers()).toEqual([]);
  }, 60_000);

  afterAll(() => harness?.close(), 60_000);
}

export interface DockerHarness extends RuntimeHarness {
  readonly docker: Dockerode;
  readonly dataDir: string;
  /** Name of the network and of the rules' chains: the service's part of both. */
  readonly networkName: string;
  readonly bridge: string;
  /** Container, network and interface of the proxy for domain rules. */
  readonly proxy: { network: string; bridge: string };
  /** The host's filter and nat rules that belong to this service. */
  hostRules(): Promise<string[]>;
  run(id: string, argv: string[], user?: string): Promise<string>;
  container(id: string): Promise<Dockerode.Container>;
}

/** Runs a program in a container; stdout and stderr together. Rejects with them when it fails. */
export async function execIn(container: Dockerode.Container, argv: string[], user = 'user'): Promise<string> {
  const exec = await container.exec({ Cmd: argv, User: user, AttachStdout: true, AttachStderr: true });
  const stream = await exec.start({ hijack: true, stdin: false });
  const chunks: Buffer[] = [];
  for await (const chunk of stream) chunks.push(chunk as Buffer);
  const output = demultiplex(Buffer.concat(chunks));
  const { ExitCode } = await exec.inspect();
  if (ExitCode !== 0) throw new Error(`${argv.join(' ')}: exit code ${ExitCode}: ${output}`);
  return output;
}

export async function makeDockerHarness(
  hooks: { onInbound: InboundHandler },
  overrides: {
    dataDir?: string;
    docker?: Dockerode;
    image?: string;
    nameServers?: readonly string[];
    isolation?: string;
    /** What a store would know at a restart. */
    networks?: ReadonlyMap<string, NetworkAccess>;
  } = {},
): Promise<DockerHarness> {
  const image = overrides.image ?? testImage();
  if (image === undefined)
    throw new Error('no kernel image: run `node test/prepare.js` or set CELLBOX_TEST_IMAGE');
  const docker = connectEngine();
  const dataDir = overrides.dataDir ?? fs.mkdtempSync(path.join(os.tmpdir(), 'cbx-docker-'));
  const secret = crypto.randomBytes(32);
  const before = new Set((await docker.listNetworks()).map((network) => network.Id));
  const newNetworks = async () =>
    (await docker.listNetworks()).filter(
      (network) => !before.has(network.Id) && network.Labels?.[LABELS.service] !== undefined,
    );
  const make = () =>
    createDockerRuntime({
      dataDir,
      image,
      resources: { cpuCount: 1, memoryMB: 1024, diskSizeMB: 1024, pids: 256, openFiles: 1024 },
      deriveSecret: (purpose, id) =>
        crypto.createHmac('sha256', secret).update(`${purpose}\0${id}`).digest('hex'),
      onInbound: hooks.onInbound,
      logger: createLogger(process.env['CELLBOX_TEST_LOG'] ?? 'silent'),
      startTimeoutMs: 30_000,
      deadmanGraceMs: 1_000,
      docker: overrides.docker ?? docker,
      proxyImage: testProxyImage,
      isolation: overrides.isolation ?? process.env['CELLBOX_TEST_ISOLATION'],
      ...(overrides.nameServers !== undefined && { nameServers: overrides.nameServers }),
      ...(overrides.networks !== undefined && { networks: overrides.networks }),
    });
  let runtime: Runtime = await make().catch(async (error: unknown) => {
    fs.rmSync(dataDir, { recursive: true, force: true });
    const stayed = await newNetworks();
    if (stayed.length > 0) throw new Error('the network of a refused runtime stayed', { cause: error });
    throw error;
  });
  const [ours] = await newNetworks();
  const serviceId = ours?.Labels?.[LABELS.service] ?? '';
  const containers = (kind: 'sandbox' | 'helper' | 'proxy') =>
    docker.listContainers({
      all: true,
      filters: { label: [`${LABELS.service}=${serviceId}`, `${LABELS.kind}=${kind}`] },
    });
  const find = async (id: string) => {
    const [found] = await docker.listContainers({ all: true, filters: { label: [`${LABELS.id}=${id}`] } });
    if (found === undefined) throw new Error(`no container of ${id}`);
    return docker.getContainer(found.Id);
  };
  const names = networkNames(serviceId);
  const hostRules = async () => {
    const output = await runHelper(docker, {
      image,
      serviceId: 'tests',
      script: 'iptables -S; iptables -t nat -S; ip6tables -S || true',
    });
    return output.split('\n').filter((line) => line.includes(names.chain) || line.includes(names.bridge));
  };
  return {
    docker,
    dataDir,
    networkName: names.network,
    bridge: names.bridge,
    proxy: proxyNetworkNames(names),
    hostRules,
    get runtime() {
      return runtime;
    },
    restart: async () => {
      await runtime.close();
      runtime = await make();
      return runtime;
    },
    leftovers: async () => [
      ...(await containers('sandbox')).map(
        ({ State, Names }) => `${State === 'exited' ? 'stopped ' : ''}container ${Names.join()}`,
      ),
      ...fs.readdirSync(path.join(dataDir, 'tunnels')).map((name) => `directory tunnels/${name}`),
      ...(
        await docker.listVolumes({ filters: JSON.stringify({ label: [`${LABELS.service}=${serviceId}`] }) })
      ).Volumes.map((volume) => `volume ${volume.Name}`),
    ],
    killFromOutside: async (id) => {
      await (await find(id)).kill();
    },
    container: find,
    run: async (id, argv, user) => execIn(await find(id), argv, user),
    close: async () => {
      for (const { id } of await runtime.list()) await runtime.stop(id);
      await runtime.close();
      fs.rmSync(dataDir, { recursive: true, force: true });
      const stayed = (await docker.listNetworks()).filter((network) =>
        [names.network, proxyNetworkNames(names).network].includes(network.Name),
      );
      if ((await containers('helper')).length > 0) throw new Error('a helper container stayed');
      if ((await containers('proxy')).length > 0) throw new Error('a proxy stayed');
      if (stayed.length > 0) throw new Error('the network stayed');
      const rules = await hostRules();
      if (rules.length > 0) throw new Error(`rules stayed:\n${rules.join('\n')}`);
    },
  };
}
