import { describeOnRuntimes } from '../describe-on-runtimes';
import { Executions, putFile, until } from './recovery-client';

const RUN_ON = 'import os, time\nwhile not os.path.exists("go"): time.sleep(0.02)\nprint("through")';

describeOnRuntimes(
  'a paused sandbox on the $runtime runtime',
  { env: { CELLBOX_POOL_SIZE: '0', CELLBOX_INTERRUPT_GRACE_MS: '20000' } }, // a kill would be told otherwise
  ({ service, client, startAgain }) => {
    const ask = async (
      method: string,
      path: string,
      body?: object,
    ): Promise<{ status: number; body: object }> => {
      const response = await client.api(method, path, body);
      const text = await response.text();
      return { status: response.status, body: (text === '' ? {} : JSON.parse(text)) as object };
    };

    it.each(['SIGKILL', 'SIGTERM'] as const)(
      'outlives the service (%s) and its own deadline, and what ran in it goes on',
      async (signal) => {
        const id = await client.create();
        const executions = new Executions(client, id);
        await client.text(id, 'kept = 42');
        const running = await executions.detach(RUN_ON, { timeout_ms: 60_000 });
        await until(async () => (await executions.info(running)).state === 'running');
        expect((await ask('POST', `/sandboxes/${id}/timeout`, { timeout: 5 })).status).toBe(204);
        const pastDeadline = Date.now() + 5_500;
        expect((await ask('POST', `/sandboxes/${id}/pause`)).status).toBe(204);
        expect((await executions.info(running)).state).toBe('running');
        await service.signal(signal);
        await new Promise((resolve) => setTimeout(resolve, pastDeadline - Date.now()));
        await startAgain();

        expect(await ask('GET', `/sandboxes/${id}`)).toMatchObject({
          status: 200,
          body: { state: 'paused' },
        });
        expect((await ask('POST', `/sandboxes/${id}/pause`)).status).toBe(409);
        expect((await ask('POST', `/sandboxes/${id}/timeout`, { timeout: 60 })).status).toBe(404);
        expect((await client.port(id, 49999, '/contexts')).status).toBe(502);
        expect((await ask('POST', `/sandboxes/${id}/connect`, { timeout: 120 })).status).toBe(201);
        expect((await ask('POST', `/sandboxes/${id}/connect`, { timeout: 120 })).status).toBe(200);
        const after = new Executions(client, id);
        expect(await after.info(running)).toMatchObject({ state: 'running' });
        await putFile(client, id, 'go');
        const events = await after.events(running);
        expect(events.at(-1)).toMatchObject({ termination: 'ok', state_survived: true });
        expect(events).toContainEqual(expect.objectContaining({ type: 'stdout', text: 'through\n' }));
        expect(await client.text(id, 'kept')).toBe('42');
        await client.kill(id);
      },
      120_000,
    );

    it('is killed for good, also by a service that found it paused', async () => {
      const id = await client.create();
      expect((await ask('POST', `/sandboxes/${id}/pause`)).status).toBe(204);
      await service.signal('SIGKILL');
      await startAgain();
      expect((await ask('DELETE', `/sandboxes/${id}`)).status).toBe(204);
      expect((await ask('GET', `/sandboxes/${id}`)).status).toBe(404);
      expect((await ask('GET', '/v2/sandboxes?state=running,paused')).body).toEqual([]);
    }, 120_000);

    it('is woken by an execution of the native API, which then has its time limit for itself', async () => {
      const id = await client.create({ autoResume: { enabled: true } });
      const executions = new Executions(client, id);
      const limited = await executions.detach('import time; time.sleep(600)', { timeout_ms: 4_000 });
      await until(async () => (await executions.info(limited)).state === 'running');
      expect((await ask('POST', `/sandboxes/${id}/pause`)).status).toBe(204);
      await new Promise((resolve) => setTimeout(resolve, 5_000)); // what is tested is that this time does not count
      expect((await executions.info(limited)).state).toBe('running');
      const behind = await executions.detach('1 + 1');
      expect((await ask('GET', `/sandboxes/${id}`)).body).toMatchObject({ state: 'running' });
      expect((await executions.events(limited)).at(-1)).toMatchObject({ termination: 'timeout_interrupted' });
      expect((await executions.events(behind)).at(-1)).toMatchObject({ termination: 'ok' });
      await client.kill(id);
    }, 120_000);
  },
);
