import { execFileSync } from 'node:child_process';
import fs from 'node:fs/promises';
import type http from 'node:http';
import os from 'node:os';
import path from 'node:path';
import { requestedMetadata } from '../../kernel-image/agent/file-metadata';
import { readFileMetadata, readMetadata, replaceFileMetadata } from '../../kernel-image/agent/xattr';
import { Machine } from './agent-fixture';

const OCTETS = { 'content-type': 'application/octet-stream' };

/** Attributes are set by another program, which sees what is really there. */
function python(code: string, ...args: string[]): string {
  return execFileSync('python3', ['-c', `import os, sys, json\n${code}`, ...args], { encoding: 'utf8' });
}

function attributesOf(file: string): Record<string, string> {
  const code = 'f = sys.argv[1]; print(json.dumps({n: os.getxattr(f, n).decode() for n in os.listxattr(f)}))';
  return JSON.parse(python(code, file)) as Record<string, string>;
}

async function whyNoAttributes(): Promise<string | undefined> {
  const directory = await fs.mkdtemp(path.join(os.tmpdir(), 'xattr-'));
  try {
    python('open(sys.argv[1], "w"); os.setxattr(sys.argv[1], "user.e2b.x", b"1")', path.join(directory, 'x'));
    return undefined;
  } catch (error) {
    return String(error);
  } finally {
    await fs.rm(directory, { recursive: true });
  }
}

describe('metadata of files', () => {
  let machine: Machine;
  let missing: string | undefined;

  beforeAll(async () => {
    missing = await whyNoAttributes();
    if (missing !== undefined) console.warn(`skipped, files carry no attributes here: ${missing}`);
    machine = await Machine.make();
    await machine.start('agent');
  });

  afterAll(() => machine.close());

  const onDisk = (name: string) => path.join(machine.home, name);
  const json = (answer: { body: Buffer }) => JSON.parse(answer.body.toString()) as unknown;
  const write = (name: string, headers: http.OutgoingHttpHeaders) =>
    machine.request('POST', `/files?path=${name}`, { headers: { ...OCTETS, ...headers }, body: 'content' });
  const stat = async (name: string) => {
    const answer = await machine.request('POST', '/filesystem.Filesystem/Stat', {
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ path: name }),
    });
    return (json(answer) as { entry: { metadata?: Record<string, string> } }).entry.metadata;
  };

  it('is kept, told with the answer and the entry, and gone after an upload without', async () => {
    if (missing !== undefined) return;
    const metadata = { author: 'me', 'x.y_z': 'two words: ~!"%' };
    const headers = { 'X-Metadata-Author': 'me', 'x-metadata-X.Y_z': metadata['x.y_z'] };
    expect(json(await write('a', headers))).toEqual([
      { path: '/home/user/a', name: 'a', type: 'file', metadata },
    ]);
    expect(attributesOf(onDisk('a'))).toEqual({
      'user.e2b.author': 'me',
      'user.e2b.x.y_z': metadata['x.y_z'],
    });
    expect(await stat('a')).toEqual(metadata);
    await fs.symlink('a', onDisk('link'));
    expect(await stat('link')).toEqual(metadata);
    expect(json(await write('a', { 'x-metadata-author': 'you' }))).toMatchObject([
      { metadata: { author: 'you' } },
    ]);
    expect(attributesOf(onDisk('a'))).toEqual({ 'user.e2b.author': 'you' });
    expect(json(await write('a', {}))).toEqual([{ path: '/home/user/a', name: 'a', type: 'file' }]);
    expect(attributesOf(onDisk('a'))).toEqual({});
    expect(await stat('a')).toBeUndefined();
  });

  it('is set on every file of a request, and travels with a file that is moved', async () => {
    if (missing !== undefined) return;
    const part = (name: string) =>
      `--B\r\nContent-Disposition: form-data; name="file"; filename="${name}"\r\n\r\nx\r\n`;
    const answer = await machine.request('POST', '/files', {
      headers: { 'content-type': 'multipart/form-data; boundary=B', 'x-metadata-k': 'v' },
      body: `${part('m1')}${part('m2')}--B--\r\n`,
    });
    expect(json(answer)).toMatchObject([{ metadata: { k: 'v' } }, { metadata: { k: 'v' } }]);
    await machine.request('POST', '/filesystem.Filesystem/Move', {
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ source: 'm1', destination: 'm3' }),
    });
    expect(await stat('m3')).toEqual({ k: 'v' });
  });

  it('tells what programs inside set, without what is not text or not metadata', async () => {
    if (missing !== undefined) return;
    await write('inside', {});
    const code =
      'for n, v in [(b"user.e2b.good", b"\\xc3\\xbc"), (b"user.e2b.bad", b"\\xff"), (b"user.e2b.\\xff", b"x"), (b"user.e2b.empty", b""), (b"user.other", b"x"), (b"user.e2b.__proto__", b"p")]: os.setxattr(sys.argv[1], n, v)';
    python(code, onDisk('inside'));
    const expected = Object.fromEntries([
      ['good', 'ü'],
      ['empty', ''],
      ['__proto__', 'p'],
    ]);
    expect(readMetadata(onDisk('inside'))).toEqual(expected);
    expect(readMetadata(Buffer.from(onDisk('inside')))).toEqual(expected);
    expect(await stat('inside')).toMatchObject({ good: 'ü', empty: '' });
    // Another upload clears metadata, also what could not be told, and nothing else.
    await write('inside', {});
    expect(attributesOf(onDisk('inside'))).toEqual({ 'user.other': 'x' });
    expect(readMetadata(onDisk('not-there'))).toEqual({});
  });

  it('touches nothing that is as it should be', async () => {
    if (missing !== undefined) return;
    await fs.writeFile(onDisk('same'), '');
    const file = await fs.open(onDisk('same'), 'r+');
    const changedAt = async () => (await file.stat({ bigint: true })).ctimeNs;
    try {
      replaceFileMetadata(file.fd, { a: '1', b: '' });
      const before = await changedAt();
      replaceFileMetadata(file.fd, { b: '', a: '1' });
      expect(await changedAt()).toBe(before);
      replaceFileMetadata(file.fd, { a: '2', c: '3' });
      expect(readFileMetadata(file.fd)).toEqual({ a: '2', c: '3' });
      replaceFileMetadata(file.fd, {});
      expect(attributesOf(onDisk('same'))).toEqual({});
    } finally {
      await file.close();
    }
  });

  it('is no reason to refuse a file where nothing can carry it', async () => {
    const disk = onDisk('proc-like');
    await fs.mkdir(disk);
    try {
      execFileSync('mount', ['-t', 'ramfs', 'ramfs', disk], { stdio: 'pipe' });
    } catch (error) {
      console.warn(`skipped, no file system can be mounted here: ${String(error)}`);
      return;
    }
    try {
      expect(json(await write('proc-like/x', { 'x-metadata-a': 'b' }))).toEqual([
        { path: '/home/user/proc-like/x', name: 'x', type: 'file' },
      ]);
      expect(await fs.readFile(path.join(disk, 'x'), 'utf8')).toBe('content');
    } finally {
      execFileSync('umount', ['--lazy', disk]);
    }
  });

  it.each([
    ['no key', { 'x-metadata-': 'v' }],
    ['a key that is too long', { [`x-metadata-${'k'.repeat(247)}`]: 'v' }],
    ['a value that is not ASCII', { 'x-metadata-k': 'ü' }],
    ['a value with a control character', { 'x-metadata-k': 'a\tb' }],
    ['too much of it', { 'x-metadata-k': 'v'.repeat(4087) }],
  ])('is refused with %s, and no file is made', async (_what, headers) => {
    const answer = await write('refused', headers);
    expect(answer.status).toBe(400);
    expect(json(answer)).toMatchObject({ code: 400, message: expect.stringContaining('metadata') as string });
    await expect(fs.stat(onDisk('refused'))).rejects.toMatchObject({ code: 'ENOENT' });
  });
});

describe('requestedMetadata', () => {
  it('takes the first header of several, in any case, and no other headers', () => {
    const rawHeaders = ['Host', 'a', 'X-Metadata-A', 'first', 'x-metadata-a', 'second', 'X-METADATA-B', ''];
    expect(requestedMetadata({ rawHeaders })).toEqual({ a: 'first', b: '' });
  });

  it('takes as much as fits, names of attributes counted', () => {
    const most = ['x-metadata-k', 'v'.repeat(4086)];
    expect(Object.keys(requestedMetadata({ rawHeaders: most }))).toEqual(['k']);
    expect(() => requestedMetadata({ rawHeaders: [...most, 'x-metadata-l', ''] })).toThrow(/4106 bytes/);
    expect(requestedMetadata({ rawHeaders: [`x-metadata-${'k'.repeat(246)}`, ''] })).toEqual({
      ['k'.repeat(246)]: '',
    });
  });
});
