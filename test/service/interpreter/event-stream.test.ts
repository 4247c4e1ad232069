import type { OutputEvent } from '../../../protocol/interpreter';
import type { FakeExecution } from '../../fakes/fake-gateway';
import { count, END, Fixture, newInterpreter } from './interpreter-fixture';
import type { Stream } from './interpreter-fixture';

let fixture: Fixture;
beforeEach(async () => {
  fixture = await Fixture.start({ keepaliveMs: 20 });
});
afterEach(() => fixture.close());

async function keepalives(stream: Stream, wanted: number): Promise<void> {
  let seen = 0;
  for await (const chunk of stream.response as AsyncIterable<Buffer>) {
    seen += chunk.toString().split('{"type":"keepalive"}\n').length - 1;
    if (seen >= wanted) return;
  }
  throw new Error(`ended after ${seen} keepalives`);
}

describe('keepalives', () => {
  it('come while the kernel starts', async () => {
    fixture.gateway.gate = new Promise(() => undefined);
    await keepalives(await fixture.open({ code: 'x' }), 3);
  });

  it('come while an execution is queued, and while its kernel is silent', async () => {
    fixture.gateway.script = (execution) => execution.busy().input();
    const running = await fixture.open({ code: 'running' });
    await running.next();
    await keepalives(await fixture.open({ code: 'queued' }), 3);
    running.leave();
  });

  it('do not come after the end', async () => {
    const { text } = await fixture.request('POST', '/execute', { code: '1+1' });
    expect(text.endsWith('{"type":"end_of_execution"}\n')).toBe(true);
  });
});

it('sends headers before there is output and says nothing about caching or compression', async () => {
  fixture.gateway.gate = new Promise(() => undefined);
  const { response, leave } = await fixture.open({ code: 'x' });
  expect(response.headers).toMatchObject({
    'content-type': 'application/x-ndjson',
    'transfer-encoding': 'chunked',
  });
  leave();
});

it('sends the number of a cell that says nothing more', async () => {
  fixture.gateway.script = (execution) => execution.busy().input();
  const stream = await fixture.open({ code: 'x' });
  expect(await stream.next()).toEqual(count(1));
  stream.leave();
});

describe('a client that stops reading', () => {
  const CHUNK = 'x'.repeat(1024 * 1024);
  const CHUNKS = 128;
  let cell!: FakeExecution;
  let taken = 0;

  /** Resolves when the service has not taken the next chunk for a while; loopback buffers hold a few of them. */
  async function flood(): Promise<void> {
    const [socket] = cell.kernel.sockets;
    for (let sent = 0; sent < CHUNKS; sent++) {
      cell.stdout(`${sent}:${CHUNK}`);
      const flushed = new Promise<boolean>((resolve) => socket?.ping('', false, () => resolve(true)));
      void flushed.then(() => taken++);
    }
    for (let before = -1; before !== taken;) {
      before = taken;
      await new Promise((resolve) => setTimeout(resolve, 500)); // the length of "a while"
    }
  }

  beforeEach(async () => {
    taken = 0;
    fixture.gateway.script = (execution) => {
      cell = execution.busy().input();
    };
  });

  it('holds back the kernel and loses nothing', async () => {
    const stream = await fixture.open({ code: 'flood' });
    stream.response.pause();
    await fixture.gateway.execution('flood');
    await flood();
    expect(taken).toBeLessThan(CHUNKS / 2);
    cell.reply().idle();
    const events = (await stream.rest()) as Array<OutputEvent & { text?: string }>;
    expect(events[0]).toEqual(count(1));
    expect(events.at(-1)).toEqual(END);
    expect(events.slice(1, -1).map((event) => event.text?.split(':')[0])).toEqual(
      Array.from({ length: CHUNKS }, (_, index) => String(index)),
    );
  });

  it('and goes away frees the kernel', async () => {
    const stream = await fixture.open({ code: 'flood' });
    stream.response.pause();
    await fixture.gateway.execution('flood');
    await flood();
    fixture.gateway.onInterrupt = () => cell.reply({ status: 'abort' }).idle();
    fixture.gateway.script = (execution) => execution.busy().input().reply().idle();
    stream.leave();
    expect(await fixture.run({ code: 'next' })).toEqual([count(2), END]);
  });
});

it('an interpreter can be closed twice', async () => {
  const interpreter = newInterpreter();
  await interpreter.close();
  await interpreter.close();
});
