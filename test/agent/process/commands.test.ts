import fs from 'node:fs/promises';
import path from 'node:path';
import { Code } from '@connectrpc/connect';
import { Signal } from '../../../protocol/envd/gen/process_pb';
import { eventually } from '../agent-fixture';
import { bySignal, failing, Following, isAlive, ProcessMachine } from './process-fixture';

const OK = { exitCode: 0, exited: true, status: 'exit status 0' };

const byPid = (value: number) => ({ selector: { case: 'pid' as const, value } });
const byTag = (value: string) => ({ selector: { case: 'tag' as const, value } });

describe('commands', () => {
  let box: ProcessMachine;

  beforeAll(async () => {
    box = await ProcessMachine.make();
    await box.machine.start('agent', { PATH: '/venv/bin:/usr/bin:/bin', CELLBOX_SECRET: 'hidden' });
    const body = JSON.stringify({ envVars: { GLOBAL: 'global', BOTH: 'global' } });
    await box.machine.request('POST', '/init', { body });
  });

  afterAll(() => box.close());

  it('tells start, output and end, in that order', async () => {
    const following = await box.start('echo out; echo err >&2; exit 3');
    await following.toEnd();
    expect(following.kinds[0]).toBe('start');
    expect(following.kinds.at(-1)).toBe('end');
    expect(following.told).toEqual({
      pid: following.pid,
      stdout: 'out\n',
      stderr: 'err\n',
      pty: '',
      end: { exitCode: 3, exited: true, status: 'exit status 3', error: 'exit status 3' },
    });
  });

  it.each([
    ['kill -KILL $$', bySignal('killed')],
    ['kill -TERM $$', bySignal('terminated')],
    ['kill -SEGV $$', bySignal('segmentation fault')],
    ['kill -HUP $$', bySignal('hangup')],
    ['true', OK],
  ])('tells how %j ended', async (line, end) => {
    expect((await box.sh(line)).end).toEqual(end);
  });

  it('reports the process id of the command itself', async () => {
    const told = await box.sh('echo $$');
    expect(told.stdout).toBe(`${told.pid}\n`);
  });

  it('speaks the binary codec as well', async () => {
    const following = new Following(
      box.binaryClient.start({ process: { cmd: 'sh', args: ['-c', 'kill -9 $$'] } }),
    );
    expect((await following.toEnd()).end).toEqual(bySignal('killed'));
    expect((await box.binaryClient.list({})).processes).toEqual([]);
  });

  it('lets a command open its own output by name', async () => {
    const told = await box.sh('echo one > /dev/stdout; echo two > /dev/stderr; cat /dev/stdin', {
      stdin: false,
    });
    expect({ ...told, pid: 0 }).toEqual({ pid: 0, stdout: 'one\n', stderr: 'two\n', pty: '', end: OK });
  });

  it('ends an unknown command with 127 and a sentence, and one without permission with 126', async () => {
    const unknown = await box.run({ process: { cmd: 'no-such-command' } });
    expect(unknown.end?.exitCode).toBe(127);
    expect(unknown.stderr).toContain('no-such-command');
    expect((await box.run({ process: { cmd: '/etc/passwd' } })).end?.exitCode).toBe(126);
  });

  it('passes a command whose name holds an equals sign or begins with a dash', async () => {
    for (const name of ['a=b', '-x']) {
      const file = path.join(box.machine.home, name);
      await fs.writeFile(file, '#!/bin/sh\necho "$@"\n', { mode: 0o755 });
      const envs = { PATH: `${box.machine.home}:/usr/bin:/bin` };
      expect((await box.run({ process: { cmd: name, args: ['--', '-y'], envs } })).stdout).toBe('-- -y\n');
    }
  });

  it('makes the environment from nothing', async () => {
    const told = await box.run({ process: { cmd: 'env', envs: { OWN: 'own', BOTH: 'own' } } });
    expect(told.stdout.trim().split('\n').sort()).toEqual(
      [
        'PATH=/venv/bin:/usr/bin:/bin',
        `HOME=${box.machine.home}`,
        'USER=user',
        'LOGNAME=user',
        'E2B_SANDBOX=true',
        'GLOBAL=global',
        'BOTH=own',
        'OWN=own',
      ].sort(),
    );
  });

  it('keeps variables with unusual names', async () => {
    const envs = { 'a.b': '1', ÜMLAUT: 'ß', 'x y': 'z\nz', __proto__x: 'p' };
    const told = await box.run({ process: { cmd: 'env', args: ['-0'], envs } });
    const seen = Buffer.from(told.stdout, 'latin1').toString().split('\0');
    expect(seen).toEqual(expect.arrayContaining(['a.b=1', 'ÜMLAUT=ß', 'x y=z\nz', '__proto__x=p']));
  });

  it.each([
    [{ cmd: '' }, /cmd must not be empty/],
    [{ cmd: 'a\0b' }, /cmd contains a NUL/],
    [{ cmd: 'true', args: ['x', 'y\0'] }, /args\[1\] contains a NUL/],
    [{ cmd: 'true', args: ['x'.repeat(200_000)] }, /args\[0\] is longer/],
    [{ cmd: 'true', args: Array<string>(30).fill('x'.repeat(100_000)) }, /together are longer/],
    [{ cmd: 'true', envs: { '': 'x' } }, /"" is not a usable name/],
    [{ cmd: 'true', envs: { 'A=B': 'secret-value' } }, /"A=B" is not a usable name/],
    [{ cmd: 'true', envs: { A: 'secret-value\0' } }, /"A" contains a NUL/],
    [{ cmd: 'true', cwd: '/no/such/directory' }, /'\/no\/such\/directory' does not exist/],
    [{ cmd: 'true', cwd: 'relative/none' }, /'\/home\/user\/relative\/none' does not exist/],
    [{ cmd: 'true', cwd: '/etc/passwd' }, /'\/etc\/passwd' is not a directory/],
    [{ cmd: 'true', cwd: '~other' }, /~other/],
    [{ cmd: 'true', cwd: '/a\0b' }, /NUL/],
  ])('refuses before it starts anything: %#', async (process, message) => {
    const error = await failing(box.run({ process }));
    expect(error.code).toBe(Code.InvalidArgument);
    expect(error.message).toMatch(message);
    expect(error.message).not.toContain('secret-value');
  });

  it('resolves the working directory as files are resolved', async () => {
    await fs.mkdir(path.join(box.machine.home, 'sub'), { recursive: true });
    const home = await fs.realpath(box.machine.home);
    for (const [cwd, place] of [
      [undefined, home],
      ['', home],
      ['~', home],
      ['sub', `${home}/sub`],
      ['/home/user/sub', `${home}/sub`],
      ['/', '/'],
    ] as const) {
      const told = await box.run({
        process: { cmd: 'pwd', args: ['-P'], ...(cwd === undefined ? {} : { cwd }) },
      });
      expect(told.stdout).toBe(`${place}\n`);
    }
  });

  it('hands output over in chunks of at most 32 KiB, all of it before the end', async () => {
    const following = await box.start('head -c 3000000 /dev/zero');
    const told = await following.toEnd();
    expect(told.stdout.length).toBe(3_000_000);
    expect(Math.max(...following.sizes)).toBeLessThanOrEqual(32_768);
    expect(following.kinds.lastIndexOf('data')).toBeLessThan(following.kinds.indexOf('end'));
  });

  it('passes on as many arguments as the system takes', async () => {
    const args = Array<string>(15).fill('x'.repeat(100_000));
    const told = await box.run({ process: { cmd: 'printf', args: ['%s', ...args] } });
    expect(told.stdout.length).toBe(1_500_000);
  });

  it('never looks into the bytes', async () => {
    const told = await box.sh("printf '\\377\\000\\303'");
    expect(told.stdout).toBe('\xff\x00\xc3');
  });

  it('waits for the output of a background child, but not once the process was killed', async () => {
    const waiting = await box.start('(sleep 0.3; echo late) & echo early');
    expect((await waiting.toEnd()).stdout).toBe('early\nlate\n');
    const killed = await box.start('sleep 1000 & echo $!; wait');
    await killed.until(({ stdout }) => stdout.includes('\n'));
    const startedAt = performance.now();
    await box.client.sendSignal({ process: killed.selector, signal: Signal.SIGKILL });
    expect((await killed.toEnd()).end).toEqual(bySignal('killed'));
    expect(performance.now() - startedAt).toBeLessThan(3_000);
    // Only that one process was signalled.
    const orphan = Number(killed.told.stdout);
    expect(await isAlive(orphan)).toBe(true);
    process.kill(orphan, 'SIGKILL');
  });

  it('also stops waiting for output when it is killed after it ended', async () => {
    const following = await box.start('sleep 1000 & echo $!');
    await following.until(({ stdout }) => stdout.includes('\n'));
    await eventually(async () => {
      expect((await box.client.list({})).processes).toEqual([]);
    });
    await box.client.sendSignal({ process: following.selector, signal: Signal.SIGKILL });
    expect((await following.toEnd()).end).toEqual(OK);
    process.kill(Number(following.told.stdout), 'SIGKILL');
  });

  it('keeps what was written before the kill', async () => {
    const following = await box.start('head -c 60000 /dev/zero; kill -STOP $$');
    await eventually(async () => {
      const stat = await fs.readFile(`/proc/${following.pid}/stat`, 'utf8');
      expect(stat.split(') ')[1]?.[0]).toBe('T');
    });
    await box.client.sendSignal({ process: following.selector, signal: Signal.SIGKILL });
    expect((await following.toEnd()).stdout.length).toBe(60_000);
  });

  it('has killed and reaped a process when the answer comes', async () => {
    const following = await box.start('exec sleep 1000');
    await box.client.sendSignal({ process: following.selector, signal: Signal.SIGKILL });
    expect(() => process.kill(following.pid, 0)).toThrow('ESRCH');
    expect((await box.client.list({})).processes).toEqual([]);
    await following.toEnd();
  });

  it('passes SIGTERM on and waits for whatever the process makes of it', async () => {
    const following = await box.start(
      'trap "echo bye; exit 7" TERM; echo ready; while :; do sleep 0.01; done',
    );
    await following.until(({ stdout }) => stdout.includes('ready'));
    await box.client.sendSignal({ process: following.selector, signal: Signal.SIGTERM });
    const told = await following.toEnd();
    expect([told.stdout, told.end?.exitCode]).toEqual(['ready\nbye\n', 7]);
  });

  it("does not let `kill 0` reach anybody else's command", async () => {
    const other = await box.start('exec sleep 1000');
    expect((await box.sh('kill -KILL 0')).end).toEqual(bySignal('killed'));
    expect(await isAlive(other.pid)).toBe(true);
    await box.client.sendSignal({ process: other.selector, signal: Signal.SIGKILL });
  });

  it('lists what runs with the request as it was', async () => {
    const config = { cmd: '/bin/sh', args: ['-c', 'exec sleep 1000'], envs: { A: 'b' }, cwd: '~' };
    const following = await box.start('', { tag: 'tagged', process: config });
    const { processes } = await box.client.list({});
    expect(processes).toMatchObject([{ pid: following.pid, tag: 'tagged', config }]);
    await box.client.sendSignal({ process: byTag('tagged'), signal: Signal.SIGKILL });
    await following.toEnd();
  });

  it('finds a process by its tag among others', async () => {
    const [one, two] = [
      await box.start('exec sleep 1000', { tag: 'one' }),
      await box.start('exec sleep 1000', { tag: 'two' }),
    ];
    await box.client.sendSignal({ process: byTag('two'), signal: Signal.SIGKILL });
    expect((await two.toEnd()).end).toEqual(bySignal('killed'));
    expect(await isAlive(one.pid)).toBe(true);
    await box.client.sendSignal({ process: byTag('one'), signal: Signal.SIGKILL });
  });

  it('gives a second reader what comes after, and both the end', async () => {
    const first = await box.start('echo before; read x; echo after', { stdin: true });
    await first.until(({ stdout }) => stdout === 'before\n');
    const second = new Following(box.client.connect({ process: first.selector }));
    await second.started();
    expect(second.pid).toBe(first.pid);
    await box.client.sendInput({
      process: first.selector,
      input: { input: { case: 'stdin', value: Buffer.from('go\n') } },
    });
    expect({ ...(await first.toEnd()), pid: 0 }).toEqual({
      pid: 0,
      stdout: 'before\nafter\n',
      stderr: '',
      pty: '',
      end: OK,
    });
    expect({ ...(await second.toEnd()), pid: 0 }).toEqual({
      pid: 0,
      stdout: 'after\n',
      stderr: '',
      pty: '',
      end: OK,
    });
  });

  it('still tells how a process ended after it did, by pid and by tag, until that tag is used again', async () => {
    const { pid } = await box.sh('echo output; exit 4', { tag: 'gone' });
    for (const process of [byPid(pid), byTag('gone')]) {
      const late = new Following(box.client.connect({ process }));
      const told = await late.toEnd();
      expect(late.kinds).toEqual(['start', 'end']);
      expect([told.pid, told.stdout, told.end?.exitCode]).toEqual([pid, '', 4]);
    }
    const again = await box.start('exec sleep 1000', { tag: 'gone' });
    const found = new Following(box.client.connect({ process: byTag('gone') }));
    await found.started();
    expect(found.pid).toBe(again.pid);
    await box.client.sendSignal({ process: again.selector, signal: Signal.SIGKILL });
  });

  it('goes on without its client, and its output goes nowhere', async () => {
    const file = path.join(box.machine.home, 'done');
    const leaving = new AbortController();
    const following = await box.start(
      `head -c 1000000 /dev/zero; echo done > ${file}`,
      {},
      { signal: leaving.signal },
    );
    leaving.abort();
    await eventually(() => fs.access(file));
    await eventually(async () => expect(await isAlive(following.pid)).toBe(false));
  });

  it.each([
    ['connect', () => new Following(box.client.connect({ process: byPid(999_999) })).toEnd()],
    ['sendSignal', () => box.client.sendSignal({ process: byPid(999_999), signal: Signal.SIGKILL })],
    ['sendInput', () => box.client.sendInput({ process: byTag('none') })],
    ['closeStdin', () => box.client.closeStdin({ process: byPid(999_999) })],
    ['update', () => box.client.update({ process: byPid(999_999) })],
  ])('answers %s with not_found where there is no such process', async (_name, call) => {
    const error = await failing(call());
    expect(error.code).toBe(Code.NotFound);
    expect(error.message).toMatch(/999999|none/);
  });

  it('does not implement what it does not know', async () => {
    const following = await box.start('exec sleep 1000');
    const process = following.selector;
    for (const call of [
      box.client.sendSignal({ process, signal: Signal.UNSPECIFIED }),
      box.client.sendSignal({ process: {}, signal: Signal.SIGKILL }),
      box.client.sendSignal({}),
      box.client.sendInput({ process }),
      new Following(box.client.connect({})).toEnd(),
    ]) {
      expect((await failing(call)).code).toBe(Code.Unimplemented);
    }
    await box.client.sendSignal({ process, signal: Signal.SIGKILL });
  });
});
