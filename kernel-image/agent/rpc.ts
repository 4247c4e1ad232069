import type { IncomingMessage, ServerResponse } from 'node:http';
import {
  Code,
  ConnectError,
  createConnectRouter,
  createContextKey,
  createContextValues,
} from '@connectrpc/connect';
import type { HandlerContext, Interceptor, ServiceImpl } from '@connectrpc/connect';
import { createAsyncIterable } from '@connectrpc/connect/protocol';
import { universalRequestFromNodeRequest, universalResponseToNodeResponse } from '@connectrpc/connect-node';
import { Filesystem } from '../../protocol/envd/gen/filesystem_pb';
import { Process } from '../../protocol/envd/gen/process_pb';
import { told } from './connect-error';
import { HttpError } from './http-error';
import { log, reason } from './log';
import { isPlain, plainMethods } from './plain-calls';
import type { SandboxUser } from './users';

/** Node's timers fire at once when asked for more; ten digits, which the protocol allows, are more. */
const MAX_TIMER_MS = 2_147_483_647;
const DEFAULT_KEEPALIVE_S = 90;
/** One request: standard input or a list of arguments, never a file. Beyond it: `resource_exhausted`. */
export const MAX_REQUEST_BYTES = 64 * 1024 * 1024;
const TIMEOUT_HEADER = 'connect-timeout-ms';

export interface RpcServices {
  process: Partial<ServiceImpl<typeof Process>>;
  filesystem: Partial<ServiceImpl<typeof Filesystem>>;
}

/** Rejects with `unimplemented` for a method that there is not; everything else is told in the answer. */
export type RpcHandler = (
  request: IncomingMessage,
  response: ServerResponse,
  caller: SandboxUser,
) => Promise<void>;

const callerKey = createContextKey<SandboxUser | undefined>(undefined);

/** As whom a call acts: the user it names, or the sandbox's default. */
export function callerOf(context: HandlerContext): SandboxUser {
  const caller = context.values.get(callerKey);
  if (caller === undefined) throw new ConnectError('no user specified', Code.Unauthenticated);
  return caller;
}

/** Answers the RPCs of both services, in the Connect protocol with either codec. */
export function createRpc({ process, filesystem }: RpcServices): RpcHandler {
  const router = createConnectRouter({
    grpc: false,
    grpcWeb: false,
    // Streams must not be compressed for clients that can't undo it, and small answers gain nothing.
    acceptCompression: [],
    readMaxBytes: MAX_REQUEST_BYTES,
    interceptors: [tellErrors],
  });
  router.service(Process, process).service(Filesystem, filesystem);
  const plain = new Map([...plainMethods(Process, process), ...plainMethods(Filesystem, filesystem)]);
  const handlers = new Map(router.handlers.map((handler) => [handler.requestPath, handler]));
  return async (request, response, caller) => {
    const path = (request.url ?? '').split('?', 1)[0] ?? '';
    const handler = handlers.get(path);
    if (handler === undefined) {
      throw new HttpError(501, `${path.slice(1)} is not a method of this agent`, { code: 'unimplemented' });
    }
    const timeout = request.headers[TIMEOUT_HEADER];
    if (typeof timeout === 'string' && /^\d{1,10}$/.test(timeout)) {
      request.headers[TIMEOUT_HEADER] = String(Math.min(Number(timeout), MAX_TIMER_MS));
    }
    const values = createContextValues().set(callerKey, caller);
    const byLibrary = async (body?: Buffer) => {
      const call = universalRequestFromNodeRequest(request, response, undefined, values);
      if (body !== undefined) call.body = createAsyncIterable([body]);
      await universalResponseToNodeResponse(await handler(call), response);
    };
    try {
      const method = plain.get(path);
      if (method === undefined || !isPlain(method, request)) await byLibrary();
      else await method.answer(request, response, values, byLibrary);
    } catch (error) {
      // What a handler throws is in its answer; this is about the connection, which the client may end at any time.
      if (!response.destroyed && !request.destroyed) log(`agent: ${path.slice(1)}: ${reason(error)}`);
      response.destroy();
    }
  };
}

/** Without this, whatever is not a ConnectError reaches the caller as an internal error that says nothing. */
const tellErrors: Interceptor = (next) => async (request) => {
  try {
    const response = await next(request);
    return response.stream
      ? { ...response, message: tellStreamErrors(response.message, request.signal) }
      : response;
  } catch (error) {
    throw told(error, request.signal);
  }
};

async function* tellStreamErrors<T>(messages: AsyncIterable<T>, signal: AbortSignal): AsyncIterable<T> {
  try {
    yield* messages;
  } catch (error) {
    throw told(error, signal);
  }
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

/** Waits for something as long as the caller does; rejects with the reason when the call ends first. */
export async function untilAborted<T>(signal: AbortSignal, promise: Promise<T>): Promise<T> {
  const ended = whenAborted(signal);
  try {
    return await Promise.race([promise, ended.aborted]);
  } finally {
    ended.cancel();
  }
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
