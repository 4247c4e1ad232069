import http from 'node:http';
import type { ClientRequest, IncomingMessage, ServerResponse } from 'node:http';
import net from 'node:net';
import type { Duplex } from 'node:stream';
import { originForm } from '../../protocol/routing';
import { AgentConnection } from './agent-connections';
import { requestHeaders, responseHeaders, trailers, upgradeResponseHead } from './headers';
import { passOn } from './pass-on';

/*
 * Why not a proxy library: the maintained one rewrites paths (`/a/../b`, `//`), joins duplicate headers, drops
 * trailers and interim answers, un-frames the body of a chunked DELETE, leaves a client hanging when the sandbox
 * resets half-way, and breaks half-close on upgraded connections. Each of these is a promise here; see
 * docs/decisions/0003-edge-routing.md. Parsing and framing of HTTP stays Node's.
 */

/** Sandboxes may send long headers; without a limit one response could fill our memory. */
const MAX_RESPONSE_HEADER_BYTES = 256 * 1024;
/** Methods whose requests Node sends without any framing of a body when there is none. */
const BODILESS = new Set(['GET', 'HEAD', 'DELETE', 'OPTIONS', 'TRACE']);
/** Interim answers come without back-pressure, and a hostile server sends them without end. */
const MAX_INTERIM_ANSWERS = 100;
const KEEPALIVE_PROBE_MS = 20_000;

export interface Exchange {
  req: IncomingMessage;
  res: ServerResponse;
  /** Connected to the port in the sandbox; owned by the exchange from here on, or until its proper end. */
  upstream: net.Socket | AgentConnection;
  /** For a request to change protocols: the client's raw socket and what it already sent behind its request. */
  upgrade?: { value: string; socket: Duplex; head: Buffer };
  /** What the program is told for the host, where that is not what the client asked for. */
  maskedHost?: string | undefined;
  /** Names and values by turns, for the end of the answer's head. */
  extraHeaders?: readonly string[];
  /** The sandbox closed or reset before or within its answer. */
  onBroken: () => void;
  /** The sandbox answered something that is not HTTP; nothing was sent to the client yet. */
  onBadAnswer: () => void;
}

/**
 * Passes one request to the sandbox and its answer back, both streamed as they come, neither changed.
 *
 * Ends when the answer ends, the client leaves (the upstream is destroyed) or the sandbox breaks off
 * (`onBroken`). There is no time limit: a silent exchange is the user's to end.
 */
export function exchange(options: Exchange): void {
  const { req, res, upstream, upgrade, maskedHost } = options;
  let outgoing: ClientRequest;
  try {
    outgoing = startRequest(req, upstream, { upgrade: upgrade?.value, maskedHost });
  } catch {
    // Node refuses to send something that its own parser let in. Not known to happen; there is no better answer.
    upstream.destroy();
    options.onBroken();
    return;
  }
  let settled = false;
  const breakOff = (): void => {
    if (settled) return;
    settled = true;
    outgoing.destroy();
    options.onBroken();
  };

  let interim = 0;
  outgoing.on('information', (info) => {
    if (++interim > MAX_INTERIM_ANSWERS) badAnswer();
    else relayInformation(res, info);
  });
  outgoing.on('response', (incoming) => {
    const { extraHeaders = [] } = options;
    relayResponse(req, res, incoming, { extraHeaders, onBroken: breakOff, onBadAnswer: badAnswer });
  });
  if (upgrade !== undefined) {
    outgoing.on('upgrade', (incoming, socket, head) => {
      settled = true;
      res.detachSocket(upgrade.socket as net.Socket); // it was attached by us, from the same raw socket
      upgrade.socket.write(upgradeResponseHead(incoming.statusMessage ?? '', incoming.rawHeaders), 'latin1');
      if (head.length > 0) upgrade.socket.write(head);
      if (upgrade.head.length > 0) socket.write(upgrade.head);
      splice(upgrade.socket, socket);
    });
  } else {
    // Nobody asked for another protocol. Without a listener Node closes the connection and tells nobody.
    outgoing.on('upgrade', (_incoming, socket) => {
      socket.destroy();
      badAnswer();
    });
  }
  outgoing.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code?.startsWith('HPE_') && !res.headersSent) badAnswer();
    else breakOff();
  });
  res.once('close', () => {
    settled = true;
    // One that outlives the exchange must not wait for the rest of a body that nobody sends.
    const isHalf = upstream instanceof AgentConnection && !outgoing.writableFinished;
    if (!res.writableFinished || isHalf) outgoing.destroy();
    // An answer may come before the end of the body: read the rest away, or the connection's next request waits for ever.
    req.unpipe(outgoing);
    req.resume();
  });
  // The client's failures arrive as `close` of the response; without a listener they would be thrown.
  req.on('error', () => {});

  if (upgrade !== undefined || !hasBody(req)) {
    outgoing.end();
    return;
  }
  outgoing.flushHeaders(); // the sandbox may want to answer before the first byte of a slow body
  passOn(req, outgoing, { end: false });
  req.on('end', () => {
    if (req.rawTrailers.length > 0 && isChunked(req)) outgoing.addTrailers(trailers(req.rawTrailers));
    outgoing.end();
  });

  function badAnswer(): void {
    if (settled) return;
    settled = true;
    outgoing.destroy();
    options.onBadAnswer();
  }
}

/** Whether bytes follow the request's head. */
export function hasBody(req: IncomingMessage): boolean {
  return isChunked(req) || Number(req.headers['content-length'] ?? 0) > 0;
}

/** Ends a connection so that the other side sees a reset, not a proper end: what it has is not all there was. */
export function reset(socket: Duplex): void {
  if (!(socket instanceof net.Socket) || socket.destroyed) {
    socket.destroy();
    return;
  }
  try {
    socket.resetAndDestroy();
  } catch {
    socket.destroy(); // not TCP (a Unix socket, TLS): it knows no reset
  }
}

/** A response on a raw socket, for answering a request to upgrade in plain HTTP. The connection ends with it. */
export function responseOn(req: IncomingMessage, socket: Duplex): ServerResponse {
  const res = new http.ServerResponse(req);
  res.shouldKeepAlive = false;
  // The HTTP server let go of this socket, its error listener included. Failures arrive as `close`.
  socket.on('error', () => {});
  res.assignSocket(socket as net.Socket); // Node hands upgrades a net.Socket, typed as what is promised
  res.once('finish', () => {
    res.detachSocket(socket as net.Socket);
    socket.end(() => socket.destroy());
    res.emit('close'); // the HTTP server does this for its own responses
  });
  return res;
}

function startRequest(
  req: IncomingMessage,
  upstream: net.Socket | AgentConnection,
  { upgrade, maskedHost }: { upgrade: string | undefined; maskedHost: string | undefined },
): ClientRequest {
  const isKept = upstream instanceof AgentConnection;
  if (!isKept) upstream.setNoDelay(true);
  return http.request({
    method: req.method,
    path: originForm(req.url ?? '/'),
    headers: requestHeaders(req.rawHeaders, {
      connection: upgrade !== undefined ? { upgrade } : isKept ? 'keep-alive' : 'close',
      maskedHost,
      body: isChunked(req) ? 'chunked' : hasBody(req) ? 'length' : 'none',
      emptyBody:
        !hasBody(req) && req.headers['content-length'] === undefined && !BODILESS.has(req.method ?? ''),
    }),
    ...(isKept ? { agent: upstream } : { createConnection: () => upstream }),
    maxHeaderSize: MAX_RESPONSE_HEADER_BYTES,
  });
}

function relayResponse(
  req: IncomingMessage,
  res: ServerResponse,
  incoming: IncomingMessage,
  {
    extraHeaders,
    onBroken,
    onBadAnswer,
  }: { extraHeaders: readonly string[]; onBroken: () => void; onBadAnswer: () => void },
): void {
  const status = incoming.statusCode ?? 0;
  const chunked =
    req.httpVersion !== '1.0' &&
    req.method !== 'HEAD' &&
    status !== 204 &&
    status !== 304 &&
    incoming.headers['content-length'] === undefined;
  incoming.on('error', onBroken);
  incoming.on('close', () => {
    if (!incoming.complete) onBroken();
  });
  try {
    res.sendDate = false;
    const headers = responseHeaders(incoming.rawHeaders, { chunked });
    res.writeHead(status, incoming.statusMessage, [...headers, ...extraHeaders]);
  } catch {
    // Node refuses to send what the sandbox made up (a status like 099).
    onBadAnswer();
    return;
  }
  res.flushHeaders();
  passOn(incoming, res, { end: false });
  incoming.on('end', () => {
    if (!incoming.complete) return;
    if (chunked && incoming.rawTrailers.length > 0) res.addTrailers(trailers(incoming.rawTrailers));
    res.end();
  });
}

/** Passes on 102 and 103. A 100 is not: our own server has already told the client to go on. */
function relayInformation(res: ServerResponse, info: http.InformationEvent): void {
  if (res.headersSent || res.req.httpVersion === '1.0') return;
  if (info.statusCode === 102) res.writeProcessing();
  const link = info.headers.link;
  if (info.statusCode !== 103 || link === undefined) return;
  try {
    res.writeEarlyHints({ link });
  } catch {
    // A hint that Node finds malformed is not worth failing the answer for.
  }
}

/** Joins two raw sockets with half-close kept; a side that breaks resets the other. */
function splice(client: Duplex, upstream: Duplex): void {
  if (client instanceof net.Socket) {
    client.setTimeout(0);
    client.setNoDelay(true);
    client.setKeepAlive(true, KEEPALIVE_PROBE_MS);
  }
  for (const [from, to] of [
    [client, upstream],
    [upstream, client],
  ] as const) {
    passOn(from, to);
    from.on('error', () => {}); // followed by `close`
    from.on('close', () => {
      if (!from.readableEnded || !from.writableFinished) reset(to);
    });
  }
}

function isChunked(req: IncomingMessage): boolean {
  return req.headers['transfer-encoding'] !== undefined;
}
