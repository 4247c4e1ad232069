import { z } from 'zod';
import { Accounting, Ending, ExecutionTimeout, Termination } from './interpreter';

/** Body of every failure under `/v1`: the control plane's, plus a word that names the cause and what can be done. */
export const NativeError = z.object({
  code: z.int(),
  error: z.string(),
  message: z.string(),
  remedy: z.string().optional(),
});
export type NativeError = z.infer<typeof NativeError>;

/** One language that contexts can have here; `missing` says what has to be there first, absent when nothing has. */
export const LanguageInfo = z.object({ name: z.string(), missing: z.string().optional() });
export type LanguageInfo = z.infer<typeof LanguageInfo>;

const Limits = {
  cpu_count: z.int(),
  memory_bytes: z.int(),
  disk_bytes: z.int(),
  pids: z.int(),
  open_files: z.int(),
};

/** Answer to `GET /v1/info`. */
export const ServiceInfo = z.object({
  version: z.string(),
  runtime: z.string(),
  caveats: z
    .array(z.string())
    .describe('What the runtime does not isolate or enforce, one sentence each; empty when it is all.'),
  isolation_levels: z
    .array(z.string())
    .describe('Kinds of walls that sandboxes can have here; the first is the usual one.'),
  domain: z.string(),
  templates: z
    .array(
      z.object({
        id: z.string(),
        alias: z.string(),
        isolation: z.string().describe('The level of its sandboxes.'),
        ...Limits,
      }),
    )
    .describe('With what a sandbox of each has when its create asks for nothing else.'),
  sizes: z
    .array(z.object({ name: z.string(), ...Limits }))
    .describe('What a create can ask for by name: `size`, or `@name` behind the template.'),
  languages: z.array(LanguageInfo),
  limits: z.object({
    max_sandboxes: z.int().describe("Of the caller's team."),
    creates_per_minute: z.int().describe("Of the caller's team; 0 is no limit."),
    max_timeout_ms: z.int(),
    ...Limits,
    max_cpu_count: z.int().describe('Of one sandbox, whatever its create asks for; so are the next four.'),
    max_memory_bytes: z.int(),
    max_disk_bytes: z.int(),
    max_pids: z.int(),
    max_open_files: z.int(),
    max_body_bytes: z.int(),
  }),
});
export type ServiceInfo = z.infer<typeof ServiceInfo>;

const count = z.int().min(0).max(1000);

/** Body of `PUT /v1/pools/{template}`. Without `min` none is kept at all costs, without `max` the pool doesn't grow. */
export const PoolSizeRequest = z.strictObject({
  min: count.default(0),
  target: count,
  max: count.optional(),
});

/** Sandboxes of one template that are kept ready: an item of `GET /v1/pools`, and the answer to a `PUT`. */
export const PoolInfo = z.object({
  template: z.string().describe('Its alias, which `PUT` takes as well as its id.'),
  template_id: z.string(),
  min: z.int().describe('Started also when the host is short of memory.'),
  target: z.int().describe('Kept ready.'),
  max: z.int().describe('Kept ready for a while after creates that found none.'),
  ready: z.int(),
  starting: z.int().describe('On their way.'),
  claimed_total: z.int().describe('Since the service started: creates that got one of them.'),
  misses_total: z
    .int()
    .describe('Since the service started: creates that started their own for want of one.'),
  last_error: z.string().nullable().describe('Why it is less full than it should be; null when all is well.'),
});
export type PoolInfo = z.infer<typeof PoolInfo>;

export const PoolList = z.object({ items: z.array(PoolInfo), next_token: z.string().nullable() });

const limits = {
  max_sandboxes: z.int().min(0).max(100_000).nullish().describe("Null: the service's default."),
  creates_per_minute: z.int().min(0).max(1_000_000).nullish().describe('0 is no limit.'),
};

/** Body of `POST /v1/admin/teams`. A name is as a namespace of templates is spelt. */
export const NewTeam = z.strictObject({
  name: z.string().regex(/^[a-z0-9][a-z0-9_-]{0,62}$/, 'must be 1 to 63 characters of a-z, 0-9, _ and -'),
  ...limits,
});

/** Body of `PATCH /v1/admin/teams/{team}`: what is absent stays. */
export const TeamChanges = z.strictObject(limits);

/** Body of `POST /v1/admin/teams/{team}/keys`. */
export const NewTeamKey = z.strictObject({ name: z.string().min(1).max(128) });

/** A team, as `/v1/admin/teams` shows it; paths take its name as well as its id. */
export const TeamInfo = z.object({
  team_id: z.string(),
  name: z.string(),
  max_sandboxes: z.int().nullable().describe("Its own limit; null is the service's default."),
  creates_per_minute: z.int().nullable(),
  limits: z.object({ max_sandboxes: z.int(), creates_per_minute: z.int() }).describe('What holds for it.'),
  created_at: z.string(),
});
export type TeamInfo = z.infer<typeof TeamInfo>;

/** An API key, as lists show it. */
export const TeamKeyInfo = z.object({
  key_id: z.string(),
  name: z.string(),
  mask: z
    .object({
      prefix: z.string(),
      value_length: z.int(),
      masked_value_prefix: z.string(),
      masked_value_suffix: z.string(),
    })
    .describe('How long it is, how it begins and how it ends.'),
  created_at: z.string(),
});
export type TeamKeyInfo = z.infer<typeof TeamKeyInfo>;

/** Answer to the creation of a key: the only time that it is shown. */
export const CreatedTeamKey = TeamKeyInfo.extend({ key: z.string() });
export type CreatedTeamKey = z.infer<typeof CreatedTeamKey>;

/** Body of `POST /v1/sandboxes/{id}/executions`. Empty strings count as absent. */
export const NewExecution = z.strictObject({
  code: z.string(),
  context_id: z.string().nullish(),
  language: z.string().nullish(),
  env_vars: z.record(z.string(), z.string()).nullish(),
  /** From the moment the kernel gets the code: waiting for one's turn doesn't count. 0 is no limit. */
  timeout_ms: ExecutionTimeout.nullish(),
  /** Answered at once with its id; otherwise with its events. It runs to its end either way. */
  detached: z.boolean().nullish(),
});

/** Answer to a detached execution. */
export const ExecutionStarted = z.object({ execution_id: z.string() });

/** An execution as lists and `GET …/executions/{eid}` show it. */
export const ExecutionInfo = Ending.partial().extend({
  execution_id: z.string(),
  context_id: z.string(),
  language: z.string(),
  detached: z.boolean(),
  state: z.enum(['queued', 'running', 'waiting_approval', 'ended']),
  termination: Termination.nullable().describe('Null until the end, as `accounting`.'),
  accounting: Accounting.nullable(),
  code_hash: z.string().describe('SHA-256 of the code, in hex.'),
  code_first_line: z.string().describe('The first line that is not blank, cut when it is long.'),
  timeout_ms: z.int().describe('0 is no limit.'),
  created_at: z.iso.datetime(),
  started_at: z.iso.datetime().nullable().describe('When its kernel got it.'),
  ended_at: z.iso.datetime().nullable(),
  event_count: z.int().describe('The next event gets this number.'),
});
export type ExecutionInfo = z.infer<typeof ExecutionInfo>;

export const ExecutionList = z.object({
  items: z.array(ExecutionInfo),
  next_token: z.string().nullable(),
});
