import fs from 'node:fs/promises';
import path from 'node:path';
import { Code } from '@connectrpc/connect';
import { Signal } from '../../../protocol/envd/gen/process_pb';
import { eventually } from '../agent-fixture';
import { bySignal, failing, Following, isAlive, ProcessMachine } from './process-fixture';

const KEEPALIVE = { headers: { 'keepalive-ping-interval': '1' } };

describe.each(['json', 'binary'] as const)('time, memory and descriptors of processes, %s', (codec) => {
  let box: ProcessMachine;
  let agentPid: number;

  beforeAll(async () => {
    box = await ProcessMachine.make(codec);
    agentPid = (await box.machine.start('agent')).pid ?? 0;
  });

  afterAll(() => box.close());

  const residentMB = async () => {
    const status = await fs.readFile(`/proc/${agentPid}/status`, 'utf8');
    return Number(/VmRSS:\s+(\d+) kB/.exec(status)?.[1]) / 1024;
  };
  const descriptors = async () => (await fs.readdir(`/proc/${agentPid}/fd`)).length;
  const gone = (pid: number) => eventually(async () => expect(await isAlive(pid)).toBe(false));

  it('kills a process at its deadline and says deadline_exceeded, not how it ended', async () => {
    const following = await box.start('trap "" TERM; echo on; exec sleep 1000', {}, { timeoutMs: 2_000 });
    expect((await failing(following.toEnd())).code).toBe(Code.DeadlineExceeded);
    expect(following.kinds).toEqual(['start', 'data']);
    await gone(following.pid);
    // Whoever else asks is told the truth.
    expect((await new Following(box.client.connect({ process: following.selector })).toEnd()).end).toEqual(
      bySignal('killed'),
    );
  });

  it('kills it also when the client has left', async () => {
    const leaving = new AbortController();
    const headers = { 'connect-timeout-ms': '2000' };
    const following = await box.start('exec sleep 1000', {}, { headers, signal: leaving.signal });
    leaving.abort();
    await gone(following.pid);
  });

  it('does not kill a process whose reader has a deadline of its own', async () => {
    const following = await box.start('exec sleep 1000');
    const reader = new Following(box.client.connect({ process: following.selector }, { timeoutMs: 200 }));
    expect((await failing(reader.toEnd())).code).toBe(Code.DeadlineExceeded);
    expect(await isAlive(following.pid)).toBe(true);
    await box.client.sendSignal({ process: following.selector, signal: Signal.SIGKILL });
  });

  it('takes a time limit of a hundred days', async () => {
    const headers = { 'connect-timeout-ms': '8640000000' };
    expect((await box.sh('echo fine', {}, { headers })).stdout).toBe('fine\n');
  });

  it('pings when nothing else was sent for as long as the caller asked', async () => {
    const startedAt = performance.now();
    const following = await box.start('read x; echo x; read y', { stdin: true }, KEEPALIVE);
    const { selector: process, kinds } = following;
    await following.until(() => kinds.at(-1) === 'keepalive');
    await box.client.sendInput({ process, input: { input: { case: 'stdin', value: Buffer.from('go\n') } } });
    await following.until(() => kinds.at(-1) === 'data');
    await following.until(() => kinds.at(-1) === 'keepalive');
    await box.client.closeStdin({ process });
    await following.toEnd();
    const tookMs = performance.now() - startedAt;
    // One after the other where the machine was held up, but each after a second of silence.
    expect(kinds.filter((kind, i) => kind !== kinds[i - 1])).toEqual([
      'start',
      'keepalive',
      'data',
      'keepalive',
      'end',
    ]);
    expect(tookMs).toBeGreaterThan(kinds.filter((kind) => kind === 'keepalive').length * 990);
  });

  it('throttles a process whose reader is slow, and buffers next to nothing', async () => {
    const progress = path.join(box.machine.home, 'progress');
    // dd reports to a file how far it came.
    const line = `yes | head -c 1000000000 | dd bs=64k status=progress 2> ${progress}; echo all`;
    const following = await box.start(line);
    await following.until(({ stdout }) => stdout.length > 100_000);
    const before = await residentMB();
    await eventually(async () => {
      expect(await isAlive(following.pid)).toBe(true);
      // Nobody reads: it stands still.
      const stat = async () =>
        (await fs.readFile(`/proc/${following.pid}/io`, 'utf8')) +
        (await fs.readFile(`/proc/${agentPid}/io`, 'utf8'));
      const one = await stat();
      await new Promise((resolve) => setTimeout(resolve, 200)); // the time in which it does not move
      expect(await stat()).toBe(one);
    });
    expect((await residentMB()) - before).toBeLessThan(60);
    expect(await residentMB()).toBeLessThan(200);
    await box.client.sendSignal({ process: following.selector, signal: Signal.SIGKILL });
    expect((await following.toEnd()).end).toEqual(bySignal('killed'));
  });

  it('lets a reader who leaves hold up nobody', async () => {
    const leaving = new AbortController();
    const first = await box.start(
      'read x; head -c 20000000 /dev/zero; echo end',
      { stdin: true },
      { signal: leaving.signal },
    );
    const second = new Following(box.client.connect({ process: first.selector }));
    await second.started();
    await box.client.sendInput({
      process: first.selector,
      input: { input: { case: 'stdin', value: Buffer.from('go\n') } },
    });
    await first.until(({ stdout }) => stdout.length > 1_000_000);
    leaving.abort();
    expect((await second.toEnd()).stdout.length).toBe(20_000_004);
  });

  it('reads on when nobody does, in constant memory', async () => {
    const leaving = new AbortController();
    const file = path.join(box.machine.home, 'written');
    const line = `head -c 200000000 /dev/zero; echo written > ${file}`;
    await box.start(line, {}, { signal: leaving.signal });
    leaving.abort();
    await eventually(() => fs.access(file));
    expect(await residentMB()).toBeLessThan(200);
  });

  it('runs 200 commands at once and keeps none of their descriptors', async () => {
    await box.sh('true');
    const before = await descriptors();
    const all = Array.from({ length: 200 }, async (_, i) => {
      const following = await box.start(`read go; echo ${i}`, { stdin: true });
      return following;
    });
    const started = await Promise.all(all);
    expect((await box.client.list({})).processes).toHaveLength(200);
    await Promise.all(started.map(({ selector }) => box.client.closeStdin({ process: selector })));
    const told = await Promise.all(started.map((following) => following.toEnd()));
    expect(told.map(({ stdout }) => stdout)).toEqual(told.map((_, i) => `${i}\n`));
    expect((await box.client.list({})).processes).toEqual([]);
    await eventually(async () => expect(await descriptors()).toBeLessThanOrEqual(before + 8));
  });
});
