import path from 'node:path';
import type { Config } from './config';
import type { Logger } from './log';
import { Store } from './sandboxes/store';
import type { Secrets } from './secrets';
import { Teams } from './teams/teams';

/** Opens the store that the settings name, and the teams in it. The caller closes the store. */
export async function openStore(
  config: Pick<Config, 'databaseUrl' | 'dataDir' | 'maxSandboxes' | 'createsPerMinute'>,
  secrets: Secrets,
  logger: Logger,
): Promise<{ store: Store; teams: Teams }> {
  const { databaseUrl, dataDir } = config;
  const location = databaseUrl ?? path.join(dataDir, 'cellbox.db');
  // A file is this service's alone, also after the loss of its secret; in a database its sandboxes carry its name.
  const owner =
    databaseUrl === undefined ? {} : { serviceId: secrets.derive('store', 'service').slice(0, 32) };
  const store = await Store.open(location, { logger, ...owner });
  return { store, teams: new Teams({ records: store.teams, defaults: config, ...owner }) };
}
