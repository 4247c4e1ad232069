import fc from 'fast-check';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Hub } from '../../../../kernel-image/agent/filesystem/watch/hub';
import { Watcher } from '../../../../kernel-image/agent/filesystem/watch/watcher';
import type { WatchOptions } from '../../../../kernel-image/agent/filesystem/watch/watcher';
import { EventType } from '../../../../protocol/envd/gen/filesystem_pb';
import type { FilesystemEvent } from '../../../../protocol/envd/gen/filesystem_pb';

const NEVER = new AbortController().signal;

const told = (events: FilesystemEvent[]) => events.map((event) => `${EventType[event.type]} ${event.name}`);

/** What a descriptor of this process is; the one that lists them is gone by then. */
function targetOf(fd: string): string {
  try {
    return fs.readlinkSync(`/proc/self/fd/${fd}`);
  } catch {
    return '';
  }
}

describe('a watcher', () => {
  let top: string;
  let root: string;
  let outside: string;
  let hub: Hub;
  let watchers: Watcher[];

  beforeEach(() => {
    top = fs.mkdtempSync(path.join(os.tmpdir(), 'watch-'));
    root = path.join(top, 'root');
    outside = path.join(top, 'outside');
    fs.mkdirSync(root);
    fs.mkdirSync(outside);
    hub = new Hub();
    watchers = [];
  });

  afterEach(() => {
    for (const watcher of watchers) watcher.close();
    fs.rmSync(top, { recursive: true, force: true });
  });

  async function watch(options: Partial<WatchOptions> = {}): Promise<Watcher> {
    const watcher = new Watcher(hub, {
      apiPath: root,
      diskPath: root,
      recursive: true,
      describe: undefined,
      maxEvents: 100_000,
      ...options,
    });
    watchers.push(watcher);
    await watcher.start(NEVER);
    return watcher;
  }

  const at = (name: string) => path.join(root, name);
  const seen = async (watcher: Watcher) => told(await watcher.takeAll());

  describe('of one directory', () => {
    const change = (act: () => void, ...events: string[]) => ({ act, events });
    const changes: Record<string, () => { act: () => void; events: string[] }> = {
      'a new file with content': () =>
        change(() => fs.writeFileSync(at('new'), 'x'), 'CREATE new', 'WRITE new'),
      'an empty new file': () => change(() => fs.writeFileSync(at('new'), ''), 'CREATE new'),
      'more content': () => change(() => fs.appendFileSync(at('file'), 'x'), 'WRITE file'),
      'less content': () => change(() => fs.truncateSync(at('file'), 0), 'WRITE file'),
      'a mode': () => change(() => fs.chmodSync(at('file'), 0o600), 'CHMOD file'),
      'an owner': () =>
        change(
          () => fs.chownSync(at('file'), process.getuid?.() ?? 0, process.getgid?.() ?? 0),
          'CHMOD file',
        ),
      'both times': () => change(() => fs.utimesSync(at('file'), 1, 1), 'CHMOD file'),
      'a file that goes': () => change(() => fs.unlinkSync(at('file')), 'REMOVE file'),
      'a file that gets another name': () =>
        change(() => fs.renameSync(at('file'), at('name')), 'RENAME file', 'CREATE name'),
      'a file that moves in': () =>
        change(() => fs.renameSync(path.join(outside, 'foreign'), at('in')), 'CREATE in'),
      'a file that moves out': () =>
        change(() => fs.renameSync(at('file'), path.join(outside, 'out')), 'RENAME file'),
      'a link': () => change(() => fs.symlinkSync('nowhere', at('link')), 'CREATE link'),
      'a new directory': () => change(() => fs.mkdirSync(at('directory')), 'CREATE directory'),
      'a directory that goes': () => change(() => fs.rmdirSync(at('sub')), 'REMOVE sub'),
      'a subdirectory, to which it pays no attention': () =>
        change(() => fs.writeFileSync(at('sub/file'), 'x')),
      'its own mode': () => change(() => fs.chmodSync(root, 0o700), 'CHMOD .'),
      'its own name': () => change(() => fs.renameSync(root, `${root}-moved`), 'RENAME .'),
      'a name with a newline': () => change(() => fs.mkdirSync(at('a\nb "c"')), 'CREATE a\nb "c"'),
      'a name that is not UTF-8': () =>
        change(
          () => fs.mkdirSync(Buffer.concat([Buffer.from(`${root}/x`), Buffer.from([0xff, 0xfe])])),
          'CREATE x\ufffd\ufffd',
        ),
      'a name of 255 bytes': () =>
        change(() => fs.mkdirSync(at('n'.repeat(255))), `CREATE ${'n'.repeat(255)}`),
      'nothing, when files are only read': () => change(() => fs.readFileSync(at('file'))),
    };

    it.each(Object.keys(changes))('tells of %s', async (name) => {
      fs.writeFileSync(at('file'), 'content');
      fs.writeFileSync(path.join(outside, 'foreign'), 'content');
      fs.mkdirSync(at('sub'));
      const watcher = await watch({ recursive: false });
      const { act, events } = (changes[name] as () => { act: () => void; events: string[] })();
      act();
      expect(await seen(watcher)).toEqual(events);
      expect(await seen(watcher)).toEqual([]);
    });

    it('tells that it was removed, and nothing after that', async () => {
      const watcher = await watch({ recursive: false });
      fs.rmdirSync(root);
      expect(await seen(watcher)).toEqual(['REMOVE .']);
      fs.mkdirSync(root);
      fs.writeFileSync(at('file'), '');
      expect(await seen(watcher)).toEqual([]);
    });
  });

  describe('of a tree', () => {
    it('tells of every directory by its path', async () => {
      fs.mkdirSync(at('a/b/c'), { recursive: true });
      const watcher = await watch();
      fs.writeFileSync(at('a/b/c/file'), '');
      fs.chmodSync(at('a/b'), 0o700);
      fs.rmSync(at('a/b/c/file'));
      fs.rmdirSync(at('a/b/c'));
      expect(await seen(watcher)).toEqual([
        'CREATE a/b/c/file',
        // By the directory above and by itself, as the reference does.
        'CHMOD a/b',
        'CHMOD a/b',
        'REMOVE a/b/c/file',
        'REMOVE a/b/c',
      ]);
    });

    it('tells once of what a new directory held before it could be watched', async () => {
      const watcher = await watch();
      fs.mkdirSync(at('new/deep'), { recursive: true });
      fs.writeFileSync(at('new/deep/file'), 'x');
      fs.writeFileSync(at('new/file'), 'x');
      expect(await seen(watcher)).toEqual([
        'CREATE new',
        'CREATE new/deep',
        'CREATE new/file',
        'CREATE new/deep/file',
      ]);
      fs.writeFileSync(at('new/deep/file'), 'y');
      expect(await seen(watcher)).toEqual(['WRITE new/deep/file']);
    });

    it('follows a directory that is renamed within', async () => {
      fs.mkdirSync(at('a/deep'), { recursive: true });
      fs.mkdirSync(at('b'));
      fs.writeFileSync(at('a/file'), 'x');
      const watcher = await watch();
      fs.renameSync(at('a'), at('b/c'));
      fs.writeFileSync(at('b/c/deep/file'), '');
      expect(await seen(watcher)).toEqual(['RENAME a', 'CREATE b/c', 'CREATE b/c/deep/file']);
    });

    it('tells what a directory holds that moves in, and nothing of one that moved out', async () => {
      fs.mkdirSync(path.join(outside, 'in/deep'), { recursive: true });
      fs.writeFileSync(path.join(outside, 'in/deep/file'), 'x');
      fs.mkdirSync(at('out'));
      const watcher = await watch();
      fs.renameSync(path.join(outside, 'in'), at('in'));
      fs.renameSync(at('out'), path.join(outside, 'out'));
      fs.writeFileSync(path.join(outside, 'out/file'), 'x');
      expect(await seen(watcher)).toEqual([
        'CREATE in',
        'CREATE in/deep',
        'CREATE in/deep/file',
        'RENAME out',
      ]);
      fs.writeFileSync(path.join(outside, 'out/more'), 'x');
      fs.writeFileSync(at('in/deep/more'), '');
      expect(await seen(watcher)).toEqual(['CREATE in/deep/more']);
    });

    it('watches the right one when another has taken the name of a directory since', async () => {
      const watcher = await watch();
      fs.mkdirSync(at('draft'));
      fs.renameSync(at('draft'), at('final'));
      fs.mkdirSync(at('draft'));
      await watcher.takeAll();
      fs.writeFileSync(at('final/file'), '');
      fs.writeFileSync(at('draft/file'), '');
      expect(await seen(watcher)).toEqual(['CREATE final/file', 'CREATE draft/file']);
    });

    it('watches a directory that moved into a new one by its new name', async () => {
      fs.mkdirSync(at('old/deep'), { recursive: true });
      const watcher = await watch();
      fs.mkdirSync(at('new'));
      fs.renameSync(at('old'), at('new/place'));
      await watcher.takeAll();
      fs.writeFileSync(at('new/place/deep/file'), '');
      expect(await seen(watcher)).toEqual(['CREATE new/place/deep/file']);
    });

    it('follows names that are not UTF-8', async () => {
      const odd = Buffer.concat([Buffer.from(`${root}/x`), Buffer.from([0xff])]);
      const watcher = await watch();
      fs.mkdirSync(odd);
      expect(await seen(watcher)).toEqual(['CREATE x\ufffd']);
      fs.writeFileSync(Buffer.concat([odd, Buffer.from('/file')]), '');
      expect(await seen(watcher)).toEqual(['CREATE x\ufffd/file']);
    });

    it('leaves links to directories alone', async () => {
      fs.symlinkSync(outside, at('link'));
      const watcher = await watch();
      fs.symlinkSync(outside, at('another'));
      fs.writeFileSync(path.join(outside, 'file'), '');
      expect(await seen(watcher)).toEqual(['CREATE another']);
    });

    it('shares directories with other watchers, and each gets what happens from its start on', async () => {
      fs.mkdirSync(at('sub'));
      const tree = await watch();
      fs.writeFileSync(at('sub/1'), '');
      const sub = await watch({ recursive: false, diskPath: at('sub') });
      fs.writeFileSync(at('sub/2'), '');
      expect(await seen(tree)).toEqual(['CREATE sub/1', 'CREATE sub/2']);
      tree.close();
      fs.writeFileSync(at('sub/3'), '');
      expect(await seen(sub)).toEqual(['CREATE 2', 'CREATE 3']);
    });
  });

  it('tells every file once while another process makes them faster than they can be watched', async () => {
    const watcher = await watch();
    const program = `
      for (let i = 0; i < 150; i += 1) {
        const directory = process.argv[1] + '/' + i + '/deep/deeper';
        fs.mkdirSync(directory, { recursive: true });
        for (const name of ['1', '2', '3']) fs.writeFileSync(directory + '/' + name, '');
      }`;
    const child = spawn(process.execPath, ['-e', program, root], { stdio: 'inherit' });
    expect(await once(child, 'exit')).toEqual([0, null]);
    const created = (fs.readdirSync(root, { recursive: true }) as string[]).map((name) => `CREATE ${name}`);
    expect((await seen(watcher)).sort()).toEqual(created.sort());
  });

  it('gives events one by one as they come, without being asked to look', async () => {
    const watcher = await watch();
    const event = watcher.next();
    fs.writeFileSync(at('file'), '');
    expect(told([(await event) as FilesystemEvent])).toEqual(['CREATE file']);
    const last = watcher.next();
    watcher.close();
    expect(await last).toBeUndefined();
  });

  it("ends when the kernel's queue is full, after the events before", async () => {
    for (const name of ['1', '2']) fs.writeFileSync(at(name), '');
    const watcher = await watch();
    const limit = Number(fs.readFileSync('/proc/sys/fs/inotify/max_queued_events', 'utf8'));
    // Nothing is read meanwhile: this holds the event loop.
    for (let count = 0; count <= limit; count += 1) fs.chmodSync(at(count % 2 === 0 ? '1' : '2'), 0o600);
    expect(told([(await watcher.next()) as FilesystemEvent])).toEqual(['CHMOD 1']);
    await expect(
      (async () => {
        for (;;) await watcher.next();
      })(),
    ).rejects.toThrow(/too many changes at once: some events are lost/);
    await expect(watcher.takeAll()).rejects.toThrow(/events are lost/);
  });

  it('ends when more events wait than it may hold', async () => {
    const watcher = await watch({ maxEvents: 3 });
    for (const name of ['1', '2', '3', '4']) fs.writeFileSync(at(name), '');
    await expect(watcher.takeAll()).rejects.toThrow(/more than 3 events wait to be read/);
    expect(told([(await watcher.next()) as FilesystemEvent])).toEqual(['CREATE 1']);
  });

  it('keeps no descriptor once the last one is closed', async () => {
    const open = () =>
      fs.readdirSync('/proc/self/fd').filter((fd) => targetOf(fd).includes('inotify')).length;
    const before = open();
    const first = await watch();
    const second = await watch();
    expect(open()).toBe(before + 1);
    first.close();
    second.close();
    second.close();
    await new Promise((resolve) => setImmediate(resolve));
    expect(open()).toBe(before);
  });

  describe('against a model', () => {
    const NAMES = ['a', 'b'];
    const place = fc
      .array(fc.constantFrom(...NAMES), { minLength: 1, maxLength: 3 })
      .map((names) => names.join('/'));
    const operation = fc.oneof(
      { weight: 4, arbitrary: fc.record({ act: fc.constant('mkdir' as const), to: place }) },
      { weight: 4, arbitrary: fc.record({ act: fc.constant('write' as const), to: place }) },
      { weight: 1, arbitrary: fc.record({ act: fc.constant('chmod' as const), to: place }) },
      { weight: 1, arbitrary: fc.record({ act: fc.constant('remove' as const), to: place }) },
      { weight: 3, arbitrary: fc.record({ act: fc.constant('rename' as const), from: place, to: place }) },
      { weight: 1, arbitrary: fc.record({ act: fc.constant('moveIn' as const), to: place }) },
      { weight: 1, arbitrary: fc.record({ act: fc.constant('moveOut' as const), from: place }) },
    );
    type Operation = typeof operation extends fc.Arbitrary<infer T> ? T : never;

    const isDirectory = (name: string) => exists(name) && fs.lstatSync(at(name)).isDirectory();
    const exists = (name: string) => fs.existsSync(at(name));
    const free = (name: string) => isDirectory(path.dirname(name)) && !exists(name);
    let count = 0;

    function filled(): string {
      const directory = path.join(outside, `in${(count += 1)}`);
      fs.mkdirSync(path.join(directory, 'a/b'), { recursive: true });
      fs.writeFileSync(path.join(directory, 'a/c'), 'x');
      fs.writeFileSync(path.join(directory, 'b'), 'x');
      return directory;
    }

    /** Does it where it is possible, and tells which events it must give when each is looked at at once. */
    function perform(operation: Operation): string[] {
      switch (operation.act) {
        case 'mkdir':
          if (!free(operation.to)) return [];
          fs.mkdirSync(at(operation.to));
          return [`CREATE ${operation.to}`];
        case 'write': {
          const { to } = operation;
          if (!free(to) && (!exists(to) || isDirectory(to))) return [];
          const isNew = !exists(to);
          fs.writeFileSync(at(to), 'content');
          return isNew ? [`CREATE ${to}`, `WRITE ${to}`] : [`WRITE ${to}`];
        }
        case 'chmod': {
          if (!exists(operation.to)) return [];
          fs.chmodSync(at(operation.to), isDirectory(operation.to) ? 0o700 : 0o600);
          const event = `CHMOD ${operation.to}`;
          return isDirectory(operation.to) ? [event, event] : [event];
        }
        case 'remove':
          if (!exists(operation.to)) return [];
          if (!isDirectory(operation.to)) fs.unlinkSync(at(operation.to));
          else if (fs.readdirSync(at(operation.to)).length === 0) fs.rmdirSync(at(operation.to));
          else return [];
          return [`REMOVE ${operation.to}`];
        case 'rename': {
          const { from, to } = operation;
          if (!exists(from) || !free(to) || `${to}/`.startsWith(`${from}/`)) return [];
          fs.renameSync(at(from), at(to));
          return [`RENAME ${from}`, `CREATE ${to}`];
        }
        case 'moveIn': {
          const { to } = operation;
          if (!free(to)) return [];
          fs.renameSync(filled(), at(to));
          return [to, `${to}/a`, `${to}/b`, `${to}/a/b`, `${to}/a/c`].map((name) => `CREATE ${name}`);
        }
        case 'moveOut':
          if (!exists(operation.from)) return [];
          fs.renameSync(at(operation.from), path.join(outside, `out${(count += 1)}`));
          return [`RENAME ${operation.from}`];
      }
    }

    function everything(): string[] {
      return (fs.readdirSync(root, { recursive: true }) as string[]).sort();
    }

    function clean(): void {
      fs.rmSync(root, { recursive: true, force: true });
      fs.mkdirSync(root);
    }

    /** A file in every directory is told once, by its right name: nothing is watched twice, wrongly or not at all. */
    async function expectRightTree(watcher: Watcher): Promise<void> {
      const directories = everything().filter(isDirectory);
      for (const name of directories) fs.writeFileSync(at(`${name}/probe`), '');
      expect((await seen(watcher)).sort()).toEqual(directories.map((name) => `CREATE ${name}/probe`).sort());
    }

    it('tells exactly what happened', async () => {
      await fc.assert(
        fc.asyncProperty(fc.array(operation, { maxLength: 40 }), async (operations) => {
          clean();
          const watcher = await watch();
          for (const one of operations) {
            const expected = perform(one);
            expect(await seen(watcher)).toEqual(expected);
          }
          await expectRightTree(watcher);
          watcher.close();
        }),
        { numRuns: 60 },
      );
    });

    it('loses nothing of a burst, even where directories change places meanwhile', async () => {
      await fc.assert(
        fc.asyncProperty(fc.array(operation, { maxLength: 60 }), async (operations) => {
          clean();
          const watcher = await watch();
          for (const one of operations) perform(one);
          await seen(watcher);
          await expectRightTree(watcher);
          watcher.close();
        }),
        { numRuns: 200 },
      );
    });

    it('lets whoever keeps account of a burst know in the end what there is', async () => {
      await fc.assert(
        fc.asyncProperty(fc.array(operation, { maxLength: 60 }), async (operations) => {
          clean();
          const watcher = await watch();
          const there = new Set<string>();
          for (const one of operations) {
            // What a renamed directory holds is not told again.
            if (one.act === 'rename' && isDirectory(one.from)) continue;
            perform(one);
          }
          for (const event of await watcher.takeAll()) {
            if (event.type === EventType.CREATE) there.add(event.name);
            if (event.type !== EventType.REMOVE && event.type !== EventType.RENAME) continue;
            for (const name of there) if (`${name}/`.startsWith(`${event.name}/`)) there.delete(name);
          }
          expect([...there].sort()).toEqual(everything());
          watcher.close();
        }),
        { numRuns: 200 },
      );
    });
  });
});
