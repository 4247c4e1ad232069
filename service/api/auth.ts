import type { RequestHandler, Response } from 'express';
import { HEADERS } from '../../protocol/routing';
import { ServiceError } from '../errors';
import { hashKey, sameSecret } from '../secrets';
import type { KeyRecord } from '../sandboxes/store-teams';

/** Where keys are looked up, by the hash that `hashKey` gives. */
export interface Keys {
  findKey(hash: string): Promise<KeyRecord | undefined>;
}

/** Lets a request pass that carries a valid `X-API-Key`, the only way to authenticate; `teamOf` tells whose it is. */
export function authenticate(keys: Keys): RequestHandler {
  return async (req, res, next) => {
    const key = req.headers[HEADERS.apiKey];
    if (typeof key !== 'string' || key === '') {
      throw new ServiceError('unauthenticated', 'API key is missing: send it in the X-API-Key header');
    }
    // The look-up is by hash: how long it takes tells something of the hash of a guess, nothing of a key.
    const hash = hashKey(key);
    const record = await keys.findKey(hash);
    if (record === undefined || !sameSecret(record.hash, hash)) {
      throw new ServiceError('unauthenticated', 'API key is not valid');
    }
    res.locals['teamId'] = record.teamId;
    next();
  };
}

/** The team of the key that the request came with. */
export function teamOf(res: Response): string {
  return res.locals['teamId'] as string; // set by `authenticate`, which stands before every handler that asks
}
