import { AGENT_PORT } from '../../protocol/routing';
import { instanceSpec, request, runRuntimeSuite } from '../suites/runtime-suite';
import {
  engineRuntimes,
  harnessOfSuite,
  ignoreCalls,
  makeDockerHarness,
  whyNoDocker,
  whyNoGvisor,
} from './docker-harness';
import type { DockerHarness } from './docker-harness';

const skip = whyNoGvisor();
const noDocker = whyNoDocker();
/** gVisor as it is without `--host-uds=open`: nothing inside reaches a socket of the host. */
const SEALED = 'runsc-sealed';
/** gVisor as it is without `--overlay2=none`: files are in a place of its own, and gone when the container stops. */
const OVERLAY = 'runsc-overlay';

runRuntimeSuite('docker, gVisor', (hooks) => makeDockerHarness(hooks, { isolation: 'gvisor' }), { skip });

const titled = (title: string, why: string | undefined) =>
  why === undefined ? title : `${title} (skipped: ${why})`;

(noDocker === undefined ? describe : describe.skip)(titled('isolation levels on docker', noDocker), () => {
  let harness: DockerHarness;

  beforeAll(async () => {
    harness = await makeDockerHarness(ignoreCalls);
  }, 120_000);

  afterAll(async () => {
    await harness?.close();
  }, 60_000);

  it('refuses a level that the engine lacks, names those that there are, and leaves nothing', async () => {
    const { runtime } = harness;
    await expect(runtime.start(instanceSpec({ isolation: 'moat' }))).rejects.toMatchObject({
      code: 'failed_precondition',
      message: `There is no isolation level moat here, only ${runtime.isolationLevels.join(', ')}`,
    });
    expect(await harness.leftovers()).toEqual([]);
  }, 60_000);

  it('refuses it at its own start when all machines are to have it', async () => {
    await expect(makeDockerHarness(ignoreCalls, { isolation: 'moat' })).rejects.toMatchObject({
      code: 'failed_precondition',
      message: expect.stringContaining('no isolation level moat'),
    });
  }, 60_000);

  it('takes the engine’s default where nothing is said, and says how it is called', async () => {
    const { id } = await harness.runtime.start(instanceSpec());
    const { HostConfig, Config } = await (await harness.container(id)).inspect();
    expect(HostConfig.Runtime).toBe(harness.runtime.isolationLevels[0]);
    expect(Config.Labels['cellbox.isolation']).toBe(harness.runtime.isolationLevels[0]);
    await harness.runtime.stop(id);
  }, 60_000);

  for (const [isolation, what, argument] of [
    [SEALED, 'through which no tunnel reaches', '--host-uds=open'],
    [OVERLAY, 'that keeps files apart from the container', '--overlay2=none'],
  ] as const) {
    const isThere = noDocker === undefined && engineRuntimes().includes(isolation);
    (isThere ? it : it.skip)(
      `refuses a level ${what}, before there is a machine (runtime ${isolation})`,
      async () => {
        await expect(harness.runtime.start(instanceSpec({ isolation }))).rejects.toMatchObject({
          code: 'failed_precondition',
          message: expect.stringContaining(isolation),
          remedy: expect.stringContaining(argument),
        });
        expect(await harness.leftovers()).toEqual([]);
      },
      120_000,
    );
  }
});

(skip === undefined ? describe : describe.skip)(titled('gVisor beside the default', skip), () => {
  let harness: DockerHarness;

  harnessOfSuite((made) => (harness = made));

  it('runs each machine behind its own kind of wall', async () => {
    const [plain, walled] = await Promise.all([
      harness.runtime.start(instanceSpec()),
      harness.runtime.start(instanceSpec({ isolation: 'gvisor' })),
    ]);
    expect(harness.runtime.isolationLevels).toContain('gvisor');
    expect(await harness.run(walled.id, ['dmesg'], 'root')).toContain('gVisor');
    const kernels = await Promise.all([plain, walled].map(({ id }) => harness.run(id, ['uname', '-v'])));
    expect(kernels[0]).not.toBe(kernels[1]);
  }, 120_000);

  it('keeps to the profile: no capability but the ten, no way to write into the mount', async () => {
    const { id } = await harness.runtime.start(instanceSpec({ isolation: 'gvisor' }));
    const status = await harness.run(id, ['cat', '/proc/self/status'], 'root');
    const mask = [0, 1, 3, 4, 5, 6, 7, 10, 18, 29].reduce((sum, bit) => sum | (1n << BigInt(bit)), 0n);
    expect(BigInt(`0x${/^CapEff:\s+([0-9a-f]+)$/m.exec(status)?.[1] ?? '0'}`)).toBe(mask);
    await expect(harness.run(id, ['sh', '-c', 'echo x > /run/cellbox/x'], 'root')).rejects.toThrow(
      'exit code',
    );
  }, 120_000);

  it('asks the name servers themselves: the engine’s resolver is not in its network stack', async () => {
    const { id } = await harness.runtime.start(instanceSpec({ isolation: 'gvisor' }));
    const table = await harness.run(id, ['cat', '/etc/resolv.conf']);
    expect(table).toMatch(/^nameserver \d/);
    expect(table).not.toContain('127.0.0.11');
    await expect(
      harness.run(id, ['sh', '-c', 'echo nameserver 192.0.2.1 > /etc/resolv.conf'], 'root'),
    ).rejects.toThrow('exit code');
  }, 120_000);

  it('does not take a machine from no network to one, and says so', async () => {
    const instance = await harness.runtime.start(instanceSpec({ isolation: 'gvisor', network: 'none' }));
    await harness.runtime.setNetwork(instance.id, 'none');
    await expect(harness.runtime.setNetwork(instance.id, 'full')).rejects.toMatchObject({
      code: 'failed_precondition',
      message: expect.stringContaining('isolation level'),
    });
    expect(await request(instance, AGENT_PORT, '/health')).toMatchObject({ status: 204 });
  }, 120_000);
});
