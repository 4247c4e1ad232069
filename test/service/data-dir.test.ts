import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { loadAdminToken, loadApiKey, lockDataDir, openDataDir } from '../../service/data-dir';

let dir: string;
beforeEach(() => {
  dir = fs.mkdtempSync(path.join(os.tmpdir(), 'cbx-dir-'));
});
afterEach(() => fs.rmSync(dir, { recursive: true, force: true }));

describe('loadApiKey', () => {
  it('makes a key once, readable by its owner only, and keeps it', () => {
    const key = loadApiKey(dir, undefined);
    expect(key).toMatch(/^e2b_[0-9a-f]{40}$/);
    expect(fs.statSync(path.join(dir, 'api-key')).mode & 0o777).toBe(0o600);
    expect(loadApiKey(dir, undefined)).toBe(key);
  });

  it('prefers the configured key and writes nothing', () => {
    expect(loadApiKey(dir, 'e2b_00')).toBe('e2b_00');
    expect(fs.readdirSync(dir)).toEqual([]);
  });
});

describe('loadAdminToken', () => {
  it('makes a token once, readable by its owner only, and keeps it', () => {
    const token = loadAdminToken(dir, undefined);
    expect(token).toMatch(/^[0-9a-f]{40}$/);
    expect(fs.statSync(path.join(dir, 'admin-token')).mode & 0o777).toBe(0o600);
    expect(loadAdminToken(dir, undefined)).toBe(token);
  });

  it('prefers the configured token and writes nothing', () => {
    expect(loadAdminToken(dir, 'configured-configured')).toBe('configured-configured');
    expect(fs.readdirSync(dir)).toEqual([]);
  });
});

describe('lockDataDir', () => {
  it('refuses a directory whose owner lives and takes over one whose owner is gone', async () => {
    const owner = spawn(process.execPath, ['-e', 'setInterval(() => {}, 1000)']);
    await once(owner, 'spawn');
    fs.writeFileSync(path.join(dir, 'service.pid'), `${owner.pid}\n`);
    expect(() => lockDataDir(dir)).toThrow(`Another Cellbox service (pid ${owner.pid})`);
    owner.kill('SIGKILL');
    await once(owner, 'exit');
    const release = lockDataDir(dir);
    expect(fs.readFileSync(path.join(dir, 'service.pid'), 'utf8')).toBe(`${process.pid}\n`);
    release();
    expect(fs.existsSync(path.join(dir, 'service.pid'))).toBe(false);
  });
});

describe('openDataDir', () => {
  it('makes the directory for its owner only', () => {
    openDataDir(path.join(dir, 'a', 'b'));
    expect(fs.statSync(path.join(dir, 'a', 'b')).mode & 0o777).toBe(0o700);
  });

  it('names the setting when a file is in the way', () => {
    fs.writeFileSync(path.join(dir, 'file'), '');
    expect(() => openDataDir(path.join(dir, 'file'))).toThrow('CELLBOX_DATA_DIR');
  });
});
