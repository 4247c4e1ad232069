import { pino } from 'pino';
import type { Logger } from 'pino';

export type { Logger } from 'pino';

/** Field names that never reach the log, whatever object they ride in on. */
const SECRET_FIELDS = [
  'token',
  'accessToken',
  'trafficToken',
  'gatewayToken',
  'apiKey',
  'secret',
  'authorization',
];

/** Structured log on stderr (stdout belongs to the start-up banner). `level` as pino's, plus `silent`. */
export function createLogger(level: string): Logger {
  const paths = SECRET_FIELDS.flatMap((field) => [field, `*.${field}`]);
  return pino({ level, base: undefined, redact: paths }, pino.destination({ dest: 2, sync: true }));
}
