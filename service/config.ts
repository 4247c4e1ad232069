import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { z } from 'zod';
import { MIN_RESOURCES } from '../protocol/control-plane';
import { MAX_EXECUTION_TIMEOUT_MS } from '../protocol/interpreter';
import { ServiceError } from './errors';
import { ISOLATION_NAME } from './runtime/runtime';

/** One setting: environment variable, command-line flag (derived), default and one line of help. */
interface Setting<Schema extends z.ZodType> {
  env: string;
  schema: Schema;
  help: string;
  /** Never repeated in a message: it is a secret, or has one in it. */
  secret?: boolean;
}

function setting<Schema extends z.ZodType>(
  env: string,
  schema: Schema,
  help: string,
  options: { secret?: boolean } = {},
): Setting<Schema> {
  return { env, schema, help, ...options };
}

const integer = (min: number, max: number) =>
  z.coerce
    .number('must be a number')
    .int('must be a whole number')
    .min(min, `must be at least ${min}`)
    .max(max, `must be at most ${max}`);

const MAX_RESOURCES = {
  cpuCount: 256,
  memoryMB: 1_048_576,
  diskSizeMB: 10_485_760,
  pids: 1_000_000,
  openFiles: 1_048_576,
} as const;

const limit = (name: keyof typeof MAX_RESOURCES) => integer(MIN_RESOURCES[name], MAX_RESOURCES[name]);

const HOST = /^[A-Za-z0-9.:_-]+$/;
const API_KEY = /^e2b_[0-9a-f]+$/;
const ADMIN_TOKEN = /^[\w.~+/=-]{16,256}$/;
const ADDRESS = /^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):\d{1,5}$/;
const DOMAIN = /^[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:\d+)?$/;

/** Loopback is another place inside a sandbox. */
function isNameServer(text: string): boolean {
  return net.isIPv4(text) && !text.startsWith('127.');
}

/** One of a Unix socket has no host, which the URL standard allows only without a user. */
function isPostgresUrl(text: string): boolean {
  return /^postgres(ql)?:\/\//.test(text) && URL.canParse(text.replace('@/', '@localhost/'));
}

/**
 * Every setting of the service, in the order the README shows them. The name of a flag is the variable's without
 * `CELLBOX_`, lower-case with dashes: `CELLBOX_DATA_DIR` is `--data-dir`.
 */
export const SETTINGS = {
  host: setting(
    'CELLBOX_HOST',
    z.string().regex(HOST, 'must be an address or host name').default('127.0.0.1'),
    'Address to listen on',
  ),
  port: setting('CELLBOX_PORT', integer(0, 65535).default(3210), 'Port to listen on; 0 takes a free one'),
  runtime: setting(
    'CELLBOX_RUNTIME',
    z.enum(['auto', 'docker', 'local'], 'must be auto, docker or local').default('auto'),
    'Where sandboxes run',
  ),
  isolation: setting(
    'CELLBOX_ISOLATION',
    z
      .string()
      .regex(ISOLATION_NAME, 'must be a name of letters, digits, dots, dashes and underscores')
      .optional(),
    'Wall around a sandbox whose template names none: `gvisor`, or an OCI runtime that the engine knows; default the engine’s own. `/v1/info` lists them',
  ),
  apiKey: setting(
    'CELLBOX_API_KEY',
    z.string().regex(API_KEY, 'must be e2b_ followed by lower-case hex digits').optional(),
    'API key; made once and kept in the data directory when absent',
  ),
  adminToken: setting(
    'CELLBOX_ADMIN_TOKEN',
    z.string().regex(ADMIN_TOKEN, 'must be 16 to 256 letters, digits and .~_+/=-').optional(),
    'Token for `/metrics` and `/v1/admin`; made once and kept in the data directory when absent',
    { secret: true },
  ),
  metricsAddress: setting(
    'CELLBOX_METRICS_ADDRESS',
    z.string().regex(ADDRESS, 'must be host:port').optional(),
    'Address that serves `/metrics` without a token, as host:port; off when absent',
  ),
  dataDir: setting(
    'CELLBOX_DATA_DIR',
    z
      .string()
      .min(1)
      .transform((dir) => path.resolve(dir))
      .default(path.join(os.homedir(), '.cellbox')),
    'Where state is kept (store, keys, workspaces, tunnels)',
  ),
  databaseUrl: setting(
    'CELLBOX_DATABASE_URL',
    z.string().refine(isPostgresUrl, 'must be postgres://user:password@host:port/database').optional(),
    'PostgreSQL database of the store; default a SQLite file in the data directory',
    { secret: true },
  ),
  pythonDir: setting(
    'CELLBOX_PYTHON_DIR',
    z
      .string()
      .min(1)
      .transform((dir) => path.resolve(dir))
      .optional(),
    'Where the local runtime keeps its Python environment; default the data directory',
  ),
  image: setting(
    'CELLBOX_IMAGE',
    z.string().min(1).optional(),
    'Kernel image to use instead of building one',
  ),
  imageFlavor: setting(
    'CELLBOX_IMAGE_FLAVOR',
    z.enum(['slim', 'full'], 'must be slim or full').default('slim'),
    'Which image to build: slim, or full (adds R, Java and more packages)',
  ),
  baseImage: setting(
    'CELLBOX_BASE_IMAGE',
    z.string().min(1).default('debian:trixie-slim'),
    'Base image of the kernel image',
  ),
  extraCa: setting(
    'CELLBOX_EXTRA_CA',
    z.string().min(1).optional(),
    'PEM file of extra certificate authorities for image builds and sandboxes; default NODE_EXTRA_CA_CERTS',
  ),
  buildNetwork: setting(
    'CELLBOX_BUILD_NETWORK',
    z.string().min(1).default('host'),
    'Engine network for image builds',
  ),
  nameServers: setting(
    'CELLBOX_NAME_SERVERS',
    z
      .string()
      .transform((text) => text.split(',').map((each) => each.trim()))
      .refine(
        (list) => list.every(isNameServer),
        'must be IPv4 addresses, not on loopback, with commas between',
      )
      .optional(),
    'Name servers of docker sandboxes, IPv4 addresses with commas between; default those of the host',
  ),
  proxyImage: setting(
    'CELLBOX_PROXY_IMAGE',
    z.string().min(1).optional(),
    'Image of the proxy for network rules with domains, instead of building one when it is first needed',
  ),
  domain: setting(
    'CELLBOX_DOMAIN',
    z.string().regex(DOMAIN, 'must be a host name, with a port where it is not 443').optional(),
    'Domain of sandbox host names `<port>-<id>.<domain>`; default localhost:<port>, and cellbox.localhost:<port> with CELLBOX_TLS=dev',
  ),
  tls: setting(
    'CELLBOX_TLS',
    z.enum(['off', 'dev'], 'must be off or dev').default('off'),
    'TLS and HTTP/2 with a local certificate authority, for development; own certificates turn TLS on by themselves',
  ),
  tlsCert: setting(
    'CELLBOX_TLS_CERT',
    z.string().min(1).optional(),
    'PEM file of a certificate with its chain, for the domain and `*.<domain>`; replaced files are taken up within seconds',
  ),
  tlsKey: setting('CELLBOX_TLS_KEY', z.string().min(1).optional(), "PEM file of the certificate's key"),
  onStop: setting(
    'CELLBOX_ON_STOP',
    z.enum(['keep', 'kill'], 'must be keep or kill').optional(),
    'What becomes of sandboxes at shutdown; default: SIGTERM keeps, Ctrl-C on a terminal kills',
  ),
  logLevel: setting(
    'CELLBOX_LOG_LEVEL',
    z.enum(['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent']).default('info'),
    'Log level',
  ),
  exposeLocal: setting(
    'CELLBOX_LOCAL_ALLOW_REMOTE',
    z.enum(['yes', 'no'], 'must be yes or no').default('no'),
    'Lets the local runtime listen on another address than loopback; code runs on this host',
  ),
  bubblewrap: setting(
    'CELLBOX_BUBBLEWRAP',
    z.enum(['auto', 'off', 'require'], 'must be auto, off or require').default('auto'),
    'Namespaces for local sandboxes',
  ),
  maxSandboxes: setting(
    'CELLBOX_MAX_SANDBOXES',
    integer(1, 100_000).default(50),
    'Live sandboxes of a team that has no limit of its own; one more is refused with 429',
  ),
  createsPerMinute: setting(
    'CELLBOX_CREATES_PER_MINUTE',
    integer(0, 1_000_000).default(0),
    'Sandboxes that a team without a limit of its own may create within a minute; 0 is no limit',
  ),
  poolSize: setting(
    'CELLBOX_POOL_SIZE',
    integer(0, 1000).default(2),
    'Sandboxes of the code interpreter kept ready for the next creates; 0 starts each when it is asked for',
  ),
  poolMin: setting(
    'CELLBOX_POOL_MIN',
    integer(0, 1000).default(0),
    'Of these, how many are started also when the host is short of memory',
  ),
  poolMax: setting(
    'CELLBOX_POOL_MAX',
    integer(0, 1000).optional(),
    'How many are kept ready for a while after creates that found none; default twice CELLBOX_POOL_SIZE',
  ),
  maxTimeoutSeconds: setting(
    'CELLBOX_MAX_TIMEOUT_SECONDS',
    integer(1, 31_536_000).default(86_400),
    'Longest time-out of a sandbox, in seconds',
  ),
  cpuCount: setting('CELLBOX_CPU_COUNT', limit('cpuCount').default(2), 'CPUs of a sandbox'),
  memoryMB: setting('CELLBOX_MEMORY_MB', limit('memoryMB').default(2048), 'Memory of a sandbox, MiB'),
  diskSizeMB: setting('CELLBOX_DISK_MB', limit('diskSizeMB').default(10_240), 'Disk of a sandbox, MiB'),
  pids: setting('CELLBOX_PIDS', limit('pids').default(1024), 'Processes and threads of a sandbox'),
  openFiles: setting(
    'CELLBOX_OPEN_FILES',
    limit('openFiles').default(16_384),
    'Open files of each process in a sandbox',
  ),
  templates: setting(
    'CELLBOX_TEMPLATES',
    z
      .string()
      .min(1)
      .transform((file) => path.resolve(file))
      .optional(),
    'JSON file of templates that differ from these limits, and of named sizes; see docs/SIZES.md',
  ),
  maxCpuCount: setting(
    'CELLBOX_MAX_CPU_COUNT',
    limit('cpuCount').optional(),
    "CPUs that a sandbox may ask for; default the host's",
  ),
  maxMemoryMB: setting(
    'CELLBOX_MAX_MEMORY_MB',
    limit('memoryMB').optional(),
    "Memory that a sandbox may ask for, MiB; default the host's",
  ),
  maxDiskSizeMB: setting(
    'CELLBOX_MAX_DISK_MB',
    limit('diskSizeMB').optional(),
    'Disk that a sandbox may ask for, MiB; default the most that a template or a size has',
  ),
  maxPids: setting(
    'CELLBOX_MAX_PIDS',
    limit('pids').optional(),
    'Processes and threads that a sandbox may ask for; default the most that a template or a size has',
  ),
  maxOpenFiles: setting(
    'CELLBOX_MAX_OPEN_FILES',
    limit('openFiles').optional(),
    'Open files that a sandbox may ask for; default the most that a template or a size has',
  ),
  startTimeoutMs: setting(
    'CELLBOX_START_TIMEOUT_MS',
    integer(1_000, 600_000).default(60_000),
    'How long a sandbox may take to start',
  ),
  kernelTimeoutMs: setting(
    'CELLBOX_KERNEL_TIMEOUT_MS',
    integer(1_000, 600_000).default(180_000),
    'How long a kernel may take to start',
  ),
  executionTimeoutMs: setting(
    'CELLBOX_EXECUTION_TIMEOUT_MS',
    integer(0, MAX_EXECUTION_TIMEOUT_MS).default(0),
    'Time limit of an execution whose request has none; 0 is no limit',
  ),
  interruptGraceMs: setting(
    'CELLBOX_INTERRUPT_GRACE_MS',
    integer(0, 600_000).default(2_000),
    'How long code may ignore the interrupt at its time limit, until its kernel is killed',
  ),
  executionKeepMs: setting(
    'CELLBOX_EXECUTION_KEEP_MS',
    integer(0, 604_800_000).default(3_600_000),
    'How long ended executions can be asked for, at most until their sandbox ends',
  ),
  outputInlineBytes: setting(
    'CELLBOX_OUTPUT_INLINE_BYTES',
    integer(1024, 1_073_741_824).default(256 * 1024 * 1024),
    'Text of stdout and of stderr that an execution streams; all of it is kept in a file beside',
  ),
  executionDiskMB: setting(
    'CELLBOX_EXECUTION_DISK_MB',
    integer(1, 10_485_760).default(2048),
    'Disk of the service for what the executions of one sandbox put out, MiB',
  ),
  metricsIntervalMs: setting(
    'CELLBOX_METRICS_INTERVAL_MS',
    integer(100, 3_600_000).default(5_000),
    'How often running sandboxes are asked what they use',
  ),
  maxBodyBytes: setting(
    'CELLBOX_MAX_BODY_BYTES',
    integer(1024, 1_073_741_824).default(64 * 1024 * 1024),
    'Largest body of an API or execute request',
  ),
} as const;

/** Where the first must not be less than the second. */
const AT_LEAST = [
  ['maxCpuCount', 'cpuCount'],
  ['maxMemoryMB', 'memoryMB'],
  ['maxDiskSizeMB', 'diskSizeMB'],
  ['maxPids', 'pids'],
  ['maxOpenFiles', 'openFiles'],
] as const;

type Settings = typeof SETTINGS;
export type Config = Readonly<{ [Name in keyof Settings]: z.output<Settings[Name]['schema']> }>;

function flagName(env: string): string {
  return `--${env
    .replace(/^CELLBOX_/, '')
    .toLowerCase()
    .replaceAll('_', '-')}`;
}

/** Reads `--flag value` and `--flag=value`; returns the values by variable name and what it did not understand. */
function parseFlags(argv: readonly string[]): { values: Map<string, string>; mistakes: string[] } {
  const known = new Map(Object.values(SETTINGS).map((each) => [flagName(each.env), each.env]));
  const values = new Map<string, string>();
  const mistakes: string[] = [];
  for (let index = 0; index < argv.length; index++) {
    const [flag = '', inline] = (argv[index] ?? '').split(/=(.*)/s);
    const env = known.get(flag);
    if (env === undefined) {
      mistakes.push(`${flag}: unknown option (--help lists them)`);
      continue;
    }
    const value = inline ?? argv[++index];
    if (value === undefined) mistakes.push(`${flag}: needs a value`);
    else values.set(env, value);
  }
  return { values, mistakes };
}

/**
 * Turns environment and flags (flags win; an empty variable counts as unset) into one frozen Config.
 *
 * @throws ServiceError `invalid_argument` whose message names every mistake at once, one a line, unknown
 * `CELLBOX_` variables included: a misspelt setting must not pass in silence.
 */
export function loadConfig(env: NodeJS.ProcessEnv, argv: readonly string[]): Config {
  const { values, mistakes } = parseFlags(argv);
  const known = new Set<string>(Object.values(SETTINGS).map((each) => each.env));
  for (const name of Object.keys(env)) {
    if (
      name.startsWith('CELLBOX_') &&
      !known.has(name) &&
      !name.startsWith('CELLBOX_TEST_') &&
      !name.startsWith('CELLBOX_REQUIRE_')
    ) {
      mistakes.push(`${name}: no such setting (--help lists them)`);
    }
  }
  const config: Record<string, unknown> = {};
  for (const [name, each] of Object.entries<Setting<z.ZodType>>(SETTINGS)) {
    const { secret = false } = each;
    const raw = values.get(each.env) ?? (env[each.env] === '' ? undefined : env[each.env]);
    const parsed = each.schema.safeParse(raw);
    if (parsed.success) config[name] = parsed.data;
    else
      mistakes.push(
        `${each.env}${secret ? '' : `=${JSON.stringify(raw)}`}: ${parsed.error.issues.map((issue) => issue.message).join(', ')}`,
      );
  }
  if (config['extraCa'] === undefined && env['NODE_EXTRA_CA_CERTS'])
    config['extraCa'] = env['NODE_EXTRA_CA_CERTS'];
  if ((config['tlsCert'] === undefined) !== (config['tlsKey'] === undefined))
    mistakes.push('CELLBOX_TLS_CERT and CELLBOX_TLS_KEY: give both or neither');
  if (config['tls'] === 'dev' && config['tlsCert'] !== undefined)
    mistakes.push('CELLBOX_TLS=dev: makes its own certificate, so CELLBOX_TLS_CERT has no place beside it');
  for (const [most, usual] of AT_LEAST) {
    const [above, value] = [config[most], config[usual]];
    if (typeof above === 'number' && typeof value === 'number' && above < value)
      mistakes.push(`${SETTINGS[most].env}=${above}: is less than ${SETTINGS[usual].env}, which is ${value}`);
  }
  if (mistakes.length > 0) {
    throw new ServiceError(
      'invalid_argument',
      `Configuration is not valid:\n${mistakes.map((line) => `  ${line}`).join('\n')}`,
    );
  }
  return Object.freeze(config) as Config; // each field was parsed by the schema that Config is inferred from
}

/** The text of `--help`: every setting with its flag, default and meaning. */
export function describeSettings(): string {
  const rows = Object.values(SETTINGS).map((each) => {
    const fallback = each.schema.safeParse(undefined);
    const value =
      fallback.success && fallback.data !== undefined ? ` (default ${String(fallback.data)})` : '';
    return `  ${each.env.padEnd(28)} ${flagName(each.env).padEnd(24)} ${each.help}${value}`;
  });
  const usage = [
    'Usage: npm start [-- --flag value …]',
    '       npm start -- teams …, npm start -- keys …     (see docs/TEAMS.md)',
  ];
  return [...usage, '', ...rows].join('\n');
}

/** The same as a Markdown table, as the README shows it; a test holds the two together. Equal on every machine. */
export function settingsTable(): string {
  const rows = Object.values(SETTINGS).map((each) => {
    const fallback = each.schema.safeParse(undefined);
    const isSet = fallback.success && fallback.data !== undefined;
    // The one default that differs between machines is a directory of the user.
    const value = isSet ? `\`${String(fallback.data).replace(os.homedir(), '~')}\`` : '';
    const words = choicesOf(each.schema).map((word) => `\`${word}\``);
    const meaning = words.length > 0 ? `${each.help} (${words.join(', ')})` : each.help;
    // A bare `<word>` would be taken for HTML.
    const escaped = meaning.replace(/`[^`]*`|</g, (part) => (part === '<' ? '\\<' : part));
    return `| \`${each.env}\` | \`${flagName(each.env)}\` | ${value} | ${escaped} |`;
  });
  return ['| Variable | Flag | Default | Meaning |', '| --- | --- | --- | --- |', ...rows].join('\n');
}

/** The words that a setting takes, where it takes only certain ones. */
function choicesOf(schema: unknown): string[] {
  if (schema instanceof z.ZodDefault || schema instanceof z.ZodOptional) return choicesOf(schema.unwrap());
  return schema instanceof z.ZodEnum ? schema.options.map(String) : [];
}
