import { toJson } from '@bufbuild/protobuf';
import fc from 'fast-check';
import type { FileEntry } from '../../../kernel-image/agent/filesystem/entry';
import { entryMessage, entryText } from '../../../kernel-image/agent/filesystem/entry-codec';
import { EntryInfoSchema, FileType } from '../../../protocol/envd/gen/filesystem_pb';

const MAX_SECONDS = 253_402_300_799;

const entries: fc.Arbitrary<FileEntry> = fc.record({
  name: fc.string({ unit: 'grapheme' }),
  type: fc.constantFrom(FileType.UNSPECIFIED, FileType.FILE, FileType.DIRECTORY),
  path: fc.string({ unit: 'grapheme' }),
  size: fc.maxSafeNat(),
  mode: fc.integer({ min: 0, max: 0o777 }),
  permissions: fc.string({ minLength: 1 }),
  owner: fc.string(),
  group: fc.string(),
  modifiedSeconds: fc.oneof(fc.integer({ min: -62_135_596_800, max: MAX_SECONDS }), fc.constant(0)),
  modifiedNanos: fc.oneof(
    fc.integer({ min: 0, max: 999_999_999 }),
    fc.constantFrom(0, 120_000_000, 123_456_000),
  ),
  symlinkTarget: fc.option(fc.string({ unit: 'grapheme' }), { nil: undefined }),
  // The message's own conversion assigns, and loses this one name.
  metadata: fc.dictionary(
    fc.string().filter((key) => key !== '__proto__'),
    fc.string(),
  ),
});

describe('entryText', () => {
  it('gives what the message gives as JSON', () => {
    fc.assert(
      fc.property(entries, (entry) => {
        expect(JSON.parse(entryText(entry))).toEqual(toJson(EntryInfoSchema, entryMessage(entry)));
      }),
    );
  });

  it.each([
    ['after the last year that the protocol can tell', MAX_SECONDS + 1, '9999-12-31T23:59:59Z'],
    ['before its first', -62_135_596_801, '0001-01-01T00:00:00Z'],
  ])('tells the nearest time for one %s', (_case, modifiedSeconds, modifiedTime) => {
    const [entry] = fc.sample(entries, 1);
    const odd = { ...(entry as FileEntry), modifiedSeconds, modifiedNanos: 0 };
    expect(JSON.parse(entryText(odd))).toMatchObject({ modifiedTime });
    expect(toJson(EntryInfoSchema, entryMessage(odd))).toMatchObject({ modifiedTime });
  });
});
