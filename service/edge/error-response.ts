import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from 'node:http';

/** Everything the edge itself ever answers. What SDKs classify on is the status and parts of the text: keep both. */
export type EdgeError =
  | { type: 'gone'; sandboxId: string }
  | { type: 'port-closed'; sandboxId: string; port: number }
  | { type: 'traffic-token-missing'; sandboxId: string }
  | { type: 'traffic-token-wrong'; sandboxId: string }
  | { type: 'resume-refused'; sandboxId: string }
  | { type: 'resume-slow'; sandboxId: string }
  | { type: 'resume-failed' }
  | { type: 'reserved-path'; path: string }
  | { type: 'disk-full' }
  | { type: 'wrong-signature' }
  | { type: 'bad-request'; message: string }
  | { type: 'no-tls'; port: number }
  | { type: 'bad-answer'; port: number };

interface Rendered {
  status: number;
  /** Object: JSON, or a page for a browser's navigation. String: plain text for everyone. */
  body: Record<string, string | number> | string;
}

const DISK_FULL =
  'not enough disk space available: the sandbox uses more disk than it may; remove some files';
const TRAFFIC_HEADER = "'e2b-traffic-access-token'";

/** Status and body of each error; the order of keys is part of the wire format. */
export function renderError(error: EdgeError): Rendered {
  switch (error.type) {
    case 'gone':
      return {
        status: 502,
        body: { sandboxId: error.sandboxId, message: 'The sandbox was not found', code: 502 },
      };
    case 'port-closed':
      return {
        status: 502,
        body: {
          sandboxId: error.sandboxId,
          message: 'The sandbox is running but port is not open',
          port: error.port,
          code: 502,
        },
      };
    case 'traffic-token-missing':
      return forbidden(
        error.sandboxId,
        `Sandbox is secured with traffic access token. Token header ${TRAFFIC_HEADER} is missing`,
      );
    case 'traffic-token-wrong':
      return forbidden(
        error.sandboxId,
        `Sandbox is secured with traffic access token. Provided token in header ${TRAFFIC_HEADER} is invalid`,
      );
    case 'resume-refused':
      return forbidden(
        error.sandboxId,
        "This sandbox can't be resumed with the credentials provided. Check your access token and try again.",
      );
    case 'resume-slow':
      return {
        status: 409,
        body: {
          sandboxId: error.sandboxId,
          message: 'The sandbox is still transitioning. Try again in a moment.',
          code: 409,
        },
      };
    case 'resume-failed':
      return { status: 500, body: 'The sandbox could not be resumed' };
    case 'reserved-path':
      return {
        status: 404,
        body: { message: 'This path is not reachable from outside the sandbox', path: error.path, code: 404 },
      };
    case 'disk-full':
      // As the agent's own answer where the disk itself refuses.
      return { status: 507, body: { code: 507, message: DISK_FULL } };
    case 'wrong-signature':
      return { status: 401, body: { code: 401, message: 'invalid signature' } };
    case 'bad-request':
      return { status: 400, body: error.message };
    case 'no-tls':
      return {
        status: 500,
        body: `Port ${error.port} of the sandbox is one of its httpsPorts, but does not speak TLS`,
      };
    case 'bad-answer':
      return { status: 500, body: `Port ${error.port} of the sandbox did not answer in valid HTTP` };
  }
}

/** Sends an error unless the response has begun. The request's body, if any is left, is discarded by Node. */
export function sendError(req: IncomingMessage, res: ServerResponse, error: EdgeError): void {
  if (res.headersSent || res.destroyed) return;
  const { status, body } = renderError(error);
  const [type, text] =
    typeof body === 'string'
      ? ['text/plain', body]
      : isNavigation(req.headers)
        ? ['text/html', page(status, body)]
        : ['application/json', JSON.stringify(body)];
  const bytes = Buffer.from(text);
  res.writeHead(status, { 'Content-Type': `${type}; charset=utf-8`, 'Content-Length': bytes.length });
  res.end(bytes);
}

const BROWSER = /mozilla|chrome|safari|firefox|edge|opera|msie/i;

/** A person who follows a link, as against a script's fetch: only the former is shown a page. */
export function isNavigation(headers: IncomingHttpHeaders): boolean {
  if (!BROWSER.test(headers['user-agent'] ?? '') || headers['x-requested-with'] !== undefined) return false;
  const mode = headers['sec-fetch-mode'];
  return (mode === undefined || mode === 'navigate') && !prefersJson(headers.accept ?? '');
}

function prefersJson(accept: string): boolean {
  const quality = (type: string): number => {
    const range = accept.split(',').find((each) => each.split(';', 1)[0]?.trim().toLowerCase() === type);
    if (range === undefined) return 0;
    const q = /;\s*q=([\d.]+)/i.exec(range)?.[1];
    return q === undefined ? 1 : Number(q);
  };
  const json = quality('application/json');
  return json > 0 && json > quality('text/html');
}

function forbidden(sandboxId: string, message: string): Rendered {
  return { status: 403, body: { sandboxId, message, code: 403 } };
}

function page(status: number, body: Record<string, string | number>): string {
  const message = escapeHtml(String(body['message'] ?? ''));
  const rows = Object.entries(body)
    .filter(([key]) => key !== 'message' && key !== 'code')
    .map(([key, value]) => `<p>${escapeHtml(key)}: <code>${escapeHtml(String(value))}</code></p>`)
    .join('');
  return (
    `<!doctype html><html lang="en"><head><meta charset="utf-8"><title>${status} ${message}</title>` +
    `<style>body{font-family:system-ui,sans-serif;max-width:40rem;margin:15vh auto;padding:0 1rem}</style></head>` +
    `<body><h1>${message}</h1>${rows}<p>Status ${status}</p></body></html>\n`
  );
}

function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}
