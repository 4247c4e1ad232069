import { z } from 'zod';
import { ExecutionTimeout } from './interpreter';
import type { Ending } from './interpreter';

/** Body of every failure under `/v1`: the control plane's, plus a word that names the cause and what can be done. */
export interface NativeError {
  code: number;
  error: string;
  message: string;
  remedy?: string;
}

/** One language that contexts can have here; `missing` says what has to be there first, absent when nothing has. */
export interface LanguageInfo {
  name: string;
  missing?: string;
}

/** Answer to `GET /v1/info`. */
export interface ServiceInfo {
  version: string;
  runtime: string;
  /** What the runtime does not isolate or enforce, one sentence each; empty when it is all. */
  caveats: string[];
  isolation_levels: string[];
  domain: string;
  templates: Array<{ id: string; alias: string }>;
  languages: LanguageInfo[];
  limits: {
    max_sandboxes: number;
    max_timeout_ms: number;
    cpu_count: number;
    memory_bytes: number;
    disk_bytes: number;
    pids: number;
    open_files: number;
    max_body_bytes: number;
  };
}

const count = z.int().min(0).max(1000);

/** Body of `PUT /v1/pools/{template}`. Without `min` none is kept at all costs, without `max` the pool doesn't grow. */
export const PoolSizeRequest = z.strictObject({
  min: count.default(0),
  target: count,
  max: count.optional(),
});

/** Sandboxes of one template that are kept ready: an item of `GET /v1/pools`, and the answer to a `PUT`. */
export interface PoolInfo {
  /** Its alias, which `PUT` takes as well as its id. */
  template: string;
  template_id: string;
  /** Started also when the host is short of memory. */
  min: number;
  /** Kept ready. */
  target: number;
  /** Kept ready for a while after creates that found none. */
  max: number;
  ready: number;
  /** On their way. */
  starting: number;
  /** Since the service started: creates that got one of them, and creates that started their own for want of one. */
  claimed_total: number;
  misses_total: number;
  /** Why it is less full than it should be; null when all is well. */
  last_error: string | null;
}

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

/** An execution as lists and `GET …/executions/{eid}` show it. */
export interface ExecutionInfo extends Partial<Omit<Ending, 'termination' | 'accounting'>> {
  execution_id: string;
  context_id: string;
  language: string;
  detached: boolean;
  state: 'queued' | 'running' | 'waiting_approval' | 'ended';
  /** Null until the end, as `accounting`. */
  termination: Ending['termination'] | null;
  accounting: Ending['accounting'] | null;
  /** SHA-256 of the code, in hex. */
  code_hash: string;
  /** The first line that is not blank, cut when it is long. */
  code_first_line: string;
  /** 0 is no limit. */
  timeout_ms: number;
  created_at: string;
  /** When its kernel got it. */
  started_at: string | null;
  ended_at: string | null;
  /** The next event gets this number. */
  event_count: number;
}
