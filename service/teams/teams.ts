import crypto from 'node:crypto';
import { ServiceError } from '../errors';
import type { TeamLimits } from '../sandboxes/quotas';
import { DEFAULT_TEAM_ID } from '../sandboxes/store-teams';
import type { KeyRecord, StoredKey, StoredLimits, StoredTeam, TeamRecords } from '../sandboxes/store-teams';
import { newApiKey, storedKey } from './api-key';

export interface TeamsOptions {
  records: TeamRecords;
  /** For teams that have no limits of their own. */
  defaults: TeamLimits;
  /** Of the service, where several share a database. */
  serviceId?: string;
}

/**
 * Who may use the service: teams, their limits, and the API keys that speak for them. The records are the truth, so
 * that what another service on the same database changes holds here with the next request.
 */
export class Teams {
  /** As of the team's last request. */
  private readonly limits = new Map<string, TeamLimits>();

  constructor(private readonly options: TeamsOptions) {}

  /** Makes this the service's own key, of the default team; the one before stops working. */
  async setServiceKey(key: string): Promise<void> {
    const rest = { id: this.serviceKeyId, teamId: DEFAULT_TEAM_ID, name: 'service' };
    await this.options.records.setServiceKey(storedKey(key, rest));
  }

  /** Whose key has that hash (see `hashKey`). */
  async findKey(hash: string): Promise<KeyRecord | undefined> {
    const record = await this.options.records.findKey(hash);
    if (record !== undefined) this.limits.set(record.teamId, this.effective(record.limits));
    return record;
  }

  /** Current for a team whose key was just looked up. */
  limitsOf(teamId: string): TeamLimits {
    return this.limits.get(teamId) ?? this.options.defaults;
  }

  /** What holds for a team with these limits of its own. */
  effective(limits: StoredLimits): TeamLimits {
    const { defaults } = this.options;
    return {
      maxSandboxes: limits.maxSandboxes ?? defaults.maxSandboxes,
      createsPerMinute: limits.createsPerMinute ?? defaults.createsPerMinute,
    };
  }

  // --- for the operator: methods reject with `not_found` for an unknown team or key ---------------------------------

  /** Newest first. */
  list(): Promise<StoredTeam[]> {
    return this.options.records.list();
  }

  /** By id or name. */
  async get(reference: string): Promise<StoredTeam> {
    const team = await this.options.records.find(reference);
    if (team === undefined) {
      throw new ServiceError('not_found', `There is no team ${JSON.stringify(reference)}`, {
        remedy: 'GET /v1/admin/teams lists them.',
      });
    }
    return team;
  }

  /** @throws ServiceError `already_exists` */
  async create(name: string, limits: StoredLimits): Promise<StoredTeam> {
    const team: StoredTeam = { id: crypto.randomUUID(), slug: name, createdAt: Date.now(), ...limits };
    if (!(await this.options.records.add(team))) {
      throw new ServiceError('already_exists', `There is a team ${JSON.stringify(name)}`, {
        remedy: 'Take another name, or change that team.',
      });
    }
    return team;
  }

  /** Changes what is given; null is the service's default. Sandboxes beyond a lowered limit stay. */
  async setLimits(reference: string, changes: Partial<StoredLimits>): Promise<StoredTeam> {
    const team = { ...(await this.get(reference)), ...changes };
    await this.options.records.setLimits(team.id, team);
    return team;
  }

  /** Newest first. */
  async listKeys(reference: string): Promise<StoredKey[]> {
    return this.options.records.listKeys((await this.get(reference)).id);
  }

  /** The key itself is only told here. */
  async createKey(reference: string, name: string): Promise<{ key: string; record: StoredKey }> {
    const team = await this.get(reference);
    const key = newApiKey();
    const record = storedKey(key, { id: crypto.randomUUID(), teamId: team.id, name });
    await this.options.records.addKey(record);
    return { key, record };
  }

  /** From now on the key opens nothing. What it created stays with the team. */
  async revokeKey(reference: string, keyId: string): Promise<void> {
    const team = await this.get(reference);
    if (keyId === this.serviceKeyId) {
      throw new ServiceError(
        'failed_precondition',
        "This is the service's own key, which each start brings back",
        {
          remedy: 'Start the service with another CELLBOX_API_KEY.',
        },
      );
    }
    if (!(await this.options.records.removeKey(team.id, keyId))) {
      throw new ServiceError(
        'not_found',
        `Team ${JSON.stringify(team.slug)} has no key ${JSON.stringify(keyId)}`,
      );
    }
  }

  private get serviceKeyId(): string {
    return `service-${this.options.serviceId ?? 'local'}`;
  }
}
