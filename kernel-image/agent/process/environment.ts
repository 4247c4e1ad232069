import { Code, ConnectError } from '@connectrpc/connect';

/** Of the agent's own environment, what programs get as well: where certificates are (a network's own among them),
 * and on hosts without namespaces the sandbox's own /tmp and the name by which the service knows its processes. */
const PASSED_ON = ['SSL_CERT_FILE', 'REQUESTS_CA_BUNDLE', 'DENO_TLS_CA_STORE', 'TMPDIR', '_CELLBOX_INSTANCE'];
const DEFAULT_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/** Linux: no single argument or variable may be longer (32 pages), and all together not longer than this by default. */
const MAX_STRING_BYTES = 131_072;
const MAX_TOTAL_BYTES = 2_000_000;

/**
 * The environment of a process, made from nothing; later sources win: the agent's `PATH`, the user's identity, the
 * sandbox's variables, the request's. `home` is where the home really is.
 */
export function makeEnvironment(input: {
  own: NodeJS.ProcessEnv;
  user: string;
  home: string;
  global: Readonly<Record<string, string>>;
  requested: Readonly<Record<string, string>>;
}): Record<string, string> {
  const passedOn = PASSED_ON.flatMap((name) => {
    const value = input.own[name];
    return value === undefined ? [] : [[name, value] as const];
  });
  return {
    ...Object.fromEntries(passedOn),
    PATH: input.own['PATH'] || DEFAULT_PATH,
    HOME: input.home,
    USER: input.user,
    LOGNAME: input.user,
    ...input.global,
    ...input.requested,
  };
}

/**
 * Refuses what no process could be started with. Values are never part of the text.
 *
 * @throws ConnectError `invalid_argument`
 */
export function checkStrings(argv: readonly string[], env: Readonly<Record<string, string>>): void {
  let total = 0;
  const count = (what: string, text: string) => {
    if (text.includes('\0')) throw invalid(`${what} contains a NUL character`);
    const bytes = Buffer.byteLength(text) + 1;
    if (bytes > MAX_STRING_BYTES) throw invalid(`${what} is longer than ${MAX_STRING_BYTES - 1} bytes`);
    total += bytes + 8; // and a pointer
  };
  for (const [index, text] of argv.entries()) count(index === 0 ? 'cmd' : `args[${index - 1}]`, text);
  if (argv[0] === '') throw invalid('cmd must not be empty');
  for (const [name, value] of Object.entries(env)) {
    const shown = JSON.stringify(name.slice(0, 100));
    if (name === '' || name.includes('=')) throw invalid(`envs: ${shown} is not a usable name`);
    count(`envs: ${shown}`, `${name}=${value}`);
  }
  if (total > MAX_TOTAL_BYTES)
    throw invalid(`arguments and environment together are longer than ${MAX_TOTAL_BYTES} bytes`);
}

function invalid(message: string): ConnectError {
  return new ConnectError(message, Code.InvalidArgument);
}
