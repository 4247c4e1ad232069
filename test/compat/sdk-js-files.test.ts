import crypto from 'node:crypto';
import { describeWithJsSdks, until } from './js-sdks';
import type { Sandbox } from './js-sdks';

/** Files and watching, as the E2B documentation and SDK tests use them. */
describeWithJsSdks('files', ({ sdk, runtime }) => {
  const inContainer = runtime === 'docker' ? it : it.skip;
  let sandbox: Sandbox;
  let home: string;

  beforeAll(async () => {
    sandbox = await sdk.Sandbox.create({ timeoutMs: 600_000 });
    home = '/home/user';
  }, 60_000);

  afterAll(async () => {
    await sandbox?.kill();
  });

  describe('contents', () => {
    it('are written below the home directory, with the directories they need', async () => {
      const info = await sandbox.files.write('a/b/ü c.txt', 'text');
      expect(info).toMatchObject({ name: 'ü c.txt', type: 'file', path: `${home}/a/b/ü c.txt` });
      expect(await sandbox.files.read('a/b/ü c.txt')).toBe('text');
      await sandbox.files.write('a/b/ü c.txt', 'new');
      expect(await sandbox.files.read(`${home}/a/b/ü c.txt`)).toBe('new');
    });

    it('of several files keep their order and their kinds of data', async () => {
      const bytes = crypto.randomBytes(1000);
      const infos = await sandbox.files.write([
        { path: 'many/one.txt', data: 'one' },
        { path: 'many/two.bin', data: new Uint8Array(bytes).buffer },
        { path: 'many/three.txt', data: new Blob(['three']) },
        { path: '/tmp/four "quoted".txt', data: new Blob(['four']).stream() },
      ]);
      expect(infos.map((each) => each.name)).toEqual([
        'one.txt',
        'two.bin',
        'three.txt',
        expect.stringContaining('four'),
      ]);
      expect(await sandbox.files.read('many/one.txt')).toBe('one');
      expect(Buffer.from(await sandbox.files.read('many/two.bin', { format: 'bytes' }))).toEqual(bytes);
      expect(await (await sandbox.files.read('many/three.txt', { format: 'blob' })).text()).toBe('three');
      expect(await sandbox.files.read(infos[3]!.path)).toBe('four');
    });

    it.each([[{}], [{ useOctetStream: true }], [{ gzip: true }]])(
      'come back byte for byte, written with %j',
      async (how) => {
        const bytes = crypto.randomBytes(300_000);
        await sandbox.files.write('binary', new Blob([bytes]).stream(), how);
        expect(Buffer.from(await sandbox.files.read('binary', { format: 'bytes' })).equals(bytes)).toBe(true);
        expect(
          Buffer.from(await sandbox.files.read('binary', { format: 'bytes', gzip: true })).equals(bytes),
        ).toBe(true);
        const stream = await sandbox.files.read('binary', { format: 'stream' });
        expect(Buffer.from(await new Response(stream).arrayBuffer()).equals(bytes)).toBe(true);
      },
    );

    it('may be empty', async () => {
      await sandbox.files.write('empty', '');
      expect(await sandbox.files.read('empty')).toBe('');
      expect((await sandbox.files.read('empty', { format: 'bytes' })).length).toBe(0);
      expect((await sandbox.files.read('empty', { format: 'blob' })).size).toBe(0);
      const stream = await sandbox.files.read('empty', { format: 'stream' });
      expect((await new Response(stream).arrayBuffer()).byteLength).toBe(0);
    });

    it('that are not there are told as such', async () => {
      await expect(sandbox.files.read('no-such-file')).rejects.toBeInstanceOf(sdk.FileNotFoundError);
      await expect(sandbox.files.read('no-such-file', { format: 'stream' })).rejects.toBeInstanceOf(
        sdk.FileNotFoundError,
      );
    });

    it('hold no token of an MCP gateway, as there is none', async () => {
      const refusal = runtime === 'docker' ? sdk.FileNotFoundError : sdk.AuthenticationError;
      await expect(sandbox.getMcpToken()).rejects.toBeInstanceOf(refusal);
    });

    it('stay usable after a reader leaves in the middle', async () => {
      await sandbox.files.write('large', 'x'.repeat(5_000_000));
      const stream = await sandbox.files.read('large', { format: 'stream' });
      const reader = stream.getReader();
      await reader.read();
      await reader.cancel();
      expect((await sandbox.files.read('large')).length).toBe(5_000_000);
    });

    inContainer('may be anywhere, and belong to whom they are written for', async () => {
      await sandbox.files.write('/0/deep/file', 'x');
      expect(await sandbox.files.getInfo('/0/deep/file')).toMatchObject({ owner: 'user', group: 'user' });
      await sandbox.files.write('mine', 'x', { user: 'root' });
      expect(await sandbox.files.getInfo('/root/mine')).toMatchObject({ owner: 'root' });
      await sandbox.files.remove('/0');
    });
  });

  describe('metadata', () => {
    it('comes back from write, getInfo, list and rename, and goes when overwritten without', async () => {
      const metadata = { author: 'ada', purpose: 'test data' };
      expect((await sandbox.files.write('meta/a', 'x', { metadata })).metadata).toEqual(metadata);
      expect((await sandbox.files.getInfo('meta/a')).metadata).toEqual(metadata);
      expect((await sandbox.files.list('meta'))[0]?.metadata).toEqual(metadata);
      expect((await sandbox.files.rename('meta/a', 'meta/b')).metadata).toEqual(metadata);
      expect((await sandbox.files.write('meta/b', 'y')).metadata).toBeUndefined();
      expect((await sandbox.files.getInfo('meta/b')).metadata).toBeUndefined();
    });

    it('is on every file of a batch, also of raw uploads', async () => {
      const batch = [
        { path: 'meta/c', data: 'c' },
        { path: 'meta/d', data: 'd' },
      ];
      const infos = await sandbox.files.write(batch, { metadata: { batch: '1' } });
      expect(infos.map((each) => each.metadata)).toEqual([{ batch: '1' }, { batch: '1' }]);
      const raw = await sandbox.files.write('meta/e', new Blob(['e']), {
        metadata: { raw: 'yes' },
        useOctetStream: true,
      });
      expect(raw.metadata).toEqual({ raw: 'yes' });
    });
  });

  describe('entries', () => {
    it('tell everything about a file', async () => {
      await sandbox.files.write('info/file.txt', 'four');
      const info = await sandbox.files.getInfo('info/file.txt');
      expect(info).toMatchObject({
        name: 'file.txt',
        type: sdk.FileType.FILE,
        path: `${home}/info/file.txt`,
        size: 4,
        mode: 0o644,
        permissions: '-rw-r--r--',
      });
      expect(Math.abs(info.modifiedTime!.getTime() - Date.now())).toBeLessThan(60_000);
      expect(info.symlinkTarget).toBeUndefined();
      if (runtime === 'docker') expect(info).toMatchObject({ owner: 'user', group: 'user' });
    });

    it('tell everything about a directory', async () => {
      await sandbox.files.makeDir('info/dir');
      const info = await sandbox.files.getInfo('info/dir');
      expect(info).toMatchObject({ type: sdk.FileType.DIR, mode: 0o755, permissions: 'drwxr-xr-x' });
      expect(info.size).toBeGreaterThan(0);
    });

    it('tell where a symbolic link leads', async () => {
      await sandbox.commands.run('ln -sf ~/info/file.txt ~/info/link; ln -sf /no/such ~/info/dangling');
      const info = await sandbox.files.getInfo('info/link');
      expect(info).toMatchObject({ type: sdk.FileType.FILE, symlinkTarget: `${home}/info/file.txt` });
      expect(info.permissions).toBe('Lrwxrwxrwx');
      expect((await sandbox.files.getInfo('info/dangling')).type).toBeUndefined();
    });

    it('that are not there are told as such', async () => {
      await expect(sandbox.files.getInfo('no-such-file')).rejects.toBeInstanceOf(sdk.FileNotFoundError);
      expect(await sandbox.files.exists('no-such-file')).toBe(false);
      expect(await sandbox.files.exists('info')).toBe(true);
    });

    it('are listed in order, as deep as asked', async () => {
      for (const file of ['tree/b/2', 'tree/b/1', 'tree/a/x/deep', 'tree/c'])
        await sandbox.files.write(file, '');
      const names = async (depth?: number) =>
        (await sandbox.files.list('tree', { depth })).map((each) => each.path.slice(`${home}/tree/`.length));
      expect(await names()).toEqual(['a', 'b', 'c']);
      expect(await names(2)).toEqual(['a', 'a/x', 'b', 'b/1', 'b/2', 'c']);
      expect(await names(3)).toEqual(['a', 'a/x', 'a/x/deep', 'b', 'b/1', 'b/2', 'c']);
      await expect(sandbox.files.list('no-such-dir')).rejects.toBeInstanceOf(sdk.FileNotFoundError);
      await expect(sandbox.files.list('tree/c')).rejects.toBeInstanceOf(sdk.InvalidArgumentError);
    });

    it('have names with spaces, line breaks and 255 bytes', async () => {
      const names = ['a b', 'line\nbreak', 'x'.repeat(255), '..hidden'];
      for (const name of names) await sandbox.files.write(`names/${name}`, name);
      expect((await sandbox.files.list('names')).map((each) => each.name).sort()).toEqual([...names].sort());
      for (const name of names) expect(await sandbox.files.read(`names/${name}`)).toBe(name);
    });
  });

  describe('changes', () => {
    it('make a directory once, with its parents', async () => {
      expect(await sandbox.files.makeDir('made/deep/er')).toBe(true);
      expect(await sandbox.files.makeDir('made/deep/er')).toBe(false);
      expect((await sandbox.files.getInfo('made/deep')).type).toBe(sdk.FileType.DIR);
    });

    it('rename a file and a directory, contents kept', async () => {
      await sandbox.files.write('old/name', 'content');
      expect(await sandbox.files.rename('old/name', 'new/place/name')).toMatchObject({
        name: 'name',
        path: `${home}/new/place/name`,
      });
      expect(await sandbox.files.exists('old/name')).toBe(false);
      expect(await sandbox.files.read('new/place/name')).toBe('content');
      await sandbox.files.rename('new', 'newer');
      expect(await sandbox.files.read('newer/place/name')).toBe('content');
      await expect(sandbox.files.rename('no-such-file', 'x')).rejects.toBeInstanceOf(sdk.FileNotFoundError);
    });

    it('remove files, whole directories, links but not what they lead to, and what is not there', async () => {
      await sandbox.files.write('gone/deep/file', 'x');
      await sandbox.files.write('kept/file', 'x');
      await sandbox.commands.run('ln -s ~/kept ~/gone/link');
      await sandbox.files.remove('gone');
      expect(await sandbox.files.exists('gone')).toBe(false);
      expect(await sandbox.files.exists('kept/file')).toBe(true);
      await sandbox.files.remove('gone');
    });
  });

  describe('URLs', () => {
    it('of a secured sandbox are signed, and work without a header until they expire', async () => {
      const secured = await sdk.Sandbox.create({ timeoutMs: 120_000, secure: true });
      try {
        await secured.files.write('hello.txt', 'hello');
        expect((await secured.commands.run('cat hello.txt')).stdout).toBe('hello');
        const download = await routed(
          secured,
          await secured.downloadUrl('hello.txt', { useSignatureExpiration: 60 }),
        );
        expect([download.status, await download.text()]).toEqual([200, 'hello']);
        const expired = await routed(
          secured,
          await secured.downloadUrl('hello.txt', { useSignatureExpiration: -10 }),
        );
        expect([expired.status, await expired.json()]).toEqual([
          401,
          { code: 401, message: 'signature is already expired' },
        ]);
        const form = new FormData();
        form.append('file', 'uploaded');
        const upload = await routed(secured, await secured.uploadUrl('up.txt'), {
          method: 'POST',
          body: form,
        });
        expect(await upload.json()).toEqual([{ name: 'up.txt', path: `${home}/up.txt`, type: 'file' }]);
        expect(await secured.files.read('up.txt')).toBe('uploaded');
        const again = await sdk.Sandbox.connect(secured.sandboxId);
        expect(await again.files.read('up.txt')).toBe('uploaded');
      } finally {
        await secured.kill();
      }
    }, 60_000);
  });

  describe('watching', () => {
    interface Seen {
      type: string;
      name: string;
    }

    async function watch(directory: string, options: Parameters<Sandbox['files']['watchDir']>[2] = {}) {
      const seen: Seen[] = [];
      const handle = await sandbox.files.watchDir(
        directory,
        (event) =>
          void seen.push({
            type: event.type,
            name: event.name,
            ...('entry' in event && event.entry ? { entry: event.entry } : {}),
          }),
        options,
      );
      const has = (type: string, name: string) =>
        seen.some((each) => each.type === type && each.name === name);
      return { handle, seen, has };
    }

    it('tells of changes to a file', async () => {
      await sandbox.files.write('watched/file', 'x');
      const { handle, has } = await watch('watched');
      await sandbox.files.write('watched/file', 'y');
      await until('a write', () => has(sdk.FilesystemEventType.WRITE, 'file'));
      await sandbox.files.rename('watched/file', 'watched/other');
      await until(
        'a rename',
        () => has(sdk.FilesystemEventType.RENAME, 'file') && has(sdk.FilesystemEventType.CREATE, 'other'),
      );
      await sandbox.files.remove('watched/other');
      await until('a removal', () => has(sdk.FilesystemEventType.REMOVE, 'other'));
      await handle.stop();
    });

    it('tells a new file in exactly three events', async () => {
      await sandbox.files.makeDir('watched-new');
      const { handle, seen } = await watch('watched-new');
      await sandbox.files.write('watched-new/file', 'content');
      await sandbox.files.makeDir('watched-new/last');
      await until('the last event', () => seen.some((each) => each.name === 'last'));
      expect(seen.filter((each) => each.name === 'file').map((each) => each.type)).toEqual([
        sdk.FilesystemEventType.CREATE,
        sdk.FilesystemEventType.CHMOD,
        sdk.FilesystemEventType.WRITE,
      ]);
      await handle.stop();
    });

    it('goes into directories, also new ones, when recursive', async () => {
      await sandbox.files.makeDir('watched-tree/sub');
      const { handle, has } = await watch('watched-tree', { recursive: true });
      await sandbox.files.write('watched-tree/sub/file', 'x');
      await until('a nested write', () => has(sdk.FilesystemEventType.WRITE, 'sub/file'));
      await sandbox.files.makeDir('watched-tree/new');
      await until('the new directory', () => has(sdk.FilesystemEventType.CREATE, 'new'));
      await sandbox.files.write('watched-tree/new/file', 'x');
      await until('a write in it', () => has(sdk.FilesystemEventType.WRITE, 'new/file'));
      await handle.stop();
    });

    it('gives the entry when asked', async () => {
      await sandbox.files.makeDir('watched-entry');
      const { handle, seen } = await watch('watched-entry', { includeEntry: true, allowNetworkMounts: true });
      await sandbox.files.write('watched-entry/file', 'x');
      await until('a write', () => seen.some((each) => each.type === sdk.FilesystemEventType.WRITE));
      expect(seen.find((each) => each.type === sdk.FilesystemEventType.WRITE)).toMatchObject({
        entry: { name: 'file', path: `${home}/watched-entry/file`, type: sdk.FileType.FILE },
      });
      await handle.stop();
    });

    it('ends with an error at its time-out', async () => {
      await sandbox.files.makeDir('watched-end');
      const ended = new Promise<Error | undefined>((resolve) => {
        // On a slow machine its time is over before it has begun.
        watch('watched-end', { timeoutMs: 500, onExit: (error) => resolve(error) }).catch(resolve);
      });
      expect(await ended).toBeInstanceOf(sdk.TimeoutError);
    });

    it('refuses what is no directory', async () => {
      await sandbox.files.write('watched-file', '');
      await expect(watch('no-such-dir')).rejects.toBeInstanceOf(sdk.FileNotFoundError);
      await expect(watch('watched-file')).rejects.toBeInstanceOf(sdk.SandboxError);
    });
  });
});

/** With one URL for all sandboxes the URL does not say which one is meant; the headers do. */
function routed(sandbox: Sandbox, url: string, init: RequestInit = {}): Promise<Response> {
  return fetch(url, {
    ...init,
    headers: { 'E2b-Sandbox-Id': sandbox.sandboxId, 'E2b-Sandbox-Port': '49983' },
  });
}
