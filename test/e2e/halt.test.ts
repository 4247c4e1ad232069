import { describeOnRuntimes } from '../describe-on-runtimes';
import { Executions, accessTokenOf, putFile, until } from './recovery-client';

const FILES_ALONE = { memory: false };

describeOnRuntimes(
  'a sandbox that was paused with files alone on the $runtime runtime',
  { env: { CELLBOX_POOL_SIZE: '0' } },
  ({ service, client, startAgain }) => {
    const ask = async (method: string, path: string, body?: object) => {
      const response = await client.api(method, path, body);
      const text = await response.text();
      return { status: response.status, body: (text === '' ? {} : JSON.parse(text)) as object };
    };
    const pause = async (id: string) =>
      expect((await ask('POST', `/sandboxes/${id}/pause`, FILES_ALONE)).status).toBe(204);
    const connect = async (id: string) =>
      expect((await ask('POST', `/sandboxes/${id}/connect`, { timeout: 120 })).status).toBe(201);

    it('keeps its files, and tells once that its variables are gone', async () => {
      const id = await client.create({ envVars: { COLOUR: 'blue' } });
      const executions = new Executions(client, id);
      await client.text(id, 'kept = 42; open("here", "w").write("text")');
      await client.text(id, 'open("/tmp/there", "w").write("text")');
      const context = await executions.context();
      const running = await executions.detach('import time\nprint("on", flush=True)\ntime.sleep(600)');
      const waiting = await executions.detach('1 + 1');
      await executions.read(running, 0, (events) => events.some(({ type }) => type === 'stdout'));
      await pause(id);
      const lost = { termination: 'sandbox_ended', state_survived: false };
      expect((await executions.events(running)).at(-1)).toMatchObject(lost);
      expect((await executions.events(waiting)).at(-1)).toMatchObject(lost);
      expect((await ask('GET', `/sandboxes/${id}`)).body).toMatchObject({
        ...{ state: 'paused', pauseMode: 'filesystem' },
      });
      expect((await client.port(id, 49999, '/contexts')).status).toBe(502);

      await connect(id);
      expect(await client.text(id, '[open(name).read() for name in ["here", "/tmp/there"]]')).toBe(
        "['text', 'text']",
      );
      expect(await client.text(id, '"kept" in globals()')).toBe('False');
      expect(await client.text(id, '__import__("os").environ["COLOUR"]')).toBe('blue');
      expect((await client.execute(id, { code: '1', context_id: context })).status).toBe(404);

      await client.text(id, 'kept = 43');
      await pause(id);
      await connect(id);
      const first = await executions.events(await executions.detach('1'));
      expect(first[0]).toMatchObject({ type: 'state_lost', termination: 'sandbox_ended' });
      const second = await executions.events(await executions.detach('2'));
      expect(second.map(({ type }) => type)).not.toContain('state_lost');
      await client.kill(id);
    }, 180_000);

    it.each(['SIGKILL', 'SIGTERM'] as const)(
      'outlives the service (%s) and its own deadline',
      async (signal) => {
        const id = await client.create({ secure: true });
        const token = await accessTokenOf(client, id);
        await client.text(id, 'kept = 42; open("here", "w").write("text")');
        expect((await ask('POST', `/sandboxes/${id}/timeout`, { timeout: 5 })).status).toBe(204);
        const pastDeadline = Date.now() + 5_500;
        await pause(id);
        await service.signal(signal);
        await new Promise((resolve) => setTimeout(resolve, pastDeadline - Date.now()));
        await startAgain();
        const { body } = await ask('GET', '/v2/sandboxes?state=paused');
        expect(body).toMatchObject([{ sandboxID: id, pauseMode: 'filesystem' }]);
        await connect(id);
        expect((await putFile(client, id, 'more', 'x', token)).status).toBe(200);
        expect(await client.text(id, 'open("here").read() + open("more").read()')).toBe('textx');
        await client.kill(id);
      },
      180_000,
    );

    it('is killed for good, also by a service that found it', async () => {
      const id = await client.create();
      await pause(id);
      await service.signal('SIGKILL');
      await startAgain();
      expect((await ask('DELETE', `/sandboxes/${id}`)).status).toBe(204);
      expect((await ask('GET', `/sandboxes/${id}`)).status).toBe(404);
    }, 120_000);

    it('is what its deadline makes of it where that was asked for, and traffic starts it', async () => {
      const id = await client.create({ autoPause: true, autoPauseMemory: false });
      expect((await ask('POST', `/sandboxes/${id}/timeout`, { timeout: 0 })).status).toBe(204);
      await until(async () => {
        const { body } = await ask('GET', `/sandboxes/${id}`);
        return (body as { pauseMode?: string }).pauseMode === 'filesystem';
      });
      await client.kill(id);
      const woken = await client.create({ autoResume: { enabled: true } });
      await client.text(woken, 'open("here", "w").write("text")');
      await pause(woken);
      expect(await client.text(woken, 'open("here").read()')).toBe('text');
      await client.kill(woken);
    }, 180_000);
  },
);
