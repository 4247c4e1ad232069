import { execFileSync } from 'node:child_process';
import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { Machine } from '../agent-fixture';

interface Entry {
  name: string;
  path: string;
  type?: string;
  [field: string]: unknown;
}

interface Reply {
  status: number;
  body: { code?: string; message?: string; entry?: Entry; entries?: Entry[] };
}

const { username } = os.userInfo();
const asRoot = process.getuid?.() === 0;

describe('the file RPCs', () => {
  let machine: Machine;

  beforeAll(async () => {
    machine = await Machine.make();
    await machine.start('agent');
  });

  afterAll(() => machine.close());

  beforeEach(async () => {
    await fs.rm(machine.home, { recursive: true });
    await fs.mkdir(machine.home);
  });

  const onDisk = (name: string) => path.join(machine.home, name);
  const rpc = async (method: string, request: unknown, headers: Record<string, string> = {}) => {
    const answer = await machine.request('POST', `/filesystem.Filesystem/${method}`, {
      headers: { 'content-type': 'application/json', ...headers },
      body: JSON.stringify(request),
    });
    return { status: answer.status, body: JSON.parse(answer.body.toString()) as Reply['body'] };
  };
  const stat = async (name: string) => (await rpc('Stat', { path: name })).body.entry;
  const list = async (request: unknown) => (await rpc('ListDir', request)).body.entries ?? [];
  const codeOf = async (method: string, request: unknown) => (await rpc(method, request)).body.code;

  describe('Stat', () => {
    it('tells all about a file', async () => {
      await fs.writeFile(onDisk('a.txt'), 'four');
      await fs.chmod(onDisk('a.txt'), 0o644);
      execFileSync('touch', ['-d', '2024-05-06T07:08:09.123456789Z', onDisk('a.txt')]);
      expect(await rpc('Stat', { path: 'a.txt' })).toEqual({
        status: 200,
        body: {
          entry: {
            name: 'a.txt',
            type: 'FILE_TYPE_FILE',
            path: '/home/user/a.txt',
            size: '4',
            mode: 0o644,
            permissions: '-rw-r--r--',
            owner: 'user',
            group: 'user',
            modifiedTime: '2024-05-06T07:08:09.123456789Z',
          },
        },
      });
    });

    it('tells times before 1970, and none for the epoch itself', async () => {
      await fs.writeFile(onDisk('old'), '');
      execFileSync('touch', ['-d', '1960-01-02T03:04:05.25Z', onDisk('old')]);
      expect((await stat('old'))?.['modifiedTime']).toBe('1960-01-02T03:04:05.250Z');
      execFileSync('touch', ['-d', '@0', onDisk('old')]);
      expect((await stat('old'))?.['modifiedTime']).toBeUndefined();
    });

    it('tells directories and devices', async () => {
      await fs.mkdir(onDisk('dir'), 0o755);
      const directory = await stat('dir');
      expect(directory).toMatchObject({
        type: 'FILE_TYPE_DIRECTORY',
        mode: 0o755,
        permissions: 'drwxr-xr-x',
      });
      expect(Number(directory?.['size'])).toBeGreaterThan(0);
      expect(await stat('/dev/null')).toMatchObject({ permissions: 'Dcrw-rw-rw-', owner: expect.anything() });
      expect((await stat('/dev/null'))?.type).toBeUndefined();
      expect(await stat('/')).toMatchObject({ name: '/', path: '/', type: 'FILE_TYPE_DIRECTORY' });
    });

    it('tells a link with type and mode of its target, and where it leads in the spelling of callers', async () => {
      await fs.mkdir(onDisk('dir'));
      await fs.writeFile(onDisk('dir/file'), 'content');
      await fs.chmod(onDisk('dir/file'), 0o640);
      await fs.symlink('dir', onDisk('to-dir'));
      await fs.symlink('to-dir/file', onDisk('link'));
      expect(await stat('link')).toMatchObject({
        type: 'FILE_TYPE_FILE',
        mode: 0o640,
        permissions: 'Lrwxrwxrwx',
        size: String('to-dir/file'.length),
        symlinkTarget: '/home/user/dir/file',
      });
      expect(await stat('to-dir')).toMatchObject({
        type: 'FILE_TYPE_DIRECTORY',
        symlinkTarget: '/home/user/dir',
      });
      expect((await stat('dir'))?.['symlinkTarget']).toBeUndefined();
    });

    it('tells links that lead nowhere as themselves, of no type', async () => {
      await fs.symlink('missing', onDisk('dangling'));
      await fs.symlink('cycle', onDisk('cycle'));
      for (const name of ['dangling', 'cycle']) {
        const entry = await stat(name);
        expect(entry).toMatchObject({ symlinkTarget: `/home/user/${name}`, permissions: 'Lrwxrwxrwx' });
        expect([entry?.type, entry?.['mode']]).toEqual([undefined, undefined]);
      }
    });

    it('keeps the spelling of absolute paths', async () => {
      await fs.mkdir(onDisk('dir'));
      expect(await stat('/home/user/../user/dir/')).toMatchObject({
        name: 'dir',
        path: '/home/user/../user/dir/',
        type: 'FILE_TYPE_DIRECTORY',
      });
    });

    it.each([
      ['a missing file', 'missing', 'not_found'],
      ['a file below a file', 'file/x', 'internal'],
      ['a name that is too long', 'x'.repeat(256), 'invalid_argument'],
      ['a NUL character', 'a\0b', 'invalid_argument'],
      ["another user's home", '~root', 'invalid_argument'],
    ])('refuses %s', async (_what, name, code) => {
      await fs.writeFile(onDisk('file'), '');
      const { body } = await rpc('Stat', { path: name });
      expect(body.code).toBe(code);
      expect(body.message).not.toContain(machine.directory);
    });
  });

  describe('ListDir', () => {
    const tree = async () => {
      for (const name of ['b/c/deep', 'b-/x', 'a', 'ü', 'B']) {
        await fs.mkdir(path.dirname(onDisk(name)), { recursive: true });
        await fs.writeFile(onDisk(name), '');
      }
    };

    it('lists by depth, a directory just before what is in it, siblings in the order of their bytes', async () => {
      await tree();
      const names = async (depth: number) => (await list({ path: '', depth })).map((entry) => entry.path);
      const of = (...found: string[]) => found.map((name) => `/home/user/${name}`);
      expect(await names(0)).toEqual(of('B', 'a', 'b', 'b-', 'ü'));
      expect(await names(1)).toEqual(of('B', 'a', 'b', 'b-', 'ü'));
      expect(await names(2)).toEqual(of('B', 'a', 'b', 'b/c', 'b-', 'b-/x', 'ü'));
      expect(await names(4_294_967_295)).toEqual(of('B', 'a', 'b', 'b/c', 'b/c/deep', 'b-', 'b-/x', 'ü'));
    });

    it('follows a linked root, in its own spelling, and no links below it', async () => {
      await fs.mkdir(onDisk('real/sub'), { recursive: true });
      await fs.writeFile(onDisk('real/sub/file'), '');
      await fs.symlink('/', onDisk('real/up'));
      await fs.symlink('real', onDisk('root'));
      expect(await list({ path: '~/./root/', depth: 3 })).toMatchObject([
        { path: '/home/user/root/sub' },
        { path: '/home/user/root/sub/file' },
        { path: '/home/user/root/up', symlinkTarget: '/', type: 'FILE_TYPE_DIRECTORY' },
      ]);
    });

    it('tells names of any bytes, those that are not UTF-8 with a replacement character', async () => {
      const names = [
        'with space',
        'new\nline',
        ' ',
        '"quoted"',
        '\\',
        '-rf',
        '*',
        '😀',
        'ﬀ',
        'x'.repeat(255),
      ];
      for (const name of names) await fs.writeFile(onDisk(name), '1');
      const inHome = (name: Buffer) => Buffer.concat([Buffer.from(`${machine.home}/`), name]);
      await fs.writeFile(inHome(Buffer.from([0x66, 0xff])), '22');
      await fs.mkdir(inHome(Buffer.from([0xfe])));
      await fs.writeFile(inHome(Buffer.from([0xfe, 0x2f, 0x61])), '333');
      const found = await list({ path: '', depth: 2 });
      const sizes = new Map(found.map((entry) => [entry.name, entry['size']]));
      for (const name of names) expect([name, sizes.get(name)]).toEqual([name, '1']);
      expect(sizes.get('f\ufffd')).toBe('2');
      expect(found.at(-1)).toMatchObject({ path: '/home/user/\ufffd/a', size: '3' });
      // In the order of bytes, in which a name outside the first plane comes last; in UTF-16 it would not.
      const order = found.map((entry) => entry.name);
      expect(order.indexOf('😀')).toBeGreaterThan(order.indexOf('ﬀ'));
    });

    it.each([
      ['a missing directory', 'missing', 'not_found'],
      ['a file', 'file', 'invalid_argument'],
      ['a link to a file', 'to-file', 'invalid_argument'],
      ['a loop of links', 'loop', 'failed_precondition'],
      ['a link that leads nowhere', 'dangling', 'not_found'],
    ])('refuses %s', async (_what, name, code) => {
      await fs.writeFile(onDisk('file'), '');
      await fs.symlink('file', onDisk('to-file'));
      await fs.symlink('loop', onDisk('loop'));
      await fs.symlink('nothing', onDisk('dangling'));
      expect(await codeOf('ListDir', { path: name })).toBe(code);
    });

    it('lists 10,000 files while other requests are answered', async () => {
      await fs.mkdir(onDisk('many'));
      execFileSync('sh', ['-c', 'seq -f file-%05.0f 10000 | xargs touch'], { cwd: onDisk('many') });
      const listing = list({ path: 'many' });
      let answered = 0;
      const health = (async () => {
        for (let done = false; !done;) {
          done = await Promise.race([
            listing.then(() => true),
            machine.request('GET', '/health').then(() => false),
          ]);
          answered += done ? 0 : 1;
        }
      })();
      const entries = await listing;
      await health;
      expect(entries.map((entry) => entry.name)).toEqual((await fs.readdir(onDisk('many'))).sort());
      expect(answered).toBeGreaterThan(0);
    });
  });

  describe('MakeDir', () => {
    it('makes missing parents, all of mode 0755', async () => {
      expect((await rpc('MakeDir', { path: 'a/b c/d' })).body.entry).toMatchObject({
        path: '/home/user/a/b c/d',
        type: 'FILE_TYPE_DIRECTORY',
        permissions: 'drwxr-xr-x',
      });
      for (const name of ['a', 'a/b c']) expect((await fs.stat(onDisk(name))).mode & 0o777).toBe(0o755);
    });

    it.each([
      ['a directory that is there', 'dir', 'already_exists'],
      ['a link to one', 'to-dir', 'already_exists'],
      ['a file', 'file', 'invalid_argument'],
      ['a place below a file', 'file/x/y', 'internal'],
      ['a link that leads nowhere', 'dangling', 'internal'],
      ['the home directory', '', 'already_exists'],
    ])('refuses %s', async (_what, name, code) => {
      await fs.mkdir(onDisk('dir'));
      await fs.symlink('dir', onDisk('to-dir'));
      await fs.symlink('nothing', onDisk('dangling'));
      await fs.writeFile(onDisk('file'), '');
      expect(await codeOf('MakeDir', { path: name })).toBe(code);
    });

    it('makes one tree for twenty calls at once', async () => {
      const calls = Array.from({ length: 20 }, (_, i) => rpc('MakeDir', { path: `x/y/z/${i}` }));
      expect((await Promise.all(calls)).map((reply) => reply.status)).toEqual(calls.map(() => 200));
      expect((await fs.readdir(onDisk('x/y/z'))).length).toBe(20);
    });
  });

  describe('Move', () => {
    it('moves over a file and into missing directories, and tells the new place', async () => {
      await fs.writeFile(onDisk('a'), 'new');
      await fs.mkdir(onDisk('to'));
      await fs.writeFile(onDisk('to/b'), 'old');
      const moved = await rpc('Move', { source: 'a', destination: 'to/b' });
      expect(moved.body.entry).toMatchObject({ path: '/home/user/to/b', size: '3' });
      expect(await fs.readFile(onDisk('to/b'), 'utf8')).toBe('new');
      expect((await rpc('Move', { source: 'to', destination: 'x/y/z' })).status).toBe(200);
      expect(await fs.readFile(onDisk('x/y/z/b'), 'utf8')).toBe('new');
      expect(await fs.readdir(machine.home)).toEqual(['x']);
    });

    it('moves a link itself, and a directory over an empty one', async () => {
      await fs.symlink('/etc', onDisk('link'));
      await fs.mkdir(onDisk('dir/in'), { recursive: true });
      await fs.mkdir(onDisk('empty'));
      expect((await rpc('Move', { source: 'link', destination: 'moved' })).status).toBe(200);
      expect(await fs.readlink(onDisk('moved'))).toBe('/etc');
      expect((await rpc('Move', { source: 'dir', destination: 'empty' })).status).toBe(200);
      expect(await fs.readdir(onDisk('empty'))).toEqual(['in']);
    });

    it('refuses what can not be moved, and makes nothing for it', async () => {
      await fs.mkdir(onDisk('full/in'), { recursive: true });
      await fs.mkdir(onDisk('dir'));
      expect(await codeOf('Move', { source: 'missing', destination: 'new/x' })).toBe('not_found');
      expect(await codeOf('Move', { source: 'dir', destination: 'full' })).toBe('internal');
      expect(await codeOf('Move', { source: 'dir', destination: 'dir/below' })).toBe('internal');
      expect(await codeOf('Move', { source: '', destination: '/tmp/home' })).toBe('invalid_argument');
      expect(await codeOf('Move', { source: 'dir', destination: '' })).toBe('invalid_argument');
      expect((await fs.readdir(machine.home)).sort()).toEqual(['dir', 'full']);
    });
  });

  describe('Remove', () => {
    it('removes files, trees and what is not there', async () => {
      await fs.mkdir(onDisk('tree/a/b'), { recursive: true });
      for (let i = 0; i < 600; i++) await fs.writeFile(onDisk(`tree/a/${i}`), '');
      await fs.writeFile(Buffer.concat([Buffer.from(onDisk('tree/')), Buffer.from([0xff, 0xfe])]), '');
      await fs.writeFile(onDisk('file'), '');
      for (const name of ['tree', 'file', 'missing', 'missing/too']) {
        expect(await rpc('Remove', { path: name })).toEqual({ status: 200, body: {} });
      }
      expect(await fs.readdir(machine.home)).toEqual([]);
    });

    it('never follows a link, not even one spelled as a directory', async () => {
      const kept = path.join(machine.directory, 'kept');
      await fs.mkdir(kept, { recursive: true });
      await fs.writeFile(path.join(kept, 'file'), 'precious');
      await fs.mkdir(onDisk('tree'));
      await fs.symlink(kept, onDisk('tree/link'));
      for (const name of ['link1', 'link2']) await fs.symlink(kept, onDisk(name));
      for (const name of ['tree', 'link1', 'link2///']) {
        expect((await rpc('Remove', { path: name })).status).toBe(200);
      }
      expect(await fs.readdir(machine.home)).toEqual([]);
      expect(await fs.readFile(path.join(kept, 'file'), 'utf8')).toBe('precious');
    });

    it.each(['', '/', '//', '/..', '/home/user/dir/.', '/home/user/dir/..'])('refuses %j', async (name) => {
      await fs.mkdir(onDisk('dir'));
      expect(await codeOf('Remove', { path: name })).toBe('invalid_argument');
      expect(await fs.readdir(machine.home)).toEqual(['dir']);
    });

    it('tells a place below a file as a failure', async () => {
      await fs.writeFile(onDisk('file'), '');
      expect(await codeOf('Remove', { path: 'file/x' })).toBe('internal');
    });
  });

  it('gives an old Python client only what it knows', async () => {
    await fs.writeFile(onDisk('file'), 'x');
    const old = { 'user-agent': 'connect-python' };
    const known = { name: 'file', type: 'FILE_TYPE_FILE', path: '/home/user/file' };
    expect((await rpc('Stat', { path: 'file' }, old)).body).toEqual({ entry: known });
    expect((await rpc('ListDir', {}, old)).body).toEqual({ entries: [known] });
    expect((await rpc('Stat', { path: 'file' }, { 'user-agent': 'connect-python/1' })).body).not.toEqual({
      entry: known,
    });
  });
});

(asRoot ? describe : describe.skip)('the file RPCs of a sandbox with users (needs root)', () => {
  let machine: Machine;

  beforeAll(async () => {
    machine = await Machine.make();
    await fs.chmod(machine.directory, 0o755);
    await machine.start('agent', { CELLBOX_SINGLE_USER: '0', CELLBOX_USER: 'nobody' });
  });

  afterAll(() => machine.close());

  const rpc = async (method: string, request: unknown, user?: string) => {
    const authorization = `Basic ${Buffer.from(`${user}:`).toString('base64')}`;
    const answer = await machine.request('POST', `/filesystem.Filesystem/${method}`, {
      headers: { 'content-type': 'application/json', ...(user === undefined ? {} : { authorization }) },
      body: JSON.stringify(request),
    });
    return JSON.parse(answer.body.toString()) as Reply['body'];
  };

  it('make directories that belong to the caller, and leave those that were there', async () => {
    const made = path.join(machine.directory, 'new', 'dir');
    expect((await rpc('MakeDir', { path: made })).entry).toMatchObject({ owner: 'nobody', path: made });
    expect((await rpc('Stat', { path: path.dirname(made) })).entry).toMatchObject({ owner: 'nobody' });
    expect((await rpc('Stat', { path: machine.directory })).entry).toMatchObject({
      owner: 'root',
      group: 'root',
    });
    expect((await rpc('MakeDir', { path: `${made}/of-root` }, 'root')).entry).toMatchObject({
      owner: 'root',
    });
    const moved = path.join(machine.directory, 'for-move', 'dir');
    await rpc('Move', { source: made, destination: moved });
    expect((await rpc('Stat', { path: path.dirname(moved) })).entry).toMatchObject({ owner: 'nobody' });
  });

  it('give away nothing but what they made when a path goes up again', async () => {
    const place = `${machine.directory}/x/../y/../z/dir`;
    expect((await rpc('MakeDir', { path: place })).code).toBeUndefined();
    for (const name of ['x', 'y', 'z', 'z/dir']) {
      const found = await rpc('Stat', { path: path.join(machine.directory, name) });
      expect([name, found.entry?.['owner']]).toEqual([name, 'nobody']);
    }
    for (const name of [machine.directory, path.dirname(machine.directory), '/']) {
      expect((await fs.stat(name)).uid).toBe(0);
    }
  });

  it('tell numbers that have no name as numbers', async () => {
    const file = path.join(machine.directory, 'foreign');
    await fs.writeFile(file, '');
    await fs.chown(file, 61_234, 61_235);
    expect((await rpc('Stat', { path: file })).entry).toMatchObject({ owner: '61234', group: '61235' });
    expect(username).toBe('root');
  });
});
