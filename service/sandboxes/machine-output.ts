import type { LogLevel } from '../../protocol/control-plane';
import type { OutputLine } from '../runtime/runtime';
import type { LogRecord } from './log-files';

/** Longer messages are cut: a log tells what happened, it is no place for data. */
const MAX_MESSAGE_CHARS = 4_096;
/** What a terminal would act upon. */
const CONTROL = /[\x00-\x08\x0b-\x1f\x7f-\x9f]/g;

/** Of our own programs inside; see `kernel-image/agent/log.ts`. */
const OURS = /^cellbox (?:(\d{4}-\d\d-\d\dT\S+Z) )?(agent|supervisor|gateway):? (.*)$/;
/** Of the kernel gateway, as Jupyter writes it; its time is the machine's local one. */
const JUPYTER = /^\[([DIWEC]) (\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d[.,]\d{3}) \w+\] ?(.*)$/;
const JUPYTER_LEVELS: Record<string, LogLevel> = { D: 'debug', W: 'warn', E: 'error', C: 'error' };

/**
 * What the programs of a machine said, as lines of its sandbox's log. Root inside can write there whatever it likes, so
 * times are believed only from `start` to `end` (milliseconds since the epoch); a line without one has that of the line before.
 */
export function toLogRecords(lines: readonly OutputLine[], start: number, end: number): LogRecord[] {
  let last = start;
  return lines.flatMap(({ at, text }) => {
    const line = text.trimEnd().replace(CONTROL, '');
    if (line === '') return [];
    const { said, logger, level, message } = readLine(line);
    const time = at ?? said ?? last;
    // Inverted on purpose: a time that is none is not believed either.
    if (time >= start && time <= end) last = time;
    const cut = message.length > MAX_MESSAGE_CHARS ? `${message.slice(0, MAX_MESSAGE_CHARS)}…` : message;
    return [{ at: last, level, message: cut, fields: { logger } }];
  });
}

function readLine(line: string): {
  said: number | undefined;
  logger: string;
  level: LogLevel;
  message: string;
} {
  const [, time, name, rest = ''] = OURS.exec(line) ?? [];
  if (name !== undefined) {
    const said = time === undefined ? undefined : Date.parse(time);
    // Agent and supervisor speak up only when something is not as it should be.
    return { said, logger: name, level: name === 'gateway' ? 'info' : 'warn', message: rest };
  }
  const [, letter, day, clock = '', text = ''] = JUPYTER.exec(line) ?? [];
  if (letter !== undefined) {
    const said = Date.parse(`${day}T${clock.replace(',', '.')}`);
    return { said, logger: 'gateway', level: JUPYTER_LEVELS[letter] ?? 'info', message: text };
  }
  return { said: undefined, logger: 'sandbox', level: 'info', message: line };
}
