import { GATEWAY_PORT } from '../../protocol/routing';
import { parseEndpoint } from './tunnel';
import type { TunnelEndpoint } from './tunnel';

/** Home of `user` as everyone outside the sandbox spells it. */
export const API_HOME = '/home/user';

/** What the runtime tells the agent, by environment. */
export interface AgentSettings {
  /** `CELLBOX_TUNNEL`: `unix:<path>` or `tcp:<host>:<port>`. */
  tunnel: TunnelEndpoint;
  /** `CELLBOX_TUNNEL_TOKEN`. */
  tunnelToken: string;
  /** `CELLBOX_GATEWAY_PORT`: where the gateway listens; 0 until the supervisor tells. */
  gatewayPort: number;
  /** `CELLBOX_LISTEN_LOOPBACK=1`: also answer programs inside, on 127.0.0.1 and ::1. Needs an own network namespace. */
  listenLoopback: boolean;
  /** `CELLBOX_SINGLE_USER=1`: everything is done as the process's own user, which callers know as `user`. */
  singleUser: boolean;
  /** `CELLBOX_HOME`: where the home directory really is. Paths under `/home/user` mean it, in single-user mode. */
  home: string;
  /** `CELLBOX_USER`: user of requests that name none, until `/init` says otherwise. */
  defaultUser: string;
  /** `CELLBOX_CGROUPS`, one directory per line: control groups of this sandbox alone. Containers need not say. */
  cgroups: readonly string[];
}

/** Reads and checks the settings. Throws one error that names every mistake. */
export function readAgentSettings(env: NodeJS.ProcessEnv): AgentSettings {
  const mistakes: string[] = [];
  const tunnel = parseEndpoint(env['CELLBOX_TUNNEL'] ?? '');
  if (tunnel === undefined) mistakes.push('CELLBOX_TUNNEL must be unix:<path> or tcp:<host>:<port>');
  const tunnelToken = env['CELLBOX_TUNNEL_TOKEN'] ?? '';
  if (tunnelToken === '') mistakes.push('CELLBOX_TUNNEL_TOKEN is missing');
  const gatewayPort = readGatewayPort(env);
  if (gatewayPort === undefined) mistakes.push('CELLBOX_GATEWAY_PORT must be a port number or 0');
  if (tunnel === undefined || gatewayPort === undefined || mistakes.length > 0)
    throw new Error(mistakes.join('; '));
  return {
    tunnel,
    tunnelToken,
    gatewayPort,
    listenLoopback: env['CELLBOX_LISTEN_LOOPBACK'] === '1',
    singleUser: env['CELLBOX_SINGLE_USER'] === '1',
    home: env['CELLBOX_HOME'] || API_HOME,
    defaultUser: env['CELLBOX_USER'] || 'user',
    cgroups: (env['CELLBOX_CGROUPS'] ?? '').split('\n').filter(Boolean),
  };
}

export function readGatewayPort(env: NodeJS.ProcessEnv): number | undefined {
  const text = env['CELLBOX_GATEWAY_PORT'] || String(GATEWAY_PORT);
  return /^\d{1,5}$/.test(text) && Number(text) <= 65_535 ? Number(text) : undefined;
}

/** The environment without what only agent and supervisor may know. */
export function withoutPrivate(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  return Object.fromEntries(Object.entries(env).filter(([name]) => !name.startsWith('CELLBOX_')));
}
