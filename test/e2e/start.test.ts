import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { cleanEnv, prepared, ROOT, startService } from '../started-service';

let dataDir: string;
beforeEach(() => {
  dataDir = fs.mkdtempSync(path.join(os.tmpdir(), 'cbx-'));
});
afterEach(() => fs.rmSync(dataDir, { recursive: true, force: true }));

/** Runs `npm start`'s program where it must end by itself. */
function startAndFail(
  env: Record<string, string>,
  args: string[] = [],
): { code: number | null; stderr: string } {
  const done = spawnSync(process.execPath, ['start.js', ...args], {
    cwd: ROOT,
    env: cleanEnv({
      CELLBOX_DATA_DIR: dataDir,
      CELLBOX_PYTHON_DIR: prepared().pythonDir,
      CELLBOX_LOG_LEVEL: 'silent',
      ...env,
    }),
    encoding: 'utf8',
    timeout: 60_000,
  });
  return { code: done.status, stderr: done.stderr };
}

/** Runs one cell over plain HTTP; the text of its main result. */
async function runCell(
  service: { url: string },
  sandboxId: string,
  code: string,
): Promise<string | undefined> {
  const response = await fetch(`${service.url}/execute`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'e2b-sandbox-id': sandboxId, 'e2b-sandbox-port': '49999' },
    body: JSON.stringify({ code }),
  });
  const lines = (await response.text()).trim().split('\n');
  const events = lines.map((line) => JSON.parse(line) as { type: string; text?: string });
  return events.find((event) => event.type === 'result')?.text;
}

async function create(service: { url: string; apiKey: string }): Promise<string> {
  const response = await fetch(`${service.url}/v2/sandboxes`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'x-api-key': service.apiKey },
    body: JSON.stringify({ templateID: 'code-interpreter-v1', timeout: 300 }),
  });
  expect(response.status).toBe(201);
  return ((await response.json()) as { sandboxID: string }).sandboxID;
}

describe('npm start', () => {
  it('prints help and ends', () => {
    const done = spawnSync(process.execPath, ['start.js', '--help'], {
      cwd: ROOT,
      env: cleanEnv(),
      encoding: 'utf8',
    });
    expect(done.status).toBe(0);
    expect(done.stdout).toContain('CELLBOX_RUNTIME');
  });

  it('names every mistake in the configuration', () => {
    const { code, stderr } = startAndFail({ CELLBOX_PORT: 'x', CELLBOX_RUNTIME: 'moon' });
    expect(code).toBe(1);
    expect(stderr).toContain('CELLBOX_PORT="x"');
    expect(stderr).toContain('CELLBOX_RUNTIME="moon"');
  });

  it('says in one line that the port is in use, before anything slow', async () => {
    const other = http.createServer().listen(0, '127.0.0.1');
    await once(other, 'listening');
    const port = String((other.address() as AddressInfo).port);
    const { code, stderr } = startAndFail({ CELLBOX_PORT: port });
    expect(code).toBe(1);
    expect(stderr.trim()).toBe(
      `cellbox: Port ${port} is in use on 127.0.0.1. Stop what listens there, or give another with CELLBOX_PORT (0 takes a free one).`,
    );
    other.close();
  });

  it('says in one line that the engine that was demanded is not there', () => {
    const { code, stderr } = startAndFail({
      CELLBOX_RUNTIME: 'docker',
      CELLBOX_PORT: '0',
      DOCKER_HOST: 'unix:///nonexistent.sock',
    });
    expect(code).toBe(1);
    expect(stderr.trim().split('\n')).toHaveLength(1);
    expect(stderr).toContain('Start Docker, or use CELLBOX_RUNTIME=local');
  });

  it('says in one line that Python is missing', () => {
    const bin = path.join(dataDir, 'bin');
    fs.mkdirSync(bin);
    fs.symlinkSync(process.execPath, path.join(bin, 'node'));
    const { code, stderr } = startAndFail({
      PATH: bin,
      CELLBOX_RUNTIME: 'local',
      CELLBOX_PORT: '0',
      CELLBOX_PYTHON_DIR: path.join(dataDir, 'python'),
    });
    expect(code).toBe(1);
    expect(stderr).toMatch(/cellbox: .*Python/);
  });

  it('refuses to open the local runtime to other machines unless told twice', () => {
    const { code, stderr } = startAndFail({
      CELLBOX_RUNTIME: 'local',
      CELLBOX_HOST: '0.0.0.0',
      CELLBOX_PORT: '0',
    });
    expect(code).toBe(1);
    expect(stderr).toContain('CELLBOX_LOCAL_ALLOW_REMOTE=yes');
  });

  it('is healthy within three seconds when everything is there, and proves itself', async () => {
    const first = await startService({ runtime: 'local', dataDir });
    expect(first.apiKey).toMatch(/^e2b_[0-9a-f]{40}$/);
    expect(first.output()).toMatch(/^Self-check: created a sandbox, ran a pandas analysis with a chart/m);
    const refused = startAndFail({ CELLBOX_RUNTIME: 'local', CELLBOX_PORT: '0' });
    expect(refused.stderr).toContain('Another Cellbox service');
    await first.signal('SIGTERM');

    // What it can do, by the fastest of three: a machine that stands still for a moment makes one slow.
    let fastest = Number.POSITIVE_INFINITY;
    for (let attempt = 0; attempt < 3 && fastest >= 3_000; attempt++) {
      const began = Date.now();
      const second = await startService({ runtime: 'local', dataDir, until: /^Cellbox serves on/m });
      expect((await fetch(`${second.url}/health`)).status).toBe(204);
      fastest = Math.min(fastest, Date.now() - began);
      expect(second.apiKey).toBe(first.apiKey);
      await second.signal('SIGINT'); // with its sandboxes: the self-check may have one
    }
    expect(fastest).toBeLessThan(3_000);
  }, 120_000);

  it('keeps sandboxes, kernels and variables over a restart and over SIGKILL', async () => {
    const first = await startService({ runtime: 'local', dataDir });
    const sandboxId = await create(first);
    expect(await runCell(first, sandboxId, 'kept = 41; kept')).toBe('41');
    await first.signal('SIGTERM');
    const second = await startService({ runtime: 'local', dataDir });
    expect(await runCell(second, sandboxId, 'kept += 1; kept')).toBe('42');
    await second.signal('SIGKILL');
    const third = await startService({ runtime: 'local', dataDir });
    expect(await runCell(third, sandboxId, 'kept += 1; kept')).toBe('43');
    await third.signal('SIGINT'); // Ctrl-C ends sandboxes
    const fourth = await startService({ runtime: 'local', dataDir });
    const gone = await fetch(`${fourth.url}/sandboxes/${sandboxId}`, {
      headers: { 'x-api-key': fourth.apiKey },
    });
    expect(gone.status).toBe(404);
    await fourth.stop();
  }, 180_000);
});
