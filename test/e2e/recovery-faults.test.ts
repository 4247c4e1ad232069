import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { describeOnRuntimes } from '../describe-on-runtimes';
import { startService } from '../started-service';
import type { StartedService } from '../started-service';
import { Client } from './client';
import { accessTokenOf, Executions, putFile, until } from './recovery-client';

/** Twenty takes minutes on a small machine, and seconds are measured where nothing else runs. */
const isSlow = process.env['CELLBOX_SLOW_TESTS'] === '1';
const LIVE = isSlow ? 20 : 4;
const BACK_WITHIN_S = isSlow ? 2 : 30;

describe('a service that is killed with many live sandboxes', () => {
  let service: StartedService | undefined;
  afterAll(() => service?.stop(), 120_000);

  it(`has all ${LIVE} of them again, with kernels, variables, files and deadlines`, async () => {
    const env = { CELLBOX_MAX_SANDBOXES: '50', CELLBOX_POOL_SIZE: '0' };
    service = await startService({ runtime: 'local', env });
    const before = new Client(service);
    const sandboxes = new Map<string, { pid: string; endAt: string }>();
    for (let n = 0; n < LIVE; n++) {
      const id = await before.create({ timeout: 1_800 });
      const code = `import os; value = ${n} * 7; open("kept", "w").write("file " + str(value)); print(os.getpid())`;
      const pid = await before.stdout(id, code);
      sandboxes.set(id, { pid, endAt: await endOf(before, id) });
    }
    const { dataDir } = service;
    await service.signal('SIGKILL');
    service = await startService({ runtime: 'local', dataDir, env });
    const seconds = Number(/ready in ([\d.]+) s/.exec(service.output())?.[1]);
    const after = new Client(service);
    let n = 0;
    for (const [id, { pid, endAt }] of sandboxes) {
      expect(await after.stdout(id, 'import os; print(os.getpid())')).toBe(pid);
      expect(await after.stdout(id, 'print(value, open("kept").read())')).toBe(`${n * 7} file ${n * 7}\n`);
      expect(await endOf(after, id)).toBe(endAt);
      n++;
    }
    process.stdout.write(`${LIVE} live sandboxes: back in ${seconds} s\n`);
    expect(seconds).toBeLessThanOrEqual(BACK_WITHIN_S);
  }, 600_000);
});

describeOnRuntimes(
  'a container that is killed from outside',
  { only: 'docker', env: { CELLBOX_POOL_SIZE: '0' } },
  ({ service, client }) => {
    it('is noticed within seconds: readers are reset, the sandbox is gone, nothing is left', async () => {
      const sandboxId = await client.create();
      const executions = new Executions(client, sandboxId);
      const id = await executions.detach('import time\nprint("on", flush=True)\ntime.sleep(600)');
      await executions.read(id, 0, (events) => events.some(({ type }) => type === 'stdout'));
      let isReading = false;
      const events = executions.read(id, 0, () => {
        isReading = true;
        return false;
      });
      const native = expect(events).rejects.toThrow();
      const plain = client.execute(sandboxId, { code: '1' }).then((response) => response.text());
      const broken = expect(plain).rejects.toThrow();
      // Both have arrived, and neither has an end.
      await until(async () => isReading && (await executions.list()).length === 2);
      const [container = ''] = containersOf(sandboxId);
      execFileSync('docker', ['kill', container]);
      const killed = Date.now();
      await Promise.all([native, broken]);
      await until(async () => (await client.api('GET', `/sandboxes/${sandboxId}`)).status === 404);
      expect(Date.now() - killed).toBeLessThan(15_000);
      const gone = await client.api('GET', `/sandboxes/${sandboxId}`);
      expect(await gone.json()).toMatchObject({
        code: 404,
        message: `Sandbox "${sandboxId}" doesn't exist or you don't have access to it`,
      });
      const port = await client.port(sandboxId, 49999, '/health');
      expect(port.status).toBe(502);
      expect(await port.json()).toEqual({ sandboxId, message: 'The sandbox was not found', code: 502 });
      await until(() => Promise.resolve(containersOf(sandboxId).length === 0));
      await until(() => Promise.resolve(!fs.existsSync(path.join(service.dataDir, 'executions', sandboxId))));
    }, 60_000);
  },
);

/** A file system of its own for the data directory, which is gone with the service. */
const mount = (size: string, directory: string): readonly [string, ...string[]] => [
  'unshare',
  process.getuid?.() === 0 ? '-m' : '-rm',
  'sh',
  '-c',
  `mount -t tmpfs -o size=${size} none "$0" && exec "$@"`,
  directory,
];

function canMount(): boolean {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'cbx-mount-'));
  try {
    const [program, ...argv] = [...mount('1m', directory), 'true'];
    execFileSync(program, argv, { stdio: 'ignore' });
    return true;
  } catch {
    return false; // no right to mount: told by the skipped tests
  } finally {
    fs.rmdirSync(directory);
  }
}

(canMount() ? describe : describe.skip)('a disk that is full', () => {
  let service: StartedService;
  let client: Client;
  let sandboxId: string;
  let executions: Executions;
  let token: string;
  beforeAll(async () => {
    const dataDir = fs.mkdtempSync(path.join(os.tmpdir(), 'cbx-'));
    // On the local runtime it is the sandboxes' disk and the service's.
    service = await startService({
      runtime: 'local',
      dataDir,
      within: mount('48m', dataDir),
      env: { CELLBOX_POOL_SIZE: '0', CELLBOX_OUTPUT_INLINE_BYTES: '100000' },
    });
    client = new Client(service);
    sandboxId = await client.create();
    executions = new Executions(client, sandboxId);
    token = await accessTokenOf(client, sandboxId);
    await client.text(sandboxId, 'kept = 42');
  }, 240_000);
  afterAll(() => service?.stop(), 60_000);

  const FILL = `
import os
with open("filler", "wb", buffering=0) as file:
    try:
        while True: file.write(bytes(1 << 16))
    except OSError as error: print(error.strerror)
with open("filler2", "wb", buffering=0) as file:
    try:
        while True: file.write(bytes(512))
    except OSError as error: pass`;

  it('is an error of the cell that writes, and nothing else; an upload is refused with 507', async () => {
    expect(await client.stdout(sandboxId, FILL)).toBe('No space left on device\n');
    expect(await client.text(sandboxId, 'kept')).toBe('42');
    const upload = await putFile(client, sandboxId, 'big', 'x'.repeat(1_000_000), token);
    expect(upload.status).toBe(507);
  }, 60_000);

  it("keeps executions running on the service's side, with an exact account of what could not be kept", async () => {
    const id = await executions.detach('print("z" * 2_000_000); kept + 1');
    // Events have 256 KiB of memory beside the disk.
    const events = await executions.events(id);
    expect(events.find(({ type }) => type === 'result')).toMatchObject({ text: '43' });
    expect(events.findLast(({ type }) => type === 'truncated')).toMatchObject({
      stream: 'stdout',
      omitted_bytes: 1_900_001,
    });
    expect(events.at(-1)).toMatchObject({ termination: 'ok' });
    const output = await client.api('GET', `/v1/sandboxes/${sandboxId}/executions/${id}/output/stdout`);
    const lost = Number(output.headers.get('x-lost-bytes'));
    expect(lost).toBeGreaterThan(0);
    expect((await output.text()).length + lost).toBe(2_000_001);
  }, 60_000);

  it('refuses a new sandbox with an error that says so, and leaves nothing of it', async () => {
    const response = await client.api('POST', '/v2/sandboxes', { templateID: 'code-interpreter-v1' });
    expect(response.status).toBeGreaterThanOrEqual(500);
    const list = (await (await client.api('GET', '/v2/sandboxes')).json()) as unknown[];
    expect(list).toHaveLength(1);
  }, 60_000);

  it('is forgotten as soon as there is room again', async () => {
    expect(await client.text(sandboxId, 'os.remove("filler"); os.remove("filler2"); kept')).toBe('42');
    const second = await client.create();
    expect(await client.text(second, '6 * 7')).toBe('42');
    await client.kill(second);
    await until(async () => {
      const id = await executions.detach('print("z" * 2_000_000)');
      await executions.events(id);
      return (await executions.output(id, 'stdout')).length === 2_000_001;
    });
  }, 60_000);
});

async function endOf(client: Client, sandboxId: string): Promise<string> {
  return ((await (await client.api('GET', `/sandboxes/${sandboxId}`)).json()) as { endAt: string }).endAt;
}

function containersOf(sandboxId: string): string[] {
  const argv = ['ps', '-aq', '--filter', `label=cellbox.id=${sandboxId}`];
  return execFileSync('docker', argv, { encoding: 'utf8' }).split('\n').filter(Boolean);
}
