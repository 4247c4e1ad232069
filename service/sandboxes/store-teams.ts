import type { Kysely, Selectable } from 'kysely';
import { ServiceError } from '../errors';
import type { Tables } from './store-tables';

/** What a team may have; null is the service's default. */
export interface StoredLimits {
  readonly maxSandboxes: number | null;
  readonly createsPerMinute: number | null;
}

export interface StoredTeam extends StoredLimits {
  readonly id: string;
  /** Unique. */
  readonly slug: string;
  readonly createdAt: number;
}

/** What may be shown of a key: how long it is, how it begins and how it ends. */
export interface KeyMask {
  readonly length: number;
  readonly prefix: string;
  readonly suffix: string;
}

export interface StoredKey {
  readonly id: string;
  readonly teamId: string;
  readonly name: string;
  readonly hash: string;
  readonly mask: KeyMask;
  readonly createdAt: number;
}

/** Who an API key speaks for. */
export interface KeyRecord {
  readonly id: string;
  readonly teamId: string;
  readonly hash: string;
  readonly limits: StoredLimits;
}

/** The team that the service's own key belongs to. */
export const DEFAULT_TEAM_ID = 'team-default';

/** Records of teams and their keys: the part of the store that services on one database share. */
export class TeamRecords {
  constructor(private readonly db: Kysely<Tables>) {}

  /** Newest first. */
  async list(): Promise<StoredTeam[]> {
    const rows = await this.db
      .selectFrom('teams')
      .selectAll()
      .orderBy('created_at', 'desc')
      .orderBy('id', 'desc')
      .execute();
    return rows.map(toTeam);
  }

  /** By id or slug; an id comes first, should somebody have named a team so. */
  async find(reference: string): Promise<StoredTeam | undefined> {
    const rows = await this.db
      .selectFrom('teams')
      .selectAll()
      .where((where) => where.or([where('id', '=', reference), where('slug', '=', reference)]))
      .execute();
    const row = rows.find((each) => each.id === reference) ?? rows[0];
    return row === undefined ? undefined : toTeam(row);
  }

  /** False when there is a team of that slug. */
  async add(team: StoredTeam): Promise<boolean> {
    const row = await this.db
      .insertInto('teams')
      .values({ id: team.id, slug: team.slug, created_at: team.createdAt, ...toLimitColumns(team) })
      .onConflict((conflict) => conflict.column('slug').doNothing())
      .returning('id')
      .executeTakeFirst();
    return row !== undefined;
  }

  async setLimits(id: string, limits: StoredLimits): Promise<void> {
    await this.db.updateTable('teams').set(toLimitColumns(limits)).where('id', '=', id).execute();
  }

  /** Newest first. */
  async listKeys(teamId: string): Promise<StoredKey[]> {
    const rows = await this.db
      .selectFrom('api_keys')
      .selectAll()
      .where('team_id', '=', teamId)
      .orderBy('created_at', 'desc')
      .orderBy('id', 'desc')
      .execute();
    return rows.map(toKey);
  }

  async addKey(key: StoredKey): Promise<void> {
    await this.db.insertInto('api_keys').values(toKeyRow(key)).execute();
  }

  /** False when the team has no such key. */
  async removeKey(teamId: string, id: string): Promise<boolean> {
    const { numDeletedRows } = await this.db
      .deleteFrom('api_keys')
      .where('id', '=', id)
      .where('team_id', '=', teamId)
      .executeTakeFirst();
    return numDeletedRows > 0n;
  }

  async findKey(hash: string): Promise<KeyRecord | undefined> {
    const row = await this.db
      .selectFrom('api_keys')
      .innerJoin('teams', 'teams.id', 'api_keys.team_id')
      .select(['api_keys.id', 'team_id', 'key_hash', 'max_sandboxes', 'creates_per_minute'])
      .where('key_hash', '=', hash)
      .executeTakeFirst();
    if (row === undefined) return undefined;
    return { id: row.id, teamId: row.team_id, hash: row.key_hash, limits: toLimits(row) };
  }

  /**
   * Makes this the key of one service; the one that it had before stops working. Services on one database may have the
   * same one.
   */
  async setServiceKey(key: StoredKey): Promise<void> {
    const owner = await this.db.transaction().execute(async (db) => {
      await db.deleteFrom('api_keys').where('id', '=', key.id).where('key_hash', '!=', key.hash).execute();
      await db
        .insertInto('api_keys')
        .values(toKeyRow(key))
        .onConflict((conflict) => conflict.doNothing())
        .execute();
      return db.selectFrom('api_keys').select('team_id').where('key_hash', '=', key.hash).executeTakeFirst();
    });
    if (owner?.team_id !== key.teamId) {
      throw new ServiceError('failed_precondition', 'CELLBOX_API_KEY is the key of another team', {
        remedy: 'Give the service a key of its own, or none: it then makes one.',
      });
    }
  }
}

type LimitColumns = Pick<Tables['teams'], 'max_sandboxes' | 'creates_per_minute'>;

function toLimitColumns({ maxSandboxes, createsPerMinute }: StoredLimits): LimitColumns {
  return { max_sandboxes: maxSandboxes, creates_per_minute: createsPerMinute };
}

function toLimits(row: LimitColumns): StoredLimits {
  return { maxSandboxes: row.max_sandboxes, createsPerMinute: row.creates_per_minute };
}

// Number(): PostgreSQL's driver tells a bigint as text.
function toTeam(row: Selectable<Tables['teams']>): StoredTeam {
  return { id: row.id, slug: row.slug, createdAt: Number(row.created_at), ...toLimits(row) };
}

function toKeyRow(key: StoredKey): Tables['api_keys'] {
  return {
    id: key.id,
    team_id: key.teamId,
    name: key.name,
    key_hash: key.hash,
    value_length: key.mask.length,
    masked_prefix: key.mask.prefix,
    masked_suffix: key.mask.suffix,
    created_at: key.createdAt,
  };
}

function toKey(row: Selectable<Tables['api_keys']>): StoredKey {
  return {
    id: row.id,
    teamId: row.team_id,
    name: row.name,
    hash: row.key_hash,
    mask: { length: row.value_length, prefix: row.masked_prefix, suffix: row.masked_suffix },
    createdAt: Number(row.created_at),
  };
}
