import { fork } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';
import type { Usage } from '../../bench/service';

const PROBE = path.join(__dirname, '..', '..', 'bench', 'service-probe.js');
const MB = 1_000_000;
/** Blocks, or holds memory for a moment, when told to, as a busy service would. */
const PROGRAM = `
process.on('message', (message) => {
  if (message.block) for (const end = Date.now() + message.block; Date.now() < end;);
  if (message.hold) Buffer.alloc(message.hold, 1);
  if (message.env) process.send({ env: process.env.NODE_OPTIONS ?? null });
});
setInterval(() => undefined, 1000);
`;

describe('the probe in the service', () => {
  let child: ChildProcess;

  beforeEach(() => {
    child = fork(path.join(__dirname, 'no-file'), [], {
      execArgv: ['-e', PROGRAM],
      env: { ...process.env, NODE_OPTIONS: `--require ${JSON.stringify(PROBE)}` },
    });
  });

  afterEach(async () => {
    const exited = once(child, 'exit');
    child.kill('SIGKILL');
    await exited;
  });

  async function ask<Answer>(question: unknown): Promise<Answer> {
    const answered = once(child, 'message') as Promise<[Answer]>;
    child.send(question as object);
    return (await answered)[0];
  }

  it('tells how late the event loop was since it was last told to begin anew', async () => {
    let busy = await ask<Usage>('read');
    // The delay is known when the next timer fires, which may be after the question; the first one is not counted.
    while (busy.loopDelayMaxMs < 900) {
      child.send({ block: 1000 });
      busy = await ask<Usage>('read');
    }
    await ask('reset');
    const quiet = await ask<Usage>('read');
    expect(quiet.loopDelayMaxMs).toBeLessThan(900);
  });

  (process.platform === 'linux' ? it : it.skip)('tells the peak of memory, and forgets it', async () => {
    await ask('reset');
    const before = await ask<Usage>('read');
    child.send({ hold: 200 * MB });
    const held = await ask<Usage>('read');
    expect(held.rssPeakBytes).toBeGreaterThan(before.rssBytes + 150 * MB);
    expect(held.rssPeakBytes).toBeGreaterThanOrEqual(held.rssBytes);
  });

  it('is not handed on to what the service starts', async () => {
    expect(await ask({ env: true })).toEqual({ env: null });
  });
});
