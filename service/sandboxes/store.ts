import { sql } from 'kysely';
import type { Kysely, Selectable } from 'kysely';
import { ServiceError } from '../errors';
import type { Check } from '../runtime/runtime';
import type { PauseMode } from './lifecycle';
import type { Egress } from './network';
import type { Sandbox } from './sandbox';
import { openDatabase } from './store-database';
import type { PostgresOptions } from './store-postgres';
import { LOCAL_SERVICE_ID } from './store-tables';
import type { Tables } from './store-tables';
import { DEFAULT_TEAM_ID, TeamRecords } from './store-teams';
import { DEFAULT_TEAM_SLUG } from './templates';

/**
 * What the store remembers of a sandbox: all but its tokens, which are derived from the service's secret.
 * `starting` marks one whose machine is not up yet; after a crash it is half-made and gets removed.
 */
export type StoredSandbox = Omit<Sandbox, 'state' | 'accessToken' | 'trafficToken'> & {
  state: Sandbox['state'] | 'starting';
  secure: boolean;
};

/** Which create an `Idempotency-Key` was used for. */
export interface IdempotencyRecord {
  readonly sandboxId: string;
  /** Tells a replay from another request under the same key. */
  readonly fingerprint: string;
}

/** How long a replayed create is recognised. Retries come within seconds; a day also covers a job that is run again. */
const IDEMPOTENCY_KEEP_MS = 86_400_000;

export interface StoreOptions extends PostgresOptions {
  /** Tells this service's sandboxes from those of others on the same database. By default nobody else uses the store. */
  serviceId?: string;
}

/**
 * Durable records: teams, keys, sandboxes, replayed creates. Knows no machine and no rule; every row has its team.
 * Queries are Kysely's portable part, the same for both databases. Methods reject with `unavailable` while PostgreSQL
 * can't be reached, and each does so within its deadline.
 */
export class Store {
  /** Teams and their keys. */
  readonly teams: TeamRecords;
  private closed = false;

  private constructor(
    private readonly db: Kysely<Tables>,
    private readonly serviceId: string,
  ) {
    this.teams = new TeamRecords(db);
  }

  /** Opens the database of `openDatabase`, with the default team in it. The caller closes. */
  static async open(location: string, options: StoreOptions = {}): Promise<Store> {
    const db = await openDatabase(location, options);
    const store = new Store(db, options.serviceId ?? LOCAL_SERVICE_ID);
    try {
      await db
        .insertInto('teams')
        .values({ id: DEFAULT_TEAM_ID, slug: DEFAULT_TEAM_SLUG, created_at: Date.now() })
        .onConflict((conflict) => conflict.column('id').doNothing())
        .execute();
    } catch (error) {
      await store.close();
      throw error;
    }
    return store;
  }

  /** Whether it answers, in the form that `/health` tells. */
  async check(): Promise<Check[]> {
    try {
      await sql`select 1`.execute(this.db);
      return [{ name: 'store', ok: true }];
    } catch (error) {
      return [{ name: 'store', ok: false, detail: ServiceError.from(error).message }];
    }
  }

  async addSandbox(sandbox: StoredSandbox): Promise<void> {
    await this.db.insertInto('sandboxes').values(toRow(sandbox, this.serviceId)).execute();
  }

  /** Saves what can change in a sandbox's life. Does nothing when it is gone: an end wins over a late update. */
  async updateSandbox(
    id: string,
    changes: Partial<
      Pick<StoredSandbox, 'state' | 'endAt' | 'startedAt' | 'runStartedAt' | 'autoPause'> &
        Egress & { pauseMode: PauseMode }
    >,
  ): Promise<void> {
    await this.db
      .updateTable('sandboxes')
      .set({
        ...(changes.state !== undefined && { state: changes.state }),
        ...(changes.pauseMode !== undefined && { pause_mode: changes.pauseMode }),
        ...(changes.endAt !== undefined && { end_at: changes.endAt }),
        ...(changes.startedAt !== undefined && { started_at: changes.startedAt }),
        ...(changes.runStartedAt !== undefined && { run_started_at: changes.runStartedAt }),
        ...(changes.autoPause !== undefined && { auto_pause: Number(changes.autoPause) }),
        ...(changes.allowInternetAccess !== undefined && {
          allow_internet_access: Number(changes.allowInternetAccess),
        }),
        ...(changes.allowOut !== undefined && { allow_out: JSON.stringify(changes.allowOut) }),
        ...(changes.denyOut !== undefined && { deny_out: JSON.stringify(changes.denyOut) }),
      })
      .where('id', '=', id)
      .execute();
  }

  async removeSandbox(id: string): Promise<void> {
    await this.db.deleteFrom('sandboxes').where('id', '=', id).execute();
  }

  /** Those of this service. */
  async listSandboxes(): Promise<StoredSandbox[]> {
    const rows = await this.db
      .selectFrom('sandboxes')
      .selectAll()
      .where('service_id', '=', this.serviceId)
      .orderBy('started_at')
      .execute();
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

function toRow(sandbox: StoredSandbox, serviceId: string): Tables['sandboxes'] {
  return {
    id: sandbox.id,
    service_id: serviceId,
    team_id: sandbox.teamId,
    template_id: sandbox.templateId,
    template_alias: sandbox.templateAlias,
    state: sandbox.state,
    started_at: sandbox.startedAt,
    run_started_at: sandbox.runStartedAt,
    end_at: sandbox.endAt,
    pause_mode: sandbox.pauseMode ?? 'full',
    auto_pause: Number(sandbox.autoPause),
    auto_pause_mode: sandbox.autoPauseMode,
    auto_resume: Number(sandbox.autoResume),
    timeout_seconds: sandbox.timeoutSeconds,
    metadata: JSON.stringify(sandbox.metadata),
    env: JSON.stringify(sandbox.env),
    resources: JSON.stringify(sandbox.resources),
    allow_internet_access: Number(sandbox.allowInternetAccess),
    allow_out: JSON.stringify(sandbox.allowOut),
    deny_out: JSON.stringify(sandbox.denyOut),
    allow_public_traffic: Number(sandbox.allowPublicTraffic),
    mask_request_host: sandbox.maskRequestHost ?? null,
    https_ports: JSON.stringify(sandbox.httpsPorts ?? []),
    secure: Number(sandbox.secure),
  };
}

// Number(): PostgreSQL's driver tells a bigint as text. The JSON was written by toRow.
function fromRow(row: Selectable<Tables['sandboxes']>): StoredSandbox {
  const httpsPorts = JSON.parse(row.https_ports) as number[];
  return {
    id: row.id,
    teamId: row.team_id,
    templateId: row.template_id,
    templateAlias: row.template_alias,
    state: row.state,
    pauseMode: row.state === 'paused' ? row.pause_mode : undefined,
    startedAt: Number(row.started_at),
    runStartedAt: Number(row.run_started_at),
    endAt: Number(row.end_at),
    autoPause: row.auto_pause === 1,
    autoPauseMode: row.auto_pause_mode,
    autoResume: row.auto_resume === 1,
    timeoutSeconds: row.timeout_seconds,
    metadata: JSON.parse(row.metadata) as StoredSandbox['metadata'],
    env: JSON.parse(row.env) as StoredSandbox['env'],
    resources: JSON.parse(row.resources) as StoredSandbox['resources'],
    allowInternetAccess: row.allow_internet_access === 1,
    allowOut: JSON.parse(row.allow_out) as StoredSandbox['allowOut'],
    denyOut: JSON.parse(row.deny_out) as StoredSandbox['denyOut'],
    allowPublicTraffic: row.allow_public_traffic === 1,
    ...(row.mask_request_host !== null && { maskRequestHost: row.mask_request_host }),
    ...(httpsPorts.length > 0 && { httpsPorts }),
    secure: row.secure === 1,
  };
}
