import type { RequestHandler } from 'express';
import { ServiceError } from '../errors';
import { sameSecret } from '../secrets';

/** Header of the calls that are for whoever runs the service, not for a team. */
export const ADMIN_TOKEN_HEADER = 'x-admin-token';

/** Lets a request pass that carries the admin token; without one to compare with, none does. */
export function requireAdminToken(expected: string | undefined): RequestHandler {
  return (req, _res, next) => {
    const given = req.headers[ADMIN_TOKEN_HEADER];
    if (typeof given !== 'string' || given === '') {
      throw new ServiceError(
        'unauthenticated',
        'The admin token is missing: send it in the X-Admin-Token header',
      );
    }
    if (expected === undefined || !sameSecret(given, expected)) {
      throw new ServiceError('unauthenticated', 'The admin token is not valid');
    }
    next();
  };
}
