/** Port of the agent inside every sandbox (E2B's envd). */
export const AGENT_PORT = 49983;
/** Port of the code interpreter; answered by the service, never inside the sandbox. */
export const INTERPRETER_PORT = 49999;
/** Port of the kernel gateway inside. The edge refuses it: reaching it would be code execution without our checks. */
export const GATEWAY_PORT = 8888;

/** Header names, lower-case as Node delivers them. */
export const HEADERS = {
  sandboxId: 'e2b-sandbox-id',
  sandboxPort: 'e2b-sandbox-port',
  accessToken: 'x-access-token',
  trafficToken: 'e2b-traffic-access-token',
  apiKey: 'x-api-key',
} as const;

/** What identifies a file URL that carries a signature instead of a key; the fields are hashed exactly as received. */
export interface SignedQuery {
  operation: 'read' | 'write';
  /** Percent-decoded, otherwise untouched; empty when absent. */
  path: string;
  /** Empty when absent. */
  username: string;
  signature: string;
  /** Unix seconds as spelt in the URL, or undefined when the URL never expires. */
  expiration: string | undefined;
}

/** Whom one request is for. `invalid` is answered 400 with its message as plain text. */
export type Target =
  | { type: 'sandbox'; sandboxId: string; port: number }
  | { type: 'signed-file'; query: SignedQuery }
  | { type: 'invalid'; message: string }
  | { type: 'control-plane' };

/** The parts of a request that decide its target, as Node's HTTP parser delivers them. */
export interface RequestHead {
  method: string;
  /** Request target as received: origin-form, absolute-form or `*`. */
  url: string;
  headers: Readonly<Record<string, string | readonly string[] | undefined>>;
}

const SANDBOX_ID = /^[a-z0-9]+$/;
const PORT = /^[0-9]{1,5}$/;
const ABSOLUTE_FORM = /^[a-z][a-z0-9+.-]*:\/\/[^/?#]*/i;

/**
 * Decides whom a request is for. The first rule that applies wins:
 *
 * 1. a host `<port>-<id>[-ignored].<domain>` names the sandbox, whatever the headers say;
 * 2. on every other host the headers `E2b-Sandbox-Id` and `E2b-Sandbox-Port` do (both, or it is invalid);
 * 3. `/files` with a signature and no API key belongs to the sandbox whose token signed it;
 * 4. all else is the control plane's, requests for foreign hosts included.
 *
 * `domain` may carry a port. Ports are not compared: a proxy in front may listen on another one.
 */
export function parseTarget(request: RequestHead, domain: string): Target {
  const label = sandboxLabel(single(request.headers['host']), domain);
  if (label !== undefined) {
    const [port = '', id = ''] = label.split('-');
    return sandboxTarget(id, port);
  }
  const id = single(request.headers[HEADERS.sandboxId]);
  const port = single(request.headers[HEADERS.sandboxPort]);
  if (id !== undefined && port !== undefined) return sandboxTarget(id, port);
  if (id !== undefined || port !== undefined) return { type: 'invalid', message: 'missing header' };
  const query = signedQuery(request);
  return query === undefined ? { type: 'control-plane' } : { type: 'signed-file', query };
}

/** The request target without scheme and authority: absolute-form is for proxies, sandboxes get origin-form. */
export function originForm(url: string): string {
  const rest = url.replace(ABSOLUTE_FORM, '');
  if (rest === url) return url;
  return rest.startsWith('/') ? rest : `/${rest}`;
}

/** Paths of the agent that only the service itself may ask for, inside the sandbox's own tunnel. */
const RESERVED_AGENT_PATHS = new Set([
  '/init',
  '/freeze',
  '/unfreeze',
  '/fsfreeze',
  '/fsthaw',
  '/collapse',
  '/upgrade',
]);

/**
 * The reserved agent path that a request names in any spelling (percent-encoded, doubled or trailing slashes,
 * dot segments, letter case), or undefined. Stricter than any decoder behind it has to be.
 */
export function reservedAgentPath(url: string): string | undefined {
  let path = originForm(url).split(/[?#]/, 1)[0] ?? '';
  for (let round = 0; round < 3 && path.includes('%'); round++) path = decodeLoosely(path);
  const segments: string[] = [];
  for (const segment of path.toLowerCase().split(/[/\\]/)) {
    if (segment === '..') segments.pop();
    else if (segment !== '' && segment !== '.') segments.push(segment);
  }
  const cleaned = `/${segments.join('/')}`;
  return RESERVED_AGENT_PATHS.has(cleaned) ? cleaned : undefined;
}

/** Left-most label of a host under the domain, when it has the dash that tells a sandbox's from other names. */
function sandboxLabel(host: string | undefined, domain: string): string | undefined {
  if (host === undefined) return undefined;
  const name = withoutPort(host).toLowerCase().replace(/\.$/, '');
  if (!name.endsWith(`.${withoutPort(domain)}`)) return undefined;
  const label = name.split('.', 1)[0] ?? '';
  return label.includes('-') ? label : undefined;
}

function sandboxTarget(id: string, port: string): Target {
  const number = PORT.test(port) ? Number(port) : 0;
  if (number < 1 || number > 65_535) return { type: 'invalid', message: 'Invalid sandbox port' };
  if (!SANDBOX_ID.test(id)) return { type: 'invalid', message: 'Invalid sandbox ID' };
  return { type: 'sandbox', sandboxId: id, port: number };
}

function signedQuery(request: RequestHead): SignedQuery | undefined {
  if (request.headers[HEADERS.apiKey] !== undefined) return undefined;
  const [path, search = ''] = originForm(request.url).split(/\?(.*)/s);
  if (path !== '/files') return undefined;
  const params = new URLSearchParams(search);
  const signature = params.get('signature');
  if (signature === null) return undefined;
  // A browser asks by preflight first; the method that it is going to use is the one that was signed.
  const method =
    request.method === 'OPTIONS' ? single(request.headers['access-control-request-method']) : request.method;
  return {
    operation: method === 'POST' || method === 'PUT' ? 'write' : 'read',
    path: params.get('path') ?? '',
    username: params.get('username') ?? '',
    signature,
    expiration: params.get('signature_expiration') ?? undefined,
  };
}

function withoutPort(host: string): string {
  return host.replace(/:\d*$/, '');
}

function single(value: string | readonly string[] | undefined): string | undefined {
  return typeof value === 'string' || value === undefined ? value : value.join(', ');
}

/** Decodes every valid ASCII escape and leaves the rest, so that a malformed one can't hide a valid one. */
function decodeLoosely(text: string): string {
  return text.replace(/%([0-7][0-9a-f])/gi, (_, hex: string) => String.fromCharCode(parseInt(hex, 16)));
}
