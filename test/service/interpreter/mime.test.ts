import fc from 'fast-check';
import { ResultFields } from '../../../protocol/interpreter';
import { toResultFields } from '../../../service/interpreter/mime';

describe('toResultFields', () => {
  it('gives each well-known type its field and the others their name under extra', () => {
    expect(
      toResultFields({
        'text/plain': 't',
        'text/html': 'h',
        'text/markdown': 'm',
        'image/svg+xml': 's',
        'image/png': 'p',
        'image/jpeg': 'j',
        'application/pdf': 'f',
        'text/latex': 'l',
        'application/json': [1, { a: null }],
        'application/javascript': 'js',
        'e2b/data': { a: [1] },
        'e2b/chart': {},
        'image/gif': 'g',
      }),
    ).toEqual({
      text: 't',
      html: 'h',
      markdown: 'm',
      svg: 's',
      png: 'p',
      jpeg: 'j',
      pdf: 'f',
      latex: 'l',
      json: [1, { a: null }],
      javascript: 'js',
      data: { a: [1] },
      chart: {},
      extra: { 'image/gif': 'g' },
    });
  });

  it.each([
    [`'it's'`, `it's`],
    [`"a\\nb"`, `a\\nb`],
    [`''`, ``],
    [`'`, `'`],
    [`'a"`, `'a"`],
    [`1`, `1`],
    [``, ``],
  ])('shows the text %s as %s', (text, shown) => {
    expect(toResultFields({ 'text/plain': text }).text).toBe(shown);
  });

  it('keeps the quotes of everything but text', () => {
    expect(toResultFields({ 'text/html': "'x'" }).html).toBe("'x'");
  });

  it('leaves out null, joins lists of lines, and writes other values as JSON', () => {
    expect(toResultFields({ 'text/plain': null, 'text/html': ['a\n', 'b'], 'text/latex': { a: 1 } })).toEqual(
      { html: 'a\nb', latex: '{"a":1}', extra: {} },
    );
  });

  it('keeps data and charts that are no objects apart, as clients can not use them', () => {
    expect(toResultFields({ 'e2b/data': [1], 'e2b/chart': 'x' })).toEqual({
      extra: { 'e2b/data': [1], 'e2b/chart': 'x' },
    });
  });

  it('takes __proto__ for a name like any other', () => {
    const bundle = JSON.parse('{"__proto__": "x", "constructor": "y"}') as Record<string, unknown>;
    expect(JSON.stringify(toResultFields(bundle))).toBe('{"extra":{"__proto__":"x","constructor":"y"}}');
  });

  it('makes something valid of every bundle', () => {
    const types = fc.constantFrom(
      'text/plain',
      'image/png',
      'e2b/data',
      'e2b/chart',
      'application/json',
      'a/b',
    );
    fc.assert(
      fc.property(fc.dictionary(types, fc.jsonValue()), (bundle) => {
        expect(ResultFields.safeParse(toResultFields(bundle)).success).toBe(true);
      }),
    );
  });
});
