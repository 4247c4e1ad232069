import crypto from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { ServiceError } from './errors';

const SECRET = /^[0-9a-f]{64}$/;

/**
 * The service's own secret and the tokens made from it. Tokens are derived, never stored: they are the same after a
 * restart, and a copy of the store gives none of them away. Whoever loses the file loses every live sandbox.
 */
export class Secrets {
  private readonly secret: Buffer;

  constructor(secret: Buffer) {
    this.secret = secret;
  }

  /** Token of one machine for one use, 64 hex digits. The two parts can't run into each other. */
  derive(purpose: 'agent' | 'traffic' | 'tunnel' | 'gateway' | 'store', id: string): string {
    return crypto.createHmac('sha256', this.secret).update(`${purpose}\0${id}`, 'utf8').digest('hex');
  }
}

/** Opens `<data dir>/secret` (mode 0600), made once. A damaged file is an error: a new one would orphan sandboxes. */
export function openSecrets(dataDir: string): Secrets {
  const file = path.join(dataDir, 'secret');
  if (!fs.existsSync(file)) {
    // Written aside and renamed, so that a crash between the two leaves no half secret.
    const fresh = `${file}.${process.pid}`;
    fs.writeFileSync(fresh, `${crypto.randomBytes(32).toString('hex')}\n`, { mode: 0o600 });
    fs.renameSync(fresh, file);
  }
  const text = fs.readFileSync(file, 'utf8').trim();
  if (!SECRET.test(text)) {
    throw new ServiceError('failed_precondition', `The secret in ${file} is damaged`, {
      remedy: 'Put the file back from a backup, or remove it: live sandboxes are then no longer reachable.',
    });
  }
  fs.chmodSync(file, 0o600);
  return new Secrets(Buffer.from(text, 'hex'));
}

/**
 * What the store keeps of an API key. One plain hash, neither salted nor slow: those are for what people choose. Of 160
 * random bits there is no list to try, and a slow hash would cost every request what it can't cost a thief.
 */
export function hashKey(key: string): string {
  return crypto.createHash('sha256').update(key, 'utf8').digest('hex');
}

/** Compares in a time that tells nothing of where, or whether in length, the two differ. */
export function sameSecret(given: string, expected: string): boolean {
  const digest = (text: string) => crypto.createHash('sha256').update(text, 'utf8').digest();
  return crypto.timingSafeEqual(digest(given), digest(expected));
}
