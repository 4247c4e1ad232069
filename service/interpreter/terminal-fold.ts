/** A carriage return that is not half of a line's end. */
const RETURN = /\r(?!\n)/;

/** Whether a terminal would show less than this text has. */
export function overwrites(text: string): boolean {
  return RETURN.test(text);
}

/**
 * Text as a terminal shows it when all of it comes at once: what is written over is left out. The first line may go on
 * from one that was sent before, so one carriage return stays in it. Line ends are what they were.
 */
export function foldReturns(text: string, atLineStart: boolean): string {
  const lines = text.split('\n');
  return lines
    .map((line, position) => {
      const isLast = position === lines.length - 1;
      // Before a line feed it is part of the line's end.
      const end = !isLast && line.endsWith('\r') ? '\r' : '';
      const shown = end === '' ? line : line.slice(0, -1);
      return foldLine(shown, position > 0 || atLineStart, isLast) + end;
    })
    .join('\n');
}

function foldLine(line: string, atLineStart: boolean, goesOn: boolean): string {
  if (!line.includes('\r')) return line;
  const [first = '', ...rest] = line.split('\r');
  const written = rest.reduce(overwrite, atLineStart ? first : '');
  // What comes next is written where this ended, which may be further left.
  const last = rest.at(-1) ?? '';
  const cursor = goesOn && last.length < written.length ? `\r${last}` : '';
  return `${atLineStart ? '' : `${first}\r`}${written}${cursor}`;
}

function overwrite(shown: string, next: string): string {
  return next + shown.slice(next.length);
}
