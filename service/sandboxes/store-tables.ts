import type { Migration } from 'kysely';

// Columns hold text and whole numbers only, so that every dialect stores them alike: booleans are 0 or 1, maps are
// JSON (which also escapes NUL, refused by PostgreSQL), times are milliseconds since the epoch.
export interface Tables {
  teams: {
    id: string;
    slug: string;
    /** Null: the service's default. */
    max_sandboxes: number | null;
    creates_per_minute: number | null;
    created_at: number;
  };
  api_keys: {
    id: string;
    team_id: string;
    name: string;
    key_hash: string;
    value_length: number;
    masked_prefix: string;
    masked_suffix: string;
    created_at: number;
  };
  sandboxes: {
    id: string;
    /** Whose machine it is: services that share a database leave each other's alone. */
    service_id: string;
    team_id: string;
    template_id: string;
    template_alias: string;
    state: 'starting' | 'running' | 'paused';
    started_at: number;
    run_started_at: number;
    end_at: number;
    /** Of the pause that it is in, if it is in one. */
    pause_mode: 'full' | 'filesystem';
    auto_pause: number;
    auto_pause_mode: 'full' | 'filesystem';
    auto_resume: number;
    /** What it was created with. */
    timeout_seconds: number;
    metadata: string;
    env: string;
    resources: string;
    allow_internet_access: number;
    allow_out: string;
    deny_out: string;
    allow_public_traffic: number;
    mask_request_host: string | null;
    https_ports: string;
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
export const MIGRATIONS: Record<string, Migration> = {
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
  '0002-teams': {
    async up(db) {
      // One column a statement: SQLite takes no more.
      const add = (
        table: string,
        column: string,
        type: 'integer' | 'varchar(64)',
        fallback?: string | number,
      ) =>
        db.schema
          .alterTable(table)
          .addColumn(column, type, (each) =>
            fallback === undefined ? each : each.notNull().defaultTo(fallback),
          )
          .execute();
      await add('teams', 'max_sandboxes', 'integer');
      await add('teams', 'creates_per_minute', 'integer');
      await add('api_keys', 'value_length', 'integer', 0);
      await add('api_keys', 'masked_prefix', 'varchar(64)', '');
      await add('api_keys', 'masked_suffix', 'varchar(64)', '');
      await add('sandboxes', 'service_id', 'varchar(64)', LOCAL_SERVICE_ID);
      // Until here the only key there was; every start writes it anew, from now on with the id of its service.
      await db.deleteFrom('api_keys').where('id', '=', 'key-service').execute();
    },
  },
  '0003-auto-resume': {
    async up(db) {
      // None of those that are there has asked for it, so that the time-out is never looked at.
      for (const [column, fallback] of [
        ['auto_resume', 0],
        ['timeout_seconds', 300],
      ] as const) {
        await db.schema
          .alterTable('sandboxes')
          .addColumn(column, 'integer', (each) => each.notNull().defaultTo(fallback))
          .execute();
      }
    },
  },
  '0004-network': {
    async up(db) {
      for (const column of ['allow_out', 'deny_out']) {
        await db.schema
          .alterTable('sandboxes')
          .addColumn(column, 'text', (each) => each.notNull().defaultTo('[]'))
          .execute();
      }
    },
  },
  '0005-pause-mode': {
    async up(db) {
      for (const column of ['pause_mode', 'auto_pause_mode']) {
        await db.schema
          .alterTable('sandboxes')
          .addColumn(column, 'varchar(16)', (each) => each.notNull().defaultTo('full'))
          .execute();
      }
    },
  },
  '0006-ingress': {
    async up(db) {
      const table = () => db.schema.alterTable('sandboxes');
      await table().addColumn('mask_request_host', 'text').execute();
      await table()
        .addColumn('https_ports', 'text', (each) => each.notNull().defaultTo('[]'))
        .execute();
    },
  },
};

/** The service of a store that is one file: only one uses it. */
export const LOCAL_SERVICE_ID = 'local';
