import fs from 'node:fs';
import Database from 'libsql';
import { Kysely, Migrator, SqliteDialect } from 'kysely';
import type { Migration, Selectable, SqliteDatabase } from 'kysely';
import { ServiceError } from '../errors';
import { hashKey } from '../secrets';
import type { Sandbox } from './sandbox';
import { DEFAULT_TEAM_SLUG } from './templates';

/**
 * What the store remembers of a sandbox: all but its tokens, which are derived from the service's secret.
 * `starting` marks one whose machine is not up yet; after a crash it is half-made and gets removed.
 */
export type StoredSandbox = Omit<Sandbox, 'state' | 'accessToken' | 'trafficToken'> & {
  state: Sandbox['state'] | 'starting';
  secure: boolean;
};

/** Who an API key speaks for. */
export interface KeyRecord {
  readonly id: string;
  readonly teamId: string;
  readonly hash: string;
}

/** Which create an `Idempotency-Key` was used for. */
export interface IdempotencyRecord {
  readonly sandboxId: string;
  /** Tells a replay from another request under the same key. */
  readonly fingerprint: string;
}

// Columns hold text and whole numbers only, so that every dialect stores them alike: booleans are 0 or 1, maps are
// JSON (which also escapes NUL, refused by PostgreSQL), times are milliseconds since the epoch.
interface Tables {
  teams: { id: string; slug: string; created_at: number };
  api_keys: { id: string; team_id: string; name: string; key_hash: string; created_at: number };
  sandboxes: {
    id: string;
    team_id: string;
    template_id: string;
    template_alias: string;
    state: StoredSandbox['state'];
    started_at: number;
    run_started_at: number;
    end_at: number;
    auto_pause: number;
    metadata: string;
    env: string;
    resources: string;
    allow_internet_access: number;
    allow_public_traffic: number;
    secure: number;
  };
  idempotency_keys: {
    team_id: string;
    key: string;
    sandbox_id: string;
    fingerprint: string;
    created_at: number;
  };
}

/** Never edited once released: a change to the tables is a new entry. Run in the order of their names. */
const MIGRATIONS: Record<string, Migration> = {
  '0001-start': {
    async up(db) {
      await db.schema
        .createTable('teams')
        .addColumn('id', 'varchar(64)', (column) => column.primaryKey())
        .addColumn('slug', 'varchar(64)', (column) => column.notNull().unique())
        .addColumn('created_at', 'bigint', (column) => column.notNull())
        .execute();
      await db.schema
        .createTable('api_keys')
        .addColumn('id', 'varchar(64)', (column) => column.primaryKey())
        .addColumn('team_id', 'varchar(64)', (column) => column.notNull().references('teams.id'))
        .addColumn('name', 'text', (column) => column.notNull())
        .addColumn('key_hash', 'varchar(64)', (column) => column.notNull().unique())
        .addColumn('created_at', 'bigint', (column) => column.notNull())
        .execute();
      await db.schema
        .createTable('sandboxes')
        .addColumn('id', 'varchar(64)', (column) => column.primaryKey())
        .addColumn('team_id', 'varchar(64)', (column) => column.notNull().references('teams.id'))
        .addColumn('template_id', 'varchar(64)', (column) => column.notNull())
        .addColumn('template_alias', 'text', (column) => column.notNull())
        .addColumn('state', 'varchar(16)', (column) => column.notNull())
        .addColumn('started_at', 'bigint', (column) => column.notNull())
        .addColumn('run_started_at', 'bigint', (column) => column.notNull())
        .addColumn('end_at', 'bigint', (column) => column.notNull())
        .addColumn('auto_pause', 'integer', (column) => column.notNull())
        .addColumn('metadata', 'text', (column) => column.notNull())
        .addColumn('env', 'text', (column) => column.notNull())
        .addColumn('resources', 'text', (column) => column.notNull())
        .addColumn('allow_internet_access', 'integer', (column) => column.notNull())
        .addColumn('allow_public_traffic', 'integer', (column) => column.notNull())
        .addColumn('secure', 'integer', (column) => column.notNull())
        .execute();
      await db.schema
        .createTable('idempotency_keys')
        .addColumn('team_id', 'varchar(64)', (column) => column.notNull().references('teams.id'))
        .addColumn('key', 'varchar(255)', (column) => column.notNull())
        .addColumn('sandbox_id', 'varchar(64)', (column) => column.notNull())
        .addColumn('fingerprint', 'varchar(64)', (column) => column.notNull())
        .addColumn('created_at', 'bigint', (column) => column.notNull())
        .addPrimaryKeyConstraint('idempotency_keys_pkey', ['team_id', 'key'])
        .execute();
    },
  },
};

/** The team that the service's own key belongs to. */
export const DEFAULT_TEAM_ID = 'team-default';

const SERVICE_KEY_ID = 'key-service';

/** How long a replayed create is recognised. Retries come within seconds; a day also covers a job that is run again. */
const IDEMPOTENCY_KEEP_MS = 86_400_000;

/**
 * Durable records: teams, keys, sandboxes, replayed creates. Knows no machine and no rule; every row has its team.
 * Queries are Kysely's portable part, so that another database needs another dialect and nothing else.
 */
export class Store {
  private readonly db: Kysely<Tables>;
  private closed = false;

  private constructor(db: Kysely<Tables>) {
    this.db = db;
  }

  /** Opens or makes the file (mode 0600; `:memory:` for none) and brings its tables up to date. The caller closes. */
  static async open(file: string): Promise<Store> {
    let database: Database.Database;
    try {
      if (file !== ':memory:') {
        // The journal's files take their mode from this one.
        fs.closeSync(fs.openSync(file, 'a', 0o600));
        fs.chmodSync(file, 0o600);
      }
      database = new Database(file);
      database.pragma('journal_mode = WAL');
      database.pragma('busy_timeout = 5000');
      database.pragma('foreign_keys = ON');
    } catch (cause) {
      throw new ServiceError('failed_precondition', `The store ${file} can't be opened`, {
        cause,
        remedy: 'Check that it is writable and not damaged, or give another CELLBOX_DATA_DIR.',
      });
    }
    // libsql has better-sqlite3's interface but for the parameter types that its declarations leave out.
    const dialect = new SqliteDialect({ database: database as unknown as SqliteDatabase });
    const store = new Store(new Kysely<Tables>({ dialect }));
    try {
      await store.migrate(file);
    } catch (error) {
      await store.close();
      throw error;
    }
    return store;
  }

  private async migrate(file: string): Promise<void> {
    const provider = { getMigrations: () => Promise.resolve(MIGRATIONS) };
    const { error } = await new Migrator({ db: this.db, provider }).migrateToLatest();
    if (error !== undefined) {
      throw new ServiceError('failed_precondition', `The store ${file} can't be brought up to date`, {
        cause: error,
        remedy: 'It may be damaged or come from a newer release: give another CELLBOX_DATA_DIR.',
      });
    }
    await this.db
      .insertInto('teams')
      .values({ id: DEFAULT_TEAM_ID, slug: DEFAULT_TEAM_SLUG, created_at: Date.now() })
      .onConflict((conflict) => conflict.column('id').doNothing())
      .execute();
  }

  /** Makes this the service's own key; the one before stops working. Only its hash is kept. */
  async setServiceKey(key: string): Promise<void> {
    const hash = hashKey(key);
    await this.db
      .insertInto('api_keys')
      .values({
        id: SERVICE_KEY_ID,
        team_id: DEFAULT_TEAM_ID,
        name: 'service',
        key_hash: hash,
        created_at: Date.now(),
      })
      .onConflict((conflict) => conflict.column('id').doUpdateSet({ key_hash: hash }))
      .execute();
  }

  async findKey(hash: string): Promise<KeyRecord | undefined> {
    const row = await this.db
      .selectFrom('api_keys')
      .select(['id', 'team_id', 'key_hash'])
      .where('key_hash', '=', hash)
      .executeTakeFirst();
    return row === undefined ? undefined : { id: row.id, teamId: row.team_id, hash: row.key_hash };
  }

  async addSandbox(sandbox: StoredSandbox): Promise<void> {
    await this.db.insertInto('sandboxes').values(toRow(sandbox)).execute();
  }

  /** Saves what can change in a sandbox's life. Does nothing when it is gone: an end wins over a late update. */
  async updateSandbox(
    id: string,
    changes: Partial<Pick<StoredSandbox, 'state' | 'endAt' | 'startedAt' | 'runStartedAt' | 'autoPause'>>,
  ): Promise<void> {
    await this.db
      .updateTable('sandboxes')
      .set({
        ...(changes.state !== undefined && { state: changes.state }),
        ...(changes.endAt !== undefined && { end_at: changes.endAt }),
        ...(changes.startedAt !== undefined && { started_at: changes.startedAt }),
        ...(changes.runStartedAt !== undefined && { run_started_at: changes.runStartedAt }),
        ...(changes.autoPause !== undefined && { auto_pause: Number(changes.autoPause) }),
      })
      .where('id', '=', id)
      .execute();
  }

  async removeSandbox(id: string): Promise<void> {
    await this.db.deleteFrom('sandboxes').where('id', '=', id).execute();
  }

  async listSandboxes(): Promise<StoredSandbox[]> {
    const rows = await this.db.selectFrom('sandboxes').selectAll().orderBy('started_at').execute();
    return rows.map(fromRow);
  }

  async findIdempotency(teamId: string, key: string): Promise<IdempotencyRecord | undefined> {
    const row = await this.db
      .selectFrom('idempotency_keys')
      .select(['sandbox_id', 'fingerprint'])
      .where('team_id', '=', teamId)
      .where('key', '=', key)
      .where('created_at', '>', Date.now() - IDEMPOTENCY_KEEP_MS)
      .executeTakeFirst();
    return row === undefined ? undefined : { sandboxId: row.sandbox_id, fingerprint: row.fingerprint };
  }

  /** Remembers which sandbox a key made, and forgets keys that are too old to be replayed. */
  async addIdempotency(teamId: string, key: string, record: IdempotencyRecord): Promise<void> {
    const now = Date.now();
    await this.db
      .deleteFrom('idempotency_keys')
      .where('created_at', '<=', now - IDEMPOTENCY_KEEP_MS)
      .execute();
    const values = { sandbox_id: record.sandboxId, fingerprint: record.fingerprint, created_at: now };
    await this.db
      .insertInto('idempotency_keys')
      .values({ team_id: teamId, key, ...values })
      .onConflict((conflict) => conflict.columns(['team_id', 'key']).doUpdateSet(values))
      .execute();
  }

  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    await this.db.destroy();
  }
}

function toRow(sandbox: StoredSandbox): Tables['sandboxes'] {
  return {
    id: sandbox.id,
    team_id: sandbox.teamId,
    template_id: sandbox.templateId,
    template_alias: sandbox.templateAlias,
    state: sandbox.state,
    started_at: sandbox.startedAt,
    run_started_at: sandbox.runStartedAt,
    end_at: sandbox.endAt,
    auto_pause: Number(sandbox.autoPause),
    metadata: JSON.stringify(sandbox.metadata),
    env: JSON.stringify(sandbox.env),
    resources: JSON.stringify(sandbox.resources),
    allow_internet_access: Number(sandbox.allowInternetAccess),
    allow_public_traffic: Number(sandbox.allowPublicTraffic),
    secure: Number(sandbox.secure),
  };
}

// Number(): drivers of other databases tell a bigint as text. The JSON was written by toRow.
function fromRow(row: Selectable<Tables['sandboxes']>): StoredSandbox {
  return {
    id: row.id,
    teamId: row.team_id,
    templateId: row.template_id,
    templateAlias: row.template_alias,
    state: row.state,
    startedAt: Number(row.started_at),
    runStartedAt: Number(row.run_started_at),
    endAt: Number(row.end_at),
    autoPause: row.auto_pause === 1,
    metadata: JSON.parse(row.metadata) as StoredSandbox['metadata'],
    env: JSON.parse(row.env) as StoredSandbox['env'],
    resources: JSON.parse(row.resources) as StoredSandbox['resources'],
    allowInternetAccess: row.allow_internet_access === 1,
    allowPublicTraffic: row.allow_public_traffic === 1,
    secure: row.secure === 1,
  };
}
