import { AsyncLocalStorage } from 'node:async_hooks';

export type Attributes = Record<string, string | number | boolean>;

/** One timed step of a trace; see `tracing.ts`. `end` counts once, with the error that ended it, if one did. */
export interface Span {
  readonly traceId: string;
  readonly spanId: string;
  child(name: string, attributes?: Attributes): Span;
  set(attributes: Attributes): void;
  end(error?: unknown): void;
}

/** What is known of the request that some work is done for. It stays known to work that goes on after the answer. */
export interface RequestInfo {
  readonly id: string;
  sandboxId: string | undefined;
  /** It was answered: what still happens was caused by it, and is not part of it. */
  isOver: boolean;
}

/** Rides along with work, through promises and callbacks. Holds nothing large: sockets that live long keep it. */
export interface Scope {
  readonly request: RequestInfo;
  /** Undefined when nothing is traced. */
  readonly span: Span | undefined;
}

const storage = new AsyncLocalStorage<Scope | undefined>();

export function currentScope(): Scope | undefined {
  return storage.getStore();
}

/** Does work in a scope: the one of a new request, or one taken along to where another would be in force. */
export function inScope<Result>(scope: Scope | undefined, work: () => Result): Result {
  return scope === undefined ? work() : storage.run(scope, work);
}

/**
 * Does work that is nobody's request, though one has brought it about: what comes with time, or when a machine ends by
 * itself. Without this, timers and listeners would count for the request that set them.
 */
export function outsideScope<Result>(work: () => Result): Result {
  return storage.getStore() === undefined ? work() : storage.run(undefined, work);
}

/** The current request turns out to be about this sandbox. */
export function noteSandbox(id: string): void {
  const request = storage.getStore()?.request;
  if (request !== undefined) request.sandboxId = id;
}

/** Work as a step of the current trace. Without one it is done and nothing else. */
export async function traced<Result>(
  name: string,
  attributes: Attributes,
  work: () => Promise<Result>,
): Promise<Result> {
  const scope = storage.getStore();
  if (scope?.span === undefined) return work();
  const span = scope.span.child(name, attributes);
  try {
    const result = await storage.run({ ...scope, span }, work);
    span.end();
    return result;
  } catch (error) {
    span.end(error);
    throw error;
  }
}

/** What every log line says of the request that it is for. */
export function logFields(): Record<string, string> {
  const scope = storage.getStore();
  if (scope === undefined) return {};
  const { request, span } = scope;
  return {
    [request.isOver ? 'causedBy' : 'requestId']: request.id,
    ...(request.sandboxId !== undefined && { sandboxId: request.sandboxId }),
    ...(span !== undefined && { traceId: span.traceId, spanId: span.spanId }),
  };
}
