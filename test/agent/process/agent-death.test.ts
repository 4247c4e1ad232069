import fs from 'node:fs/promises';
import { findOrphans } from '../../../kernel-image/agent/orphans';
import type { Family } from '../../../kernel-image/agent/orphans';
import { listProcesses, parseStat } from '../../../kernel-image/agent/process/process-list';
import type { ListedProcess } from '../../../kernel-image/agent/process/process-list';
import { INIT_PROGRAM } from '../../../service/runtime/local-launch';
import { GATEWAY_PORT } from '../../../protocol/routing';
import { eventually, quickest } from '../agent-fixture';
import { bySignal, Following, isAlive, ProcessMachine } from './process-fixture';

/** A gateway with a descendant that lost its parent, as a notebook's daemons do. */
const STUB_GATEWAY = `
  const { execFileSync } = require('node:child_process');
  const orphan = execFileSync('/bin/sh', ['-c', 'setsid sleep 1000 > /dev/null 2>&1 & echo $!']).toString();
  const server = require('node:http').createServer((request, response) => response.end(process.pid + ' ' + orphan));
  server.listen(0, '127.0.0.1', () => {
    console.log('cellbox gateway listening on 127.0.0.1:' + server.address().port);
  });
`;
const GATEWAY = {
  CELLBOX_GATEWAY_PORT: '0',
  CELLBOX_GATEWAY_COMMAND: JSON.stringify([process.execPath, '-e', STUB_GATEWAY]),
};
/** The local runtime's init: whatever loses its parent comes to it. */
const INIT = ['/usr/bin/env', 'python3', '-c', INIT_PROGRAM];

describe('when the agent dies', () => {
  let box: ProcessMachine;

  beforeEach(async () => {
    box = await ProcessMachine.make();
    await box.machine.start('supervisor', GATEWAY, INIT);
  });

  afterEach(() => box.close());

  const agentPid = () =>
    eventually(async () => {
      for (const { pid, session } of listProcesses()) {
        const command = await fs.readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
        if (pid === session && command.includes(`${box.machine.directory}/bundle/agent.js`)) return pid;
      }
      throw new Error('no agent');
    });
  const gateway = () =>
    eventually(async () => {
      const answer = await box.machine.request('GET', '/', { port: GATEWAY_PORT });
      return answer.body.toString().trim().split(' ').map(Number);
    });
  const gone = (pid: number) => eventually(async () => expect(await isAlive(pid)).toBe(false), 5_000);
  /** What the next agent tells about a process of one that is killed, and how long after. */
  const killAgent = async (signal: NodeJS.Signals, following: Following) => {
    const agent = await agentPid();
    process.kill(agent, signal);
    const killedAt = performance.now();
    await gone(agent);
    // Whoever listened hears that the connection is gone, not an end that never was.
    await expect(following.toEnd()).rejects.toThrow();
    const found = await eventually(() =>
      new Following(box.client.connect({ process: following.selector })).toEnd(),
    );
    return { found, tookMs: performance.now() - killedAt };
  };

  it.each(['SIGKILL', 'SIGTERM'] as const)(
    'by %s, everything that it had started ends, told as ended, and the kernels live on',
    async (signal) => {
      const [gatewayPid = 0, orphan = 0] = await gateway();
      const plain = await box.start('sleep 1000 & echo $!; wait', { tag: 'plain' });
      const away = await box.start(
        // A daemon: another session, and no parent left.
        "setsid sh -c 'sleep 1000 & echo $!' < /dev/null 2>&1; exec sleep 1000",
      );
      const daemonOfNobody = await box.start("setsid sh -c 'sleep 1000 > /dev/null 2>&1 & echo $!'");
      await daemonOfNobody.toEnd();
      const terminal = new Following(
        box.client.start({
          process: { cmd: '/bin/sh', args: ['-c', 'sleep 1000 & echo $!; wait'] },
          pty: {},
        }),
      );
      await plain.until(({ stdout }) => stdout.includes('\n'));
      await away.until(({ stdout }) => stdout.includes('\n'));
      await terminal.until(({ pty }) => pty.includes('\n'));
      const descendants = [plain, away, daemonOfNobody].map(({ told }) => Number(told.stdout));
      descendants.push(Number(terminal.told.pty));
      for (const pid of descendants) expect(await isAlive(pid)).toBe(true);

      const { found, tookMs: firstTookMs } = await killAgent(signal, plain);
      expect(found).toMatchObject({ pid: plain.pid, end: bySignal('killed') });
      const byTag = { selector: { case: 'tag' as const, value: 'plain' } };
      expect((await new Following(box.client.connect({ process: byTag })).toEnd()).pid).toBe(plain.pid);
      expect((await new Following(box.client.connect({ process: terminal.selector })).toEnd()).end).toEqual(
        bySignal('killed'),
      );
      expect((await box.client.list({})).processes).toEqual([]);
      for (const pid of [...descendants, plain.pid, away.pid, terminal.pid]) await gone(pid);
      // One that ended before, or never was, is not told as killed.
      await expect(
        new Following(box.client.connect({ process: daemonOfNobody.selector })).toEnd(),
      ).rejects.toThrow('there is no process');
      expect(await gateway()).toEqual([gatewayPid, orphan]);
      expect(await isAlive(orphan)).toBe(true);
      expect((await box.sh('echo again')).stdout).toBe('again\n');

      const killAgain = async () => (await killAgent(signal, await box.start('sleep 1000'))).tookMs;
      if (firstTookMs >= 2_000) expect(await quickest(2_000, killAgain)).toBeLessThan(2_000);
    },
  );

  it('no process is left as a zombie', async () => {
    const command = await box.start('sh -c \'sh -c "sleep 0.1 & exec sleep 0.2" &\' ; echo done');
    await command.toEnd();
    const agent = await agentPid();
    const supervisor = listProcesses().find(({ pid }) => pid === agent)?.parent;
    await eventually(() => {
      const family = listProcesses().filter(({ parent }) => parent === agent || parent === supervisor);
      expect(family.filter(({ isZombie }) => isZombie)).toEqual([]);
    });
  });
});

describe('findOrphans', () => {
  const INIT_PID = 1;
  const entry = (pid: number, parent: number, more: Partial<ListedProcess> = {}): ListedProcess => ({
    pid,
    parent,
    group: pid,
    session: pid,
    isZombie: false,
    startTime: `${pid}0`,
    ...more,
  });
  const family: Family = {
    tracked: [{ pid: 50, startTime: '500' }],
    spared: 30,
    init: INIT_PID,
    mark: 100,
  };
  const find = (listed: ListedProcess[], scores: Record<number, number> = {}, of: Family = family) =>
    findOrphans(listed, of, (pid) => scores[pid] ?? 0).map(({ pid }) => pid);
  const base = [entry(1, 0), entry(10, 1), entry(30, 10), entry(31, 30)];

  it('finds what was told, what is below it, and what stayed in its session', () => {
    const listed = [...base, entry(50, 1), entry(51, 50), entry(52, 1, { session: 50 })];
    expect(find(listed)).toEqual([50, 51, 52]);
    expect(find(listed.filter(({ pid }) => pid !== 50))).toEqual([52]);
  });

  it('finds by the mark what got away, but nothing below the gateway and nothing of another init', () => {
    const listed = [...base, entry(60, 1), entry(61, 60), entry(70, 1), entry(80, 0)];
    expect(find(listed, { 60: 100, 61: 200, 31: 100, 80: 100 })).toEqual([60, 61]);
    expect(find(listed, { 60: 100 }, { ...family, init: undefined })).toEqual([]);
    expect(find(listed, { 60: 100 }, { ...family, mark: undefined })).toEqual([]);
  });

  it('leaves a process alone that only has the number of one that is gone', () => {
    expect(find([...base, entry(50, 1, { startTime: '501' }), entry(51, 50)])).toEqual([]);
  });

  it('survives parents that name each other', () => {
    expect(find([...base, entry(90, 91), entry(91, 90)])).toEqual([]);
  });
});

describe('parseStat', () => {
  it('reads a line whose name holds brackets and spaces', () => {
    const fields = Array.from({ length: 30 }, (_, i) => i).join(' ');
    expect(parseStat(`7 (a) b) (c) Z 1 2 3 ${fields}`)).toEqual({
      pid: 7,
      parent: 1,
      group: 2,
      session: 3,
      isZombie: true,
      startTime: '15',
    });
    expect(parseStat('')).toBeUndefined();
    expect(parseStat('7 (short) S 1')).toBeUndefined();
  });
});
