import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { readFileState } from '../../../kernel-image/agent/filesystem/file-state';
import { WithoutMetadata } from '../../../kernel-image/agent/filesystem/without-metadata';
import { replaceFileMetadata } from '../../../kernel-image/agent/xattr';

describe('WithoutMetadata', () => {
  let directory: string;
  let file: string;
  const anHourLater = (): number => Date.now() + 3_600_000;

  beforeEach(() => {
    directory = fs.mkdtempSync(path.join(os.tmpdir(), 'cellbox-without-'));
    file = path.join(directory, 'file');
    fs.writeFileSync(file, 'text');
  });
  afterEach(() => fs.rmSync(directory, { recursive: true }));

  function attach(metadata: Record<string, string>): void {
    const fd = fs.openSync(file, 'r+');
    try {
      replaceFileMetadata(fd, metadata);
    } finally {
      fs.closeSync(fd);
    }
  }

  it('tells what is attached to a file that had nothing when it was last asked about', () => {
    const known = new WithoutMetadata(anHourLater);
    expect(known.metadataOf(readFileState(file), file)).toEqual({});
    attach({ color: 'red' });
    expect(known.metadataOf(readFileState(file), file)).toEqual({ color: 'red' });
    attach({});
    expect(known.metadataOf(readFileState(file), file)).toEqual({});
  });

  it('does not ask again about a file that has not changed', () => {
    const known = new WithoutMetadata(anHourLater);
    const state = readFileState(file);
    known.metadataOf(state, file);
    attach({ color: 'red' });
    expect(known.metadataOf(state, file)).toEqual({}); // as if nothing had changed
  });

  it('asks again about a file that changed in the same moment', () => {
    const state = readFileState(file);
    const known = new WithoutMetadata(() => state.changedMs);
    known.metadataOf(state, file);
    attach({ color: 'red' });
    expect(known.metadataOf(state, file)).toEqual({ color: 'red' });
  });

  it('tells another file in the place of one from it', () => {
    const known = new WithoutMetadata(anHourLater);
    const first = readFileState(file);
    known.metadataOf(first, file);
    const other = path.join(directory, 'other');
    fs.writeFileSync(other, 'text');
    fs.renameSync(other, file);
    attach({ color: 'red' });
    expect(known.metadataOf(readFileState(file), file)).toEqual({ color: 'red' });
  });

  it('forgets when there are more files than it keeps', () => {
    const known = new WithoutMetadata(anHourLater);
    const state = readFileState(file);
    known.metadataOf(state, file);
    for (let inode = 1; inode <= 20_000; inode++)
      known.metadataOf({ ...state, device: -1, inode }, directory);
    attach({ color: 'red' });
    expect(known.metadataOf(state, file)).toEqual({ color: 'red' });
  });
});
