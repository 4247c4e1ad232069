import fs from 'node:fs/promises';
import path from 'node:path';
import { Code } from '@connectrpc/connect';
import { Signal } from '../../../protocol/envd/gen/process_pb';
import { bySignal, failing, Following, ProcessMachine } from './process-fixture';
import type { StartInit } from './process-fixture';

const BASH: StartInit = {
  process: {
    cmd: '/bin/bash',
    args: ['--norc', '--noprofile', '-i'],
    envs: { TERM: 'xterm-256color', PS1: 'ready> ', MARKED: 'yes' },
  },
  pty: { size: { cols: 80, rows: 24 } },
};

/** Lines as a person sees them: without the shell's control sequences. */
const plain = (text: string) =>
  text
    .replaceAll(/\x1b\[[\d?]*[a-zA-Z]/g, '')
    .split('\r\n')
    .map((line) => line.trim());

describe('terminals', () => {
  let box: ProcessMachine;

  beforeAll(async () => {
    box = await ProcessMachine.make();
    await box.machine.start('agent');
  });

  afterAll(() => box.close());

  const open = async (more: StartInit = {}) => {
    const following = new Following(box.client.start({ ...BASH, ...more }));
    await following.started();
    return following;
  };
  const type = (to: Following, text: string) =>
    box.client.sendInput({
      process: to.selector,
      input: { input: { case: 'pty', value: Buffer.from(text) } },
    });

  it('are real ones: a session, a size, an echo, an exit code', async () => {
    const shell = await open();
    await type(shell, 'tput cols; tput lines; echo "$MARKED-$$"; tty; ps -o sid= -p $$; exit 5\n');
    const told = await shell.toEnd();
    const lines = plain(told.pty);
    const first = lines.indexOf('80');
    expect(lines.slice(0, first).join()).toContain('tput cols');
    expect(lines.slice(first, first + 3)).toEqual(['80', '24', `yes-${told.pid}`]);
    expect(lines[first + 3]).toMatch(/^\/dev\/pts\/\d+$/);
    expect(Number(lines[first + 4])).toBe(told.pid);
    expect(told.end?.exitCode).toBe(5);
    expect(told.stdout + told.stderr).toBe('');
  });

  it('add nothing to the environment', async () => {
    const shell = new Following(box.client.start({ process: { cmd: 'env' }, pty: {} }));
    const names = (await shell.toEnd()).pty.split('\r\n').map((line) => line.split('=')[0]);
    expect(names.sort()).toEqual(['', 'E2B_SANDBOX', 'HOME', 'LOGNAME', 'PATH', 'USER']);
  });

  it('get 80 by 24 when no size was given', async () => {
    const shell = new Following(box.client.start({ process: { cmd: 'stty', args: ['size'] }, pty: {} }));
    expect((await shell.toEnd()).pty).toBe('24 80\r\n');
  });

  it('change their size and tell the program', async () => {
    const shell = await open();
    await box.client.update({ process: shell.selector, pty: { size: { cols: 100, rows: 40 } } });
    await type(shell, 'tput cols; tput lines; exit\n');
    expect(plain((await shell.toEnd()).pty)).toEqual(expect.arrayContaining(['100', '40']));
  });

  it('can be left and found again', async () => {
    const leaving = new AbortController();
    const first = new Following(box.client.start(BASH, { signal: leaving.signal }));
    await first.started();
    leaving.abort();
    const second = new Following(box.client.connect({ process: first.selector }));
    await second.started();
    expect(second.pid).toBe(first.pid);
    await type(second, 'echo still-$MARKED; exit\n');
    expect((await second.toEnd()).pty).toContain('still-yes');
    expect(second.told.end?.exitCode).toBe(0);
  });

  it('end by 0x04, by a signal, and with what their shell left in the background', async () => {
    const typed = await open();
    await typed.until(({ pty }) => pty.includes('ready> '));
    await type(typed, '\x04');
    expect((await typed.toEnd()).end?.exitCode).toBe(0);
    const killed = await open();
    await type(killed, 'sleep 1000 &\n');
    await killed.until(({ pty }) => /\[1\] \d+/.test(pty));
    const child = Number(/\[1\] (\d+)/.exec(killed.told.pty)?.[1]);
    await box.client.sendSignal({ process: killed.selector, signal: Signal.SIGKILL });
    expect((await killed.toEnd()).end).toEqual(bySignal('killed'));
    process.kill(child, 'SIGKILL');
  });

  it('pass every byte on, in chunks of at most 16 KiB, also to a reader who lingers past the end', async () => {
    const line = 'stty raw -echo; head -c 2000000 /dev/zero';
    const stream = new Following(
      box.client.start({ process: { cmd: '/bin/sh', args: ['-c', line] }, pty: {} }),
    );
    await stream.until(({ pty }) => pty !== '');
    await new Promise((resolve) => setTimeout(resolve, 500)); // the lingering itself
    expect((await stream.toEnd()).pty.length).toBe(2_000_000);
    expect(Math.max(...stream.sizes)).toBeLessThanOrEqual(16_384);
  });

  it('and pipes are not inherited by later commands', async () => {
    const inherited = async () => {
      const told = await box.run({ process: { cmd: '/bin/ls', args: ['/proc/self/fd'] } });
      return told.stdout;
    };
    const before = await inherited();
    const shell = await open();
    const command = await box.start('exec sleep 1000', { stdin: true });
    expect(await inherited()).toBe(before);
    await box.client.sendSignal({ process: command.selector, signal: Signal.SIGKILL });
    await type(shell, 'exit\n');
    await shell.toEnd();
  });

  it('show all that a program wrote just before its end', async () => {
    const line = 'stty raw -echo; seq 1 4000';
    for (let round = 0; round < 10; round++) {
      const stream = new Following(
        box.client.start({ process: { cmd: '/bin/sh', args: ['-c', line] }, pty: {} }),
      );
      expect((await stream.toEnd()).pty.length).toBe(18_893);
    }
  });

  it('have no stdin apart from the terminal', async () => {
    const shell = await open();
    const input = { input: { case: 'stdin' as const, value: Buffer.from('x') } };
    expect((await failing(box.client.sendInput({ process: shell.selector, input }))).code).toBe(
      Code.Internal,
    );
    const refused = await failing(box.client.closeStdin({ process: shell.selector }));
    expect(refused.code).toBe(Code.Unknown);
    expect(refused.message).toContain('0x04');
    await type(shell, 'exit\n');
    await shell.toEnd();
  });

  it('refuse what commands refuse', async () => {
    const bad = new Following(box.client.start({ process: { cmd: 'sh', cwd: '/none' }, pty: {} }));
    expect((await failing(bad.toEnd())).code).toBe(Code.InvalidArgument);
    const unknown = new Following(box.client.start({ process: { cmd: 'no-such' }, pty: {} }));
    expect((await unknown.toEnd()).end?.exitCode).toBe(127);
    expect(unknown.told.pty).toContain('no-such');
  });

  it('start in the directory asked for', async () => {
    await fs.mkdir(path.join(box.machine.home, 'here'));
    const shell = await open({ process: { cmd: 'pwd', cwd: 'here' } });
    expect((await shell.toEnd()).pty).toMatch(/\/here\r\n$/);
  });
});
