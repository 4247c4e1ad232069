import { pino } from 'pino';
import type { DestinationStream, Logger } from 'pino';
import { logFields } from './observability/scope';

export type { Logger } from 'pino';

/** Field names that never reach the log, whatever object they ride in on. */
const SECRET_FIELDS = [
  'token',
  'accessToken',
  'trafficToken',
  'gatewayToken',
  'envdAccessToken',
  'trafficAccessToken',
  'apiKey',
  'adminToken',
  'key',
  'secret',
  'password',
  'signature',
  'authorization',
  'cookie',
  // What users give their programs, and what they say at all.
  'env',
  'envs',
  'envVars',
  'env_vars',
  'body',
  '["x-api-key"]',
  '["x-admin-token"]',
  '["x-access-token"]',
  '["e2b-traffic-access-token"]',
];

/**
 * Structured log, one JSON object a line, on stderr (stdout belongs to the start-up banner). `level` as pino's, plus
 * `silent`. Lines that are written for a request carry its id, and the sandbox's where there is one.
 */
export function createLogger(
  level: string,
  destination: DestinationStream = pino.destination({ dest: 2, sync: true }),
): Logger {
  const paths = SECRET_FIELDS.flatMap((field) => {
    const below = field.startsWith('[') ? field : `.${field}`;
    return [field, `*${below}`, `*.*${below}`];
  });
  const serializers = { err: pino.stdSerializers.err, error: pino.stdSerializers.err };
  return pino({ level, base: undefined, redact: paths, mixin: requestFields, serializers }, destination);
}

/** Of these, what the line does not say by itself: two equal names in one object are read in two ways. */
function requestFields(line: object, _level: number, logger: Logger): object {
  const fields = logFields();
  if (fields['sandboxId'] === undefined || (!('sandboxId' in line) && !('sandboxId' in logger.bindings()))) {
    return fields;
  }
  const { sandboxId: _told, ...rest } = fields;
  return rest;
}
