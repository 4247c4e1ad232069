import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { postgresUnderTest, TestPostgres } from '../postgres';
import { cleanEnv, prepared, ROOT, startService } from '../started-service';
import type { StartedService } from '../started-service';
import { Client } from './client';

jest.setTimeout(180_000);

const { skip } = postgresUnderTest();
const onPostgres = skip === undefined ? describe : describe.skip;

onPostgres(`a service with its store in PostgreSQL${skip === undefined ? '' : ` (skipped: ${skip})`}`, () => {
  let postgres: TestPostgres;
  let dataDir: string;
  let env: Record<string, string>;
  const services: StartedService[] = [];

  const start = async (): Promise<StartedService> => {
    const service = await startService({ runtime: 'local', dataDir, env });
    services.push(service);
    return service;
  };

  const command = (url: string, ...args: string[]) =>
    spawnSync(process.execPath, ['start.js', ...args], {
      cwd: ROOT,
      env: cleanEnv({ ...env, CELLBOX_DATA_DIR: dataDir, CELLBOX_PORT: new URL(url).port }),
      encoding: 'utf8',
      timeout: 60_000,
    });

  beforeAll(async () => {
    postgres = await TestPostgres.start();
  });
  beforeEach(async () => {
    dataDir = fs.mkdtempSync(path.join(os.tmpdir(), 'cbx-'));
    env = { CELLBOX_DATABASE_URL: await postgres.createDatabase() };
  });
  afterEach(async () => {
    for (const service of services.splice(0)) await service.signal('SIGINT');
    fs.rmSync(dataDir, { recursive: true, force: true });
  });
  afterAll(() => postgres.stop());

  it('takes over its sandboxes, teams and keys after SIGKILL', async () => {
    const first = await start();
    const made = command(first.url, 'teams', 'create', 'acme', '--max-sandboxes', '1');
    expect([made.status, made.stderr]).toEqual([0, '']);
    const apiKey = command(first.url, 'keys', 'create', 'acme', 'ci').stdout.trim();
    expect(apiKey).toMatch(/^e2b_[0-9a-f]{40}$/);
    const client = new Client({ ...first, apiKey });
    const sandboxId = await client.create();
    expect(await client.text(sandboxId, 'kept = 41; kept')).toBe('41');
    await first.signal('SIGKILL');

    const second = await start();
    const again = new Client({ ...second, apiKey });
    expect(await again.text(sandboxId, 'kept += 1; kept')).toBe('42');
    const list = await again.api('GET', '/v2/sandboxes');
    expect(await list.json()).toMatchObject([{ sandboxID: sandboxId, state: 'running' }]);
    await expect(again.create()).rejects.toThrow('The limit of 1 concurrent sandboxes is reached');
    expect(second.apiKey).toBe(first.apiKey);
    expect(fs.readdirSync(dataDir).filter((name) => name.startsWith('cellbox.db'))).toEqual([]);
  });

  it('refuses control while the database is away, lets sandboxes go on, and is itself again when it is back', async () => {
    const service = await start();
    const client = new Client(service);
    const sandboxId = await client.create();
    await client.text(sandboxId, 'kept = 1');
    await postgres.halt();
    try {
      const refused = await client.api('POST', '/v2/sandboxes', { templateID: 'base' });
      expect([refused.status, await refused.json()]).toEqual([
        503,
        { code: 503, message: 'The database of the service does not answer' },
      ]);
      const native = await client.api('GET', '/v1/info');
      expect([native.status, await native.json()]).toMatchObject([
        503,
        { error: 'unavailable', remedy: expect.stringContaining('Try again') },
      ]);
      const health = await fetch(`${service.url}/health`);
      expect([health.status, await health.json()]).toMatchObject([
        503,
        { checks: expect.arrayContaining([expect.objectContaining({ name: 'store', ok: false })]) },
      ]);
      expect(await client.text(sandboxId, 'kept += 1; kept')).toBe('2');
    } finally {
      await postgres.resume();
    }
    expect((await client.api('GET', `/sandboxes/${sandboxId}`)).status).toBe(200);
    expect(await client.text(sandboxId, 'kept += 1; kept')).toBe('3');
  });

  it('ends at its start with one line and a remedy when the database is down', () => {
    env = {
      CELLBOX_DATABASE_URL: 'postgres://cellbox:hush@127.0.0.1:1/none',
      CELLBOX_RUNTIME: 'local',
      CELLBOX_PYTHON_DIR: prepared().pythonDir,
      CELLBOX_LOG_LEVEL: 'silent',
    };
    const { status, stderr } = command('http://127.0.0.1:0');
    expect(status).toBe(1);
    expect(stderr.trim().split('\n')).toEqual([
      "cellbox: PostgreSQL at 127.0.0.1:1/none can't be used: nothing answers there",
      '  Check that it runs and that CELLBOX_DATABASE_URL is right, or leave that out to keep state in a file.',
    ]);
  });

  it('ends at its start when the setting is no such URL, without repeating it', () => {
    env = { CELLBOX_DATABASE_URL: 'mysql://cellbox:hush@127.0.0.1/none' };
    const { status, stderr } = command('http://127.0.0.1:0');
    expect(status).toBe(1);
    expect(stderr).toContain('CELLBOX_DATABASE_URL: must be postgres://user:password@host:port/database');
    expect(stderr).not.toContain('hush');
  });
});
