import type { RequestHandler } from 'express';
import { LOG_LEVELS, LOG_LIMIT, LOG_SEARCH_MAX } from '../../protocol/control-plane';
import type { LogEntry } from '../../protocol/control-plane';
import { ServiceError } from '../errors';
import type { LogRecord } from '../sandboxes/log-files';
import type { Sandboxes } from '../sandboxes/sandboxes';
import { teamOf } from './auth';
import { queryInteger, queryOf, queryWord, sandboxIdOf } from './input';

const ANY_TIME = { min: 0, max: Number.MAX_SAFE_INTEGER };

/** The logs of a sandbox, in both forms that E2B has. */
export function logHandlers(sandboxes: Pick<Sandboxes, 'readLog'>) {
  /** From a moment on, oldest first: a reader who follows asks again from its last line on. */
  const logs: RequestHandler = async (req, res) => {
    const query = queryOf(req);
    const start = queryInteger(query, 'start', ANY_TIME) ?? 0;
    const limit = queryInteger(query, 'limit', { min: 1, max: LOG_LIMIT }) ?? LOG_LIMIT;
    const all = await sandboxes.readLog(teamOf(res), sandboxIdOf(req));
    const entries = all
      .filter(({ at }) => at >= start)
      .slice(0, limit)
      .map(toEntry);
    res.json({
      logs: entries.map(({ timestamp, level, message, fields }) => ({
        timestamp,
        line: JSON.stringify({ ...fields, level, message }),
      })),
      logEntries: entries,
    });
  };

  /** Backward: what was before the cursor, newest first. Forward: from the cursor on, oldest first. */
  const logsV2: RequestHandler = async (req, res) => {
    const query = queryOf(req);
    const direction = queryWord(query, 'direction', ['forward', 'backward']) ?? 'backward';
    const cursor = queryInteger(query, 'cursor', ANY_TIME);
    const limit = queryInteger(query, 'limit', { min: 1, max: LOG_LIMIT }) ?? LOG_LIMIT;
    const least = LOG_LEVELS.indexOf(queryWord(query, 'level', LOG_LEVELS) ?? 'debug');
    const search = (query.get('search') ?? '').toLowerCase();
    if (search.length > LOG_SEARCH_MAX) {
      throw new ServiceError('invalid_argument', `search: is longer than ${LOG_SEARCH_MAX} characters`);
    }
    const all = await sandboxes.readLog(teamOf(res), sandboxIdOf(req));
    const wanted = all.filter(
      ({ at, level, message }) =>
        (cursor === undefined || (direction === 'forward' ? at >= cursor : at < cursor)) &&
        LOG_LEVELS.indexOf(level) >= least &&
        message.toLowerCase().includes(search),
    );
    if (direction === 'backward') wanted.reverse();
    res.json({ logs: wanted.slice(0, limit).map(toEntry) });
  };

  return { logs, logsV2 };
}

function toEntry({ at, level, message, fields }: LogRecord): LogEntry {
  return { timestamp: new Date(at).toISOString(), level, message, fields: { ...fields } };
}
