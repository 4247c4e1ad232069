// DEL and everything beyond ASCII. `JSON.stringify` escapes the control characters below by itself.
const NOT_PLAIN_ASCII = /[\u007f-\uffff]/g;
const LINE_FEED = '\n';

function escapeCodeUnit(unit: string): string {
  return `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`;
}

/**
 * One JSON value as one line, `\n` included, in ASCII only.
 *
 * ASCII because clients decode each network chunk by itself (a character cut in two is destroyed) and because some
 * split lines at U+2028, U+2029 and U+0085 too. Characters beyond the BMP become two escapes, lone surrogates one.
 */
export function encodeLine(value: object): string {
  return JSON.stringify(value).replace(NOT_PLAIN_ASCII, escapeCodeUnit) + LINE_FEED;
}

/**
 * The JSON values of a stream of lines, whatever the chunk boundaries. Blank lines are skipped; a last line without
 * `\n` counts.
 *
 * @throws SyntaxError when a line is not JSON.
 */
export async function* decodeLines(chunks: AsyncIterable<Uint8Array | string>): AsyncGenerator<unknown> {
  const decoder = new TextDecoder();
  let rest = '';
  for await (const chunk of chunks) {
    rest += typeof chunk === 'string' ? chunk : decoder.decode(chunk, { stream: true });
    const lines = rest.split(LINE_FEED);
    rest = lines.pop() ?? '';
    for (const line of lines) if (line.trim() !== '') yield JSON.parse(line);
  }
  rest += decoder.decode();
  if (rest.trim() !== '') yield JSON.parse(rest);
}
