import type { IncomingMessage } from 'node:http';
import { HEADERS } from '../../protocol/routing';
import { fileSignature } from '../../protocol/signature';
import { HttpError } from './http-error';
import { sameSecret } from './state';
import type { AgentState } from './state';

/** Lets a file request pass by header or by signature; without a token in the sandbox everything passes. */
export function checkSignature(
  state: AgentState,
  request: IncomingMessage,
  query: URLSearchParams,
  operation: 'read' | 'write',
): void {
  const token = state.accessToken;
  if (token === undefined) return;
  const given = request.headers[HEADERS.accessToken];
  if (given !== undefined) {
    if (typeof given === 'string' && sameSecret(given, token)) return;
    throw new HttpError(401, 'the X-Access-Token header is wrong');
  }
  const signature = query.get('signature');
  if (signature === null) throw new HttpError(401, 'missing signature query parameter');
  const expiration = query.get('signature_expiration') ?? undefined;
  if (expiration !== undefined && !/^-?\d{1,15}$/.test(expiration)) {
    throw new HttpError(400, 'signature_expiration must be an integer of Unix seconds');
  }
  const expected = fileSignature(
    { operation, path: query.get('path') ?? '', username: query.get('username') ?? '', expiration },
    token,
  );
  if (!sameSecret(signature, expected)) throw new HttpError(401, 'invalid signature');
  if (expiration !== undefined && Number(expiration) < Math.floor(Date.now() / 1000)) {
    // Callers compare this text.
    throw new HttpError(401, 'signature is already expired');
  }
}
