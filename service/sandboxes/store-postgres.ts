import { PostgresDialect } from 'kysely';
import type { Dialect, PostgresPool, PostgresPoolClient } from 'kysely';
import { Pool } from 'pg';
import type { PoolClient } from 'pg';
import { ServiceError } from '../errors';
import type { Logger } from '../log';

export interface PostgresOptions {
  /** Told of connections that break while nobody uses them. */
  logger?: Pick<Logger, 'warn'>;
  connectTimeoutMs?: number;
  statementTimeoutMs?: number;
}

/** Statements are short and of one row; more connections than this would only wait for the same rows. */
const MAX_CONNECTIONS = 10;
const CONNECT_TIMEOUT_MS = 5_000;
/** Of each statement. The server gives up at this time, this side a moment later, should the server be gone altogether. */
const STATEMENT_TIMEOUT_MS = 5_000;
const STATEMENT_GRACE_MS = 1_000;

/** SQLSTATE of what passes by itself: lost connections, shutdown and start of the server, want of resources, deadlines. */
const PASSING = /^(08|53|57P0|57014|55P03|25006)/;

/**
 * Connects to PostgreSQL and makes sure that it answers. Connections are made anew when they break, so the service
 * goes on by itself once the database is back; until then every statement ends within its deadline, as `unavailable`.
 *
 * @throws ServiceError `failed_precondition` naming host and database, never the password
 */
export async function openPostgres(
  url: string,
  options: PostgresOptions = {},
): Promise<{ dialect: Dialect; name: string }> {
  const { connectTimeoutMs = CONNECT_TIMEOUT_MS, statementTimeoutMs = STATEMENT_TIMEOUT_MS } = options;
  const name = nameOf(url);
  let pool: Pool | undefined;
  try {
    pool = new Pool({
      connectionString: url,
      application_name: 'cellbox',
      max: MAX_CONNECTIONS,
      connectionTimeoutMillis: connectTimeoutMs,
      statement_timeout: statementTimeoutMs,
      query_timeout: statementTimeoutMs + STATEMENT_GRACE_MS,
      keepAlive: true,
    });
    // An idle connection that breaks: the pool has forgotten it by now.
    pool.on('error', ({ message }) =>
      options.logger?.warn({ reason: message }, 'a connection to the database was lost'),
    );
    const client = await pool.connect();
    client.release();
  } catch (cause) {
    await pool?.end();
    throw notOpened(name, cause, connectTimeoutMs);
  }
  return { dialect: new PostgresDialect({ pool: translating(pool) }), name };
}

/** The pool as Kysely wants it: what passes by itself becomes `unavailable`, and no broken connection is used again. */
function translating(pool: Pool): PostgresPool {
  return {
    connect: async () => {
      try {
        return watched(await pool.connect());
      } catch (error) {
        throw unavailable(error);
      }
    },
    end: () => pool.end(),
  };
}

function watched(client: PoolClient): PostgresPoolClient {
  let broken = false;
  // Between two statements nobody else listens, and an unheard `error` would end the service.
  const onError = () => {
    broken = true;
  };
  client.on('error', onError);
  const query = async (text: string, values: unknown[]): Promise<unknown> => {
    try {
      return await client.query(text, values);
    } catch (error) {
      if (!passes(error)) throw error;
      broken = true; // also after a deadline: the answer may still come, to somebody else's statement
      throw unavailable(error);
    }
  };
  return {
    // Kysely's other form of `query`, for cursors, is only used where the dialect is given a cursor class.
    query: query as PostgresPoolClient['query'],
    release: () => {
      client.off('error', onError);
      client.release(broken);
    },
  };
}

/** Errors without SQLSTATE are of the connection: refused, broken, or a deadline of this side. */
function passes(error: unknown): boolean {
  const code = codeOf(error);
  return !/^[0-9A-Z]{5}$/.test(code) || /^E[A-Z]+$/.test(code) || PASSING.test(code);
}

function unavailable(cause: unknown): ServiceError {
  // Says nothing of hosts and users: it may reach any caller. The cause is in the log.
  return new ServiceError('unavailable', 'The database of the service does not answer', {
    cause,
    remedy:
      'Try again in a moment. Sandboxes go on meanwhile; whoever runs the service finds the cause in its log.',
  });
}

function notOpened(name: string, cause: unknown, connectTimeoutMs: number): ServiceError {
  const code = codeOf(cause);
  const message = cause instanceof Error ? cause.message : String(cause);
  const whys: Record<string, string> = {
    ECONNREFUSED: 'nothing answers there',
    ENOENT: 'there is no such socket',
    ENOTFOUND: "its host name can't be resolved",
    EAI_AGAIN: "its host name can't be resolved",
    '28P01': 'it refuses the user or the password',
    '28000': 'it refuses the user',
    '3D000': 'there is no such database; make it with CREATE DATABASE',
    '57P03': 'it is starting up or shutting down',
    '53300': 'it has no connection left',
  };
  const late = /timeout/i.test(message) ? `it did not answer within ${connectTimeoutMs / 1000} s` : undefined;
  return new ServiceError('failed_precondition', `${name} can't be used: ${whys[code] ?? late ?? message}`, {
    cause,
    remedy:
      'Check that it runs and that CELLBOX_DATABASE_URL is right, or leave that out to keep state in a file.',
  });
}

function codeOf(error: unknown): string {
  const code = (error as { code?: unknown } | null)?.code;
  return typeof code === 'string' ? code : '';
}

/** What the user is told of a URL: no user, no password, no options. */
function nameOf(url: string): string {
  const { hostname, port, pathname, searchParams } = new URL(url.replace('@/', '@localhost/'));
  const host = searchParams.get('host') ?? (hostname === '' ? 'localhost' : hostname);
  return `PostgreSQL at ${host}:${port === '' ? '5432' : port}${pathname}`;
}
