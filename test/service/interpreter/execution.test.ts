import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import type { FakeExecution } from '../../fakes/fake-gateway';
import { obedient } from '../../fakes/fake-gateway';
import { count, END, Fixture, LOST, main, RENEWED, RESTARTED } from './interpreter-fixture';

let fixture: Fixture;
beforeEach(async () => {
  fixture = await Fixture.start();
});
afterEach(() => fixture.close());

const TWO = [count(1), main('2'), END];

describe('the ordinary end of an execution', () => {
  it('streams events and ends once when reply and idle have come', async () => {
    expect(await fixture.run({ code: '1+1' })).toEqual(TWO);
    expect(await fixture.run({ code: '1+1' })).toEqual([count(2), main('2'), END]);
  });

  it('waits for output after the reply, until idle', async () => {
    fixture.gateway.script = (execution) => execution.busy().input().reply().stdout('late').idle();
    expect(await fixture.run({ code: 'x' })).toMatchObject([count(1), { type: 'stdout', text: 'late' }, END]);
  });

  it('waits for the reply after idle, whose error may be the only one', async () => {
    fixture.gateway.script = (execution) =>
      execution
        .busy()
        .input()
        .idle()
        .reply({ status: 'error', ename: 'E', evalue: 'v', traceback: ['a', 'b'] });
    expect(await fixture.run({ code: 'x' })).toEqual([
      count(1),
      { type: 'error', name: 'E', value: 'v', traceback: 'ab' },
      END,
    ]);
  });

  it('tells an error once that comes on both channels', async () => {
    fixture.gateway.script = (execution) =>
      execution
        .busy()
        .input()
        .error('E', 'v', ['t'])
        .reply({ status: 'error', ename: 'E', evalue: 'v', traceback: ['t'] })
        .idle();
    const events = await fixture.run({ code: 'x' });
    expect(events).toEqual([count(1), { type: 'error', name: 'E', value: 'v', traceback: 't' }, END]);
  });

  it.each(['abort', 'aborted'])('ends with ExecutionAborted when the reply says %s', async (status) => {
    fixture.gateway.script = (execution) => execution.reply({ status }).idle();
    expect(await fixture.run({ code: 'x' })).toEqual([
      { type: 'error', name: 'ExecutionAborted', value: 'Execution was aborted', traceback: '' },
      END,
    ]);
  });

  it('ends without an execute_input, and when only the reply or only idle comes', async () => {
    fixture.gateway.script = (execution) => execution.busy().reply().idle();
    expect(await fixture.run({ code: 'a' })).toEqual([END]);
    fixture.gateway.script = (execution) => execution.busy().input().reply();
    expect(await fixture.run({ code: 'b' })).toEqual([count(1), END]);
    fixture.gateway.script = (execution) => execution.busy().input().idle();
    expect(await fixture.run({ code: 'c' })).toEqual([count(2), END]);
  });

  it('ignores unknown messages, malformed ones and those of others', async () => {
    fixture.gateway.script = (execution) => {
      execution.busy().input();
      execution.send('iopub', 'update_display_data', {
        data: {},
        metadata: {},
        transient: { display_id: 'd' },
      });
      execution.send('iopub', 'clear_output', { wait: false });
      execution.send('iopub', 'comm_open', { comm_id: 'c', target_name: 't', data: {} });
      execution.send('iopub', 'x_made_up', { some: 'thing' });
      execution.send('stdin', 'input_request', { prompt: '', password: false });
      execution.send('iopub', 'stream', { name: 1, text: null });
      execution.send('iopub', 'status', { execution_state: 'dancing' });
      execution.kernel.send('iopub', 'stream', { name: 'stdout', text: 'of a thread' }, { msg_id: 'other' });
      execution.kernel.send('iopub', 'stream', { name: 'stdout', text: 'of nobody' });
      for (const socket of execution.kernel.sockets) {
        socket.send(Buffer.from('nonsense'));
        socket.send('{');
        socket.send(Buffer.alloc(0));
      }
      execution.stdout('ok').reply().idle();
    };
    expect(await fixture.run({ code: 'x' })).toMatchObject([count(1), { type: 'stdout', text: 'ok' }, END]);
  });

  it('takes NaN for null in a message written by a lenient JSON writer', async () => {
    fixture.gateway.speaksV1 = false;
    fixture.gateway.script = (execution) => {
      execution.busy().input();
      const header = JSON.stringify({
        msg_id: 'm',
        msg_type: 'display_data',
        session: 's',
        username: '',
        version: '5.3',
      });
      const content = '{"data":{"application/json":{"a":NaN,"b":-Infinity,"c":"NaN"}},"metadata":{}}';
      for (const socket of execution.kernel.sockets) {
        socket.send(
          `{"channel":"iopub","header":${header},"parent_header":${JSON.stringify(execution.request.header)},"metadata":{},"content":${content}}`,
        );
      }
      execution.reply().idle();
    };
    expect(await fixture.run({ code: 'x' })).toContainEqual({
      type: 'result',
      json: { a: null, b: null, c: 'NaN' },
      extra: {},
      is_main_result: false,
    });
  });

  it('speaks the framing of servers without subprotocols', async () => {
    fixture.gateway.speaksV1 = false;
    expect(await fixture.run({ code: '1+1' })).toEqual(TWO);
  });

  it('sends code of 10 MB unchanged', async () => {
    const code = `${'é'.repeat(5 * 1024 * 1024)}#`;
    expect(await fixture.run({ code })).toEqual([count(1), END]);
    expect(fixture.gateway.executions[0]?.code === code).toBe(true);
  });

  it('tells the kernel not to ask and not to abort what follows', async () => {
    await fixture.run({ code: 'x' });
    expect(fixture.gateway.executions[0]?.request.content).toMatchObject({
      silent: false,
      store_history: true,
      allow_stdin: false,
      stop_on_error: false,
    });
  });
});

describe('an execution that ends otherwise', () => {
  it('ends with ContextRestarting when the kernel is restarted, and the next one works', async () => {
    fixture.gateway.script = (execution) => {
      if (execution.code === 'die') execution.busy().input().stdout('last words').kernel.restarting();
      else obedient(execution);
    };
    const events = await fixture.run({ code: 'die' });
    expect(events).toMatchObject([count(1), { type: 'stdout', text: 'last words' }, ...RESTARTED]);
    expect(await fixture.run({ code: '1+1' })).toEqual(TWO);
    expect(fixture.gateway.kernels.size).toBe(1);
  });

  it('ends with ContextRestarting when the kernel is given up, and the next one gets a new kernel', async () => {
    fixture.gateway.script = (execution) => {
      if (execution.code !== 'die') return obedient(execution);
      fixture.gateway.kernels.delete(execution.kernel.id);
      execution.busy().input().kernel.dead();
    };
    expect(await fixture.run({ code: 'die' })).toEqual([count(1), ...RESTARTED]);
    expect(await fixture.run({ code: '1+1' })).toEqual(TWO);
  });

  it('ends with ContextRestarting when the gateway was killed with its kernels', async () => {
    fixture.gateway.script = (execution) => {
      if (execution.code === 'kill') fixture.gateway.crash();
      else obedient(execution);
    };
    expect(await fixture.run({ code: 'kill' })).toEqual(RESTARTED);
    expect(await fixture.run({ code: '1+1' })).toEqual(TWO);
  });

  it('goes on when the channel is lost and comes back', async () => {
    let cell!: FakeExecution;
    fixture.gateway.script = (execution) => {
      cell = execution.busy().input().stdout('before');
    };
    // The kernel is busy, so it answers nothing but the cell.
    const stream = await fixture.open({ code: 'long' });
    await stream.next();
    await stream.next();
    fixture.gateway.info = () => undefined;
    const sockets = [...cell.kernel.sockets];
    cell.kernel.cut();
    await fixture.gateway.until(() => [...cell.kernel.sockets].find((socket) => !sockets.includes(socket)));
    cell.stdout('after').reply().idle();
    expect(await stream.rest()).toMatchObject([
      count(1),
      { type: 'stdout', text: 'before' },
      { type: 'stdout', text: 'after' },
      END,
    ]);
  });

  it('ends with the two errors of a lost channel when the end was said meanwhile', async () => {
    fixture.gateway.script = (execution) => {
      execution.busy().input();
      execution.kernel.cut();
    };
    const events = await fixture.run({ code: 'x' });
    expect(events.slice(-3)).toEqual(LOST);
  });

  it('ends with the two errors when the channel does not come back within the grace', async () => {
    fixture.gateway.script = (execution) => {
      execution.busy().input();
      fixture.gateway.up = false;
      execution.kernel.cut();
    };
    const events = await fixture.run({ code: 'x' });
    expect(events.slice(-3)).toEqual(LOST);
    fixture.gateway.up = true;
    fixture.gateway.script = obedient;
    expect((await fixture.run({ code: '1+1' })).slice(1)).toEqual([main('2'), END]);
  }, 15_000);

  it('ends with the two errors when the context is restarted through the API', async () => {
    const { id } = (await fixture.json('POST', '/contexts', {})) as { id: string };
    fixture.gateway.script = (execution) => execution.busy().input();
    const stream = await fixture.open({ code: 'loop', context_id: id });
    await stream.next();
    fixture.gateway.script = obedient;
    expect((await fixture.request('POST', `/contexts/${id}/restart`)).text).toBe('null');
    expect(await stream.rest()).toEqual([count(1), ...RENEWED]);
    expect(await fixture.run({ code: '1+1', context_id: id })).toEqual(TWO);
  });

  it('ends with the two errors when the context is removed, queued ones included', async () => {
    const { id } = (await fixture.json('POST', '/contexts', {})) as { id: string };
    fixture.gateway.script = (execution) => execution.busy().input();
    const running = await fixture.open({ code: 'loop', context_id: id });
    await running.next();
    const queued = await fixture.open({ code: 'queued', context_id: id });
    expect((await fixture.request('DELETE', `/contexts/${id}`)).status).toBe(200);
    expect(await running.rest()).toEqual([count(1), ...RENEWED]);
    expect(await queued.rest()).toEqual(RENEWED);
    expect(fixture.gateway.executions.map((execution) => execution.code)).toEqual(['loop']);
  });

  it('breaks the connection when the sandbox ends', async () => {
    fixture.gateway.script = (execution) => execution.busy().input();
    const stream = await fixture.open({ code: 'loop' });
    await stream.next();
    fixture.gateway.endSandbox();
    await expect(stream.rest()).rejects.toMatchObject({ code: 'ECONNRESET' });
  });

  it('says in the stream why a kernel could not be started', async () => {
    fixture.gateway.refuse = () => ({ status: 500, body: { message: 'no memory' } });
    const events = await fixture.run({ code: 'x' });
    expect(events).toEqual([
      {
        type: 'error',
        name: 'ContextError',
        value: 'Failed to create context: {"message":"no memory"}',
        traceback: '',
      },
      END,
    ]);
    fixture.gateway.refuse = undefined;
    expect(await fixture.run({ code: '1+1' })).toEqual(TWO);
  });

  it.each([
    ['a NUL', 'a\0b', 'source code can not contain NUL characters (position 1)'],
    ['a lone surrogate', 'ab\ud800', 'source code is not valid Unicode: lone surrogate (position 2)'],
  ])('fails code with %s before any kernel sees it', async (_name, code, value) => {
    expect(await fixture.run({ code })).toEqual([
      { type: 'error', name: 'SyntaxError', value, traceback: '' },
      END,
    ]);
    expect(fixture.gateway.executions).toEqual([]);
  });
});

describe('a client that goes away', () => {
  it('has the kernel interrupted, and the next execution waits until it is through', async () => {
    let cell: FakeExecution | undefined;
    fixture.gateway.script = (execution) => {
      if (execution.code === 'sleep') cell = execution.busy().input();
      else obedient(execution);
    };
    fixture.gateway.onInterrupt = () => {
      cell?.error('KeyboardInterrupt', '').reply({ status: 'error', ename: 'KeyboardInterrupt' }).idle();
    };
    const stream = await fixture.open({ code: 'sleep' });
    await stream.next();
    stream.leave();
    expect(await fixture.run({ code: '1+1' })).toEqual([count(2), main('2'), END]);
    expect(fixture.gateway.rest('POST', /\/interrupt$/)).toHaveLength(1);
  });

  it('while queued: its code is never sent and nothing is interrupted', async () => {
    let first!: FakeExecution;
    fixture.gateway.script = (execution) => {
      if (execution.code === 'first') first = execution.busy().input();
      else obedient(execution);
    };
    const running = await fixture.open({ code: 'first' });
    await running.next();
    const queued = await fixture.open({ code: 'never' });
    const last = await fixture.open({ code: 'last' });
    const noticed = once(fixture.answers, 'closed');
    queued.leave();
    await noticed;
    first.reply().idle();
    expect(await running.rest()).toEqual([count(1), END]);
    expect(await last.rest()).toEqual([count(2), END]);
    expect(fixture.gateway.executions.map((execution) => execution.code)).toEqual(['first', 'last']);
    expect(fixture.gateway.rest('POST', /\/interrupt$/)).toEqual([]);
  });

  it('while the kernel starts: its code is never sent', async () => {
    let open!: () => void;
    fixture.gateway.gate = new Promise((resolve) => (open = resolve));
    const stream = await fixture.open({ code: 'never' });
    const noticed = once(fixture.answers, 'closed');
    stream.leave();
    await noticed;
    open();
    expect(await fixture.run({ code: '1+1' })).toEqual(TWO);
    expect(fixture.gateway.executions.map((execution) => execution.code)).toEqual(['1+1']);
  });

  it('before it has an answer, which waits for the start of another language: its code is never sent', async () => {
    let open!: () => void;
    fixture.gateway.gate = new Promise((resolve) => (open = resolve));
    const answer = fixture.request('POST', '/execute', { code: 'never', language: 'r' });
    const noticed = once(fixture.answers, 'closed');
    await fixture.gateway.until(() =>
      fixture.gateway.rest('POST', /kernels$/).find(({ body }) => (body as { name?: string }).name === 'r'),
    );
    fixture.breakOff();
    await expect(answer).rejects.toThrow(/socket hang up|ECONNRESET/);
    await noticed;
    open();
    expect(await fixture.run({ code: '1+1', language: 'r' })).toEqual(TWO);
    expect(fixture.gateway.executions.map((execution) => execution.code)).toEqual(['1+1']);
  });
});

describe('order', () => {
  it('runs the executions of a context one after another, in the order they came', async () => {
    const codes = ['a', 'b', 'c', 'd', 'e'];
    const streams = [];
    for (const code of codes) streams.push(await fixture.open({ code }));
    await Promise.all(streams.map((stream) => stream.rest()));
    expect(fixture.gateway.executions.map((execution) => execution.code)).toEqual(codes);
  });

  it('runs different contexts at the same time', async () => {
    fixture.gateway.script = (execution) => {
      if (execution.code !== 'block') obedient(execution);
    };
    const { id } = (await fixture.json('POST', '/contexts', {})) as { id: string };
    const blocked = await fixture.open({ code: 'block', context_id: id });
    await fixture.gateway.execution('block');
    expect(await fixture.run({ code: '1+1' })).toEqual(TWO);
    blocked.leave();
  });
});

describe('variables of one execution', () => {
  it('go to Python with the request', async () => {
    await fixture.run({ code: 'x', env_vars: { FOO: "it's", 'ODD NAME': '\u{1F600}' } });
    expect(fixture.gateway.executions).toHaveLength(1);
    expect(fixture.gateway.executions[0]?.request.metadata).toEqual({
      cellbox: { env: { FOO: "it's", 'ODD NAME': '\u{1F600}' } },
    });
  });

  it('are set and restored by silent requests elsewhere, also when the client goes away', async () => {
    let cell: FakeExecution | undefined;
    fixture.gateway.script = (execution) => {
      if (execution.code === 'sleep') cell = execution.busy().input();
      else obedient(execution);
    };
    fixture.gateway.onInterrupt = () => cell?.reply({ status: 'abort' }).idle();
    const stream = await fixture.open({ code: 'sleep', language: 'bash', env_vars: { FOO: 'bar' } });
    await stream.next();
    stream.leave();
    await fixture.run({ code: 'next', language: 'bash' });
    const seen = fixture.gateway.executions.map(({ silent, code }) => [
      silent,
      /sleep|next/.exec(code)?.[0] ?? (code.includes('export FOO') ? 'set' : 'restore'),
    ]);
    expect(seen).toEqual([
      [true, 'set'],
      [false, 'sleep'],
      [true, 'restore'],
      [false, 'next'],
    ]);
  });
});

describe('the peculiarities of kernels', () => {
  it('waits for output that a Deno kernel sends after its idle', async () => {
    fixture.gateway.script = (execution) => {
      if (execution.code === 'cell') {
        execution.busy().input().stdout('one\n').reply().idle();
      } else if (execution.code.includes('cellbox:')) {
        const marker = /cellbox:[-0-9a-f]+/.exec(execution.code)?.[0] ?? '';
        const cell = fixture.gateway.executions.find(({ code }) => code === 'cell');
        // The mark overtaken by its own reply, and late text under either request's name.
        execution.reply().idle();
        cell?.stdout('two\n');
        execution.stdout(`three\n${marker}`);
      } else obedient(execution);
    };
    const events = await fixture.run({ code: 'cell', language: 'js' });
    expect(events).toMatchObject([
      count(1),
      { type: 'stdout', text: 'one\n' },
      { type: 'stdout', text: 'two\n' },
      { type: 'stdout', text: 'three\n' },
      END,
    ]);
  });

  it('leaves its own requests out of the count of a kernel that counts them', async () => {
    fixture.gateway.script = (execution) => {
      if (execution.silent) execution.kernel.count++;
      obedient(execution);
    };
    const env_vars = { FOO: 'bar' };
    expect(await fixture.run({ code: 'a', language: 'java', env_vars })).toEqual([count(1), END]);
    expect(await fixture.run({ code: 'b', language: 'java' })).toEqual([count(2), END]);
  });
});

const SCRIPTS: Record<string, (execution: FakeExecution) => void> = {
  'progress-bar': (execution) =>
    execution
      .busy()
      .input()
      .stderr('\r 0%|     |')
      .stderr('\r50%|##   |')
      .stderr('\r100%|####|\n')
      .reply()
      .idle(),
  'changing-display': (execution) =>
    execution
      .busy()
      .input()
      .display({ 'text/plain': 'first' }, 'id')
      .updateDisplay({ 'text/plain': 'last' }, 'id')
      .stdout('after\n')
      .reply()
      .idle(),
  expression: (execution) => execution.busy().input().result({ 'text/plain': '1' }).reply().idle(),
  'unicode-output': (execution) =>
    execution.busy().input().stdout('h\u00e9\n').stderr('\u2028 \u{1F600} \ud800').reply().idle(),
  'name-error': (execution) =>
    execution
      .busy()
      .input()
      .error('NameError', "name 'xyz' is not defined", ['-----', 'NameError', '   Traceback'])
      .reply({ status: 'error', ename: 'NameError', evalue: "name 'xyz' is not defined", traceback: [] })
      .idle(),
  figure: (execution) =>
    execution
      .busy()
      .input()
      .display({
        'text/plain': '<Figure size 640x480 with 1 Axes>',
        'image/png': 'iVBORw0KGgo=',
        'e2b/chart': { type: 'line', title: null, elements: [] },
      })
      .reply()
      .idle(),
  'data-frame': (execution) =>
    execution
      .busy()
      .input()
      .result({ 'text/plain': '   a\n0  1', 'text/html': '<table></table>', 'e2b/data': { a: [1] } })
      .reply()
      .idle(),
  'quoted-string': (execution) =>
    execution.busy().input().result({ 'text/plain': "'it\\'s'" }).reply().idle(),
  'extra-mime': (execution) =>
    execution
      .busy()
      .input()
      .display({ 'text/latex': '$x$', 'application/vnd.plotly.v1+json': { data: [] } })
      .reply()
      .idle(),
};

describe('transcripts', () => {
  const folder = path.join(__dirname, '../../fixtures/transcripts');
  it.each(readdirSync(folder).map((file) => path.basename(file, '.ndjson')))('%s', async (name) => {
    const script = SCRIPTS[name];
    if (script === undefined) throw new Error(`no script for ${name}`);
    fixture.gateway.script = script;
    const { text } = await fixture.request('POST', '/execute', { code: name });
    expect(text).toBe(readFileSync(path.join(folder, `${name}.ndjson`), 'utf8'));
  });
});
