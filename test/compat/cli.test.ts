import { describeOnRuntimes } from '../describe-on-runtimes';
import { Cli } from './cli-runner';
import { until } from './js-sdks';

// Each command is a program that has to be started, some of these tests are ten of them.
jest.setTimeout(240_000);

interface Listed {
  sandboxId: string;
  state: string;
  metadata: Record<string, string>;
}

describeOnRuntimes('e2b CLI on $runtime', {}, ({ runtime, service }) => {
  let cli: Cli;
  /** For the commands that leave it as it is. */
  let id: string;

  const create = async (...more: string[]): Promise<string> => {
    const made = (await cli.print('sandbox', 'create', '--detach', '--timeout', '600', ...more)).trim();
    expect(made).toMatch(/^i[a-z0-9]{20}$/);
    return made;
  };
  const list = (...filter: string[]) => cli.json<Listed[]>('sandbox', 'list', ...filter);
  const ids = async (...filter: string[]) => (await list(...filter)).map((each) => each.sandboxId);
  const stateOf = async (sandbox: string) =>
    (await cli.json<{ state: string }>('sandbox', 'info', sandbox)).state;

  beforeAll(async () => {
    cli = new Cli(service);
    id = await create();
  });

  afterAll(() => cli?.close());

  it('creates sandboxes of a template, with a time-out and a life as asked for', async () => {
    const made = await create(
      'code-interpreter-v1',
      '--lifecycle.ontimeout',
      'pause',
      '--lifecycle.autoresume',
    );
    const info = await cli.json<Record<string, unknown>>('sandbox', 'info', made);
    expect(info).toMatchObject({
      sandboxId: made,
      name: 'code-interpreter-v1',
      state: 'running',
      lifecycle: { onTimeout: 'pause', autoResume: true },
    });
    const seconds = (Date.parse(String(info['endAt'])) - Date.parse(String(info['startedAt']))) / 1000;
    expect(Math.round(seconds)).toBe(600);
    await cli.print('sandbox', 'kill', made);
    const unknown = await cli.run(['sandbox', 'create', '--detach', 'no-such-template']);
    expect([unknown.code, unknown.stderr]).toEqual([
      1,
      expect.stringContaining("404: template 'no-such-template' not found"),
    ]);
  });

  it('tells about a sandbox, for people too', async () => {
    const text = await cli.print('sandbox', 'info', id);
    expect(text).toContain(`Sandbox ID: ${id}`);
    expect(text).toContain('State: running');
    const gone = await cli.run(['sandbox', 'info', 'i00000000000000000000']);
    expect([gone.code, gone.stderr]).toEqual([1, expect.stringContaining("wasn't found")]);
  });

  it('lists by state, template, time and order', async () => {
    const second = await create('code-interpreter-v1');
    const both = ['--order', 'asc', '--limit', '100'];
    expect(await ids(...both)).toEqual([id, second]);
    expect(await ids('--order', 'desc', '--limit', '1')).toEqual([second]);
    expect(await ids('--template', 'base')).toEqual([id]);
    expect(await ids('--metadata', 'no=such')).toEqual([]);
    expect(await ids('--started-after', new Date(Date.now() + 60_000).toISOString())).toEqual([]);
    expect(await ids('--state', 'paused')).toEqual([]);
    const table = await cli.print('sandbox', 'ls');
    expect(table).toContain(id);
    expect(table).toContain('Running');
    await cli.print('sandbox', 'kill', second);
  });

  it('runs a command with its directory, environment and exit code', async () => {
    const asked = ['--cwd', '/tmp', '--env', 'A=1 2', '--env', 'B=x'];
    const ended = await cli.run(['sandbox', 'exec', ...asked, id, 'echo "$A $B"; pwd; echo bad >&2; exit 7']);
    expect(ended).toEqual({ code: 7, stdout: '1 2 x\n/tmp\n', stderr: expect.stringContaining('bad\n') });
    expect(await cli.print('sandbox', 'exec', id, '--', 'echo', "it's", '$HOME')).toBe("it's $HOME\n");
    const gone = await cli.run(['sandbox', 'exec', 'i00000000000000000000', 'true']);
    expect([gone.code, gone.stderr]).toEqual([1, expect.stringContaining('SandboxNotFoundError')]);
  });

  it('runs a command as another user, where there is one', async () => {
    const { code, stdout, stderr } = await cli.run(['sandbox', 'exec', '--user', 'root', id, 'id -u']);
    if (runtime === 'docker') expect([code, stdout]).toEqual([0, '0\n']);
    else expect([code, stderr]).toEqual([1, expect.stringContaining('AuthenticationError')]);
  });

  it('passes its own input on to a command, to the last byte', async () => {
    const input = `${'line of input\n'.repeat(20_000)}end`;
    const ended = await cli.run(['sandbox', 'exec', id, 'wc -c; echo done'], { input });
    expect([ended.code, ended.stdout.split(/\s+/).filter(Boolean)]).toEqual([
      0,
      [String(input.length), 'done'],
    ]);
  });

  it('starts a command in the background, and says which', async () => {
    const started = await cli.run(['sandbox', 'exec', '--background', id, 'sleep 300']);
    const pid = started.stderr.trim();
    expect([started.code, pid]).toEqual([0, expect.stringMatching(/^\d+$/)]);
    expect(await cli.print('sandbox', 'exec', id, `kill ${pid} && echo killed`)).toBe('killed\n');
  });

  it('pauses and resumes', async () => {
    const sandbox = await create();
    await cli.print('sandbox', 'exec', sandbox, 'echo kept > /tmp/file');
    expect(await cli.print('sandbox', 'pause', sandbox)).toContain('has been paused');
    expect(await cli.print('sandbox', 'pause', sandbox)).toContain('is already paused');
    expect(await ids('--state', 'paused')).toEqual([sandbox]);
    expect(await stateOf(sandbox)).toBe('paused');
    expect(await cli.print('sandbox', 'resume', sandbox)).toContain('has been resumed');
    expect(await cli.print('sandbox', 'exec', sandbox, 'cat /tmp/file')).toBe('kept\n');
    await cli.print('sandbox', 'kill', sandbox);
    const gone = await cli.run(['sandbox', 'resume', sandbox]);
    expect([gone.code, gone.stderr]).toEqual([1, expect.stringContaining("wasn't found")]);
  });

  it('shows metrics', async () => {
    const lines = (await cli.print('sandbox', 'metrics', id, '--format', 'json')).trim().split('\n');
    const sample = JSON.parse(lines.at(-1) ?? '') as Record<string, unknown>;
    expect(sample).toEqual({
      timestamp: expect.any(String),
      cpuCount: expect.any(Number),
      cpuUsedPct: expect.any(Number),
      memUsed: expect.any(Number),
      memTotal: expect.any(Number),
      memCache: expect.any(Number),
      diskUsed: expect.any(Number),
      diskTotal: expect.any(Number),
    });
    expect(await cli.print('sandbox', 'metrics', id)).toMatch(/CPU: .*% \/ .*Memory: .* MiB \| Disk: .* MiB/);
  });

  it('shows logs, by level, and follows them to the end of the sandbox', async () => {
    const sandbox = await create();
    const lines = (await cli.print('sandbox', 'logs', sandbox, '--format', 'json')).trim().split('\n');
    expect(lines.map((line) => JSON.parse(line) as object)).toContainEqual(
      expect.objectContaining({
        level: 'info',
        logger: 'service',
        message: expect.stringContaining('created'),
      }),
    );
    const errors = await cli.print('sandbox', 'logs', sandbox, '--level', 'ERROR', '--format', 'json');
    expect(errors.trim()).toBe('');
    let printed = '';
    const following = cli.run(['sandbox', 'logs', sandbox, '--follow'], {
      onStdout: (text) => void (printed = text),
    });
    // Every 5 s, at the start too, it looks whether to go on; one paused by then it would leave without its last words.
    await until('the first line of what is followed', () => printed.includes('created'));
    await cli.print('sandbox', 'pause', sandbox); // a paused one is not running
    expect(await following).toMatchObject({
      code: 0,
      stdout: expect.stringContaining('Stopped printing logs'),
    });
    await cli.print('sandbox', 'kill', sandbox);
    const after = await cli.print('sandbox', 'logs', sandbox);
    expect(after).toMatch(/paused[^]*ended/);
  });

  it('kills by id and by filter', async () => {
    const [one, two] = [await create(), await create()];
    const killed = await cli.print('sandbox', 'kill', one, two);
    expect(killed).toContain(`Sandbox ${one} has been killed`);
    expect(killed).toContain(`Sandbox ${two} has been killed`);
    const again = await cli.run(['sandbox', 'kill', one]);
    expect([again.code, again.stderr]).toEqual([0, expect.stringContaining("wasn't found")]);
    expect(await cli.print('sandbox', 'kill', '--all', '--metadata', 'no=such')).toContain(
      'No running sandboxes',
    );
    const third = await create();
    await cli.print('sandbox', 'pause', third);
    expect(await cli.print('sandbox', 'kill', '--all', '--state', 'paused')).toContain('Killed 1 ');
    const left = await ids('--state', 'running,paused');
    expect(left.filter((each) => [one, two, third].includes(each))).toEqual([]);
    expect(left).toContain(id);
  });

  it.each([
    ['create', /Terminal connecting to template/],
    ['spawn', /is deprecated[^]*Terminal connecting to template/],
  ])('%s opens a terminal in a new sandbox, which ends after it', async (command, greeting) => {
    const shown = await cli.atTerminal(
      ['sandbox', command, '--env', 'COLOUR=blue', '--cwd', '/tmp'],
      /\$ $/,
      'echo $COLOUR $PWD $(stty size) $((40 + 2)); exit\r',
    );
    expect(shown).toMatch(greeting);
    expect(shown).toContain('blue /tmp 40 200 42');
    const made = /sandbox ID (\w+)/.exec(shown)?.[1] ?? '';
    expect(shown).toContain(`Closing terminal connection to template base with sandbox ID ${made}`);
    await until('the end of the sandbox', async () => !(await ids()).includes(made));
  });

  it('connect opens a terminal in a sandbox that is there, and leaves it there', async () => {
    await cli.print('sandbox', 'exec', id, 'echo before > ~/file');
    const shown = await cli.atTerminal(['sandbox', 'connect', id], /\$ $/, 'cat ~/file; exit\r');
    expect(shown).toContain('before');
    expect(shown).toContain(`Closing terminal connection to sandbox ${id}`);
    expect(await stateOf(id)).toBe('running');
  });

  it.each([
    [['snapshot', 'create'], true, 'Snapshots'],
    [['snapshot', 'list'], true, 'Snapshots'],
    [['snapshot', 'delete'], true, 'Deleting a template or snapshot'],
  ])('is told that %j comes later', async (command, withId, feature) => {
    const told = await cli.run(['sandbox', ...command, ...(withId ? [id] : [])]);
    expect([told.code, told.stderr]).toEqual([
      1,
      expect.stringContaining(`501: ${feature} is not implemented yet`),
    ]);
  });

  it('lists templates', async () => {
    expect(await cli.print('template', 'list')).toMatch(
      /base[^]*code-interpreter-v1|code-interpreter-v1[^]*base/,
    );
  });

  it('is told of a wrong key', async () => {
    const told = await cli.run(['sandbox', 'list'], { env: { E2B_API_KEY: `e2b_${'0'.repeat(40)}` } });
    expect([told.code, told.stderr]).toEqual([1, expect.stringContaining('AuthenticationError')]);
  });
});
