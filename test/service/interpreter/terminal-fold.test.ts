import fc from 'fast-check';
import { foldReturns, overwrites } from '../../../service/interpreter/terminal-fold';

/** What a terminal shows of a text, one cell at a time. */
function screen(text: string): string[] {
  const lines: string[][] = [[]];
  let column = 0;
  for (const character of text) {
    if (character === '\n') {
      lines.push([]);
      column = 0;
    } else if (character === '\r') column = 0;
    else (lines.at(-1) ?? [])[column++] = character;
  }
  return lines.map((line) => line.join(''));
}

it.each([
  ['10%\r20%\r30%\n', true, '30%\n'],
  ['long line\rshort\n', true, 'shortline\n'],
  ['a\r\nb\r\n', true, 'a\r\nb\r\n'],
  ['one\ntwo\rTWO', true, 'one\nTWO'],
  ['\r 20%', false, '\r 20%'],
  ['rest\rnew', false, 'rest\rnew'],
  ['\r10%\r20%', false, '\r20%'],
  ['10%\r', true, '10%\r'],
  ['100%\r5%', true, '5%0%\r5%'],
  ['plain', true, 'plain'],
])('folds %j (at a line start: %j)', (text, atLineStart, folded) => {
  expect(foldReturns(text, atLineStart)).toBe(folded);
});

it.each([
  ['a\r\n', false],
  ['a\rb', true],
  ['\r', true],
  ['', false],
])('tells whether %j overwrites anything', (text, expected) => {
  expect(overwrites(text)).toBe(expected);
});

it('shows what a terminal shows, whatever was there before and comes after', () => {
  const texts = fc.string({ unit: fc.constantFrom('a', 'b', ' ', '\r', '\n') });
  fc.assert(
    fc.property(texts, texts, texts, (before, text, after) => {
      const atLineStart = before === '' || before.endsWith('\n');
      const folded = foldReturns(text, atLineStart);
      expect(folded.length).toBeLessThanOrEqual(text.length);
      expect(screen(before + folded + after)).toEqual(screen(before + text + after));
    }),
  );
});
