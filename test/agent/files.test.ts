import { execFileSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import fs from 'node:fs/promises';
import http from 'node:http';
import type net from 'node:net';
import path from 'node:path';
import zlib from 'node:zlib';
import fc from 'fast-check';
import { contentDisposition, parseRanges, sniffType } from '../../kernel-image/agent/download';
import { chooseEncoding, isWorthCompressing } from '../../kernel-image/agent/content-encoding';
import { parsePasswd, resolvePath } from '../../kernel-image/agent/users';
import { fileSignature } from '../../protocol/signature';
import { eventually, Machine } from './agent-fixture';

const OCTETS = { 'content-type': 'application/octet-stream' };
const BOUNDARY = 'XyZ';
const MULTIPART = { 'content-type': `multipart/form-data; boundary=${BOUNDARY}` };

function part(disposition: string, content: Buffer | string, type = 'application/octet-stream'): Buffer {
  const typeLine = type === '' ? '' : `Content-Type: ${type}\r\n`;
  return Buffer.concat([
    Buffer.from(`--${BOUNDARY}\r\nContent-Disposition: form-data; ${disposition}\r\n${typeLine}\r\n`),
    Buffer.from(content),
    Buffer.from('\r\n'),
  ]);
}

const file = (name: string, content: Buffer | string) => part(`name="file"; filename="${name}"`, content);
const multipart = (...parts: Buffer[]) => Buffer.concat([...parts, Buffer.from(`--${BOUNDARY}--\r\n`)]);

describe('files over the tunnel', () => {
  let machine: Machine;

  beforeEach(async () => {
    machine = await Machine.make();
    await machine.start('agent');
  });

  afterEach(() => machine.close());

  const json = (answer: { body: Buffer }) => JSON.parse(answer.body.toString()) as unknown;
  const onDisk = (name: string) => path.join(machine.home, name);
  const read = (name: string, headers: http.OutgoingHttpHeaders = {}) =>
    machine.request('GET', `/files?path=${encodeURIComponent(name)}`, { headers });
  const write = (name: string, body: Buffer | string, headers: http.OutgoingHttpHeaders = OCTETS) =>
    machine.request('POST', `/files?path=${encodeURIComponent(name)}`, { headers, body });

  it('writes and reads bytes as they are, making missing directories', async () => {
    const bytes = randomBytes(300_000);
    const written = await write('a/b c/ü.bin', bytes);
    expect(written.status).toBe(200);
    expect(json(written)).toEqual([{ path: '/home/user/a/b c/ü.bin', name: 'ü.bin', type: 'file' }]);
    expect(await fs.readFile(onDisk('a/b c/ü.bin'))).toEqual(bytes);
    expect((await fs.stat(onDisk('a/b c/ü.bin'))).mode & 0o777).toBe(0o644);
    expect((await fs.stat(onDisk('a'))).mode & 0o777).toBe(0o755);
    const answer = await read('~/a/b c/ü.bin');
    expect(answer).toMatchObject({
      status: 200,
      headers: {
        'content-length': '300000',
        'accept-ranges': 'bytes',
        vary: 'Accept-Encoding',
        'content-disposition': "inline; filename*=utf-8''%C3%BC.bin",
      },
    });
    expect(answer.body).toEqual(bytes);
  });

  it('overwrites: shorter content leaves nothing of the longer, and the mode stays', async () => {
    await write('x.sh', 'a long first version');
    await fs.chmod(onDisk('x.sh'), 0o750);
    await write('x.sh', 'short');
    expect(await fs.readFile(onDisk('x.sh'), 'utf8')).toBe('short');
    expect((await fs.stat(onDisk('x.sh'))).mode & 0o777).toBe(0o750);
  });

  it('gives an empty file with its length of 0, whatever encodings are welcome', async () => {
    await write('empty', '');
    for (const headers of [{}, { 'accept-encoding': 'gzip, deflate' }]) {
      const answer = await read('empty', headers);
      expect(answer).toMatchObject({ status: 200, headers: { 'content-length': '0' } });
      expect(answer.headers['content-encoding']).toBeUndefined();
    }
  });

  it('compresses and decompresses where asked', async () => {
    const text = 'compress me '.repeat(50_000);
    const gzipped = await write('t.txt', zlib.gzipSync(text), { ...OCTETS, 'content-encoding': 'gzip' });
    expect(gzipped.status).toBe(200);
    expect(await fs.readFile(onDisk('t.txt'), 'utf8')).toBe(text);
    const answer = await read('t.txt', { 'accept-encoding': 'gzip, deflate' });
    expect(answer.headers['content-encoding']).toBe('gzip');
    expect(answer.headers['content-length']).toBeUndefined();
    expect(zlib.gunzipSync(answer.body).toString()).toBe(text);
    const parts = await machine.request('POST', '/files', {
      headers: { ...MULTIPART, 'content-encoding': 'gzip' },
      body: zlib.gzipSync(multipart(file('u.txt', 'in parts'))),
    });
    expect(parts.status).toBe(200);
    expect(await fs.readFile(onDisk('u.txt'), 'utf8')).toBe('in parts');
    expect((await write('v', 'not gzip', { ...OCTETS, 'content-encoding': 'gzip' })).status).toBe(400);
    expect(
      (await write('v', zlib.gzipSync(text).subarray(0, 50), { ...OCTETS, 'content-encoding': 'gzip' }))
        .status,
    ).toBe(400);
    expect((await write('v', '', { ...OCTETS, 'content-encoding': 'br' })).status).toBe(400);
    expect((await read('t.txt', { 'accept-encoding': 'br, identity;q=0' })).status).toBe(406);
    expect((await read('t.txt', { 'accept-encoding': 'identity;q=0', range: 'bytes=0-1' })).status).toBe(406);
  });

  it('answers ranges and conditions', async () => {
    await write('digits', '0123456789');
    const one = await read('digits', { range: 'bytes=2-4', 'accept-encoding': 'gzip' });
    expect(one).toMatchObject({
      status: 206,
      headers: { 'content-range': 'bytes 2-4/10', 'content-length': '3' },
    });
    expect(one.body.toString()).toBe('234');
    expect((await read('digits', { range: 'bytes=-3' })).body.toString()).toBe('789');
    expect((await read('digits', { range: 'bytes=7-' })).body.toString()).toBe('789');
    const several = await read('digits', { range: 'bytes=0-1,5-6' });
    expect(several.status).toBe(206);
    expect(several.headers['content-length']).toBe(String(several.body.length));
    const boundary = /boundary=(\w+)/.exec(several.headers['content-type'] ?? '')?.[1] ?? '';
    expect(
      several.body
        .toString()
        .split(`--${boundary}`)
        .map((text) => text.split('\r\n\r\n')[1]?.trim()),
    ).toEqual([undefined, '01', '56', undefined]);
    expect(await read('digits', { range: 'bytes=10-' })).toMatchObject({
      status: 416,
      headers: { 'content-range': 'bytes */10' },
    });
    const modified = (await read('digits')).headers['last-modified'] ?? '';
    const unchanged = await read('digits', { 'if-modified-since': modified });
    expect({ status: unchanged.status, length: unchanged.body.length }).toEqual({ status: 304, length: 0 });
    expect((await read('digits', { range: 'bytes=0-0', 'if-range': modified })).status).toBe(206);
    expect((await read('digits', { range: 'bytes=0-0', 'if-range': '"etag"' })).status).toBe(200);
  });

  it('writes several files of one request in order, names with slashes and umlauts included', async () => {
    const answer = await machine.request('POST', '/files', {
      headers: MULTIPART,
      body: multipart(
        file('one.txt', '1'),
        part('name="other"; filename="skipped.txt"', 'skipped'),
        file('deep/er/zwei-ü.txt', '2'.repeat(200_000)),
        file('/home/user/abs.txt', ''),
      ),
    });
    expect(answer.status).toBe(200);
    expect(json(answer)).toEqual([
      { path: '/home/user/one.txt', name: 'one.txt', type: 'file' },
      { path: '/home/user/deep/er/zwei-ü.txt', name: 'zwei-ü.txt', type: 'file' },
      { path: '/home/user/abs.txt', name: 'abs.txt', type: 'file' },
    ]);
    expect((await fs.readFile(onDisk('deep/er/zwei-ü.txt'))).length).toBe(200_000);
    expect((await fs.readdir(machine.home)).sort()).toEqual(['abs.txt', 'deep', 'one.txt']);
  });

  it('writes thousands of tiny files of one request', async () => {
    const names = Array.from({ length: 2_000 }, (_, i) => `many/${i}`);
    const answer = await machine.request('POST', '/files', {
      headers: MULTIPART,
      body: multipart(...names.map((name) => file(name, name))),
    });
    expect((json(answer) as Array<{ path: string }>).map((entry) => entry.path)).toEqual(
      names.map((name) => `/home/user/${name}`),
    );
    expect(await fs.readFile(onDisk('many/1999'), 'utf8')).toBe('many/1999');
  });

  it('takes a part without a file name when the query names the path', async () => {
    const bytes = Buffer.from([0, 255, 128, 13, 10, 200]);
    const body = multipart(part('name="file"', bytes, ''));
    expect((await write('plain.bin', body, MULTIPART)).status).toBe(200);
    expect(await fs.readFile(onDisk('plain.bin'))).toEqual(bytes);
    expect((await machine.request('POST', '/files', { headers: MULTIPART, body })).status).toBe(400);
    expect(json(await machine.request('POST', '/files', { headers: MULTIPART, body: multipart() }))).toEqual(
      [],
    );
  });

  it('keeps the first of two parts for one path and refuses the second', async () => {
    const answer = await machine.request('POST', '/files', {
      headers: MULTIPART,
      body: multipart(file('same', 'first'), file('/home/user/same', 'second')),
    });
    expect(answer.status).toBe(400);
    expect(await fs.readFile(onDisk('same'), 'utf8')).toBe('first');
  });

  it.each([
    ['no content type', {}, 400],
    ['a JSON body', { 'content-type': 'application/json' }, 400],
    ['multipart without a boundary', { 'content-type': 'multipart/form-data' }, 400],
  ])('refuses an upload with %s', async (_what, headers, status) => {
    const answer = await write('x', 'content', headers);
    expect(answer.status).toBe(status);
    expect(json(answer)).toMatchObject({ code: status, message: expect.any(String) as string });
  });

  it('refuses paths that can not be what they should be', async () => {
    await fs.mkdir(onDisk('dir'));
    await write('file', 'x');
    expect((await read('dir')).status).toBe(400);
    expect((await read('')).status).toBe(400);
    expect((await write('dir', 'x')).status).toBe(400);
    expect((await write('dir/', 'x')).status).toBe(400);
    expect((await write('file/below', 'x')).status).toBe(500);
    expect((await read('missing')).status).toBe(404);
    expect(json(await read('missing'))).toEqual({
      code: 404,
      message: "path '/home/user/missing' does not exist",
    });
    expect((await read('a\0b')).status).toBe(400);
    expect((await read('~root/x')).status).toBe(400);
    expect((await read('/dev/zero')).status).toBe(400);
    expect((await machine.request('POST', '/files', { headers: OCTETS, body: 'x' })).status).toBe(400);
    for (const name of ['root', 'nobody-here']) {
      expect((await machine.request('GET', `/files?path=file&username=${name}`)).status).toBe(401);
    }
    expect((await machine.request('GET', '/files?path=file&username=user')).status).toBe(200);
  });

  it('does not wait for the other end of a FIFO', async () => {
    execFileSync('mkfifo', [onDisk('pipe')]);
    expect((await read('pipe')).status).toBe(400);
    expect((await write('pipe', 'x')).status).toBe(400);
  });

  it('reads files of /proc, which claim to be empty', async () => {
    const answer = await read('/proc/self/status');
    expect(answer.status).toBe(200);
    expect(answer.body.toString()).toContain('Pid:');
  });

  it('answers before the end of an upload that must fail, and the client gets to read it', async () => {
    await fs.mkdir(onDisk('dir'));
    const answer = await write('dir', Buffer.alloc(20_000_000));
    expect(answer.status).toBe(400);
    const parts = await machine.request('POST', '/files', {
      headers: MULTIPART,
      body: multipart(file('dir', Buffer.alloc(20_000_000)), file('after', 'x')),
    });
    expect(parts.status).toBe(400);
    await expect(fs.stat(onDisk('after'))).rejects.toMatchObject({ code: 'ENOENT' });
  });

  it('answers 507 when the disk is full', async () => {
    const disk = onDisk('disk');
    await fs.mkdir(disk);
    try {
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', disk], { stdio: 'pipe' });
    } catch (error) {
      console.warn(`skipped, a small file system can't be mounted here: ${String(error)}`);
      return;
    }
    try {
      const raw = await write('disk/raw', Buffer.alloc(20_000_000));
      expect(raw.status).toBe(507);
      expect(json(raw)).toEqual({
        code: 507,
        message: "not enough disk space available for 20000000 bytes: '/home/user/disk/raw'",
      });
      const body = multipart(file('disk/part', Buffer.alloc(20_000_000)));
      expect((await machine.request('POST', '/files', { headers: MULTIPART, body })).status).toBe(507);
      expect((await machine.request('GET', '/health')).status).toBe(204);
    } finally {
      execFileSync('umount', ['--lazy', disk]);
    }
  });

  it('makes one new nested directory for many uploads at once', async () => {
    const names = Array.from({ length: 30 }, (_, i) => `new/deep/dir/${i}`);
    const answers = await Promise.all(names.map((name) => write(name, name)));
    expect(answers.map((answer) => answer.status)).toEqual(names.map(() => 200));
    for (const name of names) expect(await fs.readFile(onDisk(name), 'utf8')).toBe(name);
  });

  it('writes through a link, to where it leads, also when nothing is there yet', async () => {
    await fs.writeFile(onDisk('target'), 'a longer text');
    await fs.symlink('target', onDisk('link'));
    await fs.symlink('not-yet', onDisk('dangling'));
    for (const name of ['link', 'dangling']) expect((await write(name, 'new')).status).toBe(200);
    expect(await fs.readFile(onDisk('target'), 'utf8')).toBe('new');
    expect(await fs.readFile(onDisk('not-yet'), 'utf8')).toBe('new');
    expect((await fs.lstat(onDisk('link'))).isSymbolicLink()).toBe(true);
  });

  it('takes names of 255 bytes, refuses longer ones, and tells no place on the disk', async () => {
    expect((await write('x'.repeat(255), 'long')).status).toBe(200);
    expect((await write('new\nline "quoted" ', 'odd')).status).toBe(200);
    expect(await fs.readFile(onDisk('new\nline "quoted" '), 'utf8')).toBe('odd');
    await write('file', '');
    for (const [name, status] of [
      ['x'.repeat(256), 400],
      ['file/below', 500],
      ['file/a/b', 500],
    ] as const) {
      const answer = await write(name, 'x');
      expect(answer.status).toBe(status);
      expect(answer.body.toString()).not.toContain(machine.directory);
    }
  });

  it('is a creation, a change of attributes and one write to whoever watches a new small file', async () => {
    const call = async (method: string, request: unknown) =>
      json(
        await machine.request('POST', `/filesystem.Filesystem/${method}`, {
          headers: { 'content-type': 'application/json' },
          body: JSON.stringify(request),
        }),
      );
    const body = multipart(file('small', 'x'.repeat(20_000)));
    for (const [name, send] of [
      ['small', () => machine.request('POST', '/files', { headers: MULTIPART, body })],
      ['raw', () => write('raw', 'x'.repeat(20_000))],
    ] as const) {
      const { watcherId } = (await call('CreateWatcher', { path: '' })) as { watcherId: string };
      expect((await send()).status).toBe(200);
      expect(await call('GetWatcherEvents', { watcherId })).toEqual({
        events: ['CREATE', 'CHMOD', 'WRITE'].map((type) => ({ name, type: `EVENT_TYPE_${type}` })),
      });
    }
  });

  it('closes the file when a client leaves in the middle of an upload', async () => {
    for (const head of [
      'content-type: application/octet-stream\r\n\r\n',
      `content-type: multipart/form-data; boundary=${BOUNDARY}\r\n\r\n--${BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="half"\r\n\r\n`,
    ]) {
      const stream = await machine.server.dial(49983);
      stream.write(
        `POST /files?path=half HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n${head}${'x'.repeat(100_000)}`,
      );
      const openFiles = async () => {
        const links = await fs.readdir(`/proc/${machine.process?.pid}/fd`);
        const names = await Promise.all(
          links.map((fd) => fs.readlink(`/proc/${machine.process?.pid}/fd/${fd}`).catch(() => '')),
        );
        return names.filter((name) => name === onDisk('half')).length;
      };
      await eventually(async () => expect(await openFiles()).toBe(1));
      stream.destroy();
      await eventually(async () => expect(await openFiles()).toBe(0));
      // What arrived is kept.
      const kept = await fs.readFile(onDisk('half'), 'utf8');
      expect([kept.length > 90_000, kept.replace(/x/g, '')]).toEqual([true, '']);
    }
    expect((await machine.request('GET', '/health')).status).toBe(204);
  });

  it('closes the file when a client leaves in the middle of a download, and keeps little in memory', async () => {
    const sparse = await fs.open(onDisk('big'), 'w');
    await sparse.truncate(2_000_000_000);
    await sparse.close();
    const memory = async () => {
      const status = await fs.readFile(`/proc/${machine.process?.pid}/status`, 'utf8');
      return Number(/VmRSS:\s+(\d+)/.exec(status)?.[1]) / 1024;
    };
    const before = await memory();
    const stream = await machine.server.dial(49983);
    stream.write('GET /files?path=big HTTP/1.1\r\nhost: a\r\n\r\n');
    let received = 0;
    for await (const chunk of stream) {
      received += (chunk as Buffer).length;
      if (received > 200_000_000) break;
    }
    expect((await memory()) - before).toBeLessThan(100);
    await eventually(async () => {
      const links = await fs.readdir(`/proc/${machine.process?.pid}/fd`);
      const names = await Promise.all(
        links.map((fd) => fs.readlink(`/proc/${machine.process?.pid}/fd/${fd}`).catch(() => '')),
      );
      expect(names).not.toContain(onDisk('big'));
    });
  });

  it('uploads 200 MB with little in memory, intact', async () => {
    const socket = await machine.server.dial(49983);
    const request = http.request({
      method: 'POST',
      path: '/files?path=large',
      headers: { host: 'a', ...OCTETS },
      createConnection: () => socket as net.Socket,
    });
    const block = randomBytes(1_000_000);
    const hash = createHash('sha256');
    for (let i = 0; i < 200; i++) {
      hash.update(block);
      if (!request.write(block)) await once(request, 'drain');
    }
    const peak = Number(
      /VmHWM:\s+(\d+)/.exec(await fs.readFile(`/proc/${machine.process?.pid}/status`, 'utf8'))?.[1],
    );
    request.end();
    const [response] = (await once(request, 'response')) as [http.IncomingMessage];
    response.resume();
    expect(response.statusCode).toBe(200);
    expect(peak / 1024).toBeLessThan(200);
    const written = createHash('sha256').update(await fs.readFile(onDisk('large')));
    expect(written.digest('hex')).toBe(hash.digest('hex'));
    socket.destroy();
  });

  describe('with a token', () => {
    const token = '0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0';
    const query = (fields: Record<string, string>) => `/files?${new URLSearchParams(fields).toString()}`;

    beforeEach(async () => {
      await write('hello.txt', 'hello');
      await machine.request('POST', '/init', { body: JSON.stringify({ accessToken: token }) });
    });

    it('accepts the header and refuses a wrong or missing one', async () => {
      const get = (headers: http.OutgoingHttpHeaders) =>
        machine.request('GET', query({ path: 'hello.txt' }), { headers });
      expect((await get({ 'x-access-token': token })).status).toBe(200);
      expect((await get({ 'x-access-token': 'wrong' })).status).toBe(401);
      expect((await get({})).status).toBe(401);
    });

    it('accepts a signature for exactly what it signs', async () => {
      const signature = 'v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E';
      const good = { path: 'hello.txt', username: 'user', signature };
      expect((await machine.request('GET', query(good))).body.toString()).toBe('hello');
      const refused = [
        { ...good, path: 'other.txt' },
        { path: 'hello.txt', signature },
        { ...good, signature: `${signature}x` },
        { ...good, signature_expiration: '9999999999' },
      ];
      for (const fields of refused) expect((await machine.request('GET', query(fields))).status).toBe(401);
      expect((await machine.request('POST', query(good), { headers: OCTETS, body: 'x' })).status).toBe(401);
    });

    it('tells an expired signature in exactly these words', async () => {
      const sign = (expiration: string) =>
        query({
          path: 'hello.txt',
          signature: fileSignature({ operation: 'read', path: 'hello.txt', username: '', expiration }, token),
          signature_expiration: expiration,
        });
      const now = Math.floor(Date.now() / 1000);
      expect((await machine.request('GET', sign(String(now + 60)))).status).toBe(200);
      const late = await machine.request('GET', sign(String(now - 60)));
      expect({ status: late.status, body: json(late) }).toEqual({
        status: 401,
        body: { code: 401, message: 'signature is already expired' },
      });
      expect((await machine.request('GET', sign('soon'))).status).toBe(400);
    });

    it('accepts a signed upload, spaces in the path as plus signs', async () => {
      const signature = fileSignature(
        { operation: 'write', path: 'a b+c.txt', username: '', expiration: undefined },
        token,
      );
      const answer = await machine.request('POST', query({ path: 'a b+c.txt', signature }), {
        headers: MULTIPART,
        body: multipart(part('name="file"', 'signed', '')),
      });
      expect(json(answer)).toEqual([{ path: '/home/user/a b+c.txt', name: 'a b+c.txt', type: 'file' }]);
    });
  });
});

const asRoot = process.getuid?.() === 0 ? describe : describe.skip;

asRoot('files of a sandbox with users (needs root)', () => {
  let machine: Machine;

  beforeEach(async () => {
    machine = await Machine.make();
    await fs.chmod(machine.directory, 0o755);
    await machine.start('agent', { CELLBOX_SINGLE_USER: '0', CELLBOX_USER: 'root' });
  });

  afterEach(() => machine.close());

  it('belong to the user that the request names, with the directories made for them', async () => {
    const nobody = parsePasswd(await fs.readFile('/etc/passwd', 'utf8')).get('nobody');
    const target = path.join(machine.directory, 'new', 'dir', 'file');
    const send = (username: string) =>
      machine.request('POST', `/files?path=${target}${username}`, { headers: OCTETS, body: 'x' });
    expect((await send('&username=nobody')).status).toBe(200);
    for (const made of [target, path.dirname(target), path.dirname(path.dirname(target))]) {
      const { uid, gid } = await fs.stat(made);
      expect({ uid, gid }).toEqual({ uid: nobody?.uid, gid: nobody?.gid });
    }
    expect((await fs.stat(machine.directory)).uid).toBe(0);
    expect((await send('')).status).toBe(200);
    expect((await fs.stat(target)).uid).toBe(0);
    expect((await send('&username=not-there')).status).toBe(401);
    const init = { body: JSON.stringify({ defaultUser: 'nobody' }) };
    expect((await machine.request('POST', '/init', init)).status).toBe(204);
    expect((await send('')).status).toBe(200);
    expect((await fs.stat(target)).uid).toBe(nobody?.uid);
  });
});

describe('file rules', () => {
  const user = { name: 'user', uid: 1000, gid: 1000, home: '/home/user' };

  it('give back what a header says of any name, in one line of printable ASCII', () => {
    fc.assert(
      fc.property(fc.oneof(fc.string(), fc.string({ unit: 'binary' })), (name) => {
        const header = contentDisposition(name);
        expect(header).toMatch(/^inline; filename[\x20-\x7e]*$/);
        const [, extended, quoted, token] =
          /^inline; filename(?:\*=utf-8''([^"]*)|="(.*)"|=(\S+))$/.exec(header) ?? [];
        const read =
          extended === undefined ? (quoted?.replace(/\\(.)/g, '$1') ?? token) : decodeURIComponent(extended);
        // Half a surrogate pair has no UTF-8.
        expect(read).toBe(Buffer.from(name).toString());
      }),
    );
  });

  it('read ranges that lie in the file, in the order asked, or none', () => {
    const bound = fc.oneof(fc.nat(1_000).map(String), fc.constant(''), fc.string({ maxLength: 3 }));
    const header = fc
      .array(fc.tuple(bound, bound), { minLength: 1, maxLength: 4 })
      .map((pairs) => `bytes=${pairs.map((pair) => pair.join('-')).join(',')}`);
    fc.assert(
      fc.property(header, fc.nat(1_200), (text, size) => {
        const ranges = parseRanges(text, size);
        if (ranges === undefined || ranges === 'unsatisfiable') return;
        expect(ranges.length).toBeGreaterThan(0);
        for (const { start, end } of ranges) {
          expect(start).toBeGreaterThanOrEqual(0);
          expect(end).toBeGreaterThanOrEqual(start);
          expect(end).toBeLessThan(size);
        }
        expect(ranges.reduce((sum, { start, end }) => sum + end - start + 1, 0)).toBeLessThanOrEqual(size);
      }),
    );
  });

  it('resolve every text to an absolute path, absolute ones to themselves', () => {
    const segment = fc.oneof(fc.constantFrom('', '.', '..', '~', ' ', 'a'), fc.string({ maxLength: 5 }));
    const text = fc.array(segment, { maxLength: 6 }).map((segments) => segments.join('/'));
    fc.assert(
      fc.property(text, (given) => {
        let resolved: string;
        try {
          resolved = resolvePath(given, user, '/work');
        } catch (error) {
          expect(given.includes('\0') || /^~[^/]/.test(given)).toBe(true);
          expect(error).toMatchObject({ status: 400 });
          return;
        }
        expect(resolved.startsWith('/')).toBe(true);
        if (given.startsWith('/')) expect(resolved).toBe(given);
        else if (given !== '') expect(resolved).toBe(path.posix.normalize(resolved));
      }),
    );
  });

  it.each([
    [undefined, 'identity'],
    ['gzip, deflate', 'gzip'],
    ['gzip;q=0, identity', 'identity'],
    ['identity, gzip;q=0.5', 'identity'],
    ['br, deflate', 'identity'],
    ['*', 'identity'],
    ['identity;q=0, *', 'gzip only'],
    ['*;q=0, gzip', 'gzip only'],
  ])('choose for Accept-Encoding %j: %s', (header, encoding) => {
    expect(chooseEncoding({ headers: header === undefined ? {} : { 'accept-encoding': header } })).toBe(
      encoding,
    );
  });

  it('are compressed where that makes them smaller, or costs nothing', async () => {
    const text = Buffer.from('text that repeats. '.repeat(4_000));
    const noise = randomBytes(64 * 1024);
    expect(await isWorthCompressing(text, 1_000_000)).toBe(true);
    expect(await isWorthCompressing(noise, 1_000_000)).toBe(false);
    expect(await isWorthCompressing(noise, noise.length)).toBe(true);
  });

  it.each([
    ['bytes=0-3', [{ start: 0, end: 3 }]],
    ['bytes=0-', [{ start: 0, end: 9 }]],
    ['bytes=-20', [{ start: 0, end: 9 }]],
    ['bytes=8-99', [{ start: 8, end: 9 }]],
    [
      'bytes=0-1, 3-4',
      [
        { start: 0, end: 1 },
        { start: 3, end: 4 },
      ],
    ],
    ['bytes=99-', 'unsatisfiable'],
    ['bytes=-0', 'unsatisfiable'],
    ['bytes=4-2', undefined],
    ['bytes=-', undefined],
    ['bytes=a-b', undefined],
    ['lines=1-2', undefined],
    ['bytes=0-9,0-9', undefined],
  ])('read %s of ten bytes', (header, ranges) => {
    expect(parseRanges(header, 10)).toEqual(ranges);
  });

  it.each([
    ['a.txt', 'inline; filename=a.txt'],
    ['a b.txt', 'inline; filename="a b.txt"'],
    ['a"b\\.txt', 'inline; filename="a\\"b\\\\.txt"'],
    ['ü.txt', "inline; filename*=utf-8''%C3%BC.txt"],
    ['a\r\nb', "inline; filename*=utf-8''a%0D%0Ab"],
  ])('name %j in a header', (name, header) => {
    expect(contentDisposition(name)).toBe(header);
  });

  it('guess a type by the first bytes', () => {
    expect(sniffType(Buffer.from('\x89PNG\r\n\x1a\n...', 'latin1'))).toBe('image/png');
    expect(sniffType(Buffer.from('Grüße\n'))).toBe('text/plain; charset=utf-8');
    expect(sniffType(Buffer.from([0, 1, 2]))).toBe('application/octet-stream');
  });

  it.each([
    ['x', '/home/user/x'],
    ['./a/../x', '/home/user/x'],
    ['~', '/home/user'],
    ['~/x', '/home/user/x'],
    ['/a/../b/', '/a/../b/'],
    ['', '/work'],
  ])('resolve %j', (text, resolved) => {
    expect(resolvePath(text, user, '/work').replace(/(?<=user)\/$/, '')).toBe(resolved);
  });

  it('find accounts among others', () => {
    const passwd =
      'root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1001::/home/user:/bin/sh\nbroken\nodd:x:a:b:::\n';
    expect(parsePasswd(passwd).get('user')).toEqual({
      name: 'user',
      uid: 1000,
      gid: 1001,
      home: '/home/user',
    });
    expect(parsePasswd(passwd).get('root')).toMatchObject({ uid: 0, home: '/root' });
    for (const name of ['odd', 'broken', '', 'use', 'x'])
      expect(parsePasswd(passwd).get(name)).toBeUndefined();
  });
});
