import * as sdk from '@e2b/code-interpreter';
import { whyNoGvisor } from '../runtime/docker-harness';
import { startService } from '../started-service';
import type { StartedService } from '../started-service';
import { until } from './js-sdks';

const skip = whyNoGvisor();
const MEMORY_MB = 1024;

/** The unmodified SDK, against sandboxes that all run on gVisor. */
(skip === undefined ? describe : describe.skip)(
  `JavaScript SDK on gVisor${skip === undefined ? '' : ` (skipped: ${skip})`}`,
  () => {
    let service: StartedService;
    let sandbox: sdk.Sandbox;

    beforeAll(async () => {
      service = await startService({
        runtime: 'docker',
        env: { CELLBOX_ISOLATION: 'gvisor', CELLBOX_POOL_SIZE: '1', CELLBOX_MEMORY_MB: String(MEMORY_MB) },
      });
      Object.assign(process.env, service.exported);
      sandbox = await sdk.Sandbox.create({ timeoutMs: 600_000 });
    }, 240_000);

    afterAll(async () => {
      await sandbox?.kill();
      for (const name of Object.keys(service?.exported ?? {})) delete process.env[name];
      await service?.stop();
    }, 60_000);

    it('says which wall sandboxes have', async () => {
      const response = await fetch(`${service.url}/v1/info`, { headers: { 'x-api-key': service.apiKey } });
      const info = (await response.json()) as { isolation_levels: string[]; templates: unknown[] };
      expect(info.isolation_levels[0]).toBe('gvisor');
      expect(info.templates).toContainEqual(expect.objectContaining({ alias: 'base', isolation: 'gvisor' }));
      expect((await sandbox.commands.run('dmesg', { user: 'root' })).stdout).toContain('gVisor');
    }, 60_000);

    it('runs cells, keeps variables and draws charts', async () => {
      await sandbox.runCode('x = 41');
      expect((await sandbox.runCode('x + 1')).text).toBe('42');
      const figure = 'import matplotlib.pyplot as plt\nplt.plot([1, 4, 9])\nplt.show()';
      const [chart] = (await sandbox.runCode(figure)).results;
      expect(chart?.png?.length).toBeGreaterThan(1_000);
      expect(chart?.chart?.type).toBe('line');
      const frame = 'import pandas as pd\npd.DataFrame({"a": [1, 2]}).a.sum()';
      expect((await sandbox.runCode(frame)).text).toMatch(/3/);
    }, 120_000);

    it('interrupts a cell whose client left, and restarts a context', async () => {
      await sandbox.runCode('x = 7');
      const given = sandbox.runCode('import time\ntime.sleep(600)', { timeoutMs: 2_000 });
      await expect(given).rejects.toBeInstanceOf(sdk.TimeoutError);
      expect((await sandbox.runCode('x')).text).toBe('7');
      const context = await sandbox.createCodeContext();
      await sandbox.runCode('y = 1', { context });
      await sandbox.restartCodeContext(context);
      expect((await sandbox.runCode('y', { context })).error?.name).toBe('NameError');
      await sandbox.removeCodeContext(context);
    }, 120_000);

    it('runs commands, streams them and ends them', async () => {
      let seen = '';
      const command = await sandbox.commands.run('echo one; exec sleep 300', {
        background: true,
        onStdout: (text) => void (seen += text),
      });
      await until('the first line', () => seen.includes('one'));
      await command.kill();
      expect((await sandbox.commands.run('pgrep -c sleep || true')).stdout.trim()).toBe('0');
      // Not by sudo: older builds of gVisor know no set-user-id programs.
      expect((await sandbox.commands.run('id -u', { user: 'root' })).stdout).toBe('0\n');
    }, 60_000);

    it('has terminals', async () => {
      let screen = '';
      const terminal = await sandbox.pty.create({
        cols: 77,
        rows: 24,
        onData: (data) => void (screen += Buffer.from(data).toString()),
      });
      await sandbox.pty.sendInput(terminal.pid, Buffer.from('stty size; exit\n'));
      expect((await terminal.wait()).exitCode).toBe(0);
      expect(screen).toContain('24 77');
    }, 60_000);

    it('writes, reads and watches files', async () => {
      const events: string[] = [];
      await sandbox.files.makeDir('/home/user/watched');
      const handle = await sandbox.files.watchDir('/home/user/watched', (event) => {
        events.push(`${event.type} ${event.name}`);
      });
      const a = '/home/user/watched/a.txt';
      const written = await sandbox.files.write(a, 'hello', { metadata: { kind: 'note' } });
      await until('the file', () => events.includes('create a.txt'));
      expect(await sandbox.files.read(a)).toBe('hello');
      // What gVisor's files can't carry is not told as if they did.
      expect([written.metadata, (await sandbox.files.getInfo(a)).metadata]).toEqual([undefined, undefined]);
      await sandbox.commands.run('mv watched/a.txt watched/b.txt');
      await until('the new name', () => events.includes('create b.txt'));
      await handle.stop();
    }, 60_000);

    it('tells what it uses', async () => {
      await until('figures', async () => (await sandbox.getMetrics()).length > 0);
      const last = (await sandbox.getMetrics()).at(-1);
      expect(last?.memTotal).toBe(MEMORY_MB * 1_048_576);
      expect(last?.memUsed).toBeGreaterThan(10 * 1_048_576);
      expect(last?.memUsed).toBeLessThan(MEMORY_MB * 1_048_576);
    }, 60_000);

    it('keeps variables over a pause', async () => {
      await sandbox.runCode('kept = 5');
      await sandbox.pause();
      const again = await sdk.Sandbox.connect(sandbox.sandboxId);
      expect((await again.runCode('kept')).text).toBe('5');
    }, 60_000);

    it('keeps sandbox, kernel and variables when the service is killed and comes back', async () => {
      await sandbox.runCode('survivor = 6');
      const port = new URL(service.url).port;
      await service.signal('SIGKILL');
      service = await startService({
        runtime: 'docker',
        dataDir: service.dataDir,
        env: { CELLBOX_ISOLATION: 'gvisor', CELLBOX_PORT: port },
      });
      expect((await sandbox.runCode('survivor')).text).toBe('6');
    }, 180_000);

    it('resolves no name without internet access, and nothing gets out', async () => {
      const closed = await sdk.Sandbox.create({ allowInternetAccess: false });
      const { stdout } = await closed.commands.run(
        'getent hosts example.com || echo unknown; cat /proc/net/dev | grep -c eth || true',
      );
      expect(stdout).toBe('unknown\n0\n');
      await closed.kill();
    }, 60_000);

    // Last: gVisor's kernel is inside the limit, too, so that it may be what is killed.
    it('ends a sandbox that takes more memory than it has, and tells it', async () => {
      const greedy = await sdk.Sandbox.create();
      const run = greedy.commands.run(
        `python3 -c 'b = bytearray(${4 * MEMORY_MB * 1_048_576}); b[::4096] = b"x" * len(b[::4096])'`,
      );
      await expect(run).rejects.toBeInstanceOf(Error);
      await greedy.kill();
      expect((await sandbox.runCode('1 + 1')).text).toBe('2');
    }, 120_000);
  },
);
