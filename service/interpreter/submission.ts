import { ServiceError } from '../errors';
import type { Context } from './context';
import type { Contexts } from './contexts';
import { Execution } from './execution';
import type { ExecutionRecords } from './execution-records';
import { checkEnv, normalizeLanguage } from './languages';
import { within } from './waiting';

/** A default language's first use waits this long for the verdict of the gateway: an unknown one is a status. */
const VERDICT_WAIT_MS = 5_000;
/** With this flag, a class of surrogates matches only those that are not half of a pair. */
const LONE_SURROGATE = /[\ud800-\udfff]/u;

/** What a request to run code says, on either API. Empty strings count as absent. */
export interface Submission {
  code: string;
  context_id?: string | null | undefined;
  language?: string | null | undefined;
  env_vars?: Record<string, string> | null | undefined;
  timeout_ms?: number | null | undefined;
}

/** Defaults of what a request may leave out. */
export interface ExecutionLimits {
  timeoutMs: number;
  interruptGraceMs: number;
}

/**
 * The context that a request is for.
 *
 * @throws ServiceError for a request that makes no sense; GatewayRefusal when the language can't be had.
 */
export async function contextOf(contexts: Contexts, request: Submission): Promise<Context> {
  const env = request.env_vars ?? {};
  checkEnv(env);
  if (Object.entries(env).some((pair) => LONE_SURROGATE.test(pair.join('')))) {
    throw new ServiceError('invalid_argument', 'env_vars is not valid Unicode: it has a lone surrogate');
  }
  if (request.context_id && request.language) {
    throw new ServiceError('invalid_argument', 'Only one of context_id or language can be provided');
  }
  if (request.context_id) return contexts.get(request.context_id);
  const language = normalizeLanguage(request.language);
  const context = contexts.forLanguage(language);
  if (context.readyKernel !== undefined || language === normalizeLanguage('')) return context;
  try {
    await within(context.spawned(), VERDICT_WAIT_MS);
  } catch (error) {
    contexts.discard(context);
    throw error;
  }
  return context;
}

/** An execution with its record, which waits for `start`. */
export function createExecution(
  context: Context,
  records: ExecutionRecords,
  limits: ExecutionLimits,
  request: Submission,
  detached: boolean,
): Execution {
  const { code } = request;
  const timeoutMs = request.timeout_ms ?? limits.timeoutMs;
  const record = records.add(
    { contextId: context.id, language: context.languageName, detached, timeoutMs },
    code,
  );
  const { interruptGraceMs } = limits;
  return new Execution(context, { code, env: request.env_vars ?? {}, timeoutMs, interruptGraceMs }, record);
}

/** Gives the execution its place in the context's queue. Code that no kernel could run ends at once. */
export function start(context: Context, execution: Execution, code: string): void {
  const problem = codeProblem(code);
  // No kernel gets to see it: each would fail in its own way, and some would never answer.
  if (problem !== undefined) execution.finish({ type: 'failed', name: 'SyntaxError', value: problem });
  else context.enqueue(execution);
}

/** Why no kernel could run this, if so. */
function codeProblem(code: string): string | undefined {
  const nul = code.indexOf('\0');
  if (nul !== -1) return `source code can not contain NUL characters (position ${nul})`;
  const surrogate = code.search(LONE_SURROGATE);
  if (surrogate === -1) return undefined;
  return `source code is not valid Unicode: lone surrogate (position ${surrogate})`;
}
