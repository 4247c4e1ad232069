import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { createLogger } from '../../../service/log';
import { Sandboxes } from '../../../service/sandboxes/sandboxes';
import { Store } from '../../../service/sandboxes/store';
import { DEFAULT_TEAM_ID as TEAM } from '../../../service/sandboxes/store-teams';
import { Secrets } from '../../../service/secrets';
import { eventually } from '../../agent/agent-fixture';
import { FakeEngine, FakeRuntime } from '../../fakes/fake-runtime';
import { createOptions } from './create-options';

describe('the log of a sandbox', () => {
  let engine: FakeEngine;
  let store: Store;
  let logDirectory: string;
  let sandboxes: Sandboxes;

  const make = (): Sandboxes =>
    new Sandboxes({
      runtime: new FakeRuntime(engine),
      store,
      secrets: new Secrets(Buffer.alloc(32, 7)),
      logger: createLogger('silent'),
      resources: { cpuCount: 1, memoryMB: 512, diskSizeMB: 1024, pids: 64, openFiles: 256 },
      maxSandboxes: 10,
      maxTimeoutSeconds: 3600,
      startTimeoutMs: 5_000,
      logDirectory,
    });

  /** A new process on the same store, machines and files. */
  const restart = async (): Promise<void> => {
    await sandboxes.close({ onStop: 'keep' });
    sandboxes = make();
  };

  const messages = async (id: string): Promise<string[]> =>
    (await sandboxes.readLog(TEAM, id)).map(({ message }) => message);

  beforeEach(async () => {
    engine = new FakeEngine();
    store = await Store.open(':memory:');
    logDirectory = fs.mkdtempSync(path.join(os.tmpdir(), 'cbx-logs-'));
    sandboxes = make();
  });

  afterEach(async () => {
    await sandboxes.close({ onStop: 'kill' });
    await store.close();
    fs.rmSync(logDirectory, { recursive: true, force: true });
  });

  it('outlives the service, however old it is, and tells what the next one found', async () => {
    const kept = await sandboxes.create(TEAM, createOptions());
    const paused = await sandboxes.create(TEAM, createOptions());
    const lost = await sandboxes.create(TEAM, createOptions());
    const ended = await sandboxes.create(TEAM, createOptions());
    await sandboxes.pause(TEAM, paused.id);
    await sandboxes.kill(TEAM, ended.id);
    await restart();
    engine.kill(lost.id);
    const twoDaysAgo = new Date(Date.now() - 48 * 3_600_000);
    for (const name of fs.readdirSync(logDirectory)) {
      fs.utimesSync(path.join(logDirectory, name), twoDaysAgo, twoDaysAgo);
    }
    await sandboxes.adopt();
    const found = 'The service was started again and took the sandbox over';
    expect(await messages(kept.id)).toEqual(['The sandbox was created', found]);
    expect(await messages(paused.id)).toEqual(['The sandbox was created', 'The sandbox was paused', found]);
    expect(await messages(lost.id)).toEqual([
      'The sandbox was created',
      'The sandbox ended: its machine is gone',
    ]);
    await eventually(() => expect(fs.readdirSync(logDirectory)).not.toContain(`${ended.id}.ndjson`));
  });

  it('tells why it ended: asked, out of time, by itself, with the service', async () => {
    const [asked, late, broken, last] = await Promise.all(
      Array.from({ length: 4 }, () => sandboxes.create(TEAM, createOptions())),
    );
    await sandboxes.kill(TEAM, asked?.id ?? '');
    await sandboxes.setTimeout(TEAM, late?.id ?? '', 0);
    engine.kill(broken?.id ?? '');
    await eventually(() => expect(sandboxes.counts.running).toBe(1));
    await sandboxes.close({ onStop: 'kill' });
    const ends = await Promise.all(
      [asked, late, broken, last].map(async (each) => {
        const end = (await sandboxes.readLog(TEAM, each?.id ?? '')).at(-1);
        return [end?.level, end?.fields['reason'], end?.message];
      }),
    );
    expect(ends).toEqual([
      ['info', 'request', 'The sandbox ended'],
      ['info', 'deadline', 'The sandbox ended'],
      ['error', 'machine_ended', 'The sandbox ended: killed from outside'],
      ['info', 'service_stopped', 'The sandbox ended'],
    ]);
  });

  it('keeps its own lines whatever the machine says, and of that the newest', async () => {
    const { id } = await sandboxes.create(TEAM, createOptions());
    const { output } = engine.machine(id);
    for (let count = 0; count < 1_000; count++) output.push({ text: `${count} ${'x'.repeat(4_000)}` });
    await sandboxes.kill(TEAM, id);
    await sandboxes.close({ onStop: 'kill' });
    const all = await messages(id);
    expect([all.includes('The sandbox was created'), all.at(-1)]).toEqual([true, 'The sandbox ended']);
    const said = all.filter((message) => message.includes('xxx')).map((message) => parseInt(message, 10));
    expect(said.length).toBeGreaterThan(10);
    expect(said).toEqual(said.map((_, index) => 1_000 - said.length + index));
    expect(fs.statSync(path.join(logDirectory, `${id}.ndjson`)).size).toBeLessThan(128 * 1024);
  });

  it('takes lines of other parts for a sandbox that is there', async () => {
    const { id } = await sandboxes.create(TEAM, createOptions());
    sandboxes.note(id, 'warn', 'A kernel ended', { logger: 'kernel' });
    sandboxes.note('inone', 'warn', 'A kernel ended', { logger: 'kernel' });
    expect((await sandboxes.readLog(TEAM, id)).at(-1)).toEqual({
      at: expect.any(Number) as number,
      level: 'warn',
      message: 'A kernel ended',
      fields: { logger: 'kernel' },
    });
    await expect(sandboxes.readLog(TEAM, 'inone')).rejects.toMatchObject({ code: 'not_found' });
  });
});
