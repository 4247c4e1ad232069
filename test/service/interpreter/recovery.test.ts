import { once } from 'node:events';
import fs from 'node:fs';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import os from 'node:os';
import path from 'node:path';
import type { OutputEvent } from '../../../protocol/interpreter';
import { decodeLines } from '../../../protocol/ndjson';
import type { ExecutionRecord } from '../../../service/interpreter/execution-record';
import type { Interpreter, Machine } from '../../../service/interpreter/interpreter';
import { eventually } from '../../agent/agent-fixture';
import { FakeGateway, obedient } from '../../fakes/fake-gateway';
import type { FakeExecution } from '../../fakes/fake-gateway';
import { newInterpreter } from './interpreter-fixture';

type Line = OutputEvent & { seq: number };

let root: string;
let gateway: FakeGateway;
let machine: Machine;
let services: Interpreter[];
let directory: string;
beforeEach(async () => {
  root = fs.mkdtempSync(path.join(os.tmpdir(), 'cbx-recovery-'));
  directory = path.join(root, '0');
  gateway = await FakeGateway.start();
  machine = gateway.machine();
  services = [];
});
afterEach(async () => {
  for (const service of services) await service.close();
  await gateway.close();
  fs.rmSync(root, { recursive: true, force: true });
});

async function serve(keepMs = 60_000): Promise<Interpreter> {
  const service = newInterpreter({ executions: { directory, keepMs } });
  services.push(service);
  await service.restore();
  return service;
}

/**
 * What a SIGKILL leaves: the files as they are at this moment, and connections that break. The service that is left behind
 * sees nothing of the new one.
 */
async function killAndServe(left: Interpreter): Promise<Interpreter> {
  const next = path.join(root, String(services.length));
  fs.cpSync(directory, next, { recursive: true });
  await left.close();
  directory = next;
  return serve();
}

function run(service: Interpreter, code: string): Promise<ExecutionRecord> {
  return service.submit(machine, { code }, true);
}

async function read(
  record: ExecutionRecord,
  enough: (lines: Line[]) => boolean = () => false,
): Promise<Line[]> {
  const lines: Line[] = [];
  for await (const line of decodeLines(record.log.read(0, new AbortController().signal))) {
    lines.push(line as Line);
    if (enough(lines)) break;
  }
  return lines;
}

/** Waits for what is written behind the back of the execution; what the journal alone has stays there. The file of events. */
async function writtenBehind(record: ExecutionRecord): Promise<string> {
  const file = path.join(directory, machine.id, `${record.id}.events`);
  const { fileBytes } = record.log.state;
  const size = (): number => fs.statSync(file, { throwIfNoEntry: false })?.size ?? 0;
  await eventually(() => expect(size()).toBe(fileBytes));
  for (const stream of ['stdout', 'stderr'] as const) await record.output(stream);
  return file;
}

/** Runs code that says `first` and goes on, up to where a reader has seen that. */
async function begin(service: Interpreter): Promise<{ record: ExecutionRecord; execution: FakeExecution }> {
  gateway.script = (execution) => void execution.busy().input().stdout('first\n');
  const record = await run(service, 'loop()');
  const execution = await gateway.execution('loop()');
  await read(record, (lines) => lines.length === 2);
  const { kernel } = execution;
  kernel.silent = true; // busy
  kernel.state = 'busy';
  return { record, execution };
}

it('has what ended again, to the byte: events, text, ending', async () => {
  const before = await serve();
  const short = await run(before, '1+1');
  const long = 'z'.repeat(400_000);
  gateway.script = (execution) => void execution.busy().input().stdout(long).stderr('e').reply().idle();
  const large = await run(before, 'large');
  const seen = [await read(short), await read(large)];
  for (const record of [short, large]) await writtenBehind(record);
  const after = await killAndServe(before);
  const restored = after.listExecutions(machine.id).reverse();
  expect(restored.map(({ id }) => id)).toEqual([short.id, large.id]);
  expect([await read(restored[0] as ExecutionRecord), await read(restored[1] as ExecutionRecord)]).toEqual(
    seen,
  );
  const found = after.findExecution(machine.id, large.id);
  expect(found).toMatchObject({ state: 'ended', ending: large.ending, endedAt: large.endedAt });
  expect(found.codeHash).toBe(large.codeHash);
  const text = await found.output('stdout');
  expect({ bytes: text.bytes, lost: text.lostBytes }).toEqual({ bytes: long.length, lost: 0 });
  const again = await killAndServe(after);
  expect(await read(again.findExecution(machine.id, short.id))).toEqual(seen[0]);
});

it('tells what waited that it never ran', async () => {
  const before = await serve();
  await begin(before);
  const waiting = await run(before, 'never');
  const after = await killAndServe(before);
  const record = after.findExecution(machine.id, waiting.id);
  expect(record).toMatchObject({
    startedAt: undefined,
    ending: { termination: 'error', state_survived: true },
  });
  expect((await read(record))[0]).toMatchObject({ type: 'error', name: 'NeverStarted' });
});

it('goes on with what runs: numbers as they were told, a mark, and then the rest', async () => {
  const before = await serve();
  const { record, execution } = await begin(before);
  const after = await killAndServe(before);
  const found = after.findExecution(machine.id, record.id);
  expect(found.state).toBe('running');
  await after.adopt(machine);
  await gateway.until(() => execution.kernel.sockets.size === 1);
  // The gateway keeps for this session what was said while nobody was there.
  expect(new Set(execution.kernel.sessions).size).toBe(1);
  expect(execution.kernel.sessions).toHaveLength(2);
  const behind = await run(after, 'behind');
  execution
    .stdout('second\n')
    .reply({ status: 'ok' }, { cellbox: { cpu_ms: 7 } })
    .idle();
  const lines = await read(found);
  expect(lines.map(({ seq }) => seq)).toEqual([0, 1, 2, 3, 4]);
  expect(lines.map((line) => ('text' in line ? line.text : line.type))).toEqual([
    'number_of_executions',
    'first\n',
    'reattached',
    'second\n',
    'end_of_execution',
  ]);
  expect(found.ending).toMatchObject({ termination: 'ok', state_survived: true });
  expect(found.ending?.accounting).toMatchObject({ cpu_ms: 7, output_bytes: 13 });
  expect(found.startedAt).toBe(record.startedAt);
  expect(behind.state).toBe('queued'); // the kernel has not said that it is free
});

it("interrupts what a client of E2B's API ran, and says that it left", async () => {
  const before = await serve();
  const server = http.createServer((req, res) => before.handle(machine, req, res));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  gateway.script = (execution) => void execution.busy().input().stdout('first\n');
  const { port } = server.address() as AddressInfo;
  const answer = fetch(`http://127.0.0.1:${port}/execute`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: '{"code":"loop()"}',
  });
  const execution = await gateway.execution('loop()');
  const id = (await answer).headers.get('x-execution-id') ?? '';
  await read(before.findExecution(machine.id, id), (lines) => lines.length === 2);
  const { kernel } = execution;
  kernel.silent = true;
  kernel.state = 'busy';
  const after = await killAndServe(before);
  const interrupted = new Promise<void>((resolve) => (gateway.onInterrupt = () => resolve()));
  await after.adopt(machine);
  await interrupted;
  const lines = await read(after.findExecution(machine.id, id));
  expect(lines.at(-1)).toMatchObject({ termination: 'client_gone' });
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
});

it('can interrupt and cancel what runs', async () => {
  const before = await serve();
  const { record, execution } = await begin(before);
  const after = await killAndServe(before);
  await after.adopt(machine);
  await gateway.until(() => execution.kernel.sockets.size === 1);
  gateway.onInterrupt = () =>
    void execution
      .error('KeyboardInterrupt', '')
      .reply({ status: 'error', ename: 'KeyboardInterrupt' })
      .idle();
  await after.findExecution(machine.id, record.id).cancel();
  const lines = await read(after.findExecution(machine.id, record.id));
  expect(lines.at(-1)).toMatchObject({ termination: 'interrupted' });
});

it('tells as lost what the kernel has answered while nobody heard it', async () => {
  const before = await serve();
  const { record, execution } = await begin(before);
  execution.kernel.silent = false;
  execution.kernel.state = 'idle';
  const after = await killAndServe(before);
  await after.adopt(machine);
  const lines = await read(after.findExecution(machine.id, record.id));
  expect(lines.at(-1)).toMatchObject({ termination: 'transport_lost', state_survived: null });
});

it('tells how the kernel died meanwhile', async () => {
  const before = await serve();
  const { record, execution } = await begin(before);
  execution.kernel.lastEnding = { at: Date.now() + 1_000, signal: 'SIGKILL', oom: true };
  const after = await killAndServe(before);
  await after.adopt(machine);
  const lines = await read(after.findExecution(machine.id, record.id));
  expect(lines.at(-1)).toMatchObject({ termination: 'oom', state_survived: false });
});

it('does not take an earlier death of the kernel for this one', async () => {
  const before = await serve();
  const { record, execution } = await begin(before);
  execution.kernel.lastEnding = { at: Date.now() - 60_000, signal: 'SIGKILL' };
  const after = await killAndServe(before);
  await after.adopt(machine);
  expect(after.findExecution(machine.id, record.id).state).toBe('running');
});

it('tells a kernel that is gone', async () => {
  const before = await serve();
  const { record } = await begin(before);
  const after = await killAndServe(before);
  gateway.crash();
  await after.adopt(machine);
  const lines = await read(after.findExecution(machine.id, record.id));
  expect(lines.at(-1)).toMatchObject({ termination: 'crashed', state_survived: false });
});

describe('the loss of variables while nothing ran', () => {
  /** How the kernel's process ended last, `sinceMs` from now. */
  const die = (sinceMs: number): void => {
    for (const kernel of gateway.kernels.values())
      kernel.lastEnding = { at: Date.now() + sinceMs, signal: 'SIGKILL' };
  };
  /** The first event of an execution, and the others' types. */
  const look = async (service: Interpreter): Promise<unknown[]> => {
    gateway.script = obedient;
    const [first, ...others] = await read(await run(service, '1+1'));
    return [first, ...others.map(({ type }) => type)];
  };
  const toldOf = (fields: object): unknown[] => [
    expect.objectContaining({ seq: 0, type: 'state_lost', ...fields }),
    'number_of_executions',
    'result',
    'end_of_execution',
  ];
  const NOT_TOLD = [
    expect.objectContaining({ type: 'number_of_executions' }),
    'result',
    'end_of_execution',
  ] as unknown[];

  it('tells the next execution of a kernel that died while nobody was there, once', async () => {
    const before = await serve();
    await read(await run(before, 'x = 1'));
    die(1);
    const after = await killAndServe(before);
    await after.adopt(machine);
    expect(await look(after)).toEqual(toldOf({ termination: 'crashed', signal: 'SIGKILL' }));
    expect(await look(after)).toEqual(NOT_TOLD);
    const again = await killAndServe(after);
    await again.adopt(machine);
    expect(await look(again)).toEqual(NOT_TOLD);
  });

  it('tells it of one that died before anybody used it again', async () => {
    const before = await serve();
    await read(await run(before, 'x = 1'));
    const after = await killAndServe(before);
    await after.adopt(machine);
    die(1);
    expect(await look(after)).toEqual(toldOf({ signal: 'SIGKILL' }));
  });

  it('tells it of one that went with its gateway', async () => {
    const before = await serve();
    await read(await run(before, 'x = 1'));
    const after = await killAndServe(before);
    gateway.crash();
    await after.adopt(machine);
    expect(await look(after)).toEqual(toldOf({ termination: 'crashed' }));
    expect(await look(after)).toEqual(NOT_TOLD);
  });

  it('tells it of one whose place another had taken before the service was killed', async () => {
    const before = await serve();
    const record = await run(before, 'x = 1');
    await read(record);
    const old = gateway.kernelOf(record.options.contextId);
    gateway.crash();
    await gateway.until(() => gateway.kernelOf(record.options.contextId));
    expect(gateway.kernelOf(record.options.contextId)).not.toBe(old);
    const after = await killAndServe(before);
    await after.adopt(machine);
    expect(await look(after)).toEqual(toldOf({ termination: 'crashed' }));
    expect(await look(after)).toEqual(NOT_TOLD);
  });

  it('does not tell it of one that died before its last execution', async () => {
    const before = await serve();
    die(-1_000);
    await read(await run(before, 'x = 1'));
    const after = await killAndServe(before);
    await after.adopt(machine);
    expect(await look(after)).toEqual(NOT_TOLD);
  });

  it.each([
    ['before', false],
    ['after', true],
  ])(
    'does not tell it again when an execution has told it %s the service came back',
    async (_when, later) => {
      const before = await serve();
      const { execution } = await begin(before);
      const death = { at: Date.now() + 1, signal: 'SIGKILL' };
      execution.kernel.lastEnding = death;
      execution.kernel.silent = false;
      execution.kernel.state = 'idle';
      if (!later) {
        execution.kernel.restarting(death);
        await gateway.until(() => execution.kernel.sessions.length === 2);
      }
      const after = await killAndServe(before);
      await after.adopt(machine);
      expect(after.listExecutions(machine.id)[0]?.ending).toMatchObject({ state_survived: false });
      expect(await look(after)).toEqual(NOT_TOLD);
    },
  );
});

it('makes nothing of half a line, neither in the journal nor among the events', async () => {
  const before = await serve();
  const { record } = await begin(before);
  const files = path.join(directory, machine.id);
  fs.appendFileSync(path.join(files, 'journal'), '{"type":"ended","id":"');
  fs.appendFileSync(path.join(files, `${record.id}.events`), '{"seq":2,"type":"std');
  fs.writeFileSync(path.join(files, 'stray.events'), '{}');
  const after = await killAndServe(before);
  const found = after.findExecution(machine.id, record.id);
  expect(found.log.count).toBe(2);
  expect(fs.existsSync(path.join(directory, machine.id, 'stray.events'))).toBe(false);
  await after.adopt(machine);
  gateway.endSandbox();
});

it('tells what was on its way to the disk as left out, and keeps the end', async () => {
  const before = await serve();
  gateway.script = (execution) => {
    execution.busy().input();
    for (let n = 0; n < 100; n++) execution.display({ 'text/html': 'x'.repeat(10_000) });
    execution.reply().idle();
  };
  const record = await run(before, 'large');
  await read(record);
  const file = await writtenBehind(record);
  fs.truncateSync(file, fs.statSync(file).size - 15_000);
  const after = await killAndServe(before);
  const lines = await read(after.findExecution(machine.id, record.id));
  expect(lines.map(({ seq }) => seq)).toEqual(lines.map((_, index) => index));
  expect(lines.some((line) => line.type === 'truncated' && line.stream === 'events')).toBe(true);
  expect(lines.at(-1)).toMatchObject({ type: 'end_of_execution', termination: 'ok' });
});

it('forgets executions whose time is over, with their files', async () => {
  const before = await serve();
  const record = await run(before, '1+1');
  await read(record);
  await before.close();
  await new Promise((resolve) => setTimeout(resolve, 5)); // their time
  const after = await serve(1);
  expect(after.listExecutions(machine.id)).toEqual([]);
  expect(fs.readFileSync(path.join(directory, machine.id, 'journal'), 'utf8')).toBe('');
});

it('forgets executions of sandboxes that are gone, with their directories', async () => {
  const before = await serve();
  const record = await run(before, '1+1');
  await read(record);
  const after = await killAndServe(before);
  after.retain((id) => id !== machine.id);
  expect(after.listExecutions(machine.id)).toEqual([]);
  await after.close();
  expect(fs.readdirSync(directory)).toEqual([]);
});

it('ends what ran in a sandbox that was halted while no service was there, and tells of variables that went', async () => {
  const before = await serve();
  const done = await run(before, 'y <- 1');
  await read(done);
  const { record } = await begin(before);
  const after = await killAndServe(before);
  after.halt(machine.id);
  gateway.crash();
  expect(after.findExecution(machine.id, record.id)).toMatchObject({
    ending: { termination: 'sandbox_ended', state_survived: false },
  });
  gateway.script = obedient;
  after.boot(machine);
  // The end that was told says it all.
  expect((await read(await run(after, '1')))[0]?.type).not.toBe('state_lost');
  const last = await killAndServe(after);
  last.halt(machine.id);
  gateway.crash();
  last.boot(machine);
  const [first] = await read(await run(last, '2'));
  expect(first).toMatchObject({ type: 'state_lost', termination: 'sandbox_ended' });
});
