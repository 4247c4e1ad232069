import type { Request, RequestHandler, Response } from 'express';
import { NewTeam, NewTeamKey, TeamChanges } from '../../protocol/native';
import type { CreatedTeamKey, TeamInfo, TeamKeyInfo } from '../../protocol/native';
import { ServiceError } from '../errors';
import type { StoredKey, StoredTeam } from '../sandboxes/store-teams';
import { KEY_PREFIX } from '../teams/api-key';
import type { Teams } from '../teams/teams';
import { parseBody, parseOptionalBody, queryInteger, queryOf } from './input';

const PAGE_LIMIT = 100;

/** The handlers under `/v1/admin`, which demand the admin token. */
export function adminHandlers(teams: Teams) {
  const listTeams: RequestHandler = async (req, res) => {
    sendPage(req, res, await teams.list(), toTeamInfo);
  };

  const createTeam: RequestHandler = async (req, res) => {
    const { name, max_sandboxes = null, creates_per_minute = null } = parseBody(NewTeam, req.body);
    const team = await teams.create(name, {
      maxSandboxes: max_sandboxes,
      createsPerMinute: creates_per_minute,
    });
    res.status(201).json(toTeamInfo(team));
  };

  const getTeam: RequestHandler = async (req, res) => {
    res.json(toTeamInfo(await teams.get(teamIn(req))));
  };

  const changeTeam: RequestHandler = async (req, res) => {
    const { max_sandboxes, creates_per_minute } = parseOptionalBody(TeamChanges, req.body);
    const team = await teams.setLimits(teamIn(req), {
      ...(max_sandboxes !== undefined && { maxSandboxes: max_sandboxes }),
      ...(creates_per_minute !== undefined && { createsPerMinute: creates_per_minute }),
    });
    res.json(toTeamInfo(team));
  };

  const listKeys: RequestHandler = async (req, res) => {
    sendPage(req, res, await teams.listKeys(teamIn(req)), toKeyInfo);
  };

  const createKey: RequestHandler = async (req, res) => {
    const { name } = parseBody(NewTeamKey, req.body);
    const { key, record } = await teams.createKey(teamIn(req), name);
    const created: CreatedTeamKey = { ...toKeyInfo(record), key };
    res.setHeader('cache-control', 'no-store');
    res.status(201).json(created);
  };

  const revokeKey: RequestHandler = async (req, res) => {
    await teams.revokeKey(teamIn(req), String(req.params['key']));
    res.status(204).end();
  };

  const toTeamInfo = (team: StoredTeam): TeamInfo => {
    const { maxSandboxes, createsPerMinute } = teams.effective(team);
    return {
      team_id: team.id,
      name: team.slug,
      max_sandboxes: team.maxSandboxes,
      creates_per_minute: team.createsPerMinute,
      limits: { max_sandboxes: maxSandboxes, creates_per_minute: createsPerMinute },
      created_at: new Date(team.createdAt).toISOString(),
    };
  };

  return { listTeams, createTeam, getTeam, changeTeam, listKeys, createKey, revokeKey };
}

function teamIn(req: Request): string {
  return String(req.params['team']);
}

/** One page of what is few enough to be read whole. The token is the id of the last one shown. */
function sendPage<Item extends { id: string }>(
  req: Request,
  res: Response,
  all: readonly Item[],
  tell: (item: Item) => unknown,
): void {
  const query = queryOf(req);
  const limit = queryInteger(query, 'limit', { min: 1, max: PAGE_LIMIT }) ?? PAGE_LIMIT;
  const token = query.get('next_token') ?? '';
  const after = token === '' ? -1 : all.findIndex((each) => each.id === token);
  if (token !== '' && after === -1)
    throw new ServiceError('invalid_argument', 'next_token: is not one of ours');
  const items = all.slice(after + 1, after + 1 + limit);
  const isLast = after + 1 + limit >= all.length;
  res.json({ items: items.map(tell), next_token: isLast ? null : (items.at(-1)?.id ?? null) });
}

function toKeyInfo({ id, name, mask, createdAt }: StoredKey): TeamKeyInfo {
  return {
    key_id: id,
    name,
    mask: {
      prefix: KEY_PREFIX,
      value_length: mask.length,
      masked_value_prefix: mask.prefix,
      masked_value_suffix: mask.suffix,
    },
    created_at: new Date(createdAt).toISOString(),
  };
}
