import { execFileSync, spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { prepared, startService } from '../started-service';
import type { StartedService } from '../started-service';
import { Client } from './client';
import { Executions, until } from './recovery-client';

/** Loading an image into an engine of its own takes about a minute: only where that is asked for. */
const isAsked = process.env['CELLBOX_SLOW_TESTS'] === '1' && process.getuid?.() === 0;

/** A container engine of our own, in a network namespace of its own: the machine's is never touched. */
class Engine {
  readonly directory = fs.mkdtempSync(path.join(os.tmpdir(), 'cbx-engine-'));
  private daemon: ChildProcess | undefined;
  private holder: ChildProcess | undefined;

  get host(): string {
    return `unix://${this.directory}/docker.sock`;
  }

  async start(...options: string[]): Promise<void> {
    await this.makeNamespaces();
    const file = (name: string): string => path.join(this.directory, name);
    const log = fs.openSync(file('log'), 'a');
    const enter = ['-t', String(this.holder?.pid), '-n', '-m'];
    const daemon = ['dockerd', '--data-root', file('data'), '--exec-root', file('exec'), '-p', file('pid')];
    this.daemon = spawn('nsenter', [...enter, ...daemon, '-H', this.host, ...options], {
      stdio: ['ignore', log, log],
    });
    fs.closeSync(log);
    await until(() => Promise.resolve(this.answers()), 60_000);
  }

  async stop(): Promise<void> {
    const { daemon } = this;
    this.daemon = undefined;
    if (daemon === undefined || daemon.exitCode !== null) return;
    const exited = once(daemon, 'exit');
    daemon.kill('SIGTERM');
    await exited;
  }

  docker(...argv: string[]): string {
    return execFileSync('docker', ['-H', this.host, ...argv], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    });
  }

  async remove(): Promise<void> {
    const left = this.answers() ? this.docker('ps', '-aq').split('\n').filter(Boolean) : [];
    if (left.length > 0) this.docker('rm', '-f', ...left);
    await this.stop();
    this.holder?.kill('SIGKILL');
    fs.rmSync(this.directory, { recursive: true, force: true });
  }

  /** They outlive the daemon: containers that do so, too, keep the network and the mounts that it had. */
  private async makeNamespaces(): Promise<void> {
    if (this.holder !== undefined) return;
    const command = 'ip link set lo up && mount -t tmpfs none /run && exec sleep 3600';
    this.holder = spawn('unshare', ['-n', '-m', 'sh', '-c', command], { stdio: 'ignore' });
    const pid = String(this.holder.pid);
    await until(() => Promise.resolve(fs.readFileSync(`/proc/${pid}/comm`, 'utf8') === 'sleep\n'));
  }

  private answers(): boolean {
    try {
      this.docker('version');
      return true;
    } catch {
      return false; // not up yet, or down
    }
  }
}

(isAsked ? describe : describe.skip)('a container engine that is restarted (CELLBOX_SLOW_TESTS=1)', () => {
  const engine = new Engine();
  let service: StartedService;
  let client: Client;
  beforeAll(async () => {
    await engine.start();
    const image = prepared().images.slim ?? '';
    execFileSync('sh', ['-c', 'docker save "$0" | docker -H "$1" load', image, engine.host]);
    service = await startService({
      runtime: 'docker',
      env: { DOCKER_HOST: engine.host, CELLBOX_IMAGE: image, CELLBOX_POOL_SIZE: '0' },
    });
    client = new Client(service);
  }, 400_000);
  afterAll(async () => {
    await service?.stop();
    await engine.remove();
  }, 120_000);

  it('takes its containers along: connections are reset, the sandboxes are gone, new ones can be made', async () => {
    const sandboxId = await client.create();
    const executions = new Executions(client, sandboxId);
    const id = await executions.detach('import time\nprint("on", flush=True)\ntime.sleep(600)');
    await executions.read(id, 0, (events) => events.some(({ type }) => type === 'stdout'));
    const broken = executions.events(id).then(
      (events) => events.at(-1)?.['termination'],
      () => 'reset',
    );
    await engine.stop();
    const refused = await client.api('POST', '/v2/sandboxes', { templateID: 'code-interpreter-v1' });
    expect(refused.status).toBe(503);
    await engine.start();
    expect(['reset', 'transport_lost']).toContain(await broken);
    await until(async () => (await client.api('GET', `/sandboxes/${sandboxId}`)).status === 404);
    await until(() => Promise.resolve(engine.docker('ps', '-aq') === ''));
    const next = await client.create();
    expect(await client.text(next, '6 * 7')).toBe('42');
    await client.kill(next);
  }, 180_000);

  it('leaves them alone while it is away (live-restore): what runs goes on; then it keeps them or they are gone', async () => {
    await engine.stop();
    await engine.start('--live-restore');
    await until(async () => (await client.api('GET', '/health')).ok);
    const sandboxId = await client.create();
    const executions = new Executions(client, sandboxId);
    await client.text(sandboxId, 'kept = 42');
    const id = await executions.detach(
      'import time\nfor n in range(150): print(n, flush=True); time.sleep(0.1)',
    );
    await executions.read(id, 0, (events) => events.length > 1);
    await engine.stop();
    const { event_count: before } = await executions.info(id);
    await until(async () => (await executions.info(id)).event_count > before + 20);
    await engine.start('--live-restore');
    // Docker 20.10 ends containers that it is to remove at their end, as it is ours, when it starts; that is its own affair.
    await until(async () => (await client.api('GET', '/health')).ok);
    const isThere = (): boolean =>
      engine.docker('ps', '-q', '--filter', `label=cellbox.id=${sandboxId}`) !== '';
    if (isThere()) {
      expect((await executions.events(id)).at(-1)).toMatchObject({ termination: 'ok' });
      expect(await client.text(sandboxId, 'kept')).toBe('42');
      await client.kill(sandboxId);
    } else {
      await until(async () => (await client.api('GET', `/sandboxes/${sandboxId}`)).status === 404);
    }
    await until(() => Promise.resolve(engine.docker('ps', '-aq') === ''));
  }, 180_000);
});
