import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { readFileState } from '../../../kernel-image/agent/filesystem/file-state';

describe('readFileState', () => {
  let directory: string;

  beforeEach(() => (directory = fs.mkdtempSync(path.join(os.tmpdir(), 'cellbox-state-'))));
  afterEach(() => fs.rmSync(directory, { recursive: true, force: true }));

  it.each([
    ['a file', (place: string) => fs.writeFileSync(place, 'x'.repeat(12_345), { mode: 0o640 }), 0],
    ['a directory', (place: string) => fs.mkdirSync(place, { mode: 0o711 }), 1.5e9],
    ['a link that leads nowhere', (place: string) => fs.symlinkSync('nowhere', place), undefined],
    ['a file of before the epoch', (place: string) => fs.closeSync(fs.openSync(place, 'w')), -1.25],
    ['a file with a part of a second', (place: string) => fs.closeSync(fs.openSync(place, 'w')), 1.000_25],
    ['a file of five gigabytes', (place: string) => sparse(place, 5 * 1024 ** 3), 1.5e9],
  ])('tells of %s what Node tells', (_kind, make, modified) => {
    const place = path.join(directory, 'ünïcode name\n');
    make(place);
    if (modified !== undefined) fs.utimesSync(place, modified, modified);
    const expected = fs.lstatSync(place, { bigint: true });
    const opened = fs.openSync(directory, 'r');
    const within = [path.basename(place), Buffer.from(path.basename(place))];
    const states = [
      ...[place, Buffer.from(place)].map((spelling) => readFileState(spelling)),
      ...within.map((name) => readFileState('/nowhere', { directory: opened, name })),
    ];
    fs.closeSync(opened);
    for (const state of states) {
      expect(state).toEqual({
        mode: Number(expected.mode),
        uid: Number(expected.uid),
        gid: Number(expected.gid),
        size: Number(expected.size),
        modifiedSeconds: expect.any(Number) as number,
        modifiedNanos: expect.any(Number) as number,
        changedMs: expect.closeTo(Number(expected.ctimeNs) / 1e6, 3) as number,
        device: expect.any(Number) as number,
        inode: Number(expected.ino),
      });
      expect(BigInt(state.modifiedSeconds) * 1_000_000_000n + BigInt(state.modifiedNanos)).toBe(
        expected.mtimeNs,
      );
    }
  });

  it('fails as Node does where nothing is', () => {
    expect(() => readFileState(path.join(directory, 'nothing'))).toThrow(
      expect.objectContaining({ code: 'ENOENT' }) as Error,
    );
    expect(() => readFileState(path.join(directory, 'x'.repeat(256)))).toThrow(
      expect.objectContaining({ code: 'ENAMETOOLONG' }) as Error,
    );
  });
});

function sparse(place: string, size: number): void {
  const fd = fs.openSync(place, 'w');
  fs.ftruncateSync(fd, size);
  fs.closeSync(fd);
}
