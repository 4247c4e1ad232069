import { readFileSync } from 'node:fs';
import type { ExecutionInfo } from '../../protocol/native';
import { describeOnRuntimes } from '../describe-on-runtimes';
import type { OutputLine } from './client';
import { Executions, until } from './recovery-client';

const MIB = 1_048_576;
const MEMORY_MB = 512;
/** In Python: a cell that obeys no interrupt, in three ways. */
const STUBBORN = {
  'ignores the signal': 'import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass',
  'catches what it raises':
    'import time\nwhile True:\n  try: time.sleep(60)\n  except KeyboardInterrupt: pass',
  'loops in C': 'import collections, itertools; collections.deque(itertools.repeat(None), maxlen=0)',
};
/** And some that do. */
const OBEDIENT = {
  loops: 'while True: pass',
  sleeps: 'import time; time.sleep(600)',
  'waits for its threads':
    'import threading, time\nt = threading.Thread(target=time.sleep, args=(600,), daemon=True)\nt.start()\nt.join()',
  'waits for a program': 'import subprocess; subprocess.run(["sleep", "600"])',
  'reads what nobody writes': 'import os; r, w = os.pipe(); os.read(r, 1)',
};

/** In Python: `signal_agent(name)` sends a signal to the sandbox's agent, which is root's in a container. */
const SIGNAL_AGENT = `
import os, subprocess
def signal_agent(name):
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline") as file: words = file.read().split("\\0")
        except OSError: continue
        if len(words) > 1 and words[1].endswith("/agent/agent.js"):
            sudo = ["sudo"] if os.stat(f"/proc/{pid}").st_uid != os.getuid() else []
            return subprocess.run([*sudo, "kill", f"-{name}", pid]).returncode
    return "there is no agent"
`;

/** Longer than a cell takes to print, and to obey with its traceback told, where a machine stands still for a second. */
const TIME_LIMIT_MS = 2_000;
const GRACE_MS = 5_000;

const SETTINGS = {
  CELLBOX_MEMORY_MB: String(MEMORY_MB),
  CELLBOX_POOL_SIZE: '0',
  CELLBOX_INTERRUPT_GRACE_MS: String(GRACE_MS),
  CELLBOX_LOG_LEVEL: 'info', // it says when a kernel has ended
};

describeOnRuntimes('executions on the $runtime runtime', { env: SETTINGS }, ({ service, client }) => {
  let sandboxId: string;

  beforeAll(async () => {
    sandboxId = await client.create({ envVars: { FROM_SANDBOX: 'yes' } });
  }, 240_000);

  const base = (): string => `/v1/sandboxes/${sandboxId}/executions`;

  async function lines(response: Response): Promise<OutputLine[]> {
    const text = await response.text();
    const all = text
      .split('\n')
      .filter((line) => line !== '')
      .map((line) => JSON.parse(line) as OutputLine);
    return all.filter(({ type }) => type !== 'keepalive');
  }

  async function run(code: string, more: object = {}): Promise<OutputLine[]> {
    return lines(await client.api('POST', base(), { code, ...more }));
  }

  async function detach(code: string, more: object = {}): Promise<string> {
    const response = await client.api('POST', base(), { code, detached: true, ...more });
    expect(response.status).toBe(202);
    return ((await response.json()) as { execution_id: string }).execution_id;
  }

  async function info(id: string): Promise<ExecutionInfo> {
    return (await (await client.api('GET', `${base()}/${id}`)).json()) as ExecutionInfo;
  }

  /** The context works, with directory and environment; `x`, set before, is there or not. */
  async function expectWorking(variableLeft: boolean, more: object = {}): Promise<void> {
    const after = await run(
      'import os; print(os.getcwd().rsplit("/", 1)[-1], os.environ["FROM_SANDBOX"], "x" in dir())',
      more,
    );
    const text = after.map(({ type, text }) => (type === 'stdout' ? text : '')).join('');
    expect(text).toMatch(new RegExp(`^\\S+ yes ${variableLeft ? 'True' : 'False'}\n$`));
    expect(after.at(-1)).toMatchObject({ termination: 'ok' });
    expect(after.filter(({ type }) => type === 'error')).toEqual([]);
  }

  it('account for what they use', async () => {
    const events = await run(
      'x = 1\nimport time\nt = time.process_time()\nwhile time.process_time() - t < 0.2: pass\nprint("done")',
    );
    const { accounting } = events.at(-1) as { accounting?: Record<string, number> };
    expect(accounting?.['cpu_ms']).toBeGreaterThan(150);
    expect(accounting?.['wall_ms']).toBeGreaterThan(150);
    expect(accounting?.['memory_peak_bytes']).toBeGreaterThan(10 * MIB);
    expect(accounting).toMatchObject({ output_bytes: 5, results: 0 });
  }, 60_000);

  it.each([
    ['an exit code', 'import os; os._exit(3)', { termination: 'exited', exit_code: 3 }],
    ['exit()', 'exit()', { termination: 'exited', exit_code: 0 }],
    ['a crash', 'import ctypes; ctypes.string_at(0)', { termination: 'crashed', signal: 'SIGSEGV' }],
    [
      'a kill',
      'import os, signal; os.kill(os.getpid(), signal.SIGKILL)',
      { termination: 'crashed', signal: 'SIGKILL' },
    ],
  ])(
    'tell of %s, and leave a context that works',
    async (_title, code, ending) => {
      await run('x = 1');
      const events = await run(code);
      expect(events.at(-1)).toMatchObject({ type: 'end_of_execution', state_survived: false, ...ending });
      expect(events.filter(({ type }) => type === 'error')).toHaveLength(1);
      await expectWorking(false);
    },
    60_000,
  );

  it('tell that a kernel was killed while nothing ran, once', async () => {
    const deaths = (): number => service.output().split('a kernel ended').length;
    const before = deaths();
    const [, first] = await run('import os; x = 1; print(os.getpid())');
    const other = await new Executions(client, sandboxId).context();
    await run(`import os, signal; os.kill(${first?.text}, signal.SIGKILL)`, { context_id: other });
    await until(async () => deaths() > before); // else the next cell is the one that tells it
    const told = await run('"x" in dir()');
    expect(told.map(({ type, text }) => text ?? type)).toEqual([
      'state_lost',
      'number_of_executions',
      'False',
      'end_of_execution',
    ]);
    expect(told[0]).toMatchObject({ termination: 'crashed', signal: 'SIGKILL' });
    expect((await run('x = 1')).map(({ type }) => type)).not.toContain('state_lost');
    await expectWorking(true);
  }, 60_000);

  it('tell of memory that ran out, with peak and limit', async () => {
    const events = await run(
      `x = bytearray(${4 * MEMORY_MB * MIB})\nfor i in range(0, len(x), 4096): x[i] = 1`,
    );
    expect(events.at(-1)).toMatchObject({
      termination: 'oom',
      state_survived: false,
      memory_limit_bytes: MEMORY_MB * MIB,
      memory_peak_bytes: expect.any(Number) as number,
    });
    expect(events.find(({ type }) => type === 'error')).toMatchObject({
      name: 'OutOfMemoryError',
      value: expect.stringContaining(`${MEMORY_MB} MiB`) as string,
    });
    await expectWorking(false);
  }, 90_000);

  describe.each([
    ['end', OBEDIENT, { termination: 'timeout_interrupted', state_survived: true }],
    ['are killed', STUBBORN, { termination: 'timeout_killed', state_survived: false }],
  ])('%s at their time limit', (_title, cells, ending) => {
    const limited = new Map<string, { context_id: string; events: OutputLine[]; tookMs: number }>();

    // All at once, each in a context of its own: nearly all of their time is the limit's.
    beforeAll(async () => {
      const executions = new Executions(client, sandboxId);
      const contexts = new Map<string, string>();
      for (const title of Object.keys(cells)) {
        const context_id = await executions.context();
        await run('x = 1', { context_id });
        contexts.set(title, context_id);
      }
      const runs = Object.entries(cells).map(async ([title, code]) => {
        const context_id = contexts.get(title) ?? '';
        const more = { context_id, timeout_ms: TIME_LIMIT_MS };
        const begun = Date.now();
        const events = await run(`print("partial", flush=True)\n${code}`, more);
        limited.set(title, { context_id, events, tookMs: Date.now() - begun });
      });
      await Promise.all(runs);
    }, 60_000);

    it.each(Object.keys(cells))(
      'when the code %s',
      async (title) => {
        const { context_id, events = [], tookMs } = limited.get(title) ?? {};
        expect(events.map(({ type, text, name }) => text ?? name ?? type)).toEqual([
          'number_of_executions',
          'partial\n',
          'TimeoutError',
          'end_of_execution',
        ]);
        expect(events.at(-1)).toMatchObject(ending);
        expect(tookMs).toBeLessThan(20_000);
        await expectWorking(ending.state_survived, { context_id });
      },
      60_000,
    );
  });

  it('are interrupted by an interrupt of their context', async () => {
    await run('x = 1');
    const id = await detach('print("on", flush=True)\nimport time; time.sleep(600)');
    const stream = await client.api('GET', `${base()}/${id}/events?from=1`);
    const reader = stream.body?.getReader();
    await reader?.read(); // it runs
    const { context_id } = await info(id);
    const answer = await client.api('POST', `/v1/sandboxes/${sandboxId}/contexts/${context_id}/interrupt`);
    expect(answer.status).toBe(202);
    while (reader !== undefined && !(await reader.read()).done);
    expect(await info(id)).toMatchObject({
      state: 'ended',
      termination: 'interrupted',
      state_survived: true,
    });
    await expectWorking(true);
  }, 60_000);

  it('are found again by a reader that was cut off, without a gap', async () => {
    const response = await client.api('POST', base(), {
      code: 'import time\nfor i in range(20):\n  print(i, flush=True)\n  time.sleep(0.1)',
    });
    const id = response.headers.get('x-execution-id') ?? '';
    const reader = response.body?.getReader();
    let first = '';
    while (!first.includes('"text":"3\\n"')) first += new TextDecoder().decode((await reader?.read())?.value);
    await reader?.cancel();
    const seen = first.slice(0, first.lastIndexOf('\n')).split('\n').length;
    const rest = await lines(await client.api('GET', `${base()}/${id}/events?from=${seen}`));
    expect(rest.map(({ seq }) => seq)).toEqual(
      Array.from({ length: rest.length }, (_, index) => seen + index),
    );
    expect(rest.at(-1)).toMatchObject({ termination: 'ok' });
    const whole = await client.api('GET', `${base()}/${id}/output/stdout`);
    expect(await whole.text()).toBe(Array.from({ length: 20 }, (_, index) => `${index}\n`).join(''));
  }, 60_000);

  it('go on without the agent, while it stands still and when it is killed', async () => {
    // Its bytes would wait in an agent that stands still, and be lost with one that dies.
    await run(SIGNAL_AGENT);
    expect(await run('print(signal_agent("STOP"))')).toMatchObject([
      {},
      { text: '0\n' },
      { termination: 'ok' },
    ]);
    expect((await run('6*7'))[1]).toMatchObject({ type: 'result', text: '42' });
    await run('signal_agent("CONT")');
    const events = await run(
      'for i in range(2000):\n  if i == 1000: signal_agent("KILL")\n  print(i, flush=True)',
    );
    expect(events.at(-1)).toMatchObject({ termination: 'ok' });
    expect(events.map(({ text }) => text ?? '').join('')).toBe(
      Array.from({ length: 2000 }, (_, index) => `${index}\n`).join(''),
    );
  }, 60_000);

  it('keep what a thread prints after the end', async () => {
    const [, , ending] = await run(
      'import threading\nended = threading.Event()\ndef late():\n  ended.wait()\n  print("late")\nt = threading.Thread(target=late); t.start()\nprint("now")',
    );
    expect(ending).toMatchObject({ termination: 'ok' });
    await run('ended.set(); t.join()');
    const listed = (await (await client.api('GET', `${base()}?limit=2`)).json()) as {
      items: ExecutionInfo[];
    };
    const id = listed.items[1]?.execution_id ?? '';
    let late: OutputLine[] = [];
    await until(async () => {
      late = await lines(await client.api('GET', `${base()}/${id}/events?from=3`));
      return late.length > 0;
    });
    expect(late).toMatchObject([
      { type: 'late_output', stream: 'stdout', text: 'late\n', after_execution: id },
    ]);
  }, 60_000);

  it('survive binary junk on stdout', async () => {
    const events = await run('import os\nos.write(1, bytes(range(256)))\nprint("\\ud800 end")');
    expect(events.at(-1)).toMatchObject({ termination: 'ok' });
    expect(events.map(({ text }) => text ?? '').join('')).toContain('end');
  }, 60_000);
});

const INLINE = 64 * MIB;

describeOnRuntimes(
  '676 MB of output',
  { only: 'local', env: { CELLBOX_POOL_SIZE: '0', CELLBOX_OUTPUT_INLINE_BYTES: String(INLINE) } },
  ({ service, client }) => {
    const LINES = 6_760_000;
    const CODE = `line = 'x' * 99 + '\\n'\nfor i in range(${LINES / 1000}): print(line * 1000, end='')`;
    let sandboxId: string;

    beforeAll(async () => {
      sandboxId = await client.create();
    }, 240_000);

    it('is cut in the stream, kept in the file, and held in little memory', async () => {
      const base = `/v1/sandboxes/${sandboxId}/executions`;
      const response = await client.api('POST', base, { code: CODE });
      let peak = 0;
      let bytes = 0;
      let tail = '';
      for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
        bytes += chunk.length;
        tail = (tail + new TextDecoder().decode(chunk)).slice(-2000);
        peak = Math.max(peak, residentBytes());
      }
      const events = tail
        .trimEnd()
        .split('\n')
        .slice(-2)
        .map((line) => JSON.parse(line) as OutputLine);
      expect(events).toMatchObject([
        {
          type: 'truncated',
          stream: 'stdout',
          omitted_bytes: LINES * 100 - INLINE,
          artifact_bytes: LINES * 100,
        },
        { type: 'end_of_execution', termination: 'ok' },
      ]);
      expect(bytes).toBeLessThan(1.2 * INLINE);
      expect(peak).toBeLessThan(250 * MIB);
      const artifact = String(events[0]?.['artifact']);
      const last = await fetch(`${service.url}${artifact}`, {
        headers: { 'x-api-key': service.apiKey, range: 'bytes=-100' },
      });
      expect(last.status).toBe(206);
      expect(await last.text()).toBe(`${'x'.repeat(99)}\n`);
    }, 180_000);

    function residentBytes(): number {
      const pid = readFileSync(`${service.dataDir}/service.pid`, 'utf8').trim();
      const status = readFileSync(`/proc/${pid}/status`, 'utf8');
      return Number(/VmRSS:\s+(\d+)/.exec(status)?.[1] ?? 0) * 1024;
    }
  },
);
