import { z } from 'zod';

/** A week: far above any cell, far below what timers can't count. */
export const MAX_EXECUTION_TIMEOUT_MS = 7 * 24 * 3_600_000;

/** Time limit of one execution, from the moment its kernel gets it; 0 is none, absent the service's default. */
export const ExecutionTimeout = z.int().min(0).max(MAX_EXECUTION_TIMEOUT_MS);

/** Body of `POST /execute`. Unknown fields are ignored; empty strings count as absent. */
export const ExecuteRequest = z.object({
  code: z.string(),
  context_id: z.string().nullish(),
  language: z.string().nullish(),
  env_vars: z.record(z.string(), z.string()).nullish(),
  /** Not E2B's. */
  timeout_ms: ExecutionTimeout.nullish(),
});
export type ExecuteRequest = z.infer<typeof ExecuteRequest>;

/** Body of `POST /contexts`. */
export const CreateContextRequest = z.object({
  language: z.string().nullish(),
  cwd: z.string().nullish(),
});
export type CreateContextRequest = z.infer<typeof CreateContextRequest>;

export const Context = z.object({ id: z.string(), language: z.string(), cwd: z.string() });
export type Context = z.infer<typeof Context>;

/** What a result carries: one field per well-known MIME type, the others in `extra` by their MIME name. */
export const ResultFields = z.object({
  text: z.string().optional(),
  html: z.string().optional(),
  markdown: z.string().optional(),
  svg: z.string().optional(),
  png: z.string().optional(),
  jpeg: z.string().optional(),
  pdf: z.string().optional(),
  latex: z.string().optional(),
  json: z.unknown().optional(),
  javascript: z.string().optional(),
  data: z.record(z.string(), z.unknown()).optional(),
  chart: z.record(z.string(), z.unknown()).optional(),
  extra: z.record(z.string(), z.unknown()),
});
export type ResultFields = z.infer<typeof ResultFields>;

/** How an execution ended: exactly one of these, for each. */
export const TERMINATIONS = [
  'ok',
  'error',
  'exited',
  'interrupted',
  'timeout_interrupted',
  'timeout_killed',
  'oom',
  'crashed',
  'restarted',
  'client_gone',
  'sandbox_ended',
  'transport_lost',
] as const;
export const Termination = z.enum(TERMINATIONS);
export type Termination = z.infer<typeof Termination>;

/** What an execution used. Null where nobody could tell: kernels of other languages, kernels that died. */
export const Accounting = z.object({
  /** From the moment the kernel got it. */
  wall_ms: z.number(),
  /** Before that. */
  queued_ms: z.number(),
  cpu_ms: z.number().nullable(),
  memory_peak_bytes: z.number().nullable(),
  /** Text in UTF-8, and results as JSON. */
  output_bytes: z.int(),
  results: z.int(),
});
export type Accounting = z.infer<typeof Accounting>;

/** What `end_of_execution` says of the end. E2B's own streams carry it when the end was neither `ok` nor `error`. */
export const Ending = z.object({
  termination: Termination,
  accounting: Accounting,
  /** Name of the signal that killed the kernel. */
  signal: z.string().optional(),
  exit_code: z.int().optional(),
  /** Of the sandbox, when it ran out of memory. */
  memory_peak_bytes: z.number().optional(),
  memory_limit_bytes: z.number().optional(),
  /** Whether the context's variables are still there; null: nobody can tell. */
  state_survived: z.boolean().nullable(),
  /** What can be done about it. */
  remedy: z.string().optional(),
});
export type Ending = z.infer<typeof Ending>;

const TextStream = z.enum(['stdout', 'stderr']);
export type TextStream = z.infer<typeof TextStream>;

/** One line of an execution's stream. Clients ignore types they don't know. */
export const OutputEvent = z.discriminatedUnion('type', [
  z.object({ type: z.literal('number_of_executions'), execution_count: z.int() }),
  z.object({ type: z.literal('stdout'), text: z.string(), timestamp: z.string() }),
  z.object({ type: z.literal('stderr'), text: z.string(), timestamp: z.string() }),
  ResultFields.extend({ type: z.literal('result'), is_main_result: z.boolean() }),
  z.object({ type: z.literal('error'), name: z.string(), value: z.string(), traceback: z.string() }),
  /** Shows a silent stream to be alive, and a vanished client to be gone. */
  z.object({ type: z.literal('keepalive') }),
  /** The last line of every stream, unless the sandbox itself ended. */
  z.object({ type: z.literal('end_of_execution') }).extend(Ending.partial().shape),
  // The native API's only, from here on.
  /** A display that can change. */
  ResultFields.extend({ type: z.literal('display'), display_id: z.string() }),
  /** Replaces what every display of this id shows. */
  ResultFields.extend({ type: z.literal('update_display'), display_id: z.string() }),
  /** Takes back what the cell has shown so far, now or (`wait`) when the next output comes. */
  z.object({ type: z.literal('clear_output'), wait: z.boolean() }),
  /** Not everything is in the stream. Told when it begins and, with the final count, before the end. */
  z.object({
    type: z.literal('truncated'),
    /** `events`: events were not kept for lack of room on the disk. */
    stream: z.enum(['stdout', 'stderr', 'events']),
    omitted_bytes: z.int(),
    /** Path of the full text, and how much of it could be kept. */
    artifact: z.string().optional(),
    artifact_bytes: z.int().optional(),
  }),
  /** The service was away while this ran. Output of the moment in which it stopped may be missing; nothing else is. */
  z.object({ type: z.literal('reattached') }),
  /**
   * The context's kernel ended while nothing ran there, and its variables with it: told to the next execution alone,
   * before anything else. The fields are those of an end.
   */
  z
    .object({ type: z.literal('state_lost') })
    .extend(Ending.omit({ accounting: true, state_survived: true }).shape),
  /** Printed by a background thread after `after_execution`, whose cell had started it, had ended. */
  z.object({
    type: z.literal('late_output'),
    stream: TextStream,
    text: z.string(),
    after_execution: z.string(),
  }),
]);
export type OutputEvent = z.infer<typeof OutputEvent>;
