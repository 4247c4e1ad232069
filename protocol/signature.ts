import { createHash } from 'node:crypto';
import type { SignedQuery } from './routing';

/** What a signed file URL grants: exactly these values, as they stand percent-decoded in the URL. */
export type SignedRequest = Omit<SignedQuery, 'signature'>;

/**
 * The signature that the holder of a sandbox's access token puts on a file URL: `v1_` and the unpadded standard
 * base64 of a SHA-256. An absent user or path counts as empty, an absent expiration is left out of what is hashed.
 */
export function fileSignature(request: SignedRequest, accessToken: string): string {
  const fields = [request.path, request.operation, request.username, accessToken];
  if (request.expiration !== undefined) fields.push(request.expiration);
  const digest = createHash('sha256').update(fields.join(':'), 'utf8').digest('base64');
  return `v1_${digest.replace(/=+$/, '')}`;
}
