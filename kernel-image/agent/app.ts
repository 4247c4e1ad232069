import { once } from 'node:events';
import http from 'node:http';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { endStreamFlag } from '@connectrpc/connect/protocol-connect';
import { HEADERS } from '../../protocol/routing';
import { HttpError, sendError, sendJson } from './http-error';
import { applyInit, globalEnv, sameSecret } from './state';
import type { AgentState } from './state';
import { compose } from './compose';
import { download } from './download';
import { envelope } from './envelope';
import { createFilesystemService } from './filesystem/filesystem-service';
import { sendMetrics } from './metrics';
import type { Meter } from './metrics';
import { createProcessService } from './process/process-service';
import type { ProcessTable } from './process/process-table';
import { createRpc, MAX_REQUEST_BYTES } from './rpc';
import type { RpcHandler } from './rpc';
import type { SandboxMemory } from './sandbox-memory';
import { checkSignature } from './signed-files';
import { upload } from './upload';
import type { SandboxUser, Users } from './users';

/** Version of the reference whose behaviour callers may count on. */
const ENVD_VERSION = '0.6.13';
/** Node's default would cut a connection that a proxy's pool still counts on. */
const KEEP_ALIVE_MS = 640_000;
const MAX_INIT_BYTES = 8 * 1024 * 1024;

/** What the HTTP surface works on. `state` is replaced as a whole at each `/init`. */
export interface AgentContext {
  state: AgentState;
  users: Users;
  processes: ProcessTable;
  memory: SandboxMemory;
  meter: Meter;
  onState: (state: AgentState) => void;
}

const RPC_PATH = /^\/(?:process\.Process|filesystem\.Filesystem)\/[A-Za-z]+$/;
const STREAM_TYPE = /^application\/connect\+(json|proto)$/;
/** Paths that ask for the token themselves, or for none. */
const OPEN_ROUTES = new Set(['GET /health', 'GET /files', 'POST /files', 'POST /init']);

/** How long the answer to a refused request waits for the request's end. */
const READ_AWAY_MS = 2_000;

type Route = (
  context: AgentContext,
  request: IncomingMessage,
  response: ServerResponse,
  query: URLSearchParams,
) => void | Promise<void>;

/** Exact paths: a prefix `/files` would also catch the file system's RPCs. */
export const ROUTES: Readonly<Record<string, Readonly<Record<string, Route>>>> = {
  '/health': {
    GET: (_context, _request, response) => {
      response.writeHead(204, { 'Cache-Control': 'no-store' }).end();
    },
  },
  '/envs': {
    GET: (context, _request, response) => {
      response.setHeader('Cache-Control', 'no-store');
      sendJson(response, 200, globalEnv(context.state));
    },
  },
  '/init': { POST: init },
  '/files': {
    GET: async (context, request, response, query) => {
      checkSignature(context.state, request, query, 'read');
      await download(context, request, response, query);
    },
    POST: async (context, request, response, query) => {
      checkSignature(context.state, request, query, 'write');
      sendJson(response, 200, await upload(context, request, query));
    },
  },
  '/files/compose': { POST: (context, request, response) => compose(context, request, response) },
  '/metrics': { GET: (context, _request, response) => sendMetrics(context.meter, response) },
};

/** The agent's HTTP server. It listens nowhere by itself: connections come from the tunnel or a loopback listener. */
export function createApp(context: AgentContext): http.Server {
  const rpc = createRpc({
    process: createProcessService(context),
    filesystem: createFilesystemService(context),
  });
  const server = http.createServer((request, response) => {
    void answer(context, rpc, request, response).catch(async (error: unknown) => {
      await readAway(request);
      sendError(response, error);
    });
  });
  // Uploads may take hours; an idle one is bounded by upload.ts.
  server.requestTimeout = 0;
  server.keepAliveTimeout = KEEP_ALIVE_MS;
  server.headersTimeout = KEEP_ALIVE_MS + 10_000;
  return server;
}

/**
 * Waits for the rest of a request that is refused, for a while. The service closes a connection whose request it does
 * not finish; closed with bytes unread, it resets and takes the answer with it.
 */
async function readAway(request: IncomingMessage): Promise<void> {
  if (request.complete || request.destroyed) return;
  request.resume();
  // Fails when the client leaves or sends on for too long: the answer goes out all the same.
  await once(request, 'close', { signal: AbortSignal.timeout(READ_AWAY_MS) }).catch(() => {});
}

async function answer(
  context: AgentContext,
  rpc: RpcHandler,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  // Whatever arrives after an early answer is read and dropped, so that the client gets to see the answer.
  response.once('finish', () => request.resume());
  setCors(response);
  if (request.method === 'OPTIONS' && request.headers['access-control-request-method'] !== undefined) {
    preflight(request, response);
    return;
  }
  const [path = '', search = ''] = (request.url ?? '').split(/\?(.*)/s);
  const method = request.method ?? '';
  checkToken(context.state, request, `${method} ${path}`);
  if (RPC_PATH.test(path)) {
    await answerRpc(context, rpc, request, response);
    return;
  }
  basicUser(context, request);
  const route = Object.hasOwn(ROUTES, path) ? ROUTES[path] : undefined;
  if (route === undefined) throw new HttpError(404, `no such path: ${path}`);
  const handle = Object.hasOwn(route, method) ? route[method] : undefined;
  if (handle === undefined) {
    response.setHeader('Allow', Object.keys(route).join(', '));
    throw new HttpError(405, `${path} does not answer ${method}`);
  }
  await handle(context, request, response, new URLSearchParams(search));
}

function setCors(response: ServerResponse): void {
  response.setHeader('Access-Control-Allow-Origin', '*');
  response.setHeader(
    'Access-Control-Expose-Headers',
    'Grpc-Status, Grpc-Message, Grpc-Status-Details-Bin, Location, Cache-Control, X-Content-Type-Options',
  );
}

function preflight(request: IncomingMessage, response: ServerResponse): void {
  const wanted = request.headers['access-control-request-headers'];
  response.setHeader('Access-Control-Allow-Methods', 'HEAD, GET, POST, PUT, PATCH, DELETE');
  // Echoed: a literal `*` does not cover Authorization in browsers.
  if (wanted !== undefined) response.setHeader('Access-Control-Allow-Headers', wanted);
  response.setHeader('Access-Control-Max-Age', '7200');
  response.setHeader('Vary', 'Access-Control-Request-Headers');
  response.writeHead(204).end();
}

function checkToken(state: AgentState, request: IncomingMessage, route: string): void {
  if (state.accessToken === undefined || OPEN_ROUTES.has(route)) return;
  const given = request.headers[HEADERS.accessToken];
  if (typeof given !== 'string' || !sameSecret(given, state.accessToken)) {
    throw new HttpError(401, 'unauthorized: the X-Access-Token header is missing or wrong');
  }
}

/**
 * The user that a caller names by Basic auth, or the default one where none is named. The password counts for nothing.
 *
 * @throws HttpError 401 `unauthenticated`
 */
function basicUser(context: AgentContext, request: IncomingMessage): SandboxUser | undefined {
  const [scheme, encoded] = (request.headers.authorization ?? '').split(' ');
  if (scheme?.toLowerCase() !== 'basic' || encoded === undefined) return undefined;
  const name = Buffer.from(encoded, 'base64').toString('utf8').split(':', 1)[0] ?? '';
  return findUser(context, name, 'invalid username');
}

function findUser(context: AgentContext, name: string, complaint: string): SandboxUser {
  try {
    return context.users.find(name);
  } catch (error) {
    const failure = HttpError.from(error);
    if (failure.status !== 401) throw failure;
    throw new HttpError(401, `${complaint}: ${failure.message}`, { code: 'unauthenticated' });
  }
}

/** A call's user must exist whether or not the method asks who it is. */
async function answerRpc(
  context: AgentContext,
  rpc: RpcHandler,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  try {
    if (Number(request.headers['content-length'] ?? 0) > MAX_REQUEST_BYTES) {
      const text = `a request has ${MAX_REQUEST_BYTES} bytes at most`;
      throw new HttpError(429, text, { code: 'resource_exhausted' });
    }
    const caller =
      basicUser(context, request) ?? findUser(context, context.state.defaultUser, 'invalid default user');
    await rpc(request, response, caller);
  } catch (error) {
    const failure = HttpError.from(error);
    const contentType = (request.headers['content-type'] ?? '').split(';', 1)[0]?.trim().toLowerCase() ?? '';
    if (!STREAM_TYPE.test(contentType)) throw failure;
    await readAway(request);
    endStream(response, contentType, failure);
  }
}

/** A stream's failure is its last frame, in JSON whatever the messages' codec is. */
function endStream(response: ServerResponse, contentType: string, failure: HttpError): void {
  const end = Buffer.from(JSON.stringify({ error: { code: failure.code, message: failure.message } }));
  response.writeHead(200, { 'Content-Type': contentType });
  response.end(envelope(endStreamFlag, end));
}

async function init(
  context: AgentContext,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  response.setHeader('X-Envd-Version', ENVD_VERSION);
  const chunks: Buffer[] = [];
  let length = 0;
  // Stopping early must not close the request: that would take the answer with it.
  for await (const chunk of request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    length += chunk.length;
    if (length > MAX_INIT_BYTES) throw new HttpError(413, `the body is larger than ${MAX_INIT_BYTES} bytes`);
    chunks.push(chunk);
  }
  const text = Buffer.concat(chunks).toString('utf8').trim();
  let body: unknown = {};
  try {
    if (text !== '') body = JSON.parse(text);
  } catch (error) {
    throw new HttpError(400, 'the body is not valid JSON', { cause: error });
  }
  // No await between reading and writing the state: calls apply one after another.
  context.state = applyInit(context.state, body);
  context.onState(context.state);
  response.writeHead(204, { 'Cache-Control': 'no-store' }).end();
}
