import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { hashKey } from '../../../service/secrets';
import { DEFAULT_TEAM_ID, Store } from '../../../service/sandboxes/store';
import type { StoredSandbox } from '../../../service/sandboxes/store';

function sandbox(overrides: Partial<StoredSandbox> = {}): StoredSandbox {
  return {
    id: 'i1',
    teamId: DEFAULT_TEAM_ID,
    templateId: 'cellboxbase0template',
    templateAlias: 'base',
    state: 'running',
    startedAt: 1_763_700_000_123,
    runStartedAt: 1_763_700_000_123,
    endAt: 1_763_700_300_123,
    autoPause: false,
    metadata: { 'käse "1"': "o'clock\0\ud800", empty: '' },
    env: { A: '1\n2' },
    resources: { cpuCount: 2, memoryMB: 2048, diskSizeMB: 10_240, pids: 1024, openFiles: 16_384 },
    allowInternetAccess: true,
    allowPublicTraffic: false,
    secure: true,
    ...overrides,
  };
}

describe.each(['file', ':memory:'])('store in %s', (kind) => {
  let dir: string;
  let file: string;
  let store: Store;

  beforeEach(async () => {
    dir = fs.mkdtempSync(path.join(os.tmpdir(), 'cellbox-store-'));
    file = kind === 'file' ? path.join(dir, 'cellbox.db') : ':memory:';
    store = await Store.open(file);
  });

  afterEach(async () => {
    await store.close();
    fs.rmSync(dir, { recursive: true });
  });

  it('gives back every field of a sandbox', async () => {
    await store.addSandbox(sandbox());
    expect(await store.listSandboxes()).toEqual([sandbox()]);
  });

  it('saves what changes and nothing else', async () => {
    await store.addSandbox(sandbox());
    await store.addSandbox(sandbox({ id: 'i2', startedAt: 5 }));
    await store.updateSandbox('i1', { state: 'paused', endAt: 7, runStartedAt: 8, autoPause: true });
    expect(await store.listSandboxes()).toEqual([
      sandbox({ id: 'i2', startedAt: 5 }),
      sandbox({ state: 'paused', endAt: 7, runStartedAt: 8, autoPause: true }),
    ]);
  });

  it('does not bring back a removed sandbox by a late update', async () => {
    await store.addSandbox(sandbox());
    await store.removeSandbox('i1');
    await store.removeSandbox('i1');
    await store.updateSandbox('i1', { state: 'running' });
    expect(await store.listSandboxes()).toEqual([]);
  });

  it('refuses a second sandbox of the same id and one of an unknown team', async () => {
    await store.addSandbox(sandbox());
    await expect(store.addSandbox(sandbox())).rejects.toThrow(/UNIQUE/);
    await expect(store.addSandbox(sandbox({ id: 'i2', teamId: 'nobody' }))).rejects.toThrow(/FOREIGN/);
  });

  it('knows the service key by its hash until it is replaced', async () => {
    await store.setServiceKey('e2b_01');
    expect(await store.findKey(hashKey('e2b_01'))).toEqual({
      id: 'key-service',
      teamId: DEFAULT_TEAM_ID,
      hash: hashKey('e2b_01'),
    });
    await store.setServiceKey('e2b_02');
    expect(await store.findKey(hashKey('e2b_01'))).toBeUndefined();
    expect(await store.findKey(hashKey('e2b_02'))).toBeDefined();
  });

  it('remembers replayed creates per team and key', async () => {
    const record = { sandboxId: 'i1', fingerprint: 'f' };
    await store.addIdempotency(DEFAULT_TEAM_ID, 'k', record);
    expect(await store.findIdempotency(DEFAULT_TEAM_ID, 'k')).toEqual(record);
    expect(await store.findIdempotency('other', 'k')).toBeUndefined();
    expect(await store.findIdempotency(DEFAULT_TEAM_ID, 'K')).toBeUndefined();
  });

  it('closes twice', async () => {
    await store.close();
    await store.close();
  });
});

describe('store file', () => {
  let dir: string;
  let file: string;
  beforeEach(() => {
    dir = fs.mkdtempSync(path.join(os.tmpdir(), 'cellbox-store-'));
    file = path.join(dir, 'cellbox.db');
  });
  afterEach(() => fs.rmSync(dir, { recursive: true }));

  it('is readable by its owner only, the journal too', async () => {
    const store = await Store.open(file);
    await store.addSandbox(sandbox());
    const modes = fs.readdirSync(dir).map((name) => [name, fs.statSync(path.join(dir, name)).mode & 0o777]);
    await store.close();
    expect(modes).toContainEqual(['cellbox.db-wal', 0o600]);
    expect(modes.every(([, mode]) => mode === 0o600)).toBe(true);
  });

  it('keeps what was written by a process that never closed it', async () => {
    const first = await Store.open(file);
    await first.addSandbox(sandbox());
    const second = await Store.open(file);
    expect(await second.listSandboxes()).toEqual([sandbox()]);
    await second.close();
    await first.close();
  });

  it('holds neither the key nor a token', async () => {
    const key = `e2b_${'0123456789abcdef'.repeat(3)}`;
    const store = await Store.open(file);
    await store.setServiceKey(key);
    await store.close();
    expect(fs.readFileSync(file).includes(key)).toBe(false);
  });

  it('tells a damaged file and a missing directory in one line with a remedy', async () => {
    fs.writeFileSync(
      file,
      'this is not a database, and long enough to be looked at by the engine '.repeat(20),
    );
    await expect(Store.open(file)).rejects.toMatchObject({
      code: 'failed_precondition',
      remedy: expect.stringContaining('CELLBOX_DATA_DIR'),
    });
    await expect(Store.open(path.join(dir, 'none', 'x.db'))).rejects.toMatchObject({
      code: 'failed_precondition',
    });
  });
});
