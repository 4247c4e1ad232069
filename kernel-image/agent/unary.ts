import type { IncomingMessage, ServerResponse } from 'node:http';
import { create, fromJsonString, toJsonString } from '@bufbuild/protobuf';
import type { DescMethodUnary, DescService, Message, MessageInitShape } from '@bufbuild/protobuf';
import { Code, ConnectError, createContextKey } from '@connectrpc/connect';
import type { ContextValues, HandlerContext, ServiceImpl } from '@connectrpc/connect';
import {
  codeToHttpStatus,
  contentTypeUnaryJson,
  errorToJsonBytes,
  parseTimeout,
} from '@connectrpc/connect/protocol-connect';
import { told } from './connect-error';

/*
 * Unary calls in JSON, which is all that the SDKs send besides streams, without the library's way through the requests,
 * headers, streams and signals of the web: when the processor was doing other things meanwhile, that way takes 0.8 ms of
 * a call's 4. Messages, codes and errors stay the library's, and so does every call that is not plain. Both ways must
 * answer alike: `test/agent/unary.test.ts`.
 */

const PLAIN_TYPE = /^application\/json(?:; ?charset=utf-?8)?$/i;
const READ_OPTIONS = { ignoreUnknownFields: true };
/** Other than `toString`, it leaves a byte order mark out. */
const decoder = new TextDecoder();

/** Answers one call; rejects when the connection ends before the request does. */
export type UnaryMethod = (
  request: IncomingMessage,
  response: ServerResponse,
  values: ContextValues,
) => Promise<void>;

type Implementation = (
  request: Message,
  context: HandlerContext,
) => Promise<MessageInitShape<DescMethodUnary['output']>>;

/** Whether a request is one for these methods: in JSON as it is, of known length. */
export function isPlain({ method, headers }: IncomingMessage): boolean {
  return (
    method === 'POST' &&
    PLAIN_TYPE.test(headers['content-type'] ?? '') &&
    headers['content-length'] !== undefined &&
    (headers['content-encoding'] ?? 'identity') === 'identity'
  );
}

/** The unary methods that a service has, by path. */
export function* unaryMethods<Service extends DescService>(
  service: Service,
  implementations: Partial<ServiceImpl<Service>>,
): Generator<[string, UnaryMethod]> {
  for (const method of service.methods) {
    const implementation = (implementations as Record<string, Implementation | undefined>)[method.localName];
    if (method.methodKind !== 'unary' || implementation === undefined) continue;
    const unary = method as DescMethodUnary;
    yield [
      `/${service.typeName}/${method.name}`,
      (request, response, values) => answer(unary, implementation, request, response, values),
    ];
  }
}

/** Where a method may put its answer's JSON, piece by piece, in place of the message that it returns: for long ones. */
export interface JsonAnswer {
  chunks?: readonly Buffer[];
}

const jsonAnswerKey = createContextKey<JsonAnswer | undefined>(undefined);

/** `undefined` where the answer has to be a message. */
export function jsonAnswerOf(context: HandlerContext): JsonAnswer | undefined {
  return context.values.get(jsonAnswerKey);
}

async function answer(
  method: DescMethodUnary,
  implementation: Implementation,
  request: IncomingMessage,
  response: ServerResponse,
  values: ContextValues,
): Promise<void> {
  const body = await readBody(request);
  const json: JsonAnswer = {};
  const context = new UnaryContext(method, request, response, values.set(jsonAnswerKey, json));
  try {
    context.requireTimeout();
    const message = await implementation(parse(method, body), context);
    json.chunks ??= [Buffer.from(toJsonString(method.output, create(method.output, message)))];
    send(response, 200, context.sentHeader, json.chunks);
  } catch (failure) {
    const error = told(failure, context.signal);
    error.metadata.forEach((value, name) => context.responseHeader.set(name, value));
    send(response, codeToHttpStatus(error.code), context.sentHeader, [errorToJsonBytes(error, undefined)]);
  } finally {
    context.close();
  }
}

/** @throws ConnectError `invalid_argument` */
function parse(method: DescMethodUnary, body: Buffer): Message {
  try {
    return fromJsonString(method.input, decoder.decode(body), READ_OPTIONS);
  } catch (error) {
    throw ConnectError.from(error, Code.InvalidArgument);
  }
}

/** Its length was looked at before. */
function readBody(request: IncomingMessage): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.once('end', () => resolve(Buffer.concat(chunks)));
    request.once('error', reject);
    request.once('close', () => {
      if (!request.complete) reject(new Error('the client left'));
    });
  });
}

/** All of it in one system call: each one wakes the service, which then takes the processor from us. */
function send(
  response: ServerResponse,
  status: number,
  header: Headers | undefined,
  chunks: readonly Uint8Array[],
): void {
  if (response.destroyed) return;
  for (const [name, value] of header ?? []) response.setHeader(name, value);
  response.writeHead(status, {
    'Content-Type': contentTypeUnaryJson,
    'Content-Length': chunks.reduce((sum, chunk) => sum + chunk.length, 0),
  });
  response.cork();
  for (const chunk of chunks) response.write(chunk);
  response.end();
}

/** What a method is told about its call. Everything is made when it is asked for, as most methods need little of it. */
class UnaryContext implements HandlerContext {
  readonly requestMethod = 'POST';
  readonly protocolName = 'connect';
  /** What was set of `responseHeader`. */
  sentHeader: Headers | undefined;
  private readonly timeout: ReturnType<typeof parseTimeout>;
  private readonly startedAt = Date.now();
  private ending: AbortController | undefined;
  private timer: NodeJS.Timeout | undefined;

  constructor(
    readonly method: DescMethodUnary,
    private readonly request: IncomingMessage,
    private readonly response: ServerResponse,
    readonly values: ContextValues,
  ) {
    const timeout = request.headers['connect-timeout-ms'];
    this.timeout = parseTimeout(typeof timeout === 'string' ? timeout : null, Number.MAX_SAFE_INTEGER);
  }

  /** @throws ConnectError `invalid_argument` when the time limit makes no sense */
  requireTimeout(): void {
    if (this.timeout.error !== undefined) throw this.timeout.error;
  }

  readonly timeoutMs = (): number | undefined => {
    const { timeoutMs } = this.timeout;
    return timeoutMs === undefined ? undefined : this.startedAt + timeoutMs - Date.now();
  };

  get service(): DescService {
    return this.method.parent;
  }

  get url(): string {
    return `http://${this.request.headers.host ?? ''}${this.request.url ?? ''}`;
  }

  get requestHeader(): Headers {
    const header = new Headers();
    for (const [name, value] of Object.entries(this.request.headersDistinct)) {
      for (const one of value ?? []) header.append(name, one);
    }
    return header;
  }

  get responseHeader(): Headers {
    return (this.sentHeader ??= new Headers());
  }

  get responseTrailer(): Headers {
    throw new Error('plain calls have no trailers');
  }

  /** Aborted when the client leaves or its time is over. */
  get signal(): AbortSignal {
    if (this.ending === undefined) {
      const ending = (this.ending = new AbortController());
      const leave = () => ending.abort(new ConnectError('the client left', Code.Canceled));
      if (this.response.destroyed) leave();
      else this.response.once('close', leave);
      const left = this.timeoutMs();
      if (left !== undefined) {
        const expire = () => ending.abort(new ConnectError('the operation timed out', Code.DeadlineExceeded));
        if (left <= 0) expire();
        else this.timer = setTimeout(expire, left);
      }
    }
    return this.ending.signal;
  }

  close(): void {
    clearTimeout(this.timer);
  }
}
