import type { ServerResponse } from 'node:http';
import type { z } from 'zod';
import { ServiceError } from '../errors';
import type { ErrorCode } from '../errors';
import type { Logger } from '../log';

const STATUS: Record<ErrorCode, number> = {
  invalid_argument: 400,
  unauthenticated: 401,
  permission_denied: 403,
  not_found: 404,
  already_exists: 409,
  failed_precondition: 409,
  resource_exhausted: 429,
  deadline_exceeded: 504,
  unavailable: 502,
  unimplemented: 501,
  internal: 500,
};

/** A request that doesn't fit its schema, in the words that E2B's server has for it. */
export class UnprocessableRequest extends Error {
  constructor(readonly detail: readonly Detail[]) {
    super('the request does not fit its schema');
    this.name = 'UnprocessableRequest';
  }
}

export interface Detail {
  type: string;
  loc: Array<string | number>;
  msg: string;
  input: unknown;
  ctx?: object;
}

/** An answer whose status this surface decides by itself: a text, or JSON for an object. */
export class Answer extends Error {
  constructor(
    readonly status: number,
    readonly body: string | object,
    readonly headers: Record<string, string> = {},
  ) {
    super(`answer ${status}`);
    this.name = 'Answer';
  }
}

const EXPECTED: Readonly<Record<string, { type: string; msg: string }>> = {
  string: { type: 'string_type', msg: 'Input should be a valid string' },
  record: { type: 'dict_type', msg: 'Input should be a valid dictionary' },
  object: {
    type: 'model_attributes_type',
    msg: 'Input should be a valid dictionary or object to extract fields from',
  },
};

/** Describes what is wrong with a JSON body as E2B's server does. */
export function unprocessable(body: unknown, issues: readonly z.core.$ZodIssue[]): UnprocessableRequest {
  return new UnprocessableRequest(
    issues.map((issue) => {
      const path = issue.path.map((key) => (typeof key === 'symbol' ? String(key) : key));
      const loc = ['body', ...path];
      const input = valueAt(body, path);
      if (input === undefined) {
        const parent = valueAt(body, path.slice(0, -1));
        return { type: 'missing', loc, msg: 'Field required', input: parent ?? null };
      }
      const expected = issue.code === 'invalid_type' ? EXPECTED[issue.expected] : undefined;
      return { type: expected?.type ?? 'value_error', loc, msg: expected?.msg ?? issue.message, input };
    }),
  );
}

function valueAt(body: unknown, path: ReadonlyArray<string | number>): unknown {
  let value = body;
  for (const key of path) {
    if (typeof value !== 'object' || value === null || !Object.hasOwn(value, key)) return undefined;
    value = (value as Record<string | number, unknown>)[key];
  }
  return value;
}

/** Answers a request that failed. Once a stream has begun there is no status left, and this does nothing. */
export function sendError(res: ServerResponse, error: unknown, logger: Logger): void {
  if (res.headersSent || res.destroyed) return;
  if (error instanceof UnprocessableRequest) {
    sendJson(res, 422, { detail: error.detail });
  } else if (error instanceof Answer) {
    for (const [name, value] of Object.entries(error.headers)) res.setHeader(name, value);
    if (typeof error.body === 'string') sendText(res, error.status, error.body);
    else sendJson(res, error.status, error.body);
  } else {
    const known = ServiceError.from(error);
    if (known.code === 'internal') logger.error({ err: error }, 'the interpreter failed');
    sendText(res, STATUS[known.code], known.remedy ? `${known.message}. ${known.remedy}` : known.message);
  }
}

export function sendJson(res: ServerResponse, status: number, body: unknown): void {
  send(res, status, 'application/json', JSON.stringify(body));
}

export function sendText(res: ServerResponse, status: number, body: string): void {
  send(res, status, 'text/plain; charset=utf-8', body);
}

function send(res: ServerResponse, status: number, type: string, body: string): void {
  if (res.destroyed) return;
  res.writeHead(status, { 'content-type': type, 'content-length': Buffer.byteLength(body) });
  res.end(body);
}
