import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { ParsedFile } from '../../kernel-image/agent/parsed-file';
import { systemUsers } from '../../kernel-image/agent/users';

const HOUR_S = 3600;

describe('a parsed file', () => {
  let directory: string;
  let file: string;
  let parsed: string[];
  const parse = (text: string) => {
    parsed.push(text);
    return text.toUpperCase();
  };
  /** Changes are long past for it, as they are for nearly every request. */
  const later = () => Date.now() + HOUR_S * 1000;

  beforeEach(async () => {
    directory = await fs.mkdtemp(path.join(os.tmpdir(), 'parsed-'));
    file = path.join(directory, 'file');
    parsed = [];
    await fs.writeFile(file, 'one');
  });

  afterEach(() => fs.rm(directory, { recursive: true }));

  it('is read once as long as it stays the same', () => {
    const reader = new ParsedFile(file, parse, later);
    expect([reader.read(), reader.read(), reader.read()]).toEqual(['ONE', 'ONE', 'ONE']);
    expect(parsed).toEqual(['one']);
  });

  it.each([
    ['written over', () => fs.writeFile(file, 'three')],
    ['added to', () => fs.appendFile(file, ' and more')],
    [
      'replaced by one of the same size and time',
      async () => {
        const { atime, mtime } = await fs.stat(file);
        await fs.writeFile(`${file}.next`, 'two');
        await fs.utimes(`${file}.next`, atime, mtime);
        await fs.rename(`${file}.next`, file);
      },
    ],
    [
      'written over with as many bytes, its time set back',
      async () => {
        const { atime, mtime, ctimeMs } = await fs.stat(file);
        // The kernel's clock of changes goes in steps: until it has gone on, nothing but the guard below tells.
        do {
          await fs.writeFile(file, 'two');
          await fs.utimes(file, atime, mtime);
        } while ((await fs.stat(file)).ctimeMs === ctimeMs);
      },
    ],
  ])('is read again when it was %s', async (_what, change) => {
    const reader = new ParsedFile(file, parse, later);
    expect(reader.read()).toBe('ONE');
    await change();
    const text = await fs.readFile(file, 'utf8');
    expect([reader.read(), reader.read()]).toEqual([text.toUpperCase(), text.toUpperCase()]);
    expect(parsed).toEqual(['one', text]);
  });

  it('is read again while it changed just now, as it could change in the same step of the clock', async () => {
    const { ctimeMs } = await fs.stat(file);
    const reader = new ParsedFile(file, parse, () => ctimeMs + 999);
    expect([reader.read(), reader.read()]).toEqual(['ONE', 'ONE']);
    expect(parsed).toEqual(['one', 'one']);
  });

  it('is an error when it is gone, and read when it is back', async () => {
    const reader = new ParsedFile(file, parse, later);
    expect(reader.read()).toBe('ONE');
    await fs.rename(file, `${file}.gone`);
    expect(() => reader.read()).toThrow(expect.objectContaining({ code: 'ENOENT' }));
    await fs.writeFile(file, 'back');
    expect(reader.read()).toBe('BACK');
  });

  it('tells of users and members at once when they come and go', async () => {
    const groupFile = path.join(directory, 'group');
    await fs.writeFile(file, 'user:x:1000:1000::/home/user:/bin/sh\n');
    await fs.writeFile(groupFile, 'user:x:1000:\n');
    const users = systemUsers(file, groupFile);
    const user = users.find('user');
    expect(() => users.find('guest')).toThrow("user 'guest' does not exist in this sandbox");
    expect(users.groups(user)).toEqual([1000]);
    await fs.appendFile(file, 'guest:x:1001:1001::/home/guest:/bin/sh\n');
    await fs.appendFile(groupFile, 'video:x:44:user\n');
    expect(users.find('guest')).toMatchObject({ uid: 1001, home: '/home/guest' });
    expect(users.groups(user)).toEqual([1000, 44]);
    await fs.writeFile(file, 'user:x:1000:1000::/home/user:/bin/sh\n');
    expect(() => users.find('guest')).toThrow('does not exist');
  });
});
