import fs from 'node:fs';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { z } from 'zod';
import { CreatedTeamKey, TeamInfo, TeamKeyInfo } from '../../protocol/native';
import { ADMIN_TOKEN_HEADER } from '../api/admin-token';
import { loadConfig } from '../config';
import type { Config } from '../config';
import { loadAdminToken } from '../data-dir';
import { ServiceError } from '../errors';

const USAGE = `Usage, beside a service that runs, with the same CELLBOX_HOST, CELLBOX_PORT and CELLBOX_DATA_DIR
(or CELLBOX_ADMIN_TOKEN):

  npm start -- teams list
  npm start -- teams create NAME [--max-sandboxes N] [--creates-per-minute N]
  npm start -- teams limit TEAM  [--max-sandboxes N] [--creates-per-minute N]    "default" is the service's
  npm start -- keys list TEAM
  npm start -- keys create TEAM NAME
  npm start -- keys revoke TEAM KEY-ID
`;

const DEADLINE_MS = 10_000;

const Page = <Item extends z.ZodType>(item: Item) =>
  z.object({ items: z.array(item), next_token: z.string().nullable() });
const Failure = z.object({ message: z.string(), remedy: z.string().optional() });

/** Whether these arguments of the program are for `runTeamsCli`, and not flags of the service. */
export function isTeamsCommand(argv: readonly string[]): boolean {
  return argv[0] === 'teams' || argv[0] === 'keys';
}

/**
 * Manages teams and keys by asking the running service, so that what it does is what the admin API does. What a script
 * may want goes to `print`, one line each.
 *
 * @throws ServiceError that says what to do
 */
export async function runTeamsCli(
  env: NodeJS.ProcessEnv,
  argv: readonly string[],
  print: (line: string) => void,
): Promise<void> {
  const { positionals, limits } = parse(argv);
  const [kind, verb, ...names] = positionals;
  const command = `${kind} ${verb} ${names.length}`;
  const [first = '', second = ''] = names;
  const team = `/v1/admin/teams/${encodeURIComponent(first)}`;
  const admin = connect(env);
  switch (command) {
    case 'teams list 0':
      print('NAME\tMAX-SANDBOXES\tCREATES-PER-MINUTE\tID');
      for (const each of await admin.list('/v1/admin/teams', TeamInfo)) print(teamLine(each));
      return;
    case 'teams create 1':
      print(teamLine(TeamInfo.parse(await admin.ask('POST', '/v1/admin/teams', { name: first, ...limits }))));
      return;
    case 'teams limit 1':
      print(teamLine(TeamInfo.parse(await admin.ask('PATCH', team, limits))));
      return;
    case 'keys list 1':
      print('NAME\tKEY\tCREATED\tID');
      for (const each of await admin.list(`${team}/keys`, TeamKeyInfo)) print(keyLine(each));
      return;
    case 'keys create 2':
      // The key alone, for scripts; it is not shown again.
      print(CreatedTeamKey.parse(await admin.ask('POST', `${team}/keys`, { name: second })).key);
      return;
    case 'keys revoke 2':
      await admin.ask('DELETE', `${team}/keys/${encodeURIComponent(second)}`);
      return;
    default:
      throw new ServiceError('invalid_argument', `${argv.join(' ')}: no such command\n\n${USAGE}`);
  }
}

function parse(argv: readonly string[]): { positionals: string[]; limits: Record<string, number | null> } {
  const flags = { 'max-sandboxes': 'max_sandboxes', 'creates-per-minute': 'creates_per_minute' };
  try {
    const { values, positionals } = parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: { 'max-sandboxes': { type: 'string' }, 'creates-per-minute': { type: 'string' } },
    });
    const limits = Object.entries(flags).flatMap(([flag, field]) => {
      const value = values[flag as keyof typeof flags];
      if (value === undefined) return [];
      if (value !== 'default' && !/^\d{1,9}$/.test(value))
        throw new Error(`--${flag}: must be a number or "default"`);
      return [[field, value === 'default' ? null : Number(value)] as const];
    });
    return { positionals, limits: Object.fromEntries(limits) };
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new ServiceError('invalid_argument', `${why}\n\n${USAGE}`, { cause });
  }
}

/** The admin API of the service that these settings are of. */
function connect(env: NodeJS.ProcessEnv) {
  const config = loadConfig(env, []);
  const url = urlOf(config);
  const token = tokenOf(config);

  const ask = async (method: string, route: string, body?: unknown): Promise<unknown> => {
    let response: Response;
    try {
      response = await fetch(`${url}${route}`, {
        method,
        headers: { [ADMIN_TOKEN_HEADER]: token, 'content-type': 'application/json' },
        signal: AbortSignal.timeout(DEADLINE_MS),
        ...(body !== undefined && { body: JSON.stringify(body) }),
      });
    } catch (cause) {
      throw new ServiceError('unavailable', `No service answers at ${url}`, {
        cause,
        remedy: 'Start it, or give its CELLBOX_HOST and CELLBOX_PORT.',
      });
    }
    const text = await response.text();
    if (response.ok) return text === '' ? undefined : (JSON.parse(text) as unknown);
    const failure = Failure.safeParse(jsonOrNot(text)).data;
    const remedy = failure?.remedy;
    const message = failure?.message ?? `it answered ${response.status}`;
    throw new ServiceError(
      'failed_precondition',
      `${url}: ${message}`,
      remedy === undefined ? {} : { remedy },
    );
  };

  const list = async <Item extends z.ZodType>(route: string, item: Item): Promise<Array<z.output<Item>>> => {
    const all: Array<z.output<Item>> = [];
    let token: string | null = '';
    do {
      const page = Page(item).parse(await ask('GET', `${route}?next_token=${encodeURIComponent(token)}`));
      all.push(...page.items);
      token = page.next_token;
    } while (token !== null);
    return all;
  };

  return { ask, list };
}

function urlOf({ host, port }: Config): string {
  if (port === 0) {
    throw new ServiceError('invalid_argument', 'CELLBOX_PORT=0 does not say where the service listens', {
      remedy: 'Give the port that it printed at its start.',
    });
  }
  const reachable = ['0.0.0.0', '::'].includes(host) ? '127.0.0.1' : host;
  return `http://${reachable.includes(':') ? `[${reachable}]` : reachable}:${port}`;
}

function tokenOf({ adminToken, dataDir }: Config): string {
  if (adminToken === undefined && !fs.existsSync(path.join(dataDir, 'admin-token'))) {
    throw new ServiceError('failed_precondition', `There is no admin token in ${dataDir}`, {
      remedy: 'Start the service once, or give its CELLBOX_DATA_DIR or CELLBOX_ADMIN_TOKEN.',
    });
  }
  return loadAdminToken(dataDir, adminToken);
}

function teamLine({ name, limits, team_id }: TeamInfo): string {
  return [name, limits.max_sandboxes, limits.creates_per_minute || 'unlimited', team_id].join('\t');
}

function keyLine({ name, mask, created_at, key_id }: TeamKeyInfo): string {
  const shown = `${mask.prefix}${mask.masked_value_prefix}…${mask.masked_value_suffix}`;
  return [name, shown, created_at, key_id].join('\t');
}

function jsonOrNot(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined; // an answer of something else than this service
  }
}
