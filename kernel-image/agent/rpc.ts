import type { IncomingMessage, ServerResponse } from 'node:http';
import { Code, ConnectError, createContextKey, createContextValues } from '@connectrpc/connect';
import type { HandlerContext, Interceptor, ServiceImpl } from '@connectrpc/connect';
import { connectNodeAdapter } from '@connectrpc/connect-node';
import { Filesystem } from '../../protocol/envd/gen/filesystem_pb';
import { Process } from '../../protocol/envd/gen/process_pb';
import { HttpError } from './http-error';
import { log, reason } from './log';
import type { SandboxUser } from './users';

/** Node's timers fire at once when asked for more; ten digits, which the protocol allows, are more. */
const MAX_TIMER_MS = 2_147_483_647;
const DEFAULT_KEEPALIVE_S = 90;
const TIMEOUT_HEADER = 'connect-timeout-ms';

export interface RpcServices {
  process: Partial<ServiceImpl<typeof Process>>;
  filesystem: Partial<ServiceImpl<typeof Filesystem>>;
}

export type RpcHandler = (request: IncomingMessage, response: ServerResponse, caller: SandboxUser) => void;

const callerKey = createContextKey<SandboxUser | undefined>(undefined);

/** As whom a call acts: the user it names, or the sandbox's default. */
export function callerOf(context: HandlerContext): SandboxUser {
  const caller = context.values.get(callerKey);
  if (caller === undefined) throw new ConnectError('no user specified', Code.Unauthenticated);
  return caller;
}

/** Answers the RPCs of both services, in the Connect protocol with either codec. */
export function createRpc({ process, filesystem }: RpcServices): RpcHandler {
  const callers = new WeakMap<IncomingMessage, SandboxUser>();
  const answer = connectNodeAdapter({
    routes: (router) => router.service(Process, process).service(Filesystem, filesystem),
    grpc: false,
    grpcWeb: false,
    // Streams must not be compressed for clients that can't undo it, and small answers gain nothing.
    acceptCompression: [],
    interceptors: [tellErrors],
    contextValues: (request) => createContextValues().set(callerKey, callers.get(request as IncomingMessage)),
  });
  return (request, response, caller) => {
    callers.set(request, caller);
    const timeout = request.headers[TIMEOUT_HEADER];
    if (typeof timeout === 'string' && /^\d{1,10}$/.test(timeout)) {
      request.headers[TIMEOUT_HEADER] = String(Math.min(Number(timeout), MAX_TIMER_MS));
    }
    answer(request, response);
  };
}

/** Without this, whatever is not a ConnectError reaches the caller as an internal error that says nothing. */
const tellErrors: Interceptor = (next) => async (request) => {
  try {
    const response = await next(request);
    return response.stream ? { ...response, message: tellStreamErrors(response.message) } : response;
  } catch (error) {
    throw toConnectError(error);
  }
};

async function* tellStreamErrors<T>(messages: AsyncIterable<T>): AsyncIterable<T> {
  try {
    yield* messages;
  } catch (error) {
    throw toConnectError(error);
  }
}

const CODES: Record<number, Code> = {
  400: Code.InvalidArgument,
  401: Code.Unauthenticated,
  403: Code.PermissionDenied,
  404: Code.NotFound,
  409: Code.AlreadyExists,
  501: Code.Unimplemented,
  507: Code.ResourceExhausted,
};

/** Any failure as the protocol's; one that nobody foresaw is `internal` and says what happened. */
export function toConnectError(error: unknown): ConnectError {
  if (error instanceof ConnectError) return error;
  if (error instanceof HttpError)
    return new ConnectError(error.message, CODES[error.status] ?? Code.Internal);
  log(`agent: internal: ${reason(error)}`);
  return new ConnectError(reason(error), Code.Internal);
}

/** Where the events of a stream come from; `undefined` is the end. */
export interface EventSource<T> {
  next(): Promise<T | undefined>;
}

/**
 * The events of one server stream, and `keepalive()` whenever nothing else was sent for as long as the caller asked.
 * Ends with the source, or rejects with the reason when the deadline passes or the client leaves; the source may then
 * still have a `next` under way and is the caller's to close.
 */
export async function* streamEvents<T extends object>(
  source: EventSource<T>,
  context: HandlerContext,
  keepalive: () => T,
): AsyncGenerator<T> {
  const intervalMs = keepaliveMs(context.requestHeader.get('keepalive-ping-interval'));
  const ended = whenAborted(context.signal);
  try {
    let next = source.next();
    for (;;) {
      const pause = timer(intervalMs);
      let event: T | undefined | typeof PAUSED;
      try {
        event = await Promise.race([next, pause.elapsed, ended.aborted]);
      } finally {
        pause.cancel();
      }
      if (event === undefined) return;
      if (event === PAUSED) {
        yield keepalive();
      } else {
        yield event;
        next = source.next();
      }
    }
  } finally {
    ended.cancel();
  }
}

/** `Keepalive-Ping-Interval` in seconds, as milliseconds; what makes no sense counts as absent. Pure. */
export function keepaliveMs(header: string | null): number {
  const seconds = /^\d{1,10}$/.test(header ?? '') ? Number(header) : 0;
  return Math.min((seconds > 0 ? seconds : DEFAULT_KEEPALIVE_S) * 1000, MAX_TIMER_MS);
}

const PAUSED = Symbol('paused');

function timer(ms: number): { elapsed: Promise<typeof PAUSED>; cancel: () => void } {
  let handle: NodeJS.Timeout | undefined;
  const elapsed = new Promise<typeof PAUSED>((resolve) => (handle = setTimeout(resolve, ms, PAUSED)));
  return { elapsed, cancel: () => clearTimeout(handle) };
}

function whenAborted(signal: AbortSignal): { aborted: Promise<never>; cancel: () => void } {
  let onAbort = () => {};
  const aborted = new Promise<never>((_resolve, reject) => {
    onAbort = () => reject(signal.reason as Error);
    if (signal.aborted) onAbort();
    else signal.addEventListener('abort', onAbort, { once: true });
  });
  aborted.catch(() => {}); // nobody may be waiting at that moment
  return { aborted, cancel: () => signal.removeEventListener('abort', onAbort) };
}
