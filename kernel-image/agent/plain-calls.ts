import { once } from 'node:events';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { create, fromJsonString, toJsonString } from '@bufbuild/protobuf';
import type {
  DescMethod,
  DescMethodServerStreaming,
  DescMethodUnary,
  DescService,
  Message,
  MessageInitShape,
} from '@bufbuild/protobuf';
import { Code, ConnectError, createContextKey } from '@connectrpc/connect';
import type { ContextValues, HandlerContext, ServiceImpl } from '@connectrpc/connect';
import {
  codeToHttpStatus,
  contentTypeStreamJson,
  contentTypeUnaryJson,
  endStreamFlag,
  endStreamToJson,
  errorToJsonBytes,
} from '@connectrpc/connect/protocol-connect';
import { told } from './connect-error';
import { envelope, ENVELOPE_BYTES } from './envelope';
import { PlainContext } from './plain-context';

/*
 * Calls of one message in JSON, which is nearly all that the SDKs send, answered by one message or by a stream, without
 * the library's way through the requests, headers, streams and signals of the web: when the processor was doing other
 * things meanwhile, that way takes 0.8 ms of a call's 4. Messages, codes and errors stay the library's, and so does every
 * call that is not plain. Both ways must answer alike: `test/agent/plain-calls.test.ts`.
 */

const PLAIN_TYPES = {
  unary: /^application\/json(?:; ?charset=utf-?8)?$/i,
  server_streaming: /^application\/connect\+json$/i,
};
const READ_OPTIONS = { ignoreUnknownFields: true };
/** Other than `toString`, it leaves a byte order mark out. */
const decoder = new TextDecoder();

/** Answers a call; rejects when the connection ends before the request does. */
type Answer = (
  request: IncomingMessage,
  response: ServerResponse,
  values: ContextValues,
  /** The library's way, for a body that turns out not to be plain. */
  byLibrary: (body: Buffer) => Promise<void>,
) => Promise<void>;

/** A method that can be called plainly. */
export interface PlainMethod {
  kind: keyof typeof PLAIN_TYPES;
  answer: Answer;
}

type UnaryImplementation = (
  request: Message,
  context: HandlerContext,
) => Promise<MessageInitShape<DescMethodUnary['output']>>;

type StreamImplementation = (
  request: Message,
  context: HandlerContext,
) => AsyncIterable<MessageInitShape<DescMethodServerStreaming['output']>>;

/** Whether a request can be answered so: in JSON as it is, of known length. */
export function isPlain({ kind }: PlainMethod, { method, headers }: IncomingMessage): boolean {
  return (
    method === 'POST' &&
    PLAIN_TYPES[kind].test(headers['content-type'] ?? '') &&
    headers['content-length'] !== undefined &&
    (headers['content-encoding'] ?? 'identity') === 'identity' &&
    (headers['connect-content-encoding'] ?? 'identity') === 'identity'
  );
}

/** The methods of a service that take one message, by path. */
export function* plainMethods<Service extends DescService>(
  service: Service,
  implementations: Partial<ServiceImpl<Service>>,
): Generator<[string, PlainMethod]> {
  for (const method of service.methods) {
    const implementation: unknown = (implementations as Record<string, unknown>)[method.localName];
    if (implementation === undefined) continue;
    const path = `/${service.typeName}/${method.name}`;
    if (isKind(method, 'unary')) {
      yield [path, { kind: 'unary', answer: unary(method, implementation as UnaryImplementation) }];
    } else if (isKind(method, 'server_streaming')) {
      yield [
        path,
        { kind: 'server_streaming', answer: streaming(method, implementation as StreamImplementation) },
      ];
    }
  }
}

/** What the library's own types can't tell apart in a union. */
function isKind<Kind extends DescMethod['methodKind']>(
  method: DescMethod,
  kind: Kind,
): method is Extract<DescMethod, { methodKind: Kind }> {
  return method.methodKind === kind;
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

function unary(method: DescMethodUnary, implementation: UnaryImplementation): Answer {
  return async (request, response, values) => {
    const body = await readBody(request);
    const json: JsonAnswer = {};
    const context = new PlainContext(method, request, response, values.set(jsonAnswerKey, json));
    try {
      context.requireTimeout();
      const message = await implementation(parse(method, body), context);
      json.chunks ??= [encode(method, message)];
      send(response, 200, context.sentHeader, json.chunks);
    } catch (failure) {
      const error = told(failure, context.signal);
      error.metadata.forEach((value, name) => context.responseHeader.set(name, value));
      send(response, codeToHttpStatus(error.code), context.sentHeader, [errorToJsonBytes(error, undefined)]);
    } finally {
      context.close();
    }
  };
}

/** Each message goes out as soon as there is one, the head with the first: only then is the program known to run. */
function streaming(method: DescMethodServerStreaming, implementation: StreamImplementation): Answer {
  return async (request, response, values, byLibrary) => {
    const body = await readBody(request);
    if (!isOneMessage(body)) return byLibrary(body);
    const context = new PlainContext(method, request, response, values);
    let error: ConnectError | undefined;
    try {
      context.requireTimeout();
      for await (const message of implementation(parse(method, body.subarray(ENVELOPE_BYTES)), context)) {
        if (response.destroyed) throw new ConnectError('the client left', Code.Canceled);
        startStream(response, context.sentHeader);
        if (!response.write(envelope(0, encode(method, message)))) {
          await once(response, 'drain', { signal: context.signal });
        }
      }
    } catch (failure) {
      error = told(failure, context.signal);
    } finally {
      context.close();
    }
    if (response.destroyed) return;
    startStream(response, context.sentHeader);
    response.end(
      envelope(endStreamFlag, Buffer.from(JSON.stringify(endStreamToJson(new Headers(), error, undefined)))),
    );
  };
}

function isOneMessage(body: Buffer): boolean {
  return (
    body.length >= ENVELOPE_BYTES && body[0] === 0 && body.readUInt32BE(1) === body.length - ENVELOPE_BYTES
  );
}

function startStream(response: ServerResponse, header: Headers | undefined): void {
  if (response.headersSent) return;
  for (const [name, value] of header ?? []) response.setHeader(name, value);
  response.writeHead(200, { 'Content-Type': contentTypeStreamJson });
}

function encode(method: DescMethod, message: MessageInitShape<DescMethod['output']>): Buffer {
  return Buffer.from(toJsonString(method.output, create(method.output, message)));
}

/** @throws ConnectError `invalid_argument` */
function parse(method: DescMethod, body: Buffer): Message {
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
