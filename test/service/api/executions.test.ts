import { createHash } from 'node:crypto';
import { readdirSync } from 'node:fs';
import path from 'node:path';
import type { Termination } from '../../../protocol/interpreter';
import type { FakeExecution } from '../../fakes/fake-gateway';
import { obedient } from '../../fakes/fake-gateway';
import { ExecutionsHarness } from './executions-harness';
import type { NativeEvent } from './executions-harness';

/** More than any kernel takes that obeys, on any machine. */
const OBEYED = 30_000;
const NOT_OBEYED = 50;

let harness: ExecutionsHarness;
beforeEach(async () => {
  harness = await ExecutionsHarness.open({ interruptGraceMs: OBEYED });
});
afterEach(() => harness.close());

async function reopen(...settings: Parameters<typeof ExecutionsHarness.open>): Promise<void> {
  await harness.close();
  harness = await ExecutionsHarness.open(...settings);
}

const ACCOUNTING = {
  wall_ms: expect.any(Number) as number,
  queued_ms: expect.any(Number) as number,
  cpu_ms: null,
  memory_peak_bytes: null,
  output_bytes: 0,
  results: 0,
};

function end(termination: Termination, fields: object = {}): NativeEvent {
  return expect.objectContaining({ type: 'end_of_execution', termination, ...fields }) as NativeEvent;
}

/** The kernel begins, and does what `during` says; all other code is obeyed. */
function script(code: string, during: (execution: FakeExecution) => void): void {
  harness.gateway.script = (execution) => {
    if (execution.code === code) during(execution.busy().input());
    else obedient(execution);
  };
}

/** The kernel ends the running cell when it is interrupted, as Python does. */
function obeyInterrupts(): void {
  harness.gateway.onInterrupt = () => {
    const cell = harness.gateway.executions.findLast((each) => !each.silent);
    cell
      ?.error('KeyboardInterrupt', '', ['at line 1'])
      .reply({ status: 'error', ename: 'KeyboardInterrupt', evalue: '', traceback: [] })
      .idle();
  };
}

describe('an attached execution', () => {
  it('streams numbered events, with the accounting in the last one, and names itself in a header', async () => {
    script('x', (execution) =>
      execution
        .stdout('h\u00e9')
        .result({ 'text/plain': '1' })
        .reply({ status: 'ok' }, { cellbox: { cpu_ms: 12.5, memory_peak_bytes: 4096 } })
        .idle(),
    );
    const stream = await harness.stream('POST', harness.path, { code: 'x' });
    expect(stream.status).toBe(200);
    const events = await stream.rest();
    expect(events).toMatchObject([
      { seq: 0, type: 'number_of_executions', execution_count: 1 },
      { seq: 1, type: 'stdout', text: 'h\u00e9' },
      { seq: 2, type: 'result', text: '1', is_main_result: true },
      {
        seq: 3,
        type: 'end_of_execution',
        termination: 'ok',
        state_survived: true,
        accounting: { ...ACCOUNTING, cpu_ms: 12.5, memory_peak_bytes: 4096, results: 1, output_bytes: 65 },
      },
    ]);
    const id = String(stream.headers['x-execution-id']);
    expect(await harness.info(id)).toMatchObject({
      execution_id: id,
      state: 'ended',
      termination: 'ok',
      detached: false,
      event_count: 4,
    });
  });

  it('goes on when its reader leaves, who can come back for the rest', async () => {
    let cell!: FakeExecution;
    script('x', (execution) => (cell = execution.stdout('a')));
    const stream = await harness.stream('POST', harness.path, { code: 'x' });
    await stream.next();
    await stream.next();
    stream.leave();
    const again = await harness.stream(
      'GET',
      `${harness.path}/${stream.headers['x-execution-id']}/events?from=2`,
    );
    cell.stdout('b').reply().idle();
    expect(await again.rest()).toMatchObject([{ seq: 2, text: 'b' }, end('ok')]);
    expect(harness.gateway.rest('POST', /interrupt/)).toEqual([]);
  });
});

describe('how executions end', () => {
  const DEATHS: Array<[string, object, Termination, string, object]> = [
    ['exit code', { ending: 1, exit_code: 3, oom: false }, 'exited', 'ContextRestarting', { exit_code: 3 }],
    [
      'signal',
      { ending: 1, signal: 'SIGSEGV', oom: false },
      'crashed',
      'KernelCrashed',
      { signal: 'SIGSEGV' },
    ],
    ['nothing known', {}, 'crashed', 'ContextRestarting', {}],
    [
      'memory',
      { ending: 1, signal: 'SIGKILL', oom: true, memory_peak_bytes: 9, memory_limit_bytes: 10 },
      'oom',
      'OutOfMemoryError',
      { signal: 'SIGKILL', memory_peak_bytes: 9, memory_limit_bytes: 10 },
    ],
  ];

  it.each(DEATHS)('by the death of the kernel: %s', async (_title, death, termination, name, fields) => {
    script('die', (execution) => execution.stdout('last words').kernel.restarting(death));
    expect(await harness.run({ code: 'die' })).toMatchObject([
      { type: 'number_of_executions' },
      { text: 'last words' },
      { type: 'error', name },
      end(termination, { state_survived: false, ...fields }),
    ]);
    expect((await harness.run({ code: '1+1' })).map(({ type }) => type)).toEqual([
      'number_of_executions',
      'result',
      'end_of_execution',
    ]);
  });

  it('by exit(), told in the cell that called it although the kernel replied', async () => {
    const payload = [{ source: 'ask_exit', keepkernel: false }];
    script('exit()', (execution) => {
      execution.reply({ status: 'ok', payload }).idle();
      execution.kernel.restarting({ exit_code: 0 });
    });
    expect(await harness.run({ code: 'exit()' })).toContainEqual(end('exited', { exit_code: 0 }));
    expect(await harness.run({ code: '1+1' })).toContainEqual(end('ok'));
  });

  it('by exit(keep_kernel=True) like any other', async () => {
    const payload = [{ source: 'ask_exit', keepkernel: true }];
    script('exit(True)', (execution) => execution.reply({ status: 'ok', payload }).idle());
    expect(await harness.run({ code: 'exit(True)' })).toContainEqual(end('ok'));
  });

  it('by the time limit, obeyed: partial output is kept, the error is ours with the traceback of theirs', async () => {
    obeyInterrupts();
    script('loop', (execution) => execution.stdout('partial'));
    expect(await harness.run({ code: 'loop', timeout_ms: 30 })).toMatchObject([
      { type: 'number_of_executions' },
      { text: 'partial' },
      { type: 'error', name: 'TimeoutError', traceback: 'at line 1' },
      end('timeout_interrupted', { state_survived: true }),
    ]);
  });

  it('by the time limit, not obeyed: the kernel is killed, and the next cell has another one', async () => {
    await reopen({ interruptGraceMs: NOT_OBEYED });
    script('stubborn', (execution) => execution.stdout('partial'));
    const events = await harness.run({ code: 'stubborn', timeout_ms: 30 });
    expect(events).toMatchObject([
      { type: 'number_of_executions' },
      { text: 'partial' },
      { type: 'error', name: 'TimeoutError' },
      end('timeout_killed', { state_survived: false }),
    ]);
    expect(await harness.run({ code: '1+1' })).toContainEqual(end('ok'));
    const restarts = harness.gateway.rest('POST', /restart$/);
    expect(restarts.map(({ query }) => query.get('now'))).toEqual(['true']);
  });

  it('by the time limit, not obeyed: it is not said before the kernel is gone', async () => {
    await reopen({ interruptGraceMs: NOT_OBEYED });
    script('stubborn', () => undefined);
    let killed!: () => void;
    harness.gateway.restartGate = new Promise((resolve) => (killed = resolve));
    const id = await harness.detach({ code: 'stubborn', timeout_ms: 30 });
    await harness.gateway.until(() => harness.gateway.rest('POST', /restart$/)[0]);
    expect(await harness.info(id)).toMatchObject({ state: 'running' });
    killed();
    expect((await harness.events(id)).at(-1)).toEqual(end('timeout_killed', { state_survived: false }));
  });

  it('not by a limit that passes while they wait for their turn', async () => {
    let first!: FakeExecution;
    script('first', (execution) => (first = execution));
    const running = await harness.stream('POST', harness.path, { code: 'first' });
    await running.next();
    const queued = await harness.stream('POST', harness.path, { code: '1+1', timeout_ms: 500 });
    obeyInterrupts();
    await new Promise((resolve) => setTimeout(resolve, 600)); // the limit itself passes
    harness.gateway.onInterrupt = undefined;
    first.reply().idle();
    const last = (await queued.rest()).at(-1);
    expect(last).toMatchObject({ termination: 'ok' });
    expect((last as { accounting: { queued_ms: number } }).accounting.queued_ms).toBeGreaterThanOrEqual(590);
  });

  it('by the default limit where the request has none, and without one at 0', async () => {
    await reopen({ timeoutMs: 20, interruptGraceMs: OBEYED });
    obeyInterrupts();
    let cell!: FakeExecution;
    script('loop', (execution) => (cell = execution));
    expect(await harness.run({ code: 'loop' })).toContainEqual(end('timeout_interrupted'));
    const free = await harness.stream('POST', harness.path, { code: 'loop', timeout_ms: 0 });
    await free.next();
    await new Promise((resolve) => setTimeout(resolve, 60));
    cell.reply().idle();
    expect(await free.rest()).toEqual([end('ok')]);
  });

  it('by the time limit, when the kernel had not begun by then and ignored the first interrupt', async () => {
    let begin!: () => void;
    harness.gateway.script = (execution) => {
      if (execution.code === 'late') begin = () => void execution.busy().input();
      else obedient(execution);
    };
    const events = harness.run({ code: 'late', timeout_ms: 30 });
    const interrupts = (): unknown[] => harness.gateway.rest('POST', /interrupt$/);
    await harness.gateway.until(() => interrupts().length === 1);
    obeyInterrupts();
    begin();
    expect(await events).toContainEqual(end('timeout_interrupted', { state_survived: true }));
    expect(interrupts()).toHaveLength(2);
  });

  it('by an interrupt of their context', async () => {
    obeyInterrupts();
    script('loop', () => undefined);
    const stream = await harness.stream('POST', harness.path, { code: 'loop' });
    await stream.next();
    const { context_id } = await harness.info(String(stream.headers['x-execution-id']));
    const path = `/v1/sandboxes/${harness.sandboxId}/contexts/${context_id}/interrupt`;
    expect((await harness.api.ask('POST', path)).status).toBe(202);
    expect(await stream.rest()).toMatchObject([
      { type: 'error', name: 'KeyboardInterrupt' },
      end('interrupted', { state_survived: true }),
    ]);
    expect((await harness.api.ask('POST', path)).status).toBe(202); // nothing runs: nothing happens
    expect(harness.gateway.rest('POST', /interrupt$/)).toHaveLength(1);
  });

  it.each([
    ['restart', 'POST', '/restart'],
    ['removal', 'DELETE', ''],
  ])('by the %s of their context', async (_what, method, action) => {
    script('loop', () => undefined);
    const stream = await harness.stream('POST', harness.path, { code: 'loop' });
    await stream.next();
    const { context_id } = await harness.info(String(stream.headers['x-execution-id']));
    const restarted = harness.plainRequest(method, `/contexts/${context_id}${action}`);
    expect(await stream.rest()).toMatchObject([
      { type: 'error', name: 'ContextRestarting' },
      end('restarted', { state_survived: false }),
    ]);
    await restarted;
  });

  it('when a client of the other API leaves: the record says so', async () => {
    obeyInterrupts();
    script('loop', () => undefined);
    const stream = await harness.plainly({ code: 'loop' });
    await stream.next();
    stream.leave();
    const id = String(stream.headers['x-execution-id']);
    expect((await harness.events(id)).at(-1)).toEqual(end('client_gone'));
    await harness.run({ code: '1+1' });
  });

  it('when the sandbox ends: nothing of them is left, on the disk neither', async () => {
    script('much', (execution) => {
      for (let index = 0; index < 20; index++) execution.stdout('x'.repeat(100_000));
      execution.reply().idle();
    });
    await harness.run({ code: 'much' });
    expect(readdirSync(path.join(harness.directory, harness.sandboxId))).not.toEqual([]);
    harness.interpreter.drop(harness.sandboxId);
    await harness.interpreter.close();
    expect(readdirSync(harness.directory)).toEqual([]);
  });
});

describe('cancelling', () => {
  it('keeps one that waits from ever starting, and interrupts nothing', async () => {
    let first!: FakeExecution;
    script('first', (execution) => (first = execution));
    const running = await harness.stream('POST', harness.path, { code: 'first' });
    await running.next();
    const id = await harness.detach({ code: 'never' });
    expect((await harness.info(id)).state).toBe('queued');
    expect((await harness.api.ask('POST', `${harness.path}/${id}/cancel`)).status).toBe(202);
    expect(await harness.events(id)).toMatchObject([{ name: 'KeyboardInterrupt' }, end('interrupted')]);
    first.reply().idle();
    await running.rest();
    await harness.run({ code: '1+1' });
    expect(harness.gateway.executions.map(({ code }) => code)).toEqual(['first', '1+1']);
    expect(harness.gateway.rest('POST', /interrupt/)).toEqual([]);
  });

  it('interrupts one that runs, and the next one does not begin before that has arrived', async () => {
    script('loop', () => undefined);
    const id = await harness.detach({ code: 'loop' });
    const cell = await harness.gateway.execution('loop');
    let began = false;
    harness.gateway.onInterrupt = () => {
      // The cell ends by itself while the interrupt is still on its way.
      cell.reply().idle();
      began = harness.gateway.executions.some(({ code }) => code === '1+1');
    };
    const next = await harness.stream('POST', harness.path, { code: '1+1' });
    expect((await harness.api.ask('POST', `${harness.path}/${id}/cancel`)).status).toBe(202);
    expect(await next.rest()).toContainEqual(end('ok'));
    expect(began).toBe(false);
    expect(await harness.info(id)).toMatchObject({ termination: 'ok' });
  });

  it('is a conflict for one that has ended', async () => {
    const id = await harness.detach({ code: '1+1' });
    await harness.events(id);
    expect(await harness.api.ask('POST', `${harness.path}/${id}/cancel`)).toMatchObject({
      status: 409,
      body: { code: 409, error: 'failed_precondition' },
    });
  });
});

describe('detached executions', () => {
  it('are answered at once, listed newest first in pages, and shown with their code in short', async () => {
    const ids = [];
    for (const code of ['\n\n  a = 1\nb', '1+1', 'c'])
      ids.push(await harness.detach({ code, timeout_ms: 5000 }));
    for (const id of ids) await harness.events(id);
    const page = await harness.api.ask('GET', `${harness.path}?limit=2`);
    expect(page.body).toMatchObject({
      items: [{ execution_id: ids[2] }, { execution_id: ids[1], code_first_line: '1+1' }],
      next_token: ids[1],
    });
    const rest = await harness.api.ask('GET', `${harness.path}?limit=2&next_token=${ids[1]}`);
    expect(rest.body).toEqual({
      items: [
        {
          execution_id: ids[0],
          context_id: expect.any(String) as string,
          language: 'python',
          detached: true,
          state: 'ended',
          termination: 'ok',
          state_survived: true,
          accounting: ACCOUNTING,
          code_hash: createHash('sha256').update('\n\n  a = 1\nb').digest('hex'),
          code_first_line: 'a = 1',
          timeout_ms: 5000,
          created_at: expect.stringMatching(/Z$/) as string,
          started_at: expect.stringMatching(/Z$/) as string,
          ended_at: expect.stringMatching(/Z$/) as string,
          event_count: 2,
        },
      ],
      next_token: null,
    });
  });

  it('are followed live by any number of readers, each from its own event on', async () => {
    let cell!: FakeExecution;
    script('x', (execution) => (cell = execution.stdout('0')));
    const id = await harness.detach({ code: 'x' });
    const readers = [];
    for (const from of [0, 1, 2, 3]) {
      readers.push(await harness.stream('GET', `${harness.path}/${id}/events?from=${from}`));
    }
    await harness.gateway.execution('x');
    cell.stdout('1').reply().idle();
    const seen = await Promise.all(readers.map((reader) => reader.rest()));
    expect(seen.map((events) => events.map(({ seq }) => seq))).toEqual([
      [0, 1, 2, 3],
      [1, 2, 3],
      [2, 3],
      [3],
    ]);
  });

  it('replay exactly what was said, also what is on the disk by then', async () => {
    const texts = Array.from({ length: 400 }, (_, index) => `${index}:${'\u00e9'.repeat(1000)}\n`);
    script('much', (execution) => {
      for (const text of texts) execution.stdout(text);
      execution.reply().idle();
    });
    const id = await harness.detach({ code: 'much' });
    const all = await harness.events(id);
    expect(all.map(({ seq }) => seq)).toEqual(Array.from({ length: 402 }, (_, index) => index));
    expect(all.slice(1, -1).map((event) => (event as { text: string }).text)).toEqual(texts);
    for (const from of [1, 57, 200, 399, 401, 402, 1000]) {
      expect((await harness.events(id, from)).map(({ seq }) => seq)).toEqual(
        all.slice(from).map(({ seq }) => seq),
      );
    }
    const range = 'bytes=400001-400010';
    const part = await harness.api.ask('GET', `${harness.path}/${id}/output/stdout`, { headers: { range } });
    expect(part.text).toBe(Buffer.from(texts.join('')).toString('utf8', 400_001, 400_011));
  });

  it('keep what a background thread prints after their end', async () => {
    const id = await harness.detach({ code: '1+1' });
    await harness.events(id);
    const cell = await harness.gateway.execution('1+1');
    const next = await harness.stream('POST', harness.path, { code: 'c' });
    cell.stderr('late');
    cell.display({ 'text/plain': 'not text' });
    expect((await next.rest()).map(({ type }) => type)).toEqual(['number_of_executions', 'end_of_execution']);
    await harness.run({ code: 'd' });
    expect(await harness.events(id, 3)).toEqual([
      { seq: 3, type: 'late_output', stream: 'stderr', text: 'late', after_execution: id },
    ]);
  });

  it('are forgotten after their time', async () => {
    await reopen({ keepMs: 1 });
    const id = await harness.detach({ code: '1+1' });
    const deadline = Date.now() + 5_000;
    let status = 200;
    while (status !== 404 && Date.now() < deadline) {
      ({ status } = await harness.api.ask('GET', `${harness.path}/${id}`));
    }
    expect(status).toBe(404);
  });

  it('count what has no room on the disk, and still tell how they ended', async () => {
    await reopen({ diskBytes: 600_000, inlineBytes: 100_000_000 });
    script('much', (execution) => {
      for (let index = 0; index < 30; index++) execution.display({ 'text/html': 'x'.repeat(100_000) });
      execution.reply().idle();
    });
    const events = await harness.events(await harness.detach({ code: 'much' }));
    expect(events.length).toBeLessThan(25);
    expect(events.slice(-2)).toMatchObject([{ type: 'truncated', stream: 'events' }, end('ok')]);
    const { omitted_bytes: omitted } = events.at(-2) as { omitted_bytes: number };
    expect(omitted).toBeGreaterThan(1_000_000);
  });
});

describe('displays that change', () => {
  function drawing(execution: FakeExecution): void {
    execution.display({ 'text/plain': '0%' }, 'bar').stdout('work').display({ 'text/plain': 'other' }, 'two');
    execution.updateDisplay({ 'text/plain': '100%' }, 'bar').updateDisplay({ 'text/plain': '?' }, 'unknown');
    execution.result({ 'text/plain': 'value' }).reply().idle();
  }

  it('are told live', async () => {
    script('draw', drawing);
    expect(await harness.run({ code: 'draw' })).toMatchObject([
      { type: 'number_of_executions' },
      { type: 'display', display_id: 'bar', text: '0%' },
      { type: 'stdout' },
      { type: 'display', display_id: 'two', text: 'other' },
      { type: 'update_display', display_id: 'bar', text: '100%' },
      { type: 'update_display', display_id: 'unknown' },
      { type: 'result', text: 'value' },
      end('ok'),
    ]);
  });

  it("are one result each for E2B's clients, as they are at the end, in the order they came", async () => {
    script('draw', drawing);
    expect(await (await harness.plainly({ code: 'draw' })).rest()).toMatchObject([
      { type: 'number_of_executions' },
      { type: 'stdout', text: 'work' },
      { type: 'result', text: 'value', is_main_result: true },
      { type: 'result', text: '100%', is_main_result: false },
      { type: 'result', text: 'other' },
      { type: 'end_of_execution' },
    ]);
  });

  it('are taken back by clear_output, at once or with the next output', async () => {
    script('clear', (execution) => {
      execution.display({ 'text/plain': 'a' }, '1').send('iopub', 'clear_output', { wait: false });
      execution.display({ 'text/plain': 'b' }, '2').send('iopub', 'clear_output', { wait: true });
      execution
        .display({ 'text/plain': 'c' }, '3')
        .send('iopub', 'clear_output', { wait: true })
        .reply()
        .idle();
    });
    expect(await (await harness.plainly({ code: 'clear' })).rest()).toMatchObject([
      { type: 'number_of_executions' },
      { type: 'result', text: 'c' },
      { type: 'end_of_execution' },
    ]);
    expect((await harness.run({ code: 'clear' })).filter(({ type }) => type === 'clear_output')).toHaveLength(
      3,
    );
  });
});

describe('progress bars', () => {
  it("are folded for E2B's clients, in order with what else comes, and told as they are natively", async () => {
    script('tqdm', (execution) => {
      execution
        .stderr('\r 10%')
        .stderr('\r 20%')
        .stdout('x')
        .stderr('\r 30%\n')
        .stderr('a\r\n')
        .reply()
        .idle();
    });
    const plain = await (await harness.plainly({ code: 'tqdm' })).rest();
    expect(plain.map((event) => ('text' in event ? event.text : event.type))).toEqual([
      'number_of_executions',
      ' 20%',
      'x',
      '\r 30%\na\r\n',
      'end_of_execution',
    ]);
    const native = await harness.run({ code: 'tqdm' });
    expect(native.slice(1, -1).map((event) => (event as { text: string }).text)).toEqual([
      '\r 10%',
      '\r 20%',
      'x',
      '\r 30%\n',
      'a\r\n',
    ]);
  });

  it('are sent after a moment while the cell runs on', async () => {
    let cell!: FakeExecution;
    script('tqdm', (execution) => (cell = execution.stderr('\r 10%')));
    const stream = await harness.plainly({ code: 'tqdm' });
    await stream.next();
    expect(await stream.next()).toMatchObject({ text: ' 10%' });
    cell.reply().idle();
    await stream.rest();
  });
});

describe('long output', () => {
  const LINE = `${'\u00e9'.repeat(499)}\n`; // 999 bytes
  beforeEach(async () => {
    await reopen({ inlineBytes: 10_000 });
    script('print', (execution) => {
      for (let index = 0; index < 1000; index++) execution.stdout(LINE);
      execution.stderr('short').reply().idle();
    });
  });

  it('is cut at the limit with an exact count, and kept as a whole', async () => {
    const id = await harness.detach({ code: 'print' });
    const events = await harness.events(id);
    const text = events.map((event) => (event.type === 'stdout' ? event.text : '')).join('');
    expect(Buffer.byteLength(text)).toBe(10_000);
    const artifact = `${harness.path}/${id}/output/stdout`;
    expect(events.slice(-3)).toMatchObject([
      { type: 'stderr', text: 'short' },
      { type: 'truncated', stream: 'stdout', omitted_bytes: 989_000, artifact, artifact_bytes: 999_000 },
      end('ok'),
    ]);
    expect((await harness.info(id)).accounting).toMatchObject({ output_bytes: 999_005 });
    const whole = await harness.api.ask('GET', artifact);
    expect(whole).toMatchObject({ status: 200, headers: { 'content-length': '999000' } });
    expect(whole.text === LINE.repeat(1000)).toBe(true);
    expect((await harness.api.ask('GET', `${harness.path}/${id}/output/stderr`)).text).toBe('short');
  });

  it.each([
    ['bytes=0-0', 206, 'bytes 0-0/999000', 1],
    ['bytes=998999-', 206, 'bytes 998999-998999/999000', 1],
    ['bytes=-10', 206, 'bytes 998990-998999/999000', 10],
    ['bytes=5-1', 200, undefined, 999_000],
    ['bytes=0-1,3-4', 200, undefined, 999_000],
    ['lines=1-2', 200, undefined, 999_000],
    ['bytes=999000-', 416, 'bytes */999000', 0],
  ])('is read in parts: %s', async (range, status, contentRange, length) => {
    const id = await harness.detach({ code: 'print' });
    await harness.events(id);
    const answer = await harness.api.ask('GET', `${harness.path}/${id}/output/stdout`, {
      headers: { range },
    });
    expect(answer.status).toBe(status);
    expect(answer.headers['content-range']).toBe(contentRange);
    expect(Number(answer.headers['content-length'])).toBe(length);
  });

  it("is told to E2B's clients in words", async () => {
    const events = await (await harness.plainly({ code: 'print' })).rest();
    expect(events.slice(-2)).toMatchObject([
      {
        type: 'stdout',
        text: expect.stringMatching(
          /^\n\[989000 bytes of stdout are left out; .*output\/stdout\]\n$/,
        ) as string,
      },
      { type: 'end_of_execution' },
    ]);
  });

  it('is not cut below the limit, wherever it is read', async () => {
    script('small', (execution) => execution.stdout('a').stdout('b').reply().idle());
    const id = await harness.detach({ code: 'small' });
    expect((await harness.events(id)).map(({ type }) => type)).not.toContain('truncated');
    expect((await harness.api.ask('GET', `${harness.path}/${id}/output/stdout`)).text).toBe('ab');
    expect((await harness.api.ask('GET', `${harness.path}/${id}/output/stderr`)).text).toBe('');
  });
});

describe('a reader that takes nothing', () => {
  const CHUNK = 'x'.repeat(1024 * 1024);

  it('does not hold up a detached execution', async () => {
    let cell!: FakeExecution;
    script('flood', (execution) => (cell = execution));
    const id = await harness.detach({ code: 'flood' });
    await harness.gateway.execution('flood');
    const reader = await harness.stream('GET', `${harness.path}/${id}/events`);
    reader.response.pause();
    for (let index = 0; index < 64; index++) cell.stdout(CHUNK);
    cell.reply().idle();
    await harness.gateway.until(() => true);
    const other = await harness.events(id, 60);
    expect(other.at(-1)).toEqual(end('ok'));
    reader.leave();
  }, 30_000);

  it("does not keep a client's execution from ending at its time limit", async () => {
    await reopen({ interruptGraceMs: NOT_OBEYED }); // what the kernel says of it waits behind the output
    obeyInterrupts();
    script('flood', (execution) => {
      for (let index = 0; index < 64; index++) execution.stdout(CHUNK);
    });
    const stream = await harness.plainly({ code: 'flood', timeout_ms: 200 });
    stream.response.pause();
    const id = String(stream.headers['x-execution-id']);
    const last = (await harness.events(id)).at(-1);
    expect(['timeout_interrupted', 'timeout_killed']).toContain(
      (last as { termination: string }).termination,
    );
    stream.response.resume();
    expect((await stream.rest()).at(-1)).toMatchObject({ type: 'end_of_execution' });
    expect(await harness.run({ code: '1+1' })).toContainEqual(end('ok'));
  }, 30_000);
});

describe('requests that make no sense', () => {
  it.each([
    ['no code', {}, /code/],
    ['an unknown field', { code: '1', codes: 2 }, /codes/],
    ['a negative limit', { code: '1', timeout_ms: -1 }, /timeout_ms/],
    ['a limit beyond all measure', { code: '1', timeout_ms: 1e12 }, /timeout_ms/],
    ['context and language', { code: '1', context_id: 'x', language: 'python' }, /context_id or language/],
    ['a variable that can not be', { code: '1', env_vars: { 'a=b': '' } }, /a=b/],
  ])('are refused: %s', async (_title, body, message) => {
    expect(await harness.api.ask('POST', harness.path, { body })).toMatchObject({
      status: 400,
      body: { code: 400, error: 'invalid_argument', message: expect.stringMatching(message) as string },
    });
  });

  it('are a conflict while the sandbox is paused, and what it did before is told', async () => {
    await harness.run({ code: '1+1' });
    expect((await harness.api.ask('POST', `/sandboxes/${harness.sandboxId}/pause`)).status).toBe(204);
    expect(await harness.api.ask('POST', harness.path, { body: { code: '1' } })).toMatchObject({
      status: 409,
      body: { error: 'failed_precondition', remedy: expect.stringMatching(/connect/) as string },
    });
    expect((await harness.api.ask('GET', harness.path)).body).toMatchObject({
      items: [{ termination: 'ok' }],
    });
  });

  it('say what there is not: language, context, execution, stream, sandbox', async () => {
    harness.gateway.refuse = () => ({ status: 404, body: { message: 'no cobol' } });
    const cobol = await harness.api.ask('POST', harness.path, { body: { code: '1', language: 'cobol' } });
    expect(cobol).toMatchObject({ status: 400, body: { error: 'invalid_argument' } });
    const missing: Array<[string, string]> = [
      ['GET', `${harness.path}/nope`],
      ['GET', `${harness.path}/nope/events`],
      ['POST', `${harness.path}/nope/cancel`],
      ['POST', `/v1/sandboxes/${harness.sandboxId}/contexts/nope/interrupt`],
      ['GET', '/v1/sandboxes/nope/executions'],
      ['POST', '/v1/sandboxes/nope/executions'],
    ];
    for (const [method, path] of missing) {
      const body = method === 'POST' ? { code: '1' } : undefined;
      expect(await harness.api.ask(method, path, { body })).toMatchObject({
        status: 404,
        body: { code: 404, error: 'not_found' },
      });
    }
    expect(await harness.api.ask('GET', harness.path, { key: 'e2b_ff' })).toMatchObject({ status: 401 });
  });
});
