/**
 * The lines that service and agent exchange on a tunnel connection before it becomes a plain byte stream.
 *
 * The agent opens every connection and speaks first; a line is printable ASCII ended by `\n`:
 *
 * ```
 * agent    CELLBOX/1 idle <token>             I wait for a request on this connection
 * service  ok
 * service  dial <port>                        any time later, once
 * agent    ok | refused | error <text>        after ok: bytes both ways, half-close kept
 * service  deadline <ms since the epoch>      instead of dial; after the answer the connection is idle again
 * agent    ok
 *
 * agent    CELLBOX/1 call <port> <token>      a program inside asks for a port that the service answers
 * service  ok | refused                       after ok: bytes both ways
 * ```
 *
 * Pure: bytes and strings, no sockets, no clock. Parsers answer `undefined` to anything they don't know; the caller
 * closes the connection then, because the two sides no longer agree on where they are.
 */
export const TUNNEL_GREETING = 'CELLBOX/1';

/** Longest line including its newline. */
export const MAX_LINE_BYTES = 4096;

export type Hello = { type: 'idle'; token: string } | { type: 'call'; port: number; token: string };
export type TunnelRequest = { type: 'dial'; port: number } | { type: 'deadline'; at: number };
export type TunnelReply = { type: 'ok' } | { type: 'refused' } | { type: 'error'; text: string };

const TOKEN = /^[\x21-\x7e]{1,512}$/;
const PORT = /^[1-9][0-9]{0,4}$/;
const INSTANT = /^[0-9]{1,16}$/;
const MAX_ERROR_TEXT = 500;

export function formatHello(hello: Hello): string {
  // A token with a space or a newline would be another line than the one meant.
  if (!TOKEN.test(hello.token))
    throw new Error('a tunnel token is 1 to 512 printable characters without spaces');
  const words = hello.type === 'idle' ? ['idle'] : ['call', String(hello.port)];
  return `${[TUNNEL_GREETING, ...words, hello.token].join(' ')}\n`;
}

export function parseHello(line: string): Hello | undefined {
  const [greeting, type, ...rest] = line.split(' ');
  if (greeting !== TUNNEL_GREETING) return undefined;
  const token = rest.pop();
  if (token === undefined || !TOKEN.test(token)) return undefined;
  if (type === 'idle' && rest.length === 0) return { type, token };
  const port = parsePort(rest[0]);
  if (type === 'call' && rest.length === 1 && port !== undefined) return { type, port, token };
  return undefined;
}

export function formatRequest(request: TunnelRequest): string {
  return request.type === 'dial' ? `dial ${request.port}\n` : `deadline ${Math.trunc(request.at)}\n`;
}

export function parseRequest(line: string): TunnelRequest | undefined {
  const [type, value, ...rest] = line.split(' ');
  if (value === undefined || rest.length > 0) return undefined;
  if (type === 'deadline') return INSTANT.test(value) ? { type, at: Number(value) } : undefined;
  const port = parsePort(value);
  return type === 'dial' && port !== undefined ? { type, port } : undefined;
}

export function formatReply(reply: TunnelReply): string {
  if (reply.type !== 'error') return `${reply.type}\n`;
  return `error ${reply.text.replace(/[^\x20-\x7e]/g, '?').slice(0, MAX_ERROR_TEXT)}\n`;
}

export function parseReply(line: string): TunnelReply | undefined {
  if (line === 'ok' || line === 'refused') return { type: line };
  return line.startsWith('error ') ? { type: 'error', text: line.slice(6, 6 + MAX_ERROR_TEXT) } : undefined;
}

function parsePort(text: string | undefined): number | undefined {
  const port = text !== undefined && PORT.test(text) ? Number(text) : 0;
  return port >= 1 && port <= 65_535 ? port : undefined;
}

/** The peer sent a line that is too long or holds bytes that no line has. */
export class TunnelLineError extends Error {}

/** Collects bytes until one line is complete. Holds at most `MAX_LINE_BYTES`. One use per line. */
export class LineBuffer {
  private text = '';

  /** The line without its newline and the bytes behind it, once it is complete. Throws `TunnelLineError`. */
  push(chunk: Uint8Array): { line: string; rest: Uint8Array } | undefined {
    const newline = chunk.indexOf(0x0a);
    const length = newline === -1 ? chunk.length : newline;
    if (this.text.length + length >= MAX_LINE_BYTES) throw new TunnelLineError('line too long');
    for (const byte of chunk.subarray(0, length)) {
      if (byte < 0x20 || byte > 0x7e)
        throw new TunnelLineError('line holds bytes that are not printable ASCII');
      this.text += String.fromCharCode(byte);
    }
    return newline === -1 ? undefined : { line: this.text, rest: chunk.subarray(newline + 1) };
  }
}
