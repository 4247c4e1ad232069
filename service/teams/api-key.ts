import crypto from 'node:crypto';
import { hashKey } from '../secrets';
import type { KeyMask, StoredKey } from '../sandboxes/store-teams';

export const KEY_PREFIX = 'e2b_';
/** Of the value, and as many as E2B shows: 24 bits of 160. */
const SHOWN_FIRST = 2;
const SHOWN_LAST = 4;
/** Less would be too little to hide once its ends are shown; only a key that somebody chose is shorter. */
const MIN_SHOWN_LENGTH = 24;

/** A key that nobody can guess, in the form that the SDKs demand. */
export function newApiKey(): string {
  return `${KEY_PREFIX}${crypto.randomBytes(20).toString('hex')}`;
}

/** What the store keeps of a key. */
export function storedKey(key: string, rest: Pick<StoredKey, 'id' | 'teamId' | 'name'>): StoredKey {
  return { ...rest, hash: hashKey(key), mask: maskOf(key), createdAt: Date.now() };
}

function maskOf(key: string): KeyMask {
  const value = key.slice(KEY_PREFIX.length);
  if (value.length < MIN_SHOWN_LENGTH) return { length: value.length, prefix: '', suffix: '' };
  return { length: value.length, prefix: value.slice(0, SHOWN_FIRST), suffix: value.slice(-SHOWN_LAST) };
}
