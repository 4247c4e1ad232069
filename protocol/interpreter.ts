import { z } from 'zod';

/** Body of `POST /execute`. Unknown fields are ignored; empty strings count as absent. */
export const ExecuteRequest = z.object({
  code: z.string(),
  context_id: z.string().nullish(),
  language: z.string().nullish(),
  env_vars: z.record(z.string(), z.string()).nullish(),
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
  z.object({ type: z.literal('end_of_execution') }),
]);
export type OutputEvent = z.infer<typeof OutputEvent>;
