import type * as newest from '@e2b/code-interpreter';
import { describeWithJsSdks } from './js-sdks';

const CSV = 'city,year,sales\nOslo,2024,10\nOslo,2025,14\nBergen,2024,7\nBergen,2025,9\n';

const ANALYSIS = `
import os, pandas as pd, matplotlib.pyplot as plt, time
df = pd.read_csv('/home/user/sales.csv')
for year, part in df.groupby('year'):
    print(year, part.sales.sum(), flush=True)
    while not os.path.exists('heard'): time.sleep(0.02) # stdout streams while the cell runs, or it never ends
totals = df.groupby('city', as_index=False).sales.sum()
plt.bar(totals.city, totals.sales, label='Sales'); plt.title('Sales by city'); plt.xlabel('city'); plt.ylabel('sales (k)'); plt.show()
fig, ax = plt.subplots(); ax.plot(df.year, df.sales); ax.set_title('Over time'); plt.show()
totals
`;

describeWithJsSdks('the code interpreter', ({ sdk, generation, service }) => {
  const { Sandbox, TimeoutError, NotFoundError } = sdk;
  let sandbox: newest.Sandbox;

  beforeAll(async () => {
    sandbox = await Sandbox.create({ timeoutMs: 600_000, envs: { TEST_ENV_VAR: 'supertest' } });
  }, 60_000);

  afterAll(async () => {
    await sandbox?.kill();
  });

  it('runs the whole program of the README', async () => {
    const box = await Sandbox.create({ timeoutMs: 120_000 });
    await box.files.write('/home/user/sales.csv', CSV);
    expect(await box.files.read('sales.csv')).toBe(CSV);

    const results: newest.Result[] = [];
    const printed: string[] = [];
    const execution = await box.runCode(ANALYSIS, {
      onStdout: async (message) => {
        printed.push(message.line);
        await box.files.write('heard', '');
      },
      onResult: (result) => void results.push(result),
    });

    expect(execution.error).toBeUndefined();
    expect(printed.join('')).toBe('2024 17\n2025 23\n');
    const charts = results.filter((result) => result.png);
    expect(charts).toHaveLength(2);
    expect(charts[0]!.chart).toMatchObject({
      type: 'bar',
      title: 'Sales by city',
      x_label: 'city',
      y_unit: 'k',
    });
    expect(charts[0]!.chart!.elements).toEqual([
      { label: 'Bergen', group: 'Sales', value: 16 },
      { label: 'Oslo', group: 'Sales', value: 24 },
    ]);
    expect(charts[1]!.chart).toMatchObject({ type: 'line', title: 'Over time' });
    expect(Buffer.from(charts[0]!.png!, 'base64').subarray(1, 4).toString()).toBe('PNG');
    const table = results.find((result) => result.isMainResult)!;
    expect(table.data).toEqual({ city: ['Bergen', 'Oslo'], sales: [16, 24] });
    expect(table.html).toContain('<table');
    expect(table.text).toContain('Bergen');

    const next = await box.runCode('totals.sales.max()');
    expect(next.text).toMatch(/24/);
    const other = await box.createCodeContext();
    const isolated = await box.runCode('totals', { context: other });
    expect(isolated.error).toMatchObject({ name: 'NameError', value: "name 'totals' is not defined" });

    expect(await box.kill()).toBe(true);
    expect(await box.isRunning()).toBe(false);
    await expect(box.runCode('1')).rejects.toBeInstanceOf(TimeoutError);
    expect(await box.kill()).toBe(false);
  }, 120_000);

  it('keeps state from cell to cell and counts executions', async () => {
    const context = await sandbox.createCodeContext();
    expect((await sandbox.runCode('x =1; x', { context })).text).toBe('1');
    const second = await sandbox.runCode('x += 1; x', { context });
    expect(second.text).toBe('2');
    expect(second.executionCount).toBe(2);
  });

  it('calls each callback once for one print, one result, one error', async () => {
    const seen: string[] = [];
    await sandbox.runCode('print(1)', { onStdout: (message) => void seen.push(`out ${message.line}`) });
    await sandbox.runCode('import sys; print(1, file=sys.stderr)', {
      onStderr: (message) => void seen.push(`err ${message.line}`),
    });
    await sandbox.runCode('x = 1;x', { onResult: (result) => void seen.push(`result ${result.text}`) });
    await sandbox.runCode('undefined_name', {
      onError: (error) => void seen.push(`error ${error.name}`),
    });
    expect(seen).toEqual(['out 1\n', 'err 1\n', 'result 1', 'error NameError']);
  });

  it('gives a figure from indented code as png, text and chart with empty extra', async () => {
    const execution = await sandbox.runCode(`
          import matplotlib.pyplot as plt
          plt.plot([1, 2, 3])
          plt.show()

          x = 1
          x
        `);
    expect(execution.results).toHaveLength(2);
    expect(execution.results[0]!.png).toBeTruthy();
    expect(execution.results[0]!.text).toBeTruthy();
    expect(execution.results[0]!.extra).toEqual({});
  });

  it('gives raw display data with exactly its formats', async () => {
    const execution = await sandbox.runCode(
      "from IPython.display import display\ndisplay({'text/latex': '$x$'}, raw=True)",
    );
    expect([...execution.results[0]!.formats()]).toEqual(['latex']);
  });

  it('creates, lists, restarts and removes contexts', async () => {
    const listed = await sandbox.listCodeContexts();
    expect(listed.map((context) => context.language)).toEqual(
      expect.arrayContaining(['python', 'javascript']),
    );
    const context = await sandbox.createCodeContext({ language: 'python', cwd: '/tmp' });
    expect((await sandbox.listCodeContexts()).at(-1)).toMatchObject({
      id: context.id,
      language: 'python',
      cwd: '/tmp',
    });
    await sandbox.runCode('x = 1', { context });
    await sandbox.restartCodeContext(context.id);
    const after = await sandbox.runCode('import os; print(os.getcwd())\nx', { context });
    expect(after.error).toMatchObject({ name: 'NameError', value: "name 'x' is not defined" });
    expect(after.logs.stdout.join('')).toBe('/tmp\n');
    await sandbox.removeCodeContext(context);
    expect((await sandbox.listCodeContexts()).map((each) => each.id)).not.toContain(context.id);
    await expect(sandbox.runCode('1', { context })).rejects.toBeInstanceOf(NotFoundError);
  });

  it('gives every language the environment of the sandbox and of one execution', async () => {
    const show = (name: string) => `import os; os.environ.get('${name}', 'default')`;
    expect((await sandbox.runCode(show('TEST_ENV_VAR'))).text).toBe('supertest');
    expect((await sandbox.runCode(show('FOO'), { envs: { FOO: `it's "quoted"\n$x` } })).text).toContain(
      'quoted',
    );
    expect((await sandbox.runCode(show('FOO'))).text).toBe('default');
    expect((await sandbox.runCode(show('TEST_ENV_VAR'), { envs: { TEST_ENV_VAR: 'other' } })).text).toBe(
      'other',
    );
    expect((await sandbox.runCode(show('TEST_ENV_VAR'))).text).toBe('supertest');
    const js = await sandbox.runCode('process.env.TEST_ENV_VAR', { language: 'javascript' });
    expect(js.text?.trim()).toBe('supertest');
  }, 60_000);

  it('runs JavaScript, TypeScript and bash', async () => {
    const js = await sandbox.runCode('console.log("Hello World!")', { language: 'js' });
    expect(js.logs.stdout).toEqual(['Hello World!\n']);
    const esm = await sandbox.runCode(`import { readFileSync } from 'fs'\nconsole.log(typeof readFileSync)`, {
      language: 'js',
    });
    expect(esm.logs.stdout).toEqual(['function\n']);
    expect((await sandbox.runCode(`await Promise.resolve('Hello World!')`, { language: 'js' })).text).toBe(
      'Hello World!',
    );
    const ts = await sandbox.runCode('const x: string = "typed"; console.log(x)', { language: 'ts' });
    expect(ts.logs.stdout).toEqual(['typed\n']);
    const bash = await sandbox.runCode('pwd; echo oops >&2; false', { language: 'bash' });
    expect(bash.logs.stdout.join('')).toContain('/home/user\n');
    expect(bash.error).toMatchObject({ name: '', value: '1' });
  }, 60_000);

  it('is usable again after an execution timed out on the client', async () => {
    const box = await Sandbox.create({ timeoutMs: 60_000 });
    await expect(box.runCode('import time; time.sleep(300)', { timeoutMs: 1_500 })).rejects.toBeInstanceOf(
      TimeoutError,
    );
    expect((await box.runCode('1 + 1', { timeoutMs: 10_000 })).text).toBe('2');
    await box.kill();
  }, 60_000);

  it('tells a running execution that its sandbox was killed', async () => {
    const box = await Sandbox.create({ timeoutMs: 60_000 });
    await box.runCode('1');
    let started!: () => void;
    const running = new Promise<void>((resolve) => (started = resolve));
    const execution = box.runCode('print("go", flush=True)\nimport time; time.sleep(300)', {
      timeoutMs: 300_000,
      onStdout: () => started(),
    });
    const outcome = expect(execution).rejects.toThrow(/sandbox was killed while the request was in progress/);
    await running;
    await box.kill();
    await outcome;
  }, 60_000);

  it('honours tokens of a secure sandbox without public traffic', async () => {
    const box = await Sandbox.create({
      timeoutMs: 60_000,
      secure: true,
      network: { allowPublicTraffic: false },
    } as newest.SandboxOpts);
    expect((await box.runCode('x = 1; x')).text).toBe('1');
    const context = await box.createCodeContext();
    expect((await box.listCodeContexts()).at(-1)!.id).toBe(context.id);
    const refused = await fetch(`${service.url}/contexts`, {
      headers: { 'E2b-Sandbox-Id': box.sandboxId, 'E2b-Sandbox-Port': '49999' },
    });
    expect(refused.status).toBe(403);
    await box.kill();
  }, 60_000);

  it('creates, finds, extends, reconnects and lists sandboxes', async () => {
    const metadata = { suite: `${generation} b c`, q: 'y&z' };
    const box = await Sandbox.create({ timeoutMs: 60_000, metadata });
    const info = await box.getInfo();
    expect(info).toMatchObject({ sandboxId: box.sandboxId, metadata, state: 'running' });
    const pages = Sandbox.list({ query: { metadata } });
    expect((await pages.nextItems()).map((each) => each.sandboxId)).toEqual([box.sandboxId]);
    expect(pages.hasNext).toBe(false);
    await box.setTimeout(120_000);
    const extended = await box.getInfo();
    expect(extended.endAt.getTime() - info.endAt.getTime()).toBeGreaterThan(45_000);
    const again = await Sandbox.connect(box.sandboxId);
    await box.runCode('kept = 41');
    expect((await again.runCode('kept + 1')).text).toBe('42');
    await again.kill();
    await expect(Sandbox.connect(box.sandboxId)).rejects.toThrow(/not found|doesn't exist/i);
  }, 60_000);

  it('carries 100,000 lines complete and in order', async () => {
    const lines: string[] = [];
    const execution = await sandbox.runCode('for i in range(100_000): print(i)', {
      onStdout: (message) => void lines.push(message.line),
    });
    expect(execution.error).toBeUndefined();
    expect(lines.join('')).toBe(Array.from({ length: 100_000 }, (_, index) => `${index}\n`).join(''));
  }, 60_000);

  it('ends and recovers when the kernel dies mid-cell', async () => {
    const context = await sandbox.createCodeContext();
    const died = await sandbox.runCode('import os, signal; os.kill(os.getpid(), signal.SIGKILL)', {
      context,
    });
    expect(died.error).toMatchObject({ name: 'ContextRestarting', value: 'Context was restarted' });
    expect((await sandbox.runCode('1 + 1', { context })).text).toBe('2');
  }, 60_000);
});
