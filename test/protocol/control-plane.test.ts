import fc from 'fast-check';
import {
  NewSandbox,
  formatMetadataFilter,
  formatPageToken,
  parseMetadataFilter,
  parsePageToken,
  parseSandboxId,
  parseTemplateReference,
} from '../../protocol/control-plane';

describe('metadata filter', () => {
  it('decodes what SDKs put on the wire', () => {
    const value = new URLSearchParams('metadata=a%3Db%252520c%26x%3Dy%252526z').get('metadata') ?? '';
    expect([...parseMetadataFilter(value)]).toEqual([
      ['a', 'b c'],
      ['x', 'y&z'],
    ]);
  });

  it('takes a filter that was encoded only once', () => {
    expect([...parseMetadataFilter('user=abc&app=prod')]).toEqual([
      ['user', 'abc'],
      ['app', 'prod'],
    ]);
  });

  it('gives back any map that went through the three encodings', () => {
    const text = fc.string({ unit: 'grapheme' });
    fc.assert(
      fc.property(fc.dictionary(text, text), (metadata) => {
        const entries = Object.entries(metadata);
        const query = new URLSearchParams({ metadata: formatMetadataFilter(entries) }).toString();
        const received = new URLSearchParams(query).get('metadata') ?? '';
        expect([...parseMetadataFilter(received)]).toEqual(entries);
      }),
    );
  });

  it('agrees with the encoding of the SDKs, which is URLSearchParams over encoded parts', () => {
    fc.assert(
      fc.property(fc.dictionary(fc.string({ minLength: 1 }), fc.string()), (metadata) => {
        const params = new URLSearchParams();
        for (const [key, value] of Object.entries(metadata)) {
          params.append(encodeURIComponent(key), encodeURIComponent(value));
        }
        const received =
          new URLSearchParams(new URLSearchParams({ metadata: params.toString() }).toString()).get(
            'metadata',
          ) ?? '';
        expect(Object.fromEntries(parseMetadataFilter(received))).toEqual({ ...metadata });
      }),
    );
  });

  it.each(['a', 'a=b&c', '%zz=1', 'a=%ff'])('refuses %j with a reason', (value) => {
    expect(() => parseMetadataFilter(value)).toThrow(/^metadata: /);
  });
});

describe('sandbox id', () => {
  it.each([
    ['i0abc', 'i0abc'],
    ['i0abc-6532622b', 'i0abc'],
    ['i0abc-', 'i0abc'],
    ['I0ABC', undefined],
    ['a-b-c', undefined],
    ['', undefined],
    ['-x', undefined],
    ['a/b', undefined],
    ['a b', undefined],
    ['a\n', undefined],
    ['ä', undefined],
    ['a'.repeat(64), undefined],
  ])('reads %j as %j', (text, id) => {
    expect(parseSandboxId(text)).toBe(id);
  });

  it('gives nothing but lower-case letters and digits, whatever it is given', () => {
    fc.assert(
      fc.property(fc.string(), (text) => {
        const id = parseSandboxId(text);
        if (id !== undefined) expect(id).toMatch(/^[a-z0-9]+$/);
      }),
    );
    fc.assert(
      fc.property(fc.stringMatching(/^[a-z0-9]{1,63}$/), (id) => {
        expect(parseSandboxId(id)).toBe(id);
        expect(parseSandboxId(`${id}-6532622b`)).toBe(id);
      }),
    );
  });
});

describe('template reference', () => {
  it.each([
    ['base', { namespace: undefined, alias: 'base', tag: 'default' }],
    [' Code-Interpreter-V1 ', { namespace: undefined, alias: 'code-interpreter-v1', tag: 'default' }],
    ['Team/name:v1.2', { namespace: 'team', alias: 'name', tag: 'v1.2' }],
    ['A:b@1vcpu-0.5GB', { namespace: undefined, alias: 'a', tag: 'b', size: '1vcpu-0.5gb' }],
    ['a@b', { namespace: undefined, alias: 'a', tag: 'default', size: 'b' }],
    ['a@', undefined],
    ['a@b@c', undefined],
    ['a@b:c', undefined],
    ['@b', undefined],
    ['a/b/c', undefined],
    ['a:', undefined],
    ['a:b:c', undefined],
    ['/a', undefined],
    ['a b', undefined],
    ['', undefined],
  ])('reads %j', (text, reference) => {
    expect(parseTemplateReference(text)).toEqual(reference);
  });
});

describe('page token', () => {
  it('gives back any place in a list', () => {
    fc.assert(
      fc.property(fc.nat(4_102_444_800_000), fc.stringMatching(/^[a-z0-9]{1,63}$/), (startedAt, id) => {
        expect(parsePageToken(formatPageToken({ startedAt, id }))).toEqual({ startedAt, id });
      }),
    );
  });

  it.each(['', 'x', '-', 'a-', '-b', 'a-B', 'a-b-c', 'é-b'])('refuses %j', (text) => {
    expect(parsePageToken(text)).toBeUndefined();
  });
});

describe('NewSandbox', () => {
  it('ignores unknown fields and takes null for absent', () => {
    const parsed = NewSandbox.parse({
      templateID: 'base',
      unknown: { deep: [1] },
      timeout: null,
      metadata: null,
      network: { allowPublicTraffic: null, future: 1 },
    });
    expect(JSON.parse(JSON.stringify(parsed))).toEqual({ templateID: 'base', network: {} });
  });
});
