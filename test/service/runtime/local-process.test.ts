import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  findDescendants,
  findMembers,
  freezeTree,
  identify,
  isAlive,
  killTree,
  MARK,
  parsePsLine,
  parseStat,
  thawTree,
} from '../../../service/runtime/local-process';
import type { ProcessEntry } from '../../../service/runtime/local-process';
import { INIT_PROGRAM } from '../../../service/runtime/local-launch';

function entry(pid: number, parentPid: number, overrides: Partial<ProcessEntry> = {}): ProcessEntry {
  return {
    pid,
    parentPid,
    startTime: `b:${pid}`,
    groupId: pid,
    sessionId: pid,
    state: 'S',
    cpuMs: 0,
    memoryBytes: 0,
    ...overrides,
  };
}

/** What a program prints, for waiting until there is more of it than was asked about before. */
class Told {
  private bytes = 0;
  private seen = 0;
  private onMore: () => void = () => undefined;

  constructor(stream: NodeJS.ReadableStream) {
    stream.on('data', (chunk: Buffer) => {
      this.bytes += chunk.length;
      this.onMore();
    });
  }

  async more(): Promise<void> {
    if (this.bytes === this.seen) await new Promise<void>((resolve) => (this.onMore = resolve));
    this.forget();
  }

  forget(): void {
    this.seen = this.bytes;
  }
}

/** Waits for a line; leaves the stream open, because a program that prints to a closed one ends. */
function line(stream: NodeJS.ReadableStream, pattern: RegExp): Promise<RegExpExecArray> {
  return new Promise((resolve, reject) => {
    let text = '';
    stream.on('end', () => reject(new Error(`ended without ${pattern}: ${text}`)));
    stream.on('data', (chunk) => {
      text += String(chunk);
      const match = pattern.exec(text);
      if (match !== null) resolve(match);
    });
  });
}

describe('parseStat()', () => {
  it('reads a process whose name holds brackets and spaces', () => {
    const text =
      '42 (a) b (c) S 7 42 40 0 -1 4194560 9 0 0 0 3 4 5 6 20 0 1 0 777 1000 12 18446744073709551615';
    expect(parseStat(text, 'boot')).toEqual({
      pid: 42,
      startTime: 'boot:777',
      state: 'S',
      parentPid: 7,
      groupId: 42,
      sessionId: 40,
      cpuMs: 180,
      memoryBytes: 12 * 4096,
    });
  });

  it('gives nothing for what is cut off or empty', () => {
    expect(parseStat('', 'boot')).toBeUndefined();
    expect(parseStat('42 (x) S 1', 'boot')).toBeUndefined();
  });
});

describe('parsePsLine()', () => {
  it('reads what ps prints on other systems', () => {
    expect(parsePsLine('  501   1   501 Ss   2048   1:02.00 Sat Nov 21 07:30:00 2026')).toEqual({
      pid: 501,
      parentPid: 1,
      groupId: 501,
      sessionId: 501,
      state: 'S',
      memoryBytes: 2048 * 1024,
      cpuMs: 62_000,
      startTime: 'Sat Nov 21 07:30:00 2026',
    });
    expect(parsePsLine('PID PPID')).toBeUndefined();
  });
});

describe('findDescendants()', () => {
  const pids = (entries: ProcessEntry[]) => entries.map(({ pid }) => pid);

  it('finds children, their children, and members of the session and group of the root', () => {
    const table = [
      entry(12, 11),
      entry(11, 10),
      entry(10, 1),
      entry(13, 1, { sessionId: 10 }),
      entry(14, 1, { groupId: 10 }),
      entry(15, 1),
    ];
    expect(pids(findDescendants(table, [{ pid: 10, startTime: 'b:10' }]))).toEqual([12, 11, 10, 13, 14]);
  });

  it('takes nothing of a process that has the number of a root that is gone', () => {
    const table = [entry(10, 1, { startTime: 'b:99' }), entry(11, 10)];
    expect(findDescendants(table, [{ pid: 10, startTime: 'b:10' }])).toEqual([]);
  });

  it('goes on from processes that are known to belong', () => {
    expect(pids(findDescendants([entry(20, 1), entry(21, 20), entry(22, 1)], [], new Set([20])))).toEqual([
      20, 21,
    ]);
  });
});

describe('a tree of real processes', () => {
  const python = execFileSync('python3', ['-c', 'import sys; print(sys.executable)'], {
    encoding: 'utf8',
  }).trim();

  it('tells a live process from a later one of the same number', async () => {
    const me = await identify(process.pid);
    expect(me).toBeDefined();
    if (me === undefined) return;
    expect(await isAlive(me)).toBe(true);
    expect(await isAlive({ ...me, startTime: 'other' })).toBe(false);
  });

  // Each leads out of its parent's reach in another way.
  const escapes: Record<string, string> = {
    'a double fork': `
pid = os.fork()
if pid == 0:
    if os.fork(): os._exit(0)
    tell()
os.waitpid(pid, 0)`,
    'a session of its own': `
if os.fork() == 0:
    os.setsid()
    tell()`,
    'a daemon: forks, a session, no signals, no environment': `
pid = os.fork()
if pid == 0:
    os.setsid()
    if os.fork(): os._exit(0)
    for number in range(1, 32):
        try: signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError): pass
    os.execve(sys.executable, ["x", "-S", "-c", "import os,time; print('daemon', os.getpid(), flush=True); time.sleep(600)"], {})
os.waitpid(pid, 0)`,
    'none: it forks again and again': `
if os.fork() == 0:
    tell(False)
    while True:
        if os.fork(): time.sleep(0.002); os._exit(0)`,
  };
  for (const [name, program] of Object.entries(escapes)) {
    it(`ends with the tree, whatever way out it takes: ${name}`, async () => {
      const id = `t${process.pid}x${Date.now().toString(36)}`;
      const prelude = `
import os, signal, sys, time
def tell(stay=True):
    print("daemon", os.getpid(), flush=True)
    if stay: time.sleep(600)
`;
      const child = spawn(
        python,
        ['-I', '-S', '-c', INIT_PROGRAM, python, '-S', '-c', `${prelude}${program}\ntime.sleep(600)`],
        {
          detached: true,
          stdio: ['ignore', 'pipe', 'inherit'],
          env: { ...process.env, [MARK]: id },
        },
      );
      const exit = once(child, 'exit');
      const marks = {
        instanceId: id,
        roots: [(await identify(child.pid ?? -1)) ?? { pid: -1, startTime: '' }],
      };
      try {
        await line(child.stdout, /daemon (\d+)\n/);
        expect((await findMembers(marks)).length).toBeGreaterThanOrEqual(2);
      } finally {
        await killTree(marks);
      }
      expect(await findMembers(marks)).toEqual([]);
      await exit;
    });
  }

  it('freezes a tree that forks all the time, without a processor for any of it, and thaws it', async () => {
    const id = `t${process.pid}z${Date.now().toString(36)}`;
    const forks = `
import os, sys
n = 0
while True:
    if os.fork() == 0:
        os._exit(0)
    os.wait()
    n += 1
    if n % 50 == 0:
        print(n, flush=True)
`;
    const child = spawn(python, ['-S', '-c', forks], {
      stdio: ['ignore', 'pipe', 'inherit'],
      env: { ...process.env, [MARK]: id },
    });
    const exit = once(child, 'exit');
    const said = new Told(child.stdout);
    await said.more();
    const root = await identify(child.pid ?? 0);
    const marks = { instanceId: id, roots: root === undefined ? [] : [root] };
    await freezeTree(marks);
    const used = async () => (await findMembers(marks)).reduce((total, { cpuMs }) => total + cpuMs, 0);
    const before = await used();
    expect(before).toBeGreaterThan(0);
    await new Promise((resolve) => setTimeout(resolve, 200)); // nothing tells that nothing happens
    expect(await used()).toBe(before);
    expect((await findMembers(marks)).map(({ state }) => state).every((state) => state === 'T')).toBe(true);
    said.forget();
    await thawTree(marks);
    await said.more();
    await killTree(marks);
    expect(await exit).toEqual([null, 'SIGKILL']);
  });

  it('finds a marked process whose root is gone', async () => {
    const id = `t${process.pid}y${Date.now().toString(36)}`;
    const child = spawn(python, ['-S', '-c', 'import time; print("ready", flush=True); time.sleep(600)'], {
      stdio: ['ignore', 'pipe', 'inherit'],
      env: { ...process.env, [MARK]: id },
    });
    const exit = once(child, 'exit');
    await line(child.stdout, /ready/);
    const marks = { instanceId: id, roots: [{ pid: 2 ** 22 + 1, startTime: 'gone' }] };
    expect((await findMembers(marks)).map(({ pid }) => pid)).toEqual([child.pid]);
    await killTree(marks);
    expect(await exit).toEqual([null, 'SIGKILL']);
  });

  it('leaves nothing when the supervisor ends by itself and a daemon stays behind', async () => {
    const daemon = `
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print("daemon", os.getpid(), flush=True)
        time.sleep(600)
    os._exit(0)
input()
`;
    const child = spawn(python, ['-I', '-S', '-c', INIT_PROGRAM, python, '-S', '-c', daemon], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    const exit = once(child, 'exit');
    const pid = Number((await line(child.stdout, /daemon (\d+)\n/))[1]);
    const who = await identify(pid);
    child.stdin.end('\n');
    await exit;
    expect(who !== undefined && (await isAlive(who))).toBe(false);
  });
});
