import crypto from 'node:crypto';
import http from 'node:http';
import type { ClientRequest, IncomingMessage } from 'node:http';
import http2 from 'node:http2';
import type { Http2Server, IncomingHttpHeaders, OutgoingHttpHeaders, ServerHttp2Stream } from 'node:http2';
import type { Duplex } from 'node:stream';
import { pairs, trailers } from '../edge/headers';
import { duplexPair } from './duplex-pair';

const KIB = 1024;
/** As for HTTP/1.1: how long a connection may take to its first request, and how long it may rest between two. */
const FIRST_REQUEST_MS = 60_000;
const IDLE_MS = 620_000;
/** Sandboxes may answer with long headers; the edge has cut off what is longer than this. */
const MAX_RESPONSE_HEADER_BYTES = 512 * KIB;
/** Not for HTTP/2, which frames messages by itself. */
const CONNECTION_HEADERS = new Set([
  'connection',
  'keep-alive',
  'proxy-connection',
  'transfer-encoding',
  'upgrade',
]);
const BODILESS = new Set(['GET', 'HEAD', 'DELETE', 'OPTIONS', 'TRACE']);
const EMPTY_STATUSES = new Set([204, 205, 304]);

/** Gives a connection to the HTTP/1.1 server. */
export type Serve = (connection: Duplex) => void;

/**
 * An HTTP/2 server without a port; emit `connection` with a stream that has agreed on `h2`.
 *
 * Each request becomes one HTTP/1.1 request on a connection in memory, so that control plane, interpreter and edge
 * know one protocol only. A connection that breaks becomes RST_STREAM, a stream that the client resets becomes a
 * connection that it left. `shutdown` breaks off all sessions.
 */
export function createHttp2(serve: Serve): { server: Http2Server; shutdown: () => void } {
  const server = http2.createServer({
    settings: {
      enablePush: false,
      enableConnectProtocol: true,
      initialWindowSize: 256 * KIB,
      maxConcurrentStreams: 500, // clients that run more commands at a time open another connection
      maxHeaderListSize: 64 * KIB,
    },
    maxSendHeaderBlockLength: MAX_RESPONSE_HEADER_BYTES,
    maxSessionMemory: 32, // MB
  });
  const sessions = new Set<http2.ServerHttp2Session>();
  server.on('session', (session) => {
    sessions.add(session);
    session.once('close', () => sessions.delete(session));
    session.on('error', () => {}); // followed by `close`
    session.setLocalWindowSize(1024 * KIB); // bounds what one connection can have us hold, over all its streams
    endWhenIdle(session);
  });
  server.on('stream', (stream, headers, _flags, ...rest) => {
    relay(stream, headers, rawFrom(rest), serve);
  });
  return {
    server,
    shutdown: () => {
      for (const session of sessions) session.destroy();
    },
  };
}

/** Counts requests, not bytes: frames that belong to no request keep nothing open. */
function endWhenIdle(session: http2.ServerHttp2Session): void {
  let open = 0;
  const end = (): void => session.close();
  let timer = setTimeout(end, FIRST_REQUEST_MS);
  session.on('stream', (stream) => {
    clearTimeout(timer);
    open++;
    stream.once('close', () => {
      if (--open === 0 && !session.closed) timer = setTimeout(end, IDLE_MS);
    });
  });
  session.once('close', () => clearTimeout(timer));
}

/** One request and its answer, both streamed. */
function relay(
  stream: ServerHttp2Stream,
  headers: IncomingHttpHeaders,
  rawHeaders: readonly string[],
  serve: Serve,
): void {
  stream.on('error', () => {}); // followed by `close`
  const isWebSocket = headers[':protocol'] === 'websocket';
  if (headers[':method'] === 'CONNECT' && !isWebSocket) {
    refuse(stream, 405, 'CONNECT is for WebSocket only');
    return;
  }
  const host = headers[':authority'] ?? headers.host;
  if (headers.host !== undefined && headers.host !== host) {
    refuse(stream, 400, 'Invalid host'); // two readers could pick two sandboxes
    return;
  }
  const [near, far] = duplexPair();
  let outgoing: ClientRequest;
  try {
    outgoing = http.request({
      method: isWebSocket ? 'GET' : headers[':method'],
      path: headers[':path'],
      headers: requestHeaders(rawHeaders, { host, isWebSocket, stream, method: headers[':method'] ?? '' }),
      createConnection: () => near,
      maxHeaderSize: MAX_RESPONSE_HEADER_BYTES,
    });
  } catch {
    refuse(stream, 400, 'Invalid request'); // a path or method that HTTP/1.1 can't spell
    return;
  }
  if (headers.expect?.toLowerCase() === '100-continue') stream.additionalHeaders({ ':status': 100 });
  let answered = false;
  const breakOff = (): void => {
    if (answered) return; // all of it is here: what happens to the connection now is nobody's concern
    outgoing.destroy();
    // Not `close`, which ends the body properly before it resets the stream.
    stream.destroy(new Error('the connection behind this stream broke'));
  };
  stream.once('close', () => outgoing.destroy());
  outgoing.on('error', breakOff);
  outgoing.on('information', (info) => {
    // The 100 was sent above, when it was asked for.
    if (info.statusCode > 101 && !stream.headersSent && !stream.destroyed) inform(stream, info);
  });
  outgoing.on('response', (incoming) => {
    // What is left of the body has no reader any more; without one the client's window would stay closed.
    incoming.once('end', () => {
      answered = incoming.complete;
      stream.unpipe(outgoing);
      stream.resume();
    });
    answer(stream, incoming, headers[':method'] === 'HEAD', breakOff);
  });
  if (isWebSocket) {
    outgoing.on('upgrade', (incoming, socket, head) => {
      splice(stream, incoming, socket, head, breakOff);
    });
    outgoing.end();
  } else {
    sendBody(stream, outgoing);
  }
  serve(far);
}

function sendBody(stream: ServerHttp2Stream, outgoing: ClientRequest): void {
  if (stream.endAfterHeaders) {
    outgoing.end();
    return;
  }
  outgoing.flushHeaders(); // an answer may come before the first byte of a slow body
  stream.on('trailers', (_headers, _flags, ...rest) => {
    outgoing.addTrailers(trailers(rawFrom(rest)));
  });
  stream.pipe(outgoing, { end: false });
  stream.on('end', () => {
    if (!stream.aborted) outgoing.end();
  });
}

function requestHeaders(
  raw: readonly string[],
  request: { host: string | undefined; isWebSocket: boolean; stream: ServerHttp2Stream; method: string },
): string[] {
  const { host, isWebSocket, stream, method } = request;
  const headers: string[] = [];
  if (host !== undefined) headers.push('Host', host);
  const cookies: string[] = [];
  let hasLength = false;
  for (const [name, value] of pairs(raw)) {
    if (name === 'cookie') cookies.push(value);
    if (name.startsWith(':') || ['host', 'expect', 'cookie'].includes(name)) continue;
    hasLength ||= name === 'content-length';
    headers.push(name, value);
  }
  if (cookies.length > 0) headers.push('cookie', cookies.join('; ')); // HTTP/2 may split them, HTTP/1.1 may not
  if (isWebSocket) {
    const key = crypto.randomBytes(16).toString('base64'); // HTTP/2 has none: its framing proves the same
    headers.push('Connection', 'Upgrade', 'Upgrade', 'websocket', 'Sec-WebSocket-Key', key);
    return headers;
  }
  headers.push('Connection', 'close');
  if (hasLength) return headers;
  if (!stream.endAfterHeaders) headers.push('Transfer-Encoding', 'chunked');
  else if (!BODILESS.has(method)) headers.push('Content-Length', '0');
  return headers;
}

function responseHeaders(incoming: { headers: http.IncomingHttpHeaders }): OutgoingHttpHeaders {
  const nominated = (incoming.headers.connection ?? '').toLowerCase().split(/\s*,\s*/);
  const kept: OutgoingHttpHeaders = {};
  for (const [name, value] of Object.entries(incoming.headers)) {
    if (!CONNECTION_HEADERS.has(name) && !nominated.includes(name)) kept[name] = value;
  }
  return kept;
}

function answer(
  stream: ServerHttp2Stream,
  incoming: IncomingMessage,
  isHead: boolean,
  breakOff: () => void,
): void {
  incoming.on('error', breakOff);
  incoming.on('close', () => {
    if (!incoming.complete) breakOff();
  });
  if (stream.destroyed || stream.closed) return; // its `close` has ended the request
  const status = incoming.statusCode ?? 0;
  const isEmpty = isHead || EMPTY_STATUSES.has(status);
  const canTrail = !isEmpty && incoming.headers['content-length'] === undefined;
  try {
    stream.respond({ ...responseHeaders(incoming), ':status': status }, {
      endStream: isEmpty,
      waitForTrailers: canTrail,
      sendDate: false,
    } as http2.ServerStreamResponseOptions);
  } catch {
    breakOff(); // headers that HTTP/2 has no form for
    return;
  }
  if (isEmpty) {
    incoming.resume();
    return;
  }
  stream.on('wantTrailers', () => stream.sendTrailers(asObject(trailers(incoming.rawTrailers))));
  incoming.pipe(stream, { end: false });
  incoming.on('end', () => {
    if (incoming.complete) stream.end();
  });
}

/** Joins an extended CONNECT (RFC 8441) with the connection that changed to WebSocket for it. */
function splice(
  stream: ServerHttp2Stream,
  incoming: IncomingMessage,
  socket: Duplex,
  head: Buffer,
  breakOff: () => void,
): void {
  const headers = responseHeaders(incoming);
  delete headers['sec-websocket-accept'];
  try {
    stream.respond({ ...headers, ':status': 200 });
  } catch {
    socket.destroy();
    breakOff();
    return;
  }
  if (head.length > 0) stream.write(head);
  socket.on('close', () => {
    if (!socket.readableEnded) breakOff();
  });
  stream.once('close', () => {
    if (!socket.readableEnded || !socket.writableFinished) socket.destroy();
  });
  socket.pipe(stream).pipe(socket);
}

/** Passes on an interim answer (102, 103). */
function inform(stream: ServerHttp2Stream, info: http.InformationEvent): void {
  try {
    stream.additionalHeaders({ ...responseHeaders(info), ':status': info.statusCode });
  } catch {
    // A hint that HTTP/2 has no form for is not worth failing the answer for.
  }
}

function refuse(stream: ServerHttp2Stream, status: number, message: string): void {
  stream.respond({ ':status': status, 'content-type': 'text/plain; charset=utf-8' });
  stream.end(message);
  stream.resume();
}

/** Headers as received, which Node passes last; its types don't know. */
function rawFrom(rest: readonly unknown[]): readonly string[] {
  return (rest[0] ?? []) as readonly string[];
}

function asObject(list: Iterable<[string, string]>): OutgoingHttpHeaders {
  const object: Record<string, string[]> = {};
  for (const [name, value] of list) (object[name.toLowerCase()] ??= []).push(value);
  return object;
}
