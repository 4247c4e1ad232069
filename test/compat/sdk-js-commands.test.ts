import { describeWithJsSdks, until } from './js-sdks';
import type { Sandbox } from './js-sdks';

/** Commands and terminals, as the E2B documentation and SDK tests use them. */
describeWithJsSdks('commands and terminals', ({ sdk, runtime }) => {
  const inContainer = runtime === 'docker' ? it : it.skip;
  let sandbox: Sandbox;

  beforeAll(async () => {
    sandbox = await sdk.Sandbox.create({ timeoutMs: 600_000, envs: { FROM_CREATE: 'sandbox' } });
  }, 60_000);

  afterAll(async () => {
    await sandbox?.kill();
  });

  describe('commands.run', () => {
    it.each([
      ['hello', 'echo hello', 'hello\n'],
      ['special characters', `echo '!@#$%^&*()_+{}|:<>?~ "ü"'`, '!@#$%^&*()_+{}|:<>?~ "ü"\n'],
      ['several lines', `printf 'a\\nb\\n\\nc'`, 'a\nb\n\nc'],
      ['what it writes to /dev/stdout', 'echo x > /dev/stdout', 'x\n'],
    ])('gives %s as printed', async (_what, command, stdout) => {
      expect(await sandbox.commands.run(command)).toMatchObject({ exitCode: 0, stdout, stderr: '' });
    });

    it('tells stdout from stderr and streams both while it runs', async () => {
      const seen: Array<[stream: string, text: string]> = [];
      // It goes on only once its first text has been heard.
      const program = 'echo out; until [ -e heard ]; do sleep 0.05; done; echo err >&2';
      const result = await sandbox.commands.run(program, {
        onStdout: async (text) => {
          seen.push(['stdout', text]);
          await sandbox.files.write('heard', '');
        },
        onStderr: (text) => void seen.push(['stderr', text]),
        timeoutMs: 30_000,
      });
      expect(result).toMatchObject({ stdout: 'out\n', stderr: 'err\n' });
      expect(seen).toEqual([
        ['stdout', 'out\n'],
        ['stderr', 'err\n'],
      ]);
    });

    it('throws what a failing command left', async () => {
      const error = await sandbox.commands
        .run('echo out; echo err >&2; exit 7')
        .catch((thrown: unknown) => thrown);
      expect(error).toBeInstanceOf(sdk.CommandExitError);
      expect(error).toMatchObject({ exitCode: 7, stdout: 'out\n', stderr: 'err\n', error: 'exit status 7' });
    });

    it('answers a command that does not exist with 127', async () => {
      await expect(sandbox.commands.run('no-such-command')).rejects.toMatchObject({ exitCode: 127 });
    });

    it('tells the signal that ended a command', async () => {
      await expect(sandbox.commands.run('kill -KILL $$')).rejects.toMatchObject({
        exitCode: -1,
        error: 'signal: killed',
      });
    });

    it('replaces bytes that are no text', async () => {
      const { stdout } = await sandbox.commands.run(`head -c 8191 /dev/zero | tr '\\0' a; printf '\\xe2'`);
      expect(stdout).toBe(`${'a'.repeat(8191)}\uFFFD`);
    });

    it('gives the environment of the call to that command alone', async () => {
      const envs = { FROM_CALL: 'with spaces, "quotes" and $dollars' };
      expect((await sandbox.commands.run('echo "$FROM_CALL"', { envs })).stdout).toBe(`${envs.FROM_CALL}\n`);
      expect((await sandbox.commands.run('echo "[$FROM_CALL]"')).stdout).toBe('[]\n');
    });

    it('gives the environment of the sandbox to all, and says that it is one', async () => {
      const { stdout } = await sandbox.commands.run(
        'echo $FROM_CREATE; python3 -c "import os; print(os.environ[\'E2B_SANDBOX\'])"',
      );
      expect(stdout).toBe('sandbox\ntrue\n');
    });

    it('starts in the home directory, or where it is told to', async () => {
      expect((await sandbox.commands.run('pwd')).stdout.trim()).toBe(
        (await sandbox.commands.run('echo ~')).stdout.trim(),
      );
      expect((await sandbox.commands.run('pwd', { cwd: '/usr' })).stdout).toBe('/usr\n');
    });

    it('refuses a directory that does not exist, by its name', async () => {
      const run = sandbox.commands.run('pwd', { cwd: '/no/such/place' });
      await expect(run).rejects.toThrow(/\/no\/such\/place/);
      await expect(run).rejects.toBeInstanceOf(sdk.InvalidArgumentError);
    });

    it('runs as `user`, who may become root in a container', async () => {
      expect((await sandbox.commands.run('whoami', { user: 'user' })).exitCode).toBe(0);
      if (runtime === 'docker') {
        expect((await sandbox.commands.run('whoami; pwd; groups')).stdout).toBe('user\n/home/user\nuser\n');
        expect((await sandbox.commands.run('sudo whoami')).stdout).toBe('root\n');
      }
    });

    inContainer('runs as root on request, in its home', async () => {
      expect((await sandbox.commands.run('whoami; pwd; echo $HOME', { user: 'root' })).stdout).toBe(
        'root\n/root\n/root\n',
      );
    });

    it('refuses a user that does not exist', async () => {
      await expect(sandbox.commands.run('true', { user: 'nobody-here' as 'user' })).rejects.toBeInstanceOf(
        sdk.AuthenticationError,
      );
    });

    it('ends a command that takes longer than its time-out', async () => {
      const marker = `cellbox-timeout-${Math.random()}`;
      await expect(
        sandbox.commands.run(`exec -a ${marker} sleep 60`, { timeoutMs: 700 }),
      ).rejects.toBeInstanceOf(sdk.TimeoutError);
      await until('the process to be gone', async () => {
        const { stdout } = await sandbox.commands.run(`pgrep -cf '^${marker}' || true`);
        return stdout.trim() === '0';
      });
    });

    it('runs 30 commands at a time, each with its own output', async () => {
      const numbers = Array.from({ length: 30 }, (_, index) => index);
      const results = await Promise.all(numbers.map((n) => sandbox.commands.run(`sleep 0.2; echo ${n}`)));
      expect(results.map((result) => result.stdout)).toEqual(numbers.map((n) => `${n}\n`));
    });

    it('gives 20 MB of output whole', async () => {
      let bytes = 0;
      const command = `head -c 20000000 /dev/zero | tr '\\0' x`;
      const result = await sandbox.commands.run(command, { onStdout: (text) => void (bytes += text.length) });
      expect(bytes).toBe(20_000_000);
      expect(result.stdout.length).toBe(20_000_000);
    });
  });

  describe('background commands', () => {
    it('are listed, followed by a second handle, and end for both', async () => {
      const first = await sandbox.commands.run('read line; echo got $line', {
        background: true,
        stdin: true,
      });
      expect((await sandbox.commands.list()).map((each) => each.pid)).toContain(first.pid);
      const second = await sandbox.commands.connect(first.pid);
      expect(second.pid).toBe(first.pid);
      await sandbox.commands.sendStdin(first.pid, 'it\n');
      const results = await Promise.all([first.wait(), second.wait()]);
      expect(results.map((each) => each.stdout)).toEqual(['got it\n', 'got it\n']);
      expect((await sandbox.commands.list()).map((each) => each.pid)).not.toContain(first.pid);
    });

    it('tell what they were started with', async () => {
      const command = await sandbox.commands.run('sleep 60', {
        background: true,
        envs: { A: 'b' },
        cwd: '/usr',
      });
      const listed = (await sandbox.commands.list()).find((each) => each.pid === command.pid);
      expect(listed).toMatchObject({
        cmd: '/bin/bash',
        args: ['-l', '-c', 'sleep 60'],
        envs: { A: 'b' },
        cwd: '/usr',
      });
      expect(await command.kill()).toBe(true);
    });

    it('go on when their client disconnects', async () => {
      const command = await sandbox.commands.run('sleep 0.7; echo done > after-disconnect', {
        background: true,
      });
      await command.disconnect();
      await until('the command to finish', () => sandbox.files.exists('after-disconnect'));
    });

    it('are dead and reaped once killed, and killing what is not there says so', async () => {
      const command = await sandbox.commands.run('exec sleep 60', { background: true });
      const ended = command.wait().catch((error: unknown) => error);
      expect(await sandbox.commands.kill(command.pid)).toBe(true);
      await expect(sandbox.commands.run(`kill -0 ${command.pid}`)).rejects.toMatchObject({ exitCode: 1 });
      expect(await ended).toMatchObject({ exitCode: -1, error: 'signal: killed' });
      expect(await sandbox.commands.kill(999_999)).toBe(false);
    });

    it('end their stream when killed although a child holds their output', async () => {
      const command = await sandbox.commands.run('sleep 30 && echo done', { background: true });
      const ended = command.wait().catch((error: unknown) => error);
      const began = Date.now();
      await command.kill();
      await ended;
      expect(Date.now() - began).toBeLessThan(5_000);
    });

    it('can not be connected to when they never were', async () => {
      await expect(sandbox.commands.connect(999_999)).rejects.toThrow();
    });

    it.each([
      ['text', 'hello, ü\n'],
      ['special characters', '!@#$%^&*()_+{}|:<>?~\n'],
      ['several lines', 'one\ntwo\n'],
    ])('echo %s from their standard input', async (_what, text) => {
      const chunks: string[] = [];
      const command = await sandbox.commands.run('cat', {
        background: true,
        stdin: true,
        onStdout: (chunk) => void chunks.push(chunk),
      });
      await sandbox.commands.sendStdin(command.pid, text);
      await until('the echo', () => chunks.length > 0);
      expect(chunks[0]).toBe(text);
      await command.kill();
    });

    it('see the end of their input when it is closed', async () => {
      const command = await sandbox.commands.run('cat', { background: true, stdin: true });
      await sandbox.commands.sendStdin(command.pid, 'first ');
      await sandbox.commands.sendStdin(command.pid, new TextEncoder().encode('second'));
      await sandbox.commands.closeStdin(command.pid);
      expect(await command.wait()).toMatchObject({ exitCode: 0, stdout: 'first second' });
    });

    it('have no input unless asked for', async () => {
      expect((await sandbox.commands.run('cat; echo end')).stdout).toBe('end\n');
    });
  });

  it('git works on a repository in the sandbox', async () => {
    await sandbox.git.init('/tmp/repository');
    await sandbox.git.configureUser('Ada', 'ada@example.com', { scope: 'local', path: '/tmp/repository' });
    await sandbox.files.write('/tmp/repository/a.txt', 'a');
    await sandbox.git.add('/tmp/repository');
    await sandbox.git.commit('/tmp/repository', 'Add a');
    const status = await sandbox.git.status('/tmp/repository');
    expect(status.fileStatus).toEqual([]);
    await sandbox.commands.run('rm -rf /tmp/repository');
  });

  it('says that the sandbox is gone to a command that ran when it was killed', async () => {
    const doomed = await sdk.Sandbox.create({ timeoutMs: 120_000 });
    const command = await doomed.commands.run('sleep 60', { background: true });
    const ended = command.wait().catch((error: unknown) => error);
    await doomed.kill();
    const error = await ended;
    expect(error).toBeInstanceOf(sdk.TimeoutError);
    expect((error as Error).message).toMatch(/sandbox was killed or reached its end of life/);
  }, 60_000);

  describe('terminals', () => {
    /** A terminal and everything it has shown; the shell ends its own line by \r, without \n. */
    async function open(options: { cwd?: string; envs?: Record<string, string> } = {}) {
      let shown = '';
      const decoder = new TextDecoder();
      const terminal = await sandbox.pty.create({
        cols: 80,
        rows: 24,
        timeoutMs: 60_000,
        onData: (data) => void (shown += decoder.decode(data, { stream: true })),
        ...options,
      });
      const type = (text: string) => sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode(text));
      return { terminal, type, shown: () => shown };
    }

    it('run a shell with an environment, and end with it', async () => {
      const { terminal, type, shown } = await open({ envs: { FROM_CALL: 'yes' } });
      await type('echo "[$FROM_CALL] [$TERM]"\nexit\n');
      expect((await terminal.wait()).exitCode).toBe(0);
      expect(shown()).toContain('[yes] [xterm-256color]');
    });

    it('start where they are told to', async () => {
      const { terminal, type, shown } = await open({ cwd: '/' });
      await type('pwd\nexit\n');
      expect((await terminal.wait()).exitCode).toBe(0);
      expect(shown()).toMatch(/\r\/\r\n/);
    });

    it('have the size that was asked for, and the one they get later', async () => {
      const { terminal, type, shown } = await open();
      await type('tput cols\n');
      await until('80 columns', () => /\r80\r\n/.test(shown()));
      await sandbox.pty.resize(terminal.pid, { cols: 100, rows: 24 });
      await type('tput cols\nexit\n');
      expect((await terminal.wait()).exitCode).toBe(0);
      expect(shown()).toMatch(/\r100\r\n/);
    });

    it('edit lines, colour, and interrupt what runs', async () => {
      const { terminal, type, shown } = await open();
      await type('printf "\\e[31m%s\\e[0m\\n" redd\x7f\n');
      await until('red', () => shown().includes('\x1b[31mred\x1b[0m'));
      await type('sleep 60; echo status $?\n');
      await until('the command line', () => shown().includes('sleep 60'));
      await type('\x03');
      await type('echo after\nexit\n');
      await terminal.wait().catch(() => undefined); // the shell ends with the interrupted command's status
      expect(shown()).toMatch(/\rafter\r\n/);
    });

    it('go on without their client, for the next one', async () => {
      const { terminal, type } = await open({ envs: { KEPT: 'kept' } });
      await terminal.disconnect();
      let shown = '';
      const again = await sandbox.pty.connect(terminal.pid, {
        onData: (data) => void (shown += new TextDecoder().decode(data)),
      });
      expect(again.pid).toBe(terminal.pid);
      await type('echo "[$KEPT]"\nexit\n');
      expect((await again.wait()).exitCode).toBe(0);
      expect(shown).toContain('[kept]');
    });

    it('can be killed', async () => {
      const { terminal } = await open();
      const ended = terminal.wait().catch((error: unknown) => error);
      expect(await sandbox.pty.kill(terminal.pid)).toBe(true);
      expect(await ended).toMatchObject({ exitCode: -1 });
      await expect(sandbox.commands.run(`kill -0 ${terminal.pid}`)).rejects.toMatchObject({ exitCode: 1 });
      expect(await sandbox.pty.kill(999_999)).toBe(false);
    });
  });
});
