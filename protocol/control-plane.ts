import { z } from 'zod';

/** What the agent reports as its version, and the answers to create and connect repeat; SDKs gate features on it. */
export const ENVD_VERSION = '0.6.13';
/** Required in every sandbox answer and shown by nobody; one constant for all. */
export const CLIENT_ID = '6532622b';
/** Time-out where the caller gave none: the two generations of clients expect different ones. */
export const DEFAULT_TIMEOUT_SECONDS = { v1: 15, v2: 300 } as const;
/** A refresh keeps a sandbox at least this long. */
export const MIN_REFRESH_SECONDS = 15;
export const PAGE_LIMIT = 100;
/** Entries of a log that one answer has at most, and without being asked for fewer. */
export const LOG_LIMIT = 1000;
export const LOG_SEARCH_MAX = 256;

const INT32_MAX = 2_147_483_647;

// Python spells an unset option `null` here and there, so each optional field takes it for absent.
function optional<Schema extends z.ZodType>(schema: Schema) {
  return schema.nullish().transform((value) => value ?? undefined);
}

/** What a sandbox has at least, of each of its limits. Its own programs with one kernel are 30 to 50 processes and threads. */
export const MIN_RESOURCES = { cpuCount: 1, memoryMB: 128, diskSizeMB: 64, pids: 64, openFiles: 64 } as const;

const limit = (name: keyof typeof MIN_RESOURCES) => z.int().min(MIN_RESOURCES[name]).max(INT32_MAX);

const Seconds = z.int().min(0).max(INT32_MAX);
const StringMap = z.record(z.string(), z.string());

const VolumeMount = z.object({ name: z.string(), path: z.string() });

/** The way out. Proxy, rules and name servers are recognised so that they can be refused by name. */
const NetworkEgress = z.object({
  /** Addresses and CIDR blocks; these beat `denyOut`. */
  allowOut: optional(z.array(z.string())),
  denyOut: optional(z.array(z.string())),
  egressProxy: optional(z.record(z.string(), z.unknown())),
  rules: optional(z.record(z.string(), z.unknown())),
  dnsServers: optional(z.array(z.string())),
});

const NetworkConfig = NetworkEgress.extend({
  allowPublicTraffic: optional(z.boolean()),
  /** What programs are told for the host; `${PORT}` in it stands for the port. */
  maskRequestHost: optional(z.string()),
  /** Ports whose programs speak TLS. */
  httpsPorts: optional(z.array(z.int())),
});

/** Body of `POST /v2/sandboxes`. Unknown fields are ignored everywhere. */
export const NewSandboxV2 = z.object({
  templateID: z.string().min(1).max(512),
  timeout: optional(z.int().min(-INT32_MAX).max(INT32_MAX)),
  autoPause: optional(z.boolean()),
  autoPauseMemory: optional(z.boolean()),
  autoResume: optional(z.object({ enabled: z.boolean() })),
  allow_internet_access: optional(z.boolean()),
  network: optional(NetworkConfig),
  metadata: optional(StringMap),
  envVars: optional(StringMap),
  mcp: optional(z.record(z.string(), z.unknown())),
  iam: optional(z.object({ tokens: optional(z.record(z.string(), z.unknown())) })),
  volumeMounts: optional(z.array(VolumeMount)),
  // Ours: no SDK sends them. Clients that have no such options name a size in the reference to the template.
  size: optional(z.string().min(1).max(64)),
  cpuCount: optional(limit('cpuCount')),
  memoryMB: optional(limit('memoryMB')),
  diskSizeMB: optional(limit('diskSizeMB')),
  pids: optional(limit('pids')),
  openFiles: optional(limit('openFiles')),
});
/** Body of `POST /sandboxes`: the same, secured only when asked for. */
export const NewSandbox = NewSandboxV2.extend({ secure: optional(z.boolean()) });
export type NewSandbox = z.infer<typeof NewSandbox>;

export const ConnectSandbox = z.object({ timeout: Seconds, memory: optional(z.boolean()) });
export const ConnectSandboxV2 = z.object({ timeout: optional(Seconds), memory: optional(z.boolean()) });
export const ResumeSandbox = z.object({
  timeout: optional(Seconds),
  autoPause: optional(z.boolean()),
  memory: optional(z.boolean()),
});
export const SandboxTimeout = z.object({ timeout: Seconds });
export const SandboxRefresh = z.object({ duration: optional(z.int().min(0).max(3600)) });
/** Body of `PUT /sandboxes/{id}/network`: all of the way out, what is left out being as for a create that says nothing. */
export const SandboxNetworkUpdate = NetworkEgress.extend({ allow_internet_access: optional(z.boolean()) });
export const SandboxPause = z.object({
  memory: optional(z.boolean()),
  requireHealthyGuest: optional(z.boolean()),
});

/** Whole numbers that clients may read into 32 bits are small; sizes in bytes may be not. */
const Count = z.int().min(0);
const Time = z.iso.datetime();

export const SandboxState = z.enum(['running', 'paused']);
export type SandboxState = z.infer<typeof SandboxState>;

/** Answer to create, connect and resume. */
export const SandboxAnswer = z.object({
  templateID: z.string(),
  sandboxID: z.string(),
  alias: z.string(),
  clientID: z.string(),
  envdVersion: z.string(),
  envdAccessToken: z.string().optional(),
  trafficAccessToken: z.string().nullable(),
  domain: z.string(),
});
export type SandboxAnswer = z.infer<typeof SandboxAnswer>;

export const ListedSandbox = z.object({
  templateID: z.string(),
  alias: z.string(),
  sandboxID: z.string(),
  clientID: z.string(),
  startedAt: Time,
  endAt: Time,
  cpuCount: Count,
  memoryMB: Count,
  diskSizeMB: Count,
  metadata: StringMap,
  state: SandboxState,
  /** What a paused one has kept: all, or its files. */
  pauseMode: z.enum(['full', 'filesystem']).optional(),
  envdVersion: z.string(),
  volumeMounts: z.array(VolumeMount),
});
export type ListedSandbox = z.infer<typeof ListedSandbox>;

export const SandboxDetail = ListedSandbox.extend({
  envdAccessToken: z.string().optional(),
  allowInternetAccess: z.boolean(),
  domain: z.string(),
  /** As it was given; what was left out, or empty, is absent. */
  network: z.object({
    allowPublicTraffic: z.boolean(),
    allowOut: z.array(z.string()).optional(),
    denyOut: z.array(z.string()).optional(),
    maskRequestHost: z.string().optional(),
    httpsPorts: z.array(z.int()).optional(),
  }),
  lifecycle: z.object({ autoResume: z.boolean(), onTimeout: z.enum(['kill', 'pause']) }),
});
export type SandboxDetail = z.infer<typeof SandboxDetail>;

/** One reading of what a sandbox uses; sizes in bytes, processor in percent of all `cpuCount` together. */
export const SandboxMetric = z.object({
  timestamp: Time,
  timestampUnix: z.int(),
  cpuCount: Count,
  cpuUsedPct: z.number().min(0),
  memUsed: Count,
  memTotal: Count,
  memCache: Count,
  diskUsed: Count,
  diskTotal: Count,
});
export type SandboxMetric = z.infer<typeof SandboxMetric>;

export const SandboxMetrics = z.object({ sandboxes: z.record(z.string(), SandboxMetric) });

/** From least to most: a filter by level lets everything from its word on through. */
export const LOG_LEVELS = ['debug', 'info', 'warn', 'error'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

const LogEntry = z.object({
  timestamp: Time,
  level: z.enum(LOG_LEVELS),
  message: z.string(),
  fields: StringMap,
});
export type LogEntry = z.infer<typeof LogEntry>;
/** `line` is JSON of level, message and fields in one object. */
export const SandboxLogs = z.object({
  logs: z.array(z.object({ timestamp: Time, line: z.string() })),
  logEntries: z.array(LogEntry),
});
export const SandboxLogsV2 = z.object({ logs: z.array(LogEntry) });

export const TemplateAnswer = z.object({
  templateID: z.string(),
  buildID: z.string(),
  cpuCount: Count,
  memoryMB: Count,
  diskSizeMB: Count,
  public: z.boolean(),
  aliases: z.array(z.string()),
  names: z.array(z.string()),
  createdAt: Time,
  updatedAt: Time,
  createdBy: z.null(),
  lastSpawnedAt: z.null(),
  spawnCount: Count,
  buildCount: Count,
  envdVersion: z.string(),
  buildStatus: z.literal('ready'),
});
export type TemplateAnswer = z.infer<typeof TemplateAnswer>;

export const TemplateDetail = TemplateAnswer.pick({
  templateID: true,
  public: true,
  aliases: true,
  names: true,
  createdAt: true,
  updatedAt: true,
  lastSpawnedAt: true,
  spawnCount: true,
}).extend({
  builds: z.array(
    z.object({
      buildID: z.string(),
      status: z.literal('ready'),
      createdAt: Time,
      updatedAt: Time,
      finishedAt: Time,
      cpuCount: Count,
      memoryMB: Count,
      diskSizeMB: Count,
      envdVersion: z.string(),
    }),
  ),
});

export const TemplateAlias = z.object({ templateID: z.string(), public: z.boolean() });

/** Body of every failure. `code` repeats the status: one SDK reads this, the other the status line. */
export const ApiError = z.object({ code: z.int(), message: z.string(), error_code: z.string().optional() });
export type ApiError = z.infer<typeof ApiError>;

/** Answer to `GET /health` when sandboxes can't be created. */
export const Unhealthy = ApiError.extend({
  checks: z.array(z.object({ name: z.string(), ok: z.boolean(), detail: z.string().optional() })),
});

const SANDBOX_ID = /^([a-z0-9]{1,63})(?:-[A-Za-z0-9]*)?$/;

/** The sandbox id of a path segment; the old form `<id>-<clientID>` counts too. Undefined when it is neither. */
export function parseSandboxId(text: string): string | undefined {
  return SANDBOX_ID.exec(text)?.[1];
}

export interface TemplateReference {
  namespace: string | undefined;
  /** Alias, name or id. */
  alias: string;
  tag: string;
  /** Name of a size; ours, for clients that have no other way to ask for one. */
  size: string | undefined;
}

const TEMPLATE_REFERENCE = /^(?:([a-z0-9_-]+)\/)?([a-z0-9_-]+)(?::([a-z0-9_.-]+))?(?:@([a-z0-9_.-]+))?$/;

/** Parses `[namespace/]alias[:tag][@size]`, trimmed and lower-cased; the tag is `default` where none is given. */
export function parseTemplateReference(text: string): TemplateReference | undefined {
  const match = TEMPLATE_REFERENCE.exec(text.trim().toLowerCase());
  if (match?.[2] === undefined) return undefined;
  return { namespace: match[1], alias: match[2], tag: match[3] ?? 'default', size: match[4] };
}

/**
 * Parses the `metadata` filter of the lists. SDKs encode it three times: each key and value, the whole, and the
 * query. `value` has had the ordinary query decoding; the other two are undone here.
 *
 * @throws Error whose message is for the caller, when it is not a list of `key=value`.
 */
export function parseMetadataFilter(value: string): Map<string, string> {
  const filter = new Map<string, string>();
  const list = unescapeQuery(value);
  if (list === '') return filter;
  for (const pair of list.split('&')) {
    const equals = pair.indexOf('=');
    if (equals < 0) throw new Error(`metadata: ${JSON.stringify(pair)} is not of the form key=value`);
    filter.set(unescapeQuery(pair.slice(0, equals)), unescapeQuery(pair.slice(equals + 1)));
  }
  return filter;
}

function unescapeQuery(text: string): string {
  try {
    return decodeURIComponent(text.replaceAll('+', ' '));
  } catch {
    throw new Error(`metadata: ${JSON.stringify(text)} is not percent-encoded UTF-8`);
  }
}

/** Encodes a metadata filter as SDKs do, short of the query's own encoding. Inverse of `parseMetadataFilter`. */
export function formatMetadataFilter(filter: Iterable<[string, string]>): string {
  const pairs = [...filter].map(([key, value]) => [key, value].map(encodeURIComponent).join('='));
  return pairs.map((pair) => pair.replaceAll('%', '%25')).join('&');
}

/** Where the next page of a list goes on: after this sandbox. */
export interface PageCursor {
  startedAt: number;
  id: string;
}

/** A cursor as the opaque text of `X-Next-Token`. */
export function formatPageToken(cursor: PageCursor): string {
  return `${cursor.startedAt.toString(36)}-${cursor.id}`;
}

/** Undefined when the text is no token of ours. */
export function parsePageToken(text: string): PageCursor | undefined {
  const match = /^([a-z0-9]{1,11})-([a-z0-9]{1,63})$/.exec(text);
  if (match?.[1] === undefined || match[2] === undefined) return undefined;
  return { startedAt: parseInt(match[1], 36), id: match[2] };
}
