/** Raw headers as Node gives and takes them: name, value, name, value … in the order and case received. */
export type RawHeaders = readonly string[];

/** Meant for one connection only (RFC 9110 §7.6.1), plus what framing we do anew. */
const HOP_BY_HOP = new Set([
  'connection',
  'keep-alive',
  'proxy-connection',
  'proxy-authenticate',
  'proxy-authorization',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
]);

/** A `Connection` header may not take these away: whoever reads the message next frames or routes by them. */
const NEVER_NOMINATED = new Set(['host', 'content-length', 'cookie', 'authorization']);

export interface RequestHeaderOptions {
  /** What becomes of the connection: it ends with the answer, serves the next request, or changes to that protocol. */
  connection: 'close' | 'keep-alive' | { upgrade: string };
  /** How the body is framed towards the sandbox. */
  body: 'none' | 'length' | 'chunked';
  /** Stands in for the client's `Host`, which is told as `X-Forwarded-Host`. */
  maskedHost?: string | undefined;
  /** Sends `Content-Length: 0`, which a method that usually has a body needs when it has none. */
  emptyBody: boolean;
}

/**
 * Headers for the sandbox: as the client sent them, without what belongs to the client's connection and without
 * claims about who forwarded it, which the sandbox could not tell from a trusted proxy's.
 */
export function requestHeaders(raw: RawHeaders, options: RequestHeaderOptions): string[] {
  const headers = endToEnd(
    raw,
    (name) => isForwardingClaim(name) || name === 'expect' || name === 'http2-settings',
  );
  const { connection, maskedHost } = options;
  if (maskedHost !== undefined) mask(headers, maskedHost);
  if (typeof connection === 'string') headers.push('Connection', connection);
  else headers.push('Connection', 'Upgrade', 'Upgrade', connection.upgrade);
  if (options.body === 'chunked') {
    headers.push('Transfer-Encoding', 'chunked', ...pick(raw, 'trailer'));
  } else if (options.emptyBody) headers.push('Content-Length', '0');
  if (/(^|,)\s*trailers\s*(,|;|$)/i.test(values(raw, 'te').join(','))) headers.push('TE', 'trailers');
  return headers;
}

/** Headers for the client: as the sandbox sent them; Node frames the body anew. `chunked`: trailers can follow. */
export function responseHeaders(raw: RawHeaders, options: { chunked: boolean }): string[] {
  const headers = endToEnd(raw, () => false);
  if (options.chunked) headers.push(...pick(raw, 'trailer'));
  return headers;
}

/** Headers of a 101 answer: these are about this very connection, so all of them pass. */
export function upgradeResponseHead(status: string, raw: RawHeaders): string {
  let text = `HTTP/1.1 101 ${status}\r\n`;
  for (const [name, value] of pairs(raw)) text += `${name}: ${value}\r\n`;
  return `${text}\r\n`;
}

/** Trailers, less those that would change how the message before them is read, or by whom it came. */
export function trailers(raw: RawHeaders): [string, string][] {
  return [...pairs(raw)].filter(([name]) => {
    const lower = name.toLowerCase();
    return !HOP_BY_HOP.has(lower) && !NEVER_NOMINATED.has(lower) && !isForwardingClaim(lower);
  });
}

/** All values of one header. */
export function values(raw: RawHeaders, wanted: string): string[] {
  return [...pairs(raw)].filter(([name]) => name.toLowerCase() === wanted).map(([, value]) => value);
}

export function* pairs(raw: RawHeaders): Generator<[string, string]> {
  for (let index = 0; index + 1 < raw.length; index += 2) yield [raw[index] ?? '', raw[index + 1] ?? ''];
}

function endToEnd(raw: RawHeaders, alsoDrop: (name: string) => boolean): string[] {
  const nominated = new Set(
    values(raw, 'connection').flatMap((value) => value.split(',').map((name) => name.trim().toLowerCase())),
  );
  const kept: string[] = [];
  for (const [name, value] of pairs(raw)) {
    const lower = name.toLowerCase();
    if (HOP_BY_HOP.has(lower) || alsoDrop(lower)) continue;
    if (nominated.has(lower) && !NEVER_NOMINATED.has(lower)) continue;
    kept.push(name, value);
  }
  return kept;
}

/** Every claim about forwarding is gone by now, so the one that stands here is ours. */
function mask(headers: string[], maskedHost: string): void {
  const at = headers.findIndex((name, index) => index % 2 === 0 && name.toLowerCase() === 'host');
  if (at === -1) {
    headers.unshift('Host', maskedHost);
    return;
  }
  const [, original = ''] = headers.splice(at, 2, 'Host', maskedHost);
  headers.push('X-Forwarded-Host', original);
}

function pick(raw: RawHeaders, wanted: string): string[] {
  return values(raw, wanted).flatMap((value) => [
    wanted.replace(/^./, (first) => first.toUpperCase()),
    value,
  ]);
}

/** Also in the spelling that many servers can't tell from it once headers have become variables. */
function isForwardingClaim(name: string): boolean {
  return name === 'forwarded' || /^x[-_]forwarded[-_]/.test(name);
}
