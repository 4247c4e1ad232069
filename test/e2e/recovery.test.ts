import { describeOnRuntimes } from '../describe-on-runtimes';
import { Executions, putFile, until } from './recovery-client';

const RUN_ON = (file: string): string =>
  `import os, time\nn = 0\nwhile not os.path.exists(${JSON.stringify(file)}):\n` +
  `  print(n, flush=True); n += 1; time.sleep(0.1)\nprint("through")`;

describeOnRuntimes(
  'a killed service on the $runtime runtime',
  { env: { CELLBOX_POOL_SIZE: '0', CELLBOX_INTERRUPT_GRACE_MS: '20000' } }, // a kill would be told otherwise
  ({ service, client, startAgain }) => {
    const restart = async (signal: NodeJS.Signals = 'SIGKILL'): Promise<void> => {
      await service.signal(signal);
      await startAgain();
    };

    it('leaves what had ended as it was: events, text, results, terminations, accounting', async () => {
      const sandboxId = await client.create();
      const before = new Executions(client, sandboxId);
      const ids = [
        await before.detach('x = 41; print("short"); x'),
        await before.detach('1/0'),
        await before.detach('print("y" * 3_000_000); import sys; print("e" * 10, file=sys.stderr)'),
        await before.detach('import os; os._exit(3)'),
      ];
      await client.text(sandboxId, '"by the other API"');
      const seen = [];
      for (const id of ids) seen.push({ events: await before.events(id), info: await before.info(id) });
      const list = await before.list();
      await restart();

      const after = new Executions(client, sandboxId);
      expect(await after.list()).toEqual(list);
      for (const [index, id] of ids.entries()) {
        expect({ events: await after.events(id), info: await after.info(id) }).toEqual(seen[index]);
      }
      expect(await after.output(ids[2] ?? '', 'stdout')).toBe(`${'y'.repeat(3_000_000)}\n`);
      expect(await after.output(ids[2] ?? '', 'stderr')).toBe(`${'e'.repeat(10)}\n`);
      const fresh = await after.detach('"new"');
      expect((await after.events(fresh)).at(-1)).toMatchObject({ termination: 'ok' });
      await restart(); // what one service restored, the next one has, too
      expect(await new Executions(client, sandboxId).list()).toHaveLength(list.length + 1);
      await client.kill(sandboxId);
    }, 120_000);

    it('goes on with what ran, in order and to its end, and tells what waited that it never ran', async () => {
      const sandboxId = await client.create();
      const before = new Executions(client, sandboxId);
      await client.text(sandboxId, 'kept = 42');
      const running = await before.detach(RUN_ON('go'));
      const waiting = await before.detach('kept = 0');
      const seen = await before.read(running, 0, (events) => events.length > 10);
      await service.signal('SIGKILL');
      await new Promise((resolve) => setTimeout(resolve, 2_000)); // while nobody is there, it prints more than may be missing
      await startAgain();

      const after = new Executions(client, sandboxId);
      expect(await after.info(waiting)).toMatchObject({
        state: 'ended',
        termination: 'error',
        state_survived: true,
        started_at: null,
      });
      expect(await after.info(running)).toMatchObject({ state: 'running' });
      const behind = await after.detach('kept + 1');
      expect(await after.info(behind)).toMatchObject({ state: 'queued' });
      await putFile(client, sandboxId, 'go');
      const events = await after.events(running);
      expect(events.slice(0, seen.length)).toEqual(seen);
      expect(events.map(({ seq }) => seq)).toEqual(events.map((_, index) => index));
      expect(events.filter(({ type }) => type === 'reattached')).toHaveLength(1);
      expect(events.at(-1)).toMatchObject({ termination: 'ok', state_survived: true });
      const text = events.map(({ type, text }) => (type === 'stdout' ? text : '')).join('');
      const numbers = text.trimEnd().split('\n').slice(0, -1).map(Number);
      expect(text).toMatch(/through\n$/);
      // Ascending; the moment of the kill may be missing, what was printed while nobody was there is not.
      expect(numbers.every((n, index) => index === 0 || n > (numbers[index - 1] ?? 0))).toBe(true);
      expect((numbers.at(-1) ?? 0) + 1 - numbers.length).toBeLessThan(15);
      expect((await after.events(behind)).find(({ type }) => type === 'result')).toMatchObject({
        text: '43',
      });
      expect((await after.info(running)).accounting?.output_bytes).toBe(text.length);
      await client.kill(sandboxId);
    }, 120_000);

    it('keeps the time limit and the means to interrupt what ran', async () => {
      const sandboxId = await client.create();
      const before = new Executions(client, sandboxId);
      await client.text(sandboxId, 'kept = 42');
      const limited = await before.detach('import time; time.sleep(600)', { timeout_ms: 9_000 });
      const other = await before.context();
      const endless = await before.detach('import time; time.sleep(600)', { context_id: other });
      await until(async () => (await before.info(limited)).state === 'running');
      await until(async () => (await before.info(endless)).state === 'running');
      await restart();

      const after = new Executions(client, sandboxId);
      await client.api('POST', `/v1/sandboxes/${sandboxId}/contexts/${other}/interrupt`);
      expect((await after.events(endless)).at(-1)).toMatchObject({ termination: 'interrupted' });
      const ending = (await after.events(limited)).at(-1);
      expect(ending).toMatchObject({ termination: 'timeout_interrupted', state_survived: true });
      expect((ending?.['accounting'] as { wall_ms: number }).wall_ms).toBeGreaterThanOrEqual(9_000);
      expect(await client.text(sandboxId, 'kept')).toBe('42');
      await client.kill(sandboxId);
    }, 120_000);

    it("interrupts what E2B's clients ran, who went away with it; cells that obey nothing hold up only theirs", async () => {
      const sandboxId = await client.create();
      await client.text(sandboxId, 'kept = 42');
      const stream = await client.execute(sandboxId, {
        code: 'import time\nprint("on", flush=True)\ntime.sleep(600)',
      });
      const id = stream.headers.get('x-execution-id') ?? '';
      await until(async () => (await new Executions(client, sandboxId).info(id)).state === 'running');
      const broken = expect(stream.text()).rejects.toThrow();
      await restart();
      await broken;
      expect(await client.text(sandboxId, 'kept')).toBe('42');
      expect(await new Executions(client, sandboxId).info(id)).toMatchObject({ termination: 'client_gone' });
      await client.kill(sandboxId);
    }, 120_000);

    it('tells an execution whose kernel died meanwhile that it did not survive', async () => {
      const sandboxId = await client.create();
      const before = new Executions(client, sandboxId);
      const id = await before.detach(
        'import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(3)\nos._exit(1)',
      );
      await before.read(id, 0, (events) => events.some(({ type }) => type === 'stdout'));
      await service.signal('SIGKILL');
      await new Promise((resolve) => setTimeout(resolve, 4_000)); // nobody is there to tell of its end
      await startAgain();
      const after = new Executions(client, sandboxId);
      const ending = (await after.events(id)).at(-1);
      expect(ending).toMatchObject({ termination: 'exited', exit_code: 1, state_survived: false });
      expect(await client.text(sandboxId, '6 * 7')).toBe('42');
      await client.kill(sandboxId);
    }, 120_000);

    it('keeps executions over a restart that was asked for, too', async () => {
      const sandboxId = await client.create();
      const before = new Executions(client, sandboxId);
      const ended = await before.detach('"before"');
      const running = await before.detach(RUN_ON('stop'));
      await before.read(running, 0, (events) => events.length > 5);
      await restart('SIGTERM');
      const after = new Executions(client, sandboxId);
      expect(await after.info(ended)).toMatchObject({ termination: 'ok' });
      await putFile(client, sandboxId, 'stop');
      expect((await after.events(running)).at(-1)).toMatchObject({ termination: 'ok' });
      await client.kill(sandboxId);
    }, 120_000);

    it('removes a sandbox that was half-made, with its machine', async () => {
      const ids = async (): Promise<string[]> => {
        const response = await client.api('GET', '/v2/sandboxes');
        return ((await response.json()) as Array<{ sandboxID: string }>).map(({ sandboxID }) => sandboxID);
      };
      const before = await ids();
      const creating = client.create().catch((error: unknown) => error);
      await new Promise((resolve) => setTimeout(resolve, 60)); // into the start of a machine
      await service.signal('SIGKILL');
      await creating;
      await startAgain();
      // Either it was there before its client heard of it, and works, or nothing of it is left.
      for (const sandboxID of await ids()) {
        if (before.includes(sandboxID)) continue;
        expect(await client.text(sandboxID, '6 * 7')).toBe('42');
        await client.kill(sandboxID);
      }
    }, 120_000);
  },
);
