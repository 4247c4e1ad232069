import fs from 'node:fs';
import { randomBytes } from 'node:crypto';
import { describeWithJsSdks, until } from './js-sdks';
import type { Sandbox } from './js-sdks';

const MINUTES = 60_000;

/** Processor time that the host counts for the processes whose command line has this in it. */
function ticksOf(mark: string): number {
  let ticks = 0;
  for (const pid of fs.readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
    try {
      if (!fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(mark)) continue;
      const fields = fs.readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ') ?? [];
      ticks += Number(fields[11]) + Number(fields[12]);
    } catch {
      // gone since the listing
    }
  }
  return ticks;
}

/** A program that uses a processor as long as it is let. */
async function startBusy(sandbox: Sandbox): Promise<string> {
  const mark = `busy-${randomBytes(8).toString('hex')}`;
  await sandbox.commands.run(`python3 -c "while True: pass" ${mark}`, { background: true, timeoutMs: 0 });
  await until('the busy program', () => ticksOf(mark) > 5);
  return mark;
}

const COUNTER = `
import os, time
for n in range(1_000_000):
    if os.path.exists('enough'): break
    with open('count.next', 'w') as file: file.write(str(n))
    os.replace('count.next', 'count') # else 99, then 100, may be read as 990
    time.sleep(0.02)
n
`;

/** Time and again a different number, as long as the cell runs. */
const count = async (sandbox: Sandbox): Promise<number> =>
  Number(await sandbox.files.read('count').catch(() => '0'));

describeWithJsSdks('pause and resume', ({ sdk, generation }) => {
  const create = (more: object = {}): Promise<Sandbox> =>
    sdk.Sandbox.create({ timeoutMs: 10 * MINUTES, ...more });
  const stateOf = async (id: string) => (await sdk.Sandbox.getInfo(id)).state;

  it('keep variables, files, contexts, tokens and the id', async () => {
    const sandbox = await create({ metadata: { kept: 'yes' } });
    const { sandboxId } = sandbox;
    await sandbox.files.write('a.txt', 'content');
    await sandbox.runCode('x = 41');
    const context = await sandbox.createCodeContext({ cwd: '/tmp' });
    await sandbox.runCode('y = 1', { context });

    const before = Date.now();
    expect(await sandbox.pause()).toBe(true);
    const after = Date.now();
    expect(await sandbox.pause()).toBe(false);
    expect(await sdk.Sandbox.betaPause(sandboxId)).toBe(false);
    const info = await sdk.Sandbox.getInfo(sandboxId);
    expect(info).toMatchObject({ state: 'paused', metadata: { kept: 'yes' } });
    expect(info.endAt.getTime()).toBeGreaterThanOrEqual(before);
    expect(info.endAt.getTime()).toBeLessThanOrEqual(after);
    const ids = async (state: 'running' | 'paused') =>
      (await sdk.Sandbox.list({ query: { state: [state], metadata: { kept: 'yes' } } }).nextItems()).map(
        (each) => each.sandboxId,
      );
    expect([await ids('running'), await ids('paused')]).toEqual([[], [sandboxId]]);
    expect(await sandbox.isRunning()).toBe(false);
    await expect(sdk.Sandbox.setTimeout(sandboxId, 60_000)).rejects.toThrow();

    const again = await sdk.Sandbox.connect(sandboxId, { timeoutMs: MINUTES });
    expect(again.sandboxId).toBe(sandboxId);
    const { endAt, state } = await again.getInfo();
    expect(state).toBe('running');
    expect(Math.abs(endAt.getTime() - Date.now() - MINUTES)).toBeLessThan(10_000);
    expect((await again.runCode('x + 1')).text).toBe('42');
    expect((await again.runCode('y', { context })).text).toBe('1');
    expect(await again.files.read('a.txt')).toBe('content');
    // The old object is as good.
    expect((await sandbox.runCode('x + 2')).text).toBe('43');
    expect((await sandbox.commands.run('echo on')).stdout).toBe('on\n');
    await sandbox.kill();
  }, 90_000);

  it('let a running cell and a running command go on, and use no processor in between', async () => {
    const sandbox = await create();
    const cell = sandbox.runCode(COUNTER, { timeoutMs: 0 }).then(
      () => 'ended',
      () => 'broken off',
    );
    const mark = await startBusy(sandbox);
    await until('the cell', async () => (await count(sandbox)) > 0);
    await sandbox.pause();
    expect(await cell).toBe('broken off');
    const before = ticksOf(mark);
    expect(before).toBeGreaterThan(0);
    await new Promise((resolve) => setTimeout(resolve, 1_000)); // nothing tells that nothing happens
    expect(ticksOf(mark)).toBe(before);

    await sandbox.connect();
    await until('the command', () => ticksOf(mark) > before + 5);
    const seen = await count(sandbox);
    await until('the cell', async () => (await count(sandbox)) > seen);
    await sandbox.files.write('enough', '');
    // The same cell, in the same kernel: it has left its last number.
    expect(Number((await sandbox.runCode('n', { timeoutMs: MINUTES })).text)).toBeGreaterThanOrEqual(seen);
    await sandbox.kill();
  }, 90_000);

  it('do not count for the time limit of a command', async () => {
    const sandbox = await create();
    await sandbox.commands.run('until [ -e go ]; do sleep 0.1; done; sleep 0.5; echo through > through', {
      background: true,
      timeoutMs: 5_000,
    });
    await sandbox.pause();
    await new Promise((resolve) => setTimeout(resolve, 6_000)); // what is tested is that this time does not count
    await sandbox.connect();
    await sandbox.files.write('go', '');
    await until('the command', () => sandbox.files.exists('through'));
    await sandbox.kill();
  }, 60_000);

  it('are what the deadline does where that was asked for, and traffic undoes', async () => {
    const sandbox = await create({
      timeoutMs: MINUTES,
      lifecycle: { onTimeout: 'pause', autoResume: true },
    });
    const { sandboxId } = sandbox;
    expect((await sandbox.getInfo()).lifecycle).toEqual({ onTimeout: 'pause', autoResume: true });
    await sandbox.runCode('x = 41');
    await sandbox.setTimeout(500);
    await until('the deadline', async () => (await stateOf(sandboxId)) === 'paused', 20_000);
    expect((await sandbox.runCode('x + 1')).text).toBe('42');
    const { state, endAt } = await sandbox.getInfo();
    expect(state).toBe('running');
    expect(endAt.getTime() - Date.now()).toBeGreaterThan(4 * MINUTES);

    // Files and commands wake it, too.
    await sandbox.pause();
    await sandbox.files.write('a.txt', 'woken');
    await sandbox.pause();
    expect((await sandbox.commands.run('cat a.txt')).stdout).toBe('woken');
    await sandbox.pause();
    expect(await sandbox.kill()).toBe(true);
    await expect(sdk.Sandbox.getInfo(sandboxId)).rejects.toThrow();
  }, 90_000);

  it('leave a paused sandbox to be killed, and not to be used', async () => {
    const sandbox = await create();
    await sandbox.runCode('1');
    await sandbox.pause();
    await expect(sandbox.runCode('1')).rejects.toThrow();
    await expect(sandbox.commands.run('true')).rejects.toThrow();
    expect(await stateOf(sandbox.sandboxId)).toBe('paused');
    expect(await sandbox.kill()).toBe(true);
    expect(await sandbox.kill()).toBe(false);
    await expect(sdk.Sandbox.connect(sandbox.sandboxId)).rejects.toThrow();
  }, 60_000);

  it('keep files alone where that was asked for, at the deadline too', async () => {
    const sandbox = await create({ envs: { COLOUR: 'blue' } });
    const { sandboxId } = sandbox;
    await sandbox.files.write('a.txt', 'content');
    await sandbox.runCode('x = 41');
    const command = await sandbox.commands.run('sleep 600', { background: true, timeoutMs: 0 });
    const ended = command.wait().then(
      () => 'ended',
      () => 'broken off',
    );
    const filesAlone = { keepMemory: false } as object; // newer than some of the types
    expect(await sdk.Sandbox.pause(sandboxId, filesAlone)).toBe(true);
    expect(await sdk.Sandbox.pause(sandboxId, filesAlone)).toBe(false);
    expect(await ended).toBe('broken off');
    expect(await stateOf(sandboxId)).toBe('paused');
    const again = await sdk.Sandbox.connect(sandboxId, { timeoutMs: MINUTES });
    expect(await again.files.read('a.txt')).toBe('content');
    expect((await again.runCode('"x" in globals(), __import__("os").environ["COLOUR"]')).text).toBe(
      "(False, 'blue')",
    );
    // The old object is as good.
    expect((await sandbox.commands.run('echo $COLOUR; pgrep -x sleep || true')).stdout).toBe('blue\n');
    await sandbox.kill();

    const onTimeout = { action: 'pause', keepMemory: false };
    const timed = await create({ lifecycle: { onTimeout } as object });
    await timed.files.write('a.txt', 'content');
    await timed.runCode('x = 41');
    await timed.setTimeout(500);
    await until('the deadline', async () => (await stateOf(timed.sandboxId)) === 'paused', 20_000);
    await timed.connect();
    expect((await timed.runCode('"x" in globals(), open("a.txt").read()')).text).toBe("(False, 'content')");
    await timed.kill();
  }, 120_000);

  if (generation === 'newest') {
    it('start anew without the memory where that was asked for', async () => {
      const sandbox = await create();
      await sandbox.runCode('x = 41; open("a.txt", "w").write("content")');
      await sandbox.pause();
      const again = await sdk.Sandbox.connect(sandbox.sandboxId, { onResume: 'reboot' } as object);
      expect((await again.runCode('"x" in globals(), open("a.txt").read()')).text).toBe("(False, 'content')");
      await sandbox.kill();
    }, 60_000);
  }
});
