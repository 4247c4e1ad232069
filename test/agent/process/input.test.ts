import { createHash } from 'node:crypto';
import { Code } from '@connectrpc/connect';
import type { MessageInitShape } from '@bufbuild/protobuf';
import { Signal } from '../../../protocol/envd/gen/process_pb';
import type { StreamInputRequestSchema } from '../../../protocol/envd/gen/process_pb';
import { failing, ProcessMachine } from './process-fixture';
import type { Following } from './process-fixture';

const stdin = (value: string | Uint8Array) => ({
  input: { case: 'stdin' as const, value: Buffer.from(value) },
});

describe('standard input', () => {
  let box: ProcessMachine;

  beforeAll(async () => {
    box = await ProcessMachine.make();
    await box.machine.start('agent');
  });

  afterAll(() => box.close());

  const send = (to: Following, value: string | Uint8Array) =>
    box.client.sendInput({ process: to.selector, input: stdin(value) });
  const kill = (it: Following) => box.client.sendSignal({ process: it.selector, signal: Signal.SIGKILL });

  it('is open unless the request says otherwise, and ends when it is closed', async () => {
    const cat = await box.start('exec cat', { stdin: true });
    await send(cat, 'first ö\nsecond');
    await cat.until(({ stdout }) => stdout !== '');
    expect(Buffer.from(cat.told.stdout, 'latin1').toString()).toBe('first ö\nsecond');
    await box.client.closeStdin({ process: cat.selector });
    expect((await cat.toEnd()).end?.exitCode).toBe(0);
  });

  it('is empty when the request wants none: nothing can be sent, and closing it is fine', async () => {
    expect((await box.sh('wc -c', { stdin: false })).stdout.trim()).toBe('0');
    const sleeping = await box.start('exec sleep 1000');
    expect((await failing(send(sleeping, 'x'))).code).toBe(Code.Internal);
    await box.client.closeStdin({ process: sleeping.selector });
    await kill(sleeping);
  });

  it('can be closed as often as one likes, and not be sent to after that, or once nobody reads it', async () => {
    const closed = await box.start('exec sleep 1000', { stdin: true });
    await box.client.closeStdin({ process: closed.selector });
    await box.client.closeStdin({ process: closed.selector });
    expect((await failing(send(closed, 'x'))).code).toBe(Code.Internal);
    await kill(closed);
    const deaf = await box.start('exec <&-; echo deaf; exec sleep 1000', { stdin: true });
    await deaf.until(({ stdout }) => stdout !== '');
    const broken = await failing(send(deaf, 'x'));
    expect(broken.code).toBe(Code.Internal);
    expect(broken.message).toContain('EPIPE');
    expect((await failing(send(deaf, 'x'))).code).toBe(Code.Internal);
    await kill(deaf);
  });

  it('takes 10 MB in one message', async () => {
    const bytes = Buffer.alloc(10_000_000, 'the same again ');
    const sum = await box.start('exec sha256sum', { stdin: true });
    await send(sum, bytes);
    await box.client.closeStdin({ process: sum.selector });
    const digest = createHash('sha256').update(bytes).digest('hex');
    expect((await sum.toEnd()).stdout).toBe(`${digest}  -\n`);
  });

  it('waits for a process that does not read, for as long as the caller does', async () => {
    const stuck = await box.start('exec sleep 1000', { stdin: true });
    const late = box.client.sendInput(
      { process: stuck.selector, input: stdin(Buffer.alloc(1_000_000)) },
      { timeoutMs: 200 },
    );
    expect((await failing(late)).code).toBe(Code.DeadlineExceeded);
    await kill(stuck);
    expect((await stuck.toEnd()).end?.status).toBe('signal: killed');
  });

  it('keeps the order of calls that were made at once', async () => {
    const cat = await box.start('exec cat', { stdin: true });
    const piece = (i: number) => Buffer.alloc(200_000, String.fromCharCode(97 + i));
    async function* messages(): AsyncGenerator<MessageInitShape<typeof StreamInputRequestSchema>> {
      yield { event: { case: 'start' as const, value: { process: cat.selector } } };
      yield { event: { case: 'keepalive' as const, value: {} } };
      for (let i = 0; i < 5; i++) {
        yield { event: { case: 'data' as const, value: { input: stdin(piece(i)) } } };
      }
    }
    const sent = box.client
      .streamInput(messages())
      .then(() => box.client.closeStdin({ process: cat.selector }));
    const told = await cat.toEnd();
    await sent;
    expect(told.stdout).toBe([0, 1, 2, 3, 4].map((i) => piece(i).toString()).join(''));
  });

  it('refuses a stream that does not begin with a process, names none that exists, or sends nothing known', async () => {
    async function* of<T>(...items: T[]) {
      yield* items;
    }
    const data = { event: { case: 'data' as const, value: { input: stdin('x') } } };
    expect((await failing(box.client.streamInput(of(data)))).code).toBe(Code.InvalidArgument);
    const process = { selector: { case: 'pid' as const, value: 999_999 } };
    const nobody = { event: { case: 'start' as const, value: { process } } };
    expect((await failing(box.client.streamInput(of(nobody)))).code).toBe(Code.NotFound);
    expect((await failing(box.client.streamInput(of({})))).code).toBe(Code.Unimplemented);
  });

  it('of a plain process is not a terminal', async () => {
    const cat = await box.start('exec cat', { stdin: true });
    const input = { input: { case: 'pty' as const, value: Buffer.from('x') } };
    expect((await failing(box.client.sendInput({ process: cat.selector, input }))).code).toBe(Code.Internal);
    const pty = { size: { cols: 10, rows: 10 } };
    expect((await failing(box.client.update({ process: cat.selector, pty }))).code).toBe(Code.Internal);
    await box.client.update({ process: cat.selector });
    await kill(cat);
  });
});
