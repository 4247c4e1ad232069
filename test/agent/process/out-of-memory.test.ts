import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { Code } from '@connectrpc/connect';
import { Signal } from '../../../protocol/envd/gen/process_pb';
import { watchMemory } from '../../../kernel-image/agent/process/out-of-memory';
import { SandboxMemory } from '../../../kernel-image/agent/sandbox-memory';
import { bySignal, failing, Following, ProcessMachine } from './process-fixture';

const MIB = 1_048_576;
const TOLD = ': out of memory (peak 500 MiB of 512 MiB)';
const KILLED = { exitCode: -1, exited: false, status: 'signal: killed' };

/** A group that says what the test wants, in the place of the system's. */
async function makeGroup(): Promise<string> {
  const group = await fs.mkdtemp(path.join(os.tmpdir(), 'out-of-memory-'));
  await fs.writeFile(path.join(group, 'memory.events'), 'oom 1\noom_kill 1\n');
  await fs.writeFile(path.join(group, 'memory.peak'), `${500 * MIB}\n`);
  await fs.writeFile(path.join(group, 'memory.max'), `${512 * MIB}\n`);
  return group;
}

describe('watchMemory', () => {
  let group: string;

  beforeEach(async () => void (group = await makeGroup()));
  afterEach(() => fs.rm(group, { recursive: true }));

  const write = (name: string, text: string) => fs.writeFile(path.join(group, name), text);
  const watch = () => watchMemory(new SandboxMemory([group], group));
  const figures = { peakBytes: 500 * MIB, limitBytes: 512 * MIB };

  it('finds a kill that was counted meanwhile, of the process itself or below a shell', async () => {
    const outOfMemory = watch();
    await write('memory.events', 'oom_kill 2\n');
    expect(await outOfMemory({ signal: 'SIGKILL' })).toEqual(figures);
    expect(await outOfMemory({ code: 137 })).toEqual(figures);
  });

  it('takes another end for what it is, whatever was counted', async () => {
    const outOfMemory = watch();
    await write('memory.events', 'oom_kill 2\n');
    for (const exit of [{ code: 0 }, { code: 1 }, { code: 9 }, { signal: 'SIGTERM' }, { signal: 'SIGSEGV' }])
      expect(await outOfMemory(exit)).toBeUndefined();
  });

  it('finds nothing in kills that were counted before', async () => {
    const outOfMemory = watch();
    expect(await outOfMemory({ signal: 'SIGKILL' })).toBeUndefined();
    expect(await outOfMemory({ code: 137 })).toBeUndefined();
  });

  it('takes the limit for the peak where no peak is kept', async () => {
    await fs.rm(path.join(group, 'memory.peak'));
    const outOfMemory = watch();
    await write('memory.events', 'oom_kill 2\n');
    expect(await outOfMemory({ signal: 'SIGKILL' })).toEqual({ ...figures, peakBytes: 512 * MIB });
  });

  it('goes by a full sandbox where nobody counts, and then not by an exit code', async () => {
    await fs.rm(path.join(group, 'memory.events'));
    expect(await watch()({ signal: 'SIGKILL' })).toBeUndefined();
    await write('memory.peak', `${512 * MIB}\n`);
    expect(await watch()({ signal: 'SIGKILL' })).toEqual({ ...figures, peakBytes: 512 * MIB });
    expect(await watch()({ code: 137 })).toBeUndefined();
    await fs.rm(path.join(group, 'memory.max'));
    expect(await watch()({ signal: 'SIGKILL' })).toBeUndefined();
  });
});

describe('an agent whose sandbox runs out of memory', () => {
  let box: ProcessMachine;
  let group: string;
  /** What a shell does to look as if the system had killed for memory. */
  let count: string;

  beforeAll(async () => {
    group = await makeGroup();
    box = await ProcessMachine.make();
    await box.machine.start('agent', { CELLBOX_CGROUPS: group });
    count = `echo oom_kill $(date +%s%N) > ${group}/memory.events`;
  });

  afterAll(async () => {
    await box.close();
    await fs.rm(group, { recursive: true });
  });

  it('says so in the error of a command that was killed, and nowhere else', async () => {
    const told = await box.sh(`${count}; kill -KILL $$`);
    expect(told.end).toEqual({ ...KILLED, error: `signal: killed${TOLD}` });
    const { client } = box;
    const later = new Following(client.connect({ process: { selector: { case: 'pid', value: told.pid } } }));
    expect((await later.toEnd()).end).toEqual(told.end);
  });

  it('says so of a shell whose child was killed', async () => {
    const { end } = await box.sh(`${count}; sh -c 'kill -KILL $$'; exit $?`);
    expect(end).toEqual({
      exitCode: 137,
      exited: true,
      status: 'exit status 137',
      error: `exit status 137${TOLD}`,
    });
  });

  it('says so of a terminal', async () => {
    const { end } = await box.sh(`${count}; kill -KILL $$`, { pty: {} });
    expect(end).toEqual({ ...KILLED, error: `signal: killed${TOLD}` });
  });

  it('does not say so of a kill that nobody counted', async () => {
    expect((await box.sh('kill -KILL $$')).end).toEqual(bySignal('killed'));
    expect((await box.sh("sh -c 'kill -KILL $$'; exit $?")).end?.error).toBe('exit status 137');
  });

  it('does not say so of what its caller killed', async () => {
    const following = await box.start(`${count}; echo counted; exec sleep 1000`);
    await following.until(({ stdout }) => stdout === 'counted\n');
    await box.client.sendSignal({ process: following.selector, signal: Signal.SIGKILL });
    expect((await following.toEnd()).end).toEqual(bySignal('killed'));
  });

  it('does not say so of a command whose time is up', async () => {
    const following = await box.start(`${count}; echo counted; exec sleep 1000`, {}, { timeoutMs: 1_500 });
    expect((await failing(following.toEnd())).code).toBe(Code.DeadlineExceeded);
    expect(following.told.stdout).toBe('counted\n');
    const later = new Following(box.client.connect({ process: following.selector }));
    expect((await later.toEnd()).end).toEqual(bySignal('killed'));
  });

  it('does not say so of a neighbour that ends as it would have', async () => {
    const neighbour = await box.start('read line; exit 7', { stdin: true });
    expect((await box.sh(`${count}; kill -KILL $$`)).end?.error).toContain('out of memory');
    await box.client.closeStdin({ process: neighbour.selector });
    expect((await neighbour.toEnd()).end).toMatchObject({ exitCode: 7, error: 'exit status 7' });
  });
});
