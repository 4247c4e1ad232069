import fc from 'fast-check';
import { Utf8Chunks } from '../../kernel-image/agent/utf8-chunks';

describe('Utf8Chunks', () => {
  it('gives the bytes of all pieces in order, whatever they consist of', () => {
    const piece = fc.oneof(fc.string({ unit: 'binary' }), fc.string({ unit: 'binary-ascii', maxLength: 5 }));
    fc.assert(
      fc.property(fc.array(piece), fc.nat(200_000), (pieces, filler) => {
        const all = ['é'.repeat(filler), ...pieces, '€'.repeat(filler), ...pieces];
        const chunks = new Utf8Chunks();
        for (const text of all) chunks.add(text);
        expect(Buffer.concat(chunks.take()).equals(Buffer.from(all.join('')))).toBe(true);
      }),
      { numRuns: 50 },
    );
  });

  it('gives nothing for nothing', () => {
    expect(Buffer.concat(new Utf8Chunks().take())).toHaveLength(0);
  });
});
