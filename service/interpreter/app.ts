import type { IncomingMessage, ServerResponse } from 'node:http';
import type { z } from 'zod';
import { CreateContextRequest, ExecuteRequest } from '../../protocol/interpreter';
import { ServiceError } from '../errors';
import type { Logger } from '../log';
import { listing } from './contexts';
import type { Contexts } from './contexts';
import { Answer, sendJson, sendText, unprocessable, UnprocessableRequest } from './error-response';
import { EventStream } from './event-stream';
import type { ExecutionRecords } from './execution-records';
import { GatewayRefusal } from './gateway';
import { normalizeLanguage } from './languages';
import { PlainView } from './plain-view';
import { contextOf, createExecution, start } from './submission';
import { within } from './waiting';
import type { ExecutionLimits } from './submission';

/** How long `/health` waits for the default kernel. */
const HEALTH_WAIT_MS = 5_000;
const HEALTH_RETRY_MS = 100;

export interface AppOptions extends ExecutionLimits {
  keepaliveMs: number;
  maxBodyBytes: number;
  home: string;
  /** One sentence that says how to get a language that is missing here. */
  remedyFor: ((language: string) => string | undefined) | undefined;
  logger: Logger;
}

/** What is served for one sandbox's port 49999. Handlers throw; the caller answers with `sendError`. */
export async function answer(
  options: AppOptions,
  contexts: Contexts,
  records: ExecutionRecords,
  req: IncomingMessage,
  res: ServerResponse,
): Promise<void> {
  const { method = 'GET' } = req;
  const path = (req.url ?? '/').replace(/[?#].*$/s, '');
  if (allowOrigin(req, res)) return;
  const handlers = route(path);
  if (handlers === undefined) {
    const shorter = path.replace(/\/+$/, '');
    if (shorter !== path && route(shorter) !== undefined) throw new Answer(307, '', { location: shorter });
    throw new Answer(404, { detail: 'Not Found' });
  }
  const handler = handlers[method];
  if (handler === undefined) {
    throw new Answer(405, { detail: 'Method Not Allowed' }, { allow: Object.keys(handlers).join(', ') });
  }
  if (contexts.whenKnown !== undefined) await contexts.whenKnown;
  await handler({ options, contexts, records, req, res });
}

interface Request {
  options: AppOptions;
  contexts: Contexts;
  records: ExecutionRecords;
  req: IncomingMessage;
  res: ServerResponse;
}

type Handlers = Record<string, (request: Request) => Promise<void> | void>;

const FIXED: ReadonlyMap<string, Handlers> = new Map<string, Handlers>([
  ['/health', { GET: health }],
  ['/execute', { POST: execute }],
  [
    '/contexts',
    { GET: ({ contexts, res }) => sendJson(res, 200, contexts.list()), POST: (request) => create(request) },
  ],
]);

function route(path: string): Handlers | undefined {
  const fixed = FIXED.get(path);
  if (fixed !== undefined) return fixed;
  const [, encoded = '', action] = /^\/contexts\/([^/]+)(\/restart)?$/.exec(path) ?? [];
  if (encoded === '') return undefined;
  const id = decode(encoded);
  return action === undefined
    ? { DELETE: (request) => remove(request, id) }
    : { POST: (request) => restart(request, id) };
}

function decode(component: string): string {
  try {
    return decodeURIComponent(component);
  } catch {
    return component; // no context is called like that, whatever it was meant to be
  }
}

/** CORS for any origin, without credentials. True when the request was a preflight and is answered. */
function allowOrigin(req: IncomingMessage, res: ServerResponse): boolean {
  if (req.headers.origin === undefined) return false;
  res.setHeader('access-control-allow-origin', '*');
  if (req.method !== 'OPTIONS' || req.headers['access-control-request-method'] === undefined) return false;
  res.setHeader('access-control-allow-methods', 'DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT');
  res.setHeader('access-control-max-age', '600');
  res.setHeader('vary', 'Origin');
  const headers = req.headers['access-control-request-headers'];
  if (headers !== undefined) res.setHeader('access-control-allow-headers', headers);
  sendText(res, 200, 'OK');
  return true;
}

async function health({ contexts, res }: Request): Promise<void> {
  if (!(await within(defaultKernelAnswers(contexts), HEALTH_WAIT_MS))) {
    throw new ServiceError('deadline_exceeded', 'The default kernel is not ready yet');
  }
  sendJson(res, 200, 'OK');
}

/**
 * Resolves when the default kernel can be used and its gateway says so, too: a gateway that was killed a moment ago
 * may not have been missed yet.
 */
async function defaultKernelAnswers(contexts: Contexts): Promise<void> {
  const deadline = Date.now() + HEALTH_WAIT_MS;
  for (;;) {
    const client = await contexts.forLanguage(normalizeLanguage('')).connect();
    try {
      await client.whenReady();
      const kernels = await contexts.gateway.listKernels();
      if (client.isReady && kernels.some((kernel) => kernel.id === client.kernelId)) return;
    } catch (error) {
      if (Date.now() > deadline) throw error;
    }
    if (Date.now() > deadline)
      throw new ServiceError('deadline_exceeded', 'The default kernel is not ready yet');
    await new Promise((resolve) => setTimeout(resolve, HEALTH_RETRY_MS));
  }
}

async function execute({ options, contexts, records, req, res }: Request): Promise<void> {
  const body = await readBody(req, ExecuteRequest, options.maxBodyBytes);
  const context = await contextOf(contexts, body).catch((error: unknown) => {
    throw creationFailure(error, normalizeLanguage(body.language), options);
  });
  if (res.destroyed) return; // its client left before it began
  const execution = createExecution(context, records, options, body, false);
  const { record } = execution;
  const stream = new EventStream(res, options.keepaliveMs, record.id);
  stream.onDrain = () => record.drained();
  stream.onGone = () => execution.finish({ type: 'client_gone' });
  record.attach(new PlainView(stream));
  start(context, execution, body.code);
}

async function create({ options, contexts, req, res }: Request): Promise<void> {
  const body = await readBody(req, CreateContextRequest, options.maxBodyBytes);
  const language = normalizeLanguage(body.language);
  if (body.cwd?.includes('\0')) throw new ServiceError('invalid_argument', 'cwd contains a NUL character');
  try {
    sendJson(res, 200, listing(await contexts.create(language, body.cwd || options.home)));
  } catch (error) {
    throw creationFailure(error, language, options);
  }
}

async function restart({ contexts, res }: Request, id: string): Promise<void> {
  await plainly(contexts.get(id).restart(), 'Failed to restart context');
  sendJson(res, 200, null);
}

async function remove({ contexts, res }: Request, id: string): Promise<void> {
  await plainly(contexts.remove(id), 'Failed to remove context');
  sendJson(res, 200, null);
}

async function plainly(work: Promise<void>, failure: string): Promise<void> {
  try {
    await work;
  } catch (error) {
    if (error instanceof GatewayRefusal) throw new Answer(500, `${failure}: ${error.text}`);
    throw error;
  }
}

/** E2B's 500 with the gateway's words and ours; a directory that can't be used is the caller's mistake. */
function creationFailure(error: unknown, language: string, options: AppOptions): unknown {
  if (!(error instanceof GatewayRefusal)) return error;
  if (error.status === 400) {
    const message = messageOf(error.text);
    return new ServiceError('invalid_argument', `Failed to create context: ${message}`);
  }
  const remedy = error.status === 404 || error.status === 500 ? options.remedyFor?.(language) : undefined;
  const text =
    remedy === undefined || !error.text.trimEnd().endsWith('}')
      ? error.text
      : `${error.text.trimEnd().slice(0, -1)}, "remedy": ${JSON.stringify(remedy)}}`;
  return new Answer(500, `Failed to create context: ${text}`);
}

function messageOf(text: string): string {
  try {
    const { message } = JSON.parse(text) as { message?: unknown };
    return typeof message === 'string' ? message : text;
  } catch {
    return text; // whatever it is, it says more than nothing
  }
}

async function readBody<Schema extends z.ZodType>(
  req: IncomingMessage,
  schema: Schema,
  maxBytes: number,
): Promise<z.output<Schema>> {
  const body = parseBody(await readBytes(req, maxBytes), req.headers['content-type']);
  if (body === undefined || body === null) {
    throw new UnprocessableRequest([{ type: 'missing', loc: ['body'], msg: 'Field required', input: null }]);
  }
  const parsed = schema.safeParse(body);
  if (!parsed.success) throw unprocessable(body, parsed.error.issues);
  return parsed.data;
}

async function readBytes(req: IncomingMessage, maxBytes: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of req as AsyncIterable<Buffer>) {
    size += chunk.length;
    if (size > maxBytes) {
      throw new Answer(413, `The request body is larger than ${maxBytes} bytes`, { connection: 'close' });
    }
    chunks.push(chunk);
  }
  return chunks.length === 1 && chunks[0] !== undefined ? chunks[0] : Buffer.concat(chunks);
}

/** As E2B's server reads it: JSON where the type says JSON or nothing, else a text that fits no schema. */
function parseBody(bytes: Buffer, contentType: string | undefined): unknown {
  if (bytes.length === 0) return undefined;
  const type = contentType?.split(';')[0]?.trim().toLowerCase();
  const isJson =
    type === undefined || type === '' || type === 'application/json' || /^application\/.*\+json$/.test(type);
  if (!isJson) return bytes.toString('utf8');
  try {
    return JSON.parse(UTF8.decode(bytes));
  } catch (error) {
    const what = error instanceof SyntaxError ? 'JSON decode error' : 'The body is not valid UTF-8';
    throw new UnprocessableRequest([
      {
        type: 'json_invalid',
        loc: ['body', 0],
        msg: what,
        input: {},
        ctx: { error: (error as Error).message },
      },
    ]);
  }
}

const UTF8 = new TextDecoder('utf-8', { fatal: true });
