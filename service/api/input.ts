import type { Request } from 'express';
import type { z } from 'zod';
import { parseSandboxId } from '../../protocol/control-plane';
import { ServiceError } from '../errors';

const MAX_ISSUES = 5;

/** The body as the schema has it, or `invalid_argument` naming the fields that are wrong. */
export function parseBody<Schema extends z.ZodType>(schema: Schema, body: unknown): z.output<Schema> {
  if (body === undefined) throw new ServiceError('invalid_argument', 'Request body is missing');
  const parsed = schema.safeParse(body);
  if (parsed.success) return parsed.data;
  const issues = parsed.error.issues.slice(0, MAX_ISSUES).map((issue) => {
    const field = issue.path.map(String).join('.');
    return field === '' ? issue.message : `${field}: ${issue.message}`;
  });
  throw new ServiceError('invalid_argument', `Request body is not valid: ${issues.join('; ')}`);
}

/** The same for an optional body: absent, empty and `null` count as `{}`. */
export function parseOptionalBody<Schema extends z.ZodType>(schema: Schema, body: unknown): z.output<Schema> {
  return parseBody(schema, body ?? {});
}

/** The query with ordinary decoding only. Express's own would turn a repeated name into a list. */
export function queryOf(req: Request): URLSearchParams {
  return new URLSearchParams(req.originalUrl.split(/\?(.*)/s)[1] ?? '');
}

/** A whole number of the query, or undefined where it is absent or empty. */
export function queryInteger(
  query: URLSearchParams,
  name: string,
  range: { min: number; max: number },
): number | undefined {
  const text = query.get(name);
  if (text === null || text === '') return undefined;
  const value = /^-?\d{1,16}$/.test(text) ? Number(text) : Number.NaN;
  if (!(value >= range.min && value <= range.max)) {
    throw new ServiceError(
      'invalid_argument',
      `${name}: must be a whole number from ${range.min} to ${range.max}`,
    );
  }
  return value;
}

/** One of a few words of the query, or undefined where it is absent or empty. */
export function queryWord<Word extends string>(
  query: URLSearchParams,
  name: string,
  words: readonly Word[],
): Word | undefined {
  const text = query.get(name);
  if (text === null || text === '') return undefined;
  const word = words.find((each) => each === text);
  if (word === undefined)
    throw new ServiceError('invalid_argument', `${name}: must be ${words.join(' or ')}`);
  return word;
}

/** The sandbox that the path names; the old form with a client's id behind it counts too. */
export function sandboxIdOf(req: Request): string {
  const id = parseSandboxId(String(req.params['sandboxID']));
  if (id === undefined) throw badSandboxId();
  return id;
}

export function badSandboxId(): ServiceError {
  return new ServiceError('invalid_argument', 'Invalid sandbox ID');
}
