import fs from 'node:fs';
import Database from 'libsql';
import { Kysely, Migrator, SqliteDialect } from 'kysely';
import type { Dialect, SqliteDatabase } from 'kysely';
import { ServiceError } from '../errors';
import { openPostgres } from './store-postgres';
import type { PostgresOptions } from './store-postgres';
import { MIGRATIONS } from './store-tables';
import type { Tables } from './store-tables';

/**
 * Opens the database and brings its tables up to date; the caller destroys it. `location` is a `postgres://` URL or a
 * SQLite file (made with mode 0600 where there is none; `:memory:` for none at all).
 *
 * @throws ServiceError `failed_precondition` with a remedy; no password is in its texts
 */
export async function openDatabase(location: string, options: PostgresOptions = {}): Promise<Kysely<Tables>> {
  const isUrl = isPostgres(location);
  const { dialect, name, other } = isUrl
    ? { ...(await openPostgres(location, options)), other: 'CELLBOX_DATABASE_URL' }
    : { dialect: openSqlite(location), name: `The store ${location}`, other: 'CELLBOX_DATA_DIR' };
  const db = new Kysely<Tables>({ dialect });
  const provider = { getMigrations: () => Promise.resolve(MIGRATIONS) };
  const { error } = await new Migrator({ db, provider }).migrateToLatest();
  if (error === undefined) return db;
  await db.destroy();
  if (error instanceof ServiceError) throw error; // lost in the middle: nothing is wrong with the tables
  throw new ServiceError('failed_precondition', `${name} can't be brought up to date`, {
    cause: error,
    remedy: isRefused(error)
      ? 'Its user may not create tables: grant it CREATE on the schema.'
      : `It may be damaged or come from a newer release: give another ${other}.`,
  });
}

/** Whether a location is a database's URL, and no file. */
export function isPostgres(location: string): boolean {
  return /^postgres(ql)?:\/\//.test(location);
}

function openSqlite(file: string): Dialect {
  try {
    if (file !== ':memory:') {
      // The journal's files take their mode from this one.
      fs.closeSync(fs.openSync(file, 'a', 0o600));
      fs.chmodSync(file, 0o600);
    }
    const database = new Database(file);
    database.pragma('journal_mode = WAL');
    database.pragma('busy_timeout = 5000');
    database.pragma('foreign_keys = ON');
    // libsql has better-sqlite3's interface but for the parameter types that its declarations leave out.
    return new SqliteDialect({ database: database as unknown as SqliteDatabase });
  } catch (cause) {
    throw new ServiceError('failed_precondition', `The store ${file} can't be opened`, {
      cause,
      remedy: 'Check that it is writable and not damaged, or give another CELLBOX_DATA_DIR.',
    });
  }
}

/** PostgreSQL's word for a missing privilege. */
function isRefused(error: unknown): boolean {
  return (error as { code?: unknown } | null)?.code === '42501';
}
