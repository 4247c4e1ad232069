import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import Database from 'libsql';
import { Kysely, Migrator, SqliteDialect } from 'kysely';
import type { SqliteDatabase } from 'kysely';
import { Store } from '../../../service/sandboxes/store';
import type { StoredSandbox } from '../../../service/sandboxes/store';
import { MIGRATIONS } from '../../../service/sandboxes/store-tables';
import { DEFAULT_TEAM_ID } from '../../../service/sandboxes/store-teams';
import type { StoredKey, StoredTeam } from '../../../service/sandboxes/store-teams';
import { postgresUnderTest, TestPostgres } from '../../postgres';

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
    autoPauseMode: 'full',
    autoResume: false,
    timeoutSeconds: 300,
    metadata: { 'käse "1"': "o'clock\0\ud800", empty: '' },
    env: { A: '1\n2' },
    resources: { cpuCount: 2, memoryMB: 2048, diskSizeMB: 10_240, pids: 1024, openFiles: 16_384 },
    allowInternetAccess: true,
    allowOut: [],
    denyOut: [],
    allowPublicTraffic: false,
    secure: true,
    ...overrides,
  };
}

function key(overrides: Partial<StoredKey> = {}): StoredKey {
  return {
    id: 'k1',
    teamId: DEFAULT_TEAM_ID,
    name: "o'clock",
    hash: 'a'.repeat(64),
    mask: { length: 40, prefix: 'ab', suffix: '0123' },
    createdAt: 1_763_700_000_123,
    ...overrides,
  };
}

function team(overrides: Partial<StoredTeam> = {}): StoredTeam {
  const limits = { maxSandboxes: 3, createsPerMinute: null };
  return { id: 't1', slug: 'acme', createdAt: 1_763_700_000_123, ...limits, ...overrides };
}

/** Where a store is to be, for one test each. */
interface Place {
  open(): Promise<{ location: string; remove: () => void }>;
  close?(): Promise<void>;
}

function inFile(): Place {
  const open = async () => {
    const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'cellbox-store-'));
    return { location: path.join(dir, 'cellbox.db'), remove: () => fs.rmSync(dir, { recursive: true }) };
  };
  return { open };
}

function inPostgres(): Place {
  let postgres: TestPostgres | undefined;
  const open = async () => {
    postgres ??= await TestPostgres.start();
    return { location: await postgres.createDatabase(), remove: () => {} };
  };
  return { open, close: async () => postgres?.stop() };
}

const inMemory: Place = { open: async () => ({ location: ':memory:', remove: () => {} }) };
const { skip } = postgresUnderTest();
const onPostgres = skip === undefined ? describe : describe.skip;

describe('store in a file', () => runStoreSuite(inFile()));
describe('store in memory', () => runStoreSuite(inMemory));
onPostgres(`store in PostgreSQL${skip === undefined ? '' : ` (${skip})`}`, () => runStoreSuite(inPostgres()));

/** What holds for every database. */
function runStoreSuite(place: Place): void {
  let location: string;
  let remove: () => void;
  let store: Store;

  beforeEach(async () => {
    ({ location, remove } = await place.open());
    store = await Store.open(location);
  });

  afterEach(async () => {
    await store.close();
    remove();
  });

  afterAll(() => place.close?.());

  it('gives back every field of a sandbox', async () => {
    const unusual = sandbox({
      id: 'i2',
      startedAt: 1_763_700_000_124,
      autoResume: true,
      timeoutSeconds: 86_400,
      allowInternetAccess: false,
      allowOut: ['1.1.1.1', '10.0.0.0/8'],
      denyOut: ['0.0.0.0/0'],
      maskRequestHost: 'localhost:${PORT}',
      httpsPorts: [443, 8443],
    });
    await store.addSandbox(sandbox());
    await store.addSandbox(unusual);
    expect(await store.listSandboxes()).toEqual([sandbox(), unusual]);
  });

  it('saves what changes and nothing else', async () => {
    await store.addSandbox(sandbox());
    await store.addSandbox(sandbox({ id: 'i2', startedAt: 5 }));
    const changes = {
      state: 'paused',
      pauseMode: 'filesystem',
      endAt: 7,
      runStartedAt: 8,
      autoPause: true,
    } as const;
    const egress = { allowInternetAccess: false, allowOut: ['1.1.1.1'], denyOut: ['2.2.2.2', '::/0'] };
    await store.updateSandbox('i1', changes);
    await store.updateSandbox('i1', egress);
    expect(await store.listSandboxes()).toEqual([
      sandbox({ id: 'i2', startedAt: 5 }),
      sandbox({ ...changes, ...egress }),
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
    await expect(store.addSandbox(sandbox())).rejects.toThrow(/unique/i);
    await expect(store.addSandbox(sandbox({ id: 'i2', teamId: 'nobody' }))).rejects.toThrow(/foreign/i);
  });

  it('gives back every field of teams and keys, newest first', async () => {
    const [older, newer] = [team(), team({ id: 't2', slug: 'zeta', createdAt: 1_763_700_000_999 })];
    expect([await store.teams.add(older), await store.teams.add(newer)]).toEqual([true, true]);
    const teams = await store.teams.list();
    expect(teams.filter((each) => each.id !== DEFAULT_TEAM_ID)).toEqual([newer, older]);
    expect([await store.teams.find('t1'), await store.teams.find('acme')]).toEqual([older, older]);
    expect(await store.teams.find(DEFAULT_TEAM_ID)).toMatchObject({ slug: 'default', maxSandboxes: null });

    await store.teams.addKey(key());
    await store.teams.addKey(key({ id: 'k2', hash: 'b', createdAt: 1_763_700_000_999 }));
    await store.teams.addKey(key({ id: 'k3', hash: 'c', teamId: 't1' }));
    expect((await store.teams.listKeys(DEFAULT_TEAM_ID)).map((each) => each.id)).toEqual(['k2', 'k1']);
    expect((await store.teams.listKeys(DEFAULT_TEAM_ID))[1]).toEqual(key());
  });

  it('takes a name once, and prefers the team of that id', async () => {
    await store.teams.add(team());
    expect(await store.teams.add(team({ id: 't2' }))).toBe(false);
    await store.teams.add(team({ id: 't3', slug: 't1' }));
    expect(await store.teams.find('t1')).toEqual(team());
    expect(await store.teams.find('nobody')).toBeUndefined();
  });

  it('finds a key by its hash, with the limits of its team, until it is removed by its own team', async () => {
    await store.teams.add(team());
    await store.teams.addKey(key({ teamId: 't1' }));
    await store.teams.setLimits('t1', { maxSandboxes: null, createsPerMinute: 7 });
    expect(await store.teams.findKey(key().hash)).toEqual({
      id: 'k1',
      teamId: 't1',
      hash: key().hash,
      limits: { maxSandboxes: null, createsPerMinute: 7 },
    });
    expect(await store.teams.removeKey(DEFAULT_TEAM_ID, 'k1')).toBe(false);
    expect(await store.teams.removeKey('t1', 'k1')).toBe(true);
    expect(await store.teams.removeKey('t1', 'k1')).toBe(false);
    expect(await store.teams.findKey(key().hash)).toBeUndefined();
  });

  it('knows the key of a service until it is replaced, and lets two services have the same', async () => {
    await store.teams.setServiceKey(key({ id: 'service-a' }));
    await store.teams.setServiceKey(key({ id: 'service-b' }));
    expect(await store.teams.findKey(key().hash)).toMatchObject({ id: 'service-a' });
    await store.teams.setServiceKey(key({ id: 'service-a', hash: 'new' }));
    expect(await store.teams.findKey(key().hash)).toBeUndefined();
    expect(await store.teams.findKey('new')).toMatchObject({ id: 'service-a', teamId: DEFAULT_TEAM_ID });
  });

  it('refuses a service key that is the key of another team', async () => {
    await store.teams.add(team());
    await store.teams.addKey(key({ teamId: 't1' }));
    await expect(store.teams.setServiceKey(key({ id: 'service-a' }))).rejects.toMatchObject({
      code: 'failed_precondition',
      remedy: expect.any(String),
    });
  });

  it('answers when it is asked whether it does', async () => {
    expect(await store.check()).toEqual([{ name: 'store', ok: true }]);
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
}

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

  it('takes over the tables of the first release with the sandboxes in them', async () => {
    const database = new Database(file);
    const dialect = new SqliteDialect({ database: database as unknown as SqliteDatabase });
    const old = new Kysely<{ sandboxes: { service_id: string } }>({ dialect });
    const provider = { getMigrations: () => Promise.resolve(MIGRATIONS) };
    await new Migrator({ db: old, provider }).migrateTo('0001-start');
    database.exec(
      `INSERT INTO teams VALUES ('${DEFAULT_TEAM_ID}', 'default', 1);
       INSERT INTO api_keys VALUES ('key-service', '${DEFAULT_TEAM_ID}', 'service', 'a', 1);
       INSERT INTO sandboxes VALUES ('i1', '${DEFAULT_TEAM_ID}', 't', 'base', 'running', 1, 2, 3, 0, '{}', '{}', '{}', 1, 1, 1)`,
    );
    await old.destroy();
    const store = await Store.open(file);
    expect(await store.listSandboxes()).toMatchObject([{ id: 'i1', startedAt: 1, endAt: 3, secure: true }]);
    expect(await store.teams.listKeys(DEFAULT_TEAM_ID)).toEqual([]); // each start writes its own
    await store.close();
  });

  it('keeps what was written by a process that never closed it', async () => {
    const first = await Store.open(file);
    await first.addSandbox(sandbox());
    const second = await Store.open(file);
    expect(await second.listSandboxes()).toEqual([sandbox()]);
    await second.close();
    await first.close();
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
