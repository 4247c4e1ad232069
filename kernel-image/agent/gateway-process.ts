import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { log } from './log';
import { API_HOME, readGatewayPort, withoutPrivate } from './settings';
import type { GatewayPlace } from './supervision';
import { parsePasswd } from './users';

const DEFAULT_PYTHON = '/opt/cellbox/venv/bin/python';
const DEFAULT_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';
/** How the gateway's own lines begin. */
const OWN_LINE = 'cellbox gateway ';
/** What it prints first, if at all. */
const TAKES_CONNECTIONS = /^cellbox gateway takes connections at (\/.*)$/;
/** What it prints once it listens. */
const LISTENING = /^cellbox gateway listening on \S+:(\d{1,5})$/;
const MAX_LINE_CHARS = 4096;

/** How to start the kernel gateway. Read once, so that a mistake shows at the start and not at each restart. */
export interface GatewayCommand {
  command: string;
  args: readonly string[];
  cwd: string;
  env: NodeJS.ProcessEnv;
  identity: { uid: number; gid: number } | undefined;
}

/**
 * Reads `CELLBOX_PYTHON`, `CELLBOX_GATEWAY_PORT` (0: the gateway takes a free one), `CELLBOX_GATEWAY_TOKEN`,
 * `CELLBOX_HOME`, `CELLBOX_USER`, `CELLBOX_SINGLE_USER`, and `CELLBOX_GATEWAY_COMMAND` (a JSON array that replaces the
 * command). As root the gateway, and with it every kernel, runs as the user. Of our variables it gets its port
 * and token, which it removes before it starts anything, and `CELLBOX_ZYGOTE_IMPORTS` where an image sets it.
 */
export function readGatewayCommand(env: NodeJS.ProcessEnv): GatewayCommand {
  const python = env['CELLBOX_PYTHON'] || DEFAULT_PYTHON;
  const port = readGatewayPort(env);
  if (port === undefined) throw new Error('CELLBOX_GATEWAY_PORT must be a port number or 0');
  const token = env['CELLBOX_GATEWAY_TOKEN'];
  if (!token) throw new Error('CELLBOX_GATEWAY_TOKEN is missing');
  const [command, ...args] = readCommand(env['CELLBOX_GATEWAY_COMMAND']) ?? [
    python,
    '-m',
    'cellbox_kernel.gateway',
  ];
  if (command === undefined) throw new Error('CELLBOX_GATEWAY_COMMAND is empty');
  const account = dropTo(env);
  const home = env['CELLBOX_HOME'] || account?.home || API_HOME;
  const inherited = withoutPrivate(env);
  const bin = path.dirname(python);
  const searched = (inherited['PATH'] || DEFAULT_PATH).split(':').filter((directory) => directory !== bin);
  return {
    command,
    args,
    cwd: home,
    identity: account,
    env: {
      ...inherited,
      ...(account === undefined ? {} : { USER: account.name, LOGNAME: account.name, SHELL: '/bin/bash' }),
      HOME: home,
      PATH: [bin, ...searched].join(':'),
      CELLBOX_GATEWAY_PORT: String(port),
      CELLBOX_GATEWAY_TOKEN: token,
      ...(env['CELLBOX_ZYGOTE_IMPORTS'] === undefined
        ? {}
        : { CELLBOX_ZYGOTE_IMPORTS: env['CELLBOX_ZYGOTE_IMPORTS'] }),
    },
  };
}

/** Starts the gateway in a process group of its own; `onListening` is told where once it does. */
export function spawnGateway(
  gateway: GatewayCommand,
  onListening: (place: GatewayPlace) => void,
): ChildProcess {
  const child = spawn(gateway.command, gateway.args, {
    cwd: gateway.cwd,
    env: gateway.env,
    detached: true,
    stdio: ['ignore', 'pipe', 'inherit'],
    ...(gateway.identity === undefined ? {} : { uid: gateway.identity.uid, gid: gateway.identity.gid }),
  });
  let line = '';
  let connections: string | undefined;
  child.stdout?.setEncoding('utf8').on('data', (text: string) => {
    const lines = (line + text).split('\n');
    line = (lines.pop() ?? '').slice(0, MAX_LINE_CHARS);
    for (const complete of lines.map((each) => each.trimEnd())) {
      // Its own lines are told with their time, as ours are.
      if (complete.startsWith(OWN_LINE)) log(`gateway ${complete.slice(OWN_LINE.length)}`);
      else process.stdout.write(`${complete}\n`);
      connections = TAKES_CONNECTIONS.exec(complete)?.[1] ?? connections;
      const port = LISTENING.exec(complete)?.[1];
      if (port !== undefined) onListening({ port: Number(port), connections });
    }
  });
  return child;
}

function readCommand(text: string | undefined): string[] | undefined {
  if (!text) return undefined;
  const value: unknown = JSON.parse(text);
  if (!Array.isArray(value) || !value.every((word) => typeof word === 'string')) {
    throw new Error('CELLBOX_GATEWAY_COMMAND must be a JSON array of strings');
  }
  return value;
}

/** The account that the gateway runs as, when we are root and not told that there is only one user. */
function dropTo(
  env: NodeJS.ProcessEnv,
): { name: string; uid: number; gid: number; home: string } | undefined {
  if (process.getuid?.() !== 0 || env['CELLBOX_SINGLE_USER'] === '1') return undefined;
  const name = env['CELLBOX_USER'] || 'user';
  const account = parsePasswd(readFileSync('/etc/passwd', 'utf8')).get(name);
  if (account === undefined) throw new Error(`CELLBOX_USER: there is no user '${name}'`);
  return account;
}
