import fc from 'fast-check';
import { decodeLines, encodeLine } from '../../protocol/ndjson';

async function* chunksOf(bytes: Uint8Array, size: number): AsyncGenerator<Uint8Array> {
  for (let start = 0; start < bytes.length; start += size) yield bytes.subarray(start, start + size);
}

async function collect(values: AsyncIterable<unknown>): Promise<unknown[]> {
  const all: unknown[] = [];
  for await (const value of values) all.push(value);
  return all;
}

describe('encodeLine', () => {
  it.each([
    ['an accent', 'h\u00e9', '{"v":"h\\u00e9"}\n'],
    ['a line separator of Unicode', '\u2028\u2029\u0085', '{"v":"\\u2028\\u2029\\u0085"}\n'],
    ['a line break', 'a\nb\r', '{"v":"a\\nb\\r"}\n'],
    ['a character beyond the BMP', '\u{1F600}', '{"v":"\\ud83d\\ude00"}\n'],
    ['a lone surrogate', '\ud800', '{"v":"\\ud800"}\n'],
    ['DEL', '\u007f', '{"v":"\\u007f"}\n'],
  ])('escapes %s', (_name, value, line) => {
    expect(encodeLine({ v: value })).toBe(line);
  });

  it('writes one line of printable ASCII that means the same, whatever the value', () => {
    fc.assert(
      fc.property(fc.dictionary(fc.string({ unit: 'binary' }), fc.string({ unit: 'binary' })), (value) => {
        const line = encodeLine(value);
        expect(line).toMatch(/^[\x20-\x7e]*\n$/);
        expect(JSON.parse(line)).toEqual(JSON.parse(JSON.stringify(value)));
      }),
    );
  });

  it('never writes NaN or Infinity', () => {
    expect(encodeLine({ a: NaN, b: -Infinity })).toBe('{"a":null,"b":null}\n');
  });
});

describe('decodeLines', () => {
  const bytes = new TextEncoder().encode('{"a":"h\u00e9\u{1F600}"}\n\n{"b":[1,\r\n 2]}');

  it.each([1, 2, 3, 7, 1000])('reads raw UTF-8 lines from chunks of %d bytes', async (size) => {
    const text = new TextEncoder().encode('{"a":"h\u00e9\u{1F600}"}\n\n{"b":2}');
    expect(await collect(decodeLines(chunksOf(text, size)))).toEqual([{ a: 'h\u00e9\u{1F600}' }, { b: 2 }]);
  });

  it('rejects a line that is not JSON', async () => {
    await expect(collect(decodeLines(chunksOf(bytes, 4)))).rejects.toThrow(SyntaxError);
  });
});
