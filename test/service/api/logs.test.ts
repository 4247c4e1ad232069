import { ApiHarness } from './api-harness';

interface Entry {
  timestamp: string;
  level: string;
  message: string;
  fields: Record<string, string>;
}

describe('the log of a sandbox', () => {
  let api: ApiHarness;

  beforeEach(async () => {
    api = await ApiHarness.open();
  });

  afterEach(() => api.close());

  const v1 = async (id: string, query = '') => {
    const answer = await api.ask('GET', `/sandboxes/${id}/logs${query}`);
    expect(answer.status).toBe(200);
    return answer.body as { logs: Array<{ timestamp: string; line: string }>; logEntries: Entry[] };
  };
  const v2 = async (id: string, query = '') => {
    const answer = await api.ask('GET', `/v2/sandboxes/${id}/logs${query}`);
    expect(answer.status).toBe(200);
    return (answer.body as { logs: Entry[] }).logs;
  };
  const messages = (entries: Entry[]) => entries.map(({ message }) => message);
  /** A log of five lines, a second apart. */
  const madeLines = async (): Promise<{ id: string; begun: number }> => {
    const id = await api.create();
    const [first] = await v2(id);
    const begun = Date.parse(first?.timestamp ?? '');
    for (const [index, text] of ['one', 'TWO', 'three', 'four'].entries()) {
      api.engine.machine(id).output.push({ at: begun - 4 + index, text });
    }
    // They count from the start of the sandbox on, which is what the machine was given.
    const sandbox = api.sandboxes.find(id) as { startedAt: number } | undefined;
    if (sandbox !== undefined) sandbox.startedAt = begun - 10;
    return { id, begun };
  };

  it('tells its life, in both forms and as the CLI reads it', async () => {
    const id = await api.create({ templateID: 'code-interpreter-v1' });
    await api.ask('POST', `/sandboxes/${id}/pause`);
    await api.ask('POST', `/sandboxes/${id}/connect`, { body: { timeout: 60 } });
    const { logs, logEntries } = await v1(id);
    expect(logEntries).toEqual([
      {
        timestamp: expect.stringMatching(/^\d{4}-.*Z$/),
        level: 'info',
        message: 'The sandbox was created',
        fields: { logger: 'service', template: 'code-interpreter-v1', pooled: 'false' },
      },
      expect.objectContaining({
        message: 'The sandbox was paused',
        fields: { logger: 'service', reason: 'request', keeps: 'memory' },
      }),
      expect.objectContaining({
        message: 'The sandbox was resumed',
        fields: { logger: 'service', reason: 'request' },
      }),
    ]);
    expect(logs.map(({ timestamp }) => timestamp)).toEqual(logEntries.map(({ timestamp }) => timestamp));
    expect(JSON.parse(logs[0]?.line ?? '')).toEqual({
      level: 'info',
      logger: 'service',
      message: 'The sandbox was created',
      template: 'code-interpreter-v1',
      pooled: 'false',
    });
    expect(await v2(id)).toEqual([...logEntries].reverse());
  });

  it('can be read after the end, which it tells with its reason and what the machine said', async () => {
    const killed = await api.create();
    api.engine.machine(killed).output.push({ text: 'cellbox agent: last words' });
    await api.ask('DELETE', `/sandboxes/${killed}`);
    expect((await api.ask('GET', `/sandboxes/${killed}`)).status).toBe(404);
    await api.sandboxes.close({ onStop: 'keep' }); // everything that was begun is done then
    const entries = (await v1(killed)).logEntries;
    expect(messages(entries).sort()).toEqual(['The sandbox ended', 'The sandbox was created', 'last words']);
    expect(entries.at(-1)).toMatchObject({ level: 'info', fields: { reason: 'request' } });
  });

  it('tells a machine that ended by itself as an error', async () => {
    const id = await api.create();
    const ended = api.engine.machine(id).ended;
    api.engine.kill(id);
    await ended;
    await api.sandboxes.close({ onStop: 'keep' });
    expect((await v2(id, '?level=error'))[0]).toMatchObject({
      level: 'error',
      message: 'The sandbox ended: killed from outside',
      fields: { reason: 'machine_ended' },
    });
  });

  it('is told forward and backward from a moment, so many lines, by level and text', async () => {
    const { id, begun } = await madeLines();
    const all = ['one', 'TWO', 'three', 'four', 'The sandbox was created'];
    expect(messages((await v1(id)).logEntries)).toEqual(all);
    expect(messages((await v1(id, `?start=${begun - 2}&limit=2`)).logEntries)).toEqual(['three', 'four']);
    expect(messages((await v1(id, `?start=${begun + 1}`)).logEntries)).toEqual([]);
    expect(messages(await v2(id, '?limit=2'))).toEqual(['The sandbox was created', 'four']);
    expect(messages(await v2(id, `?cursor=${begun - 1}`))).toEqual(['three', 'TWO', 'one']);
    expect(messages(await v2(id, `?cursor=${begun - 1}&direction=forward`))).toEqual(all.slice(3));
    expect(messages(await v2(id, '?direction=forward&limit=1'))).toEqual(['one']);
    expect(messages(await v2(id, '?search=two'))).toEqual(['TWO']);
    expect(messages(await v2(id, '?level=warn'))).toEqual([]);
  });

  it.each([
    'limit=0',
    'limit=1001',
    'limit=x',
    'cursor=-1',
    'cursor=now',
    'direction=up',
    'level=fatal',
    `search=${'x'.repeat(257)}`,
  ])('refuses %s', async (query) => {
    const id = await api.create();
    const answer = await api.ask('GET', `/v2/sandboxes/${id}/logs?${query}`);
    const name = query.split('=')[0];
    expect(answer.body).toEqual({
      code: 400,
      message: expect.stringMatching(new RegExp(`^${name}: `)) as string,
    });
  });

  it('is not told to another team, dead or alive, nor of what never was', async () => {
    const { id: team } = await api.teams.create('other', { maxSandboxes: null, createsPerMinute: null });
    const { key } = await api.teams.createKey(team, 'test');
    const id = await api.create();
    const ask = (of: string) => api.ask('GET', `/sandboxes/${of}/logs`, { key });
    const never = await ask('inone');
    expect(never.status).toBe(404);
    for (const state of ['alive', 'dead']) {
      if (state === 'dead') await api.ask('DELETE', `/sandboxes/${id}`);
      const answer = await ask(id);
      expect([state, answer.text]).toEqual([state, never.text.replace('inone', id)]);
    }
    expect((await v1(id)).logEntries).toHaveLength(2);
  });
});
