import fc from 'fast-check';
import { ApiHarness } from './api-harness';

interface Listed {
  sandboxID: string;
  startedAt: string;
  state: string;
}

/** What happens between two pages. */
type Step = 'create' | 'kill' | 'pause' | 'nothing';

describe('a list that is read page by page', () => {
  let api: ApiHarness;
  let key: string;

  beforeEach(async () => {
    api = await ApiHarness.open();
    const { id } = await api.teams.create('many', { maxSandboxes: 1_000, createsPerMinute: 0 });
    key = (await api.teams.createKey(id, 'test')).key;
  });

  afterEach(() => api.close());

  const ask = (method: string, path: string, body?: unknown) => api.ask(method, path, { key, body });

  const create = async (): Promise<string> => {
    const { body } = await ask('POST', '/v2/sandboxes', { templateID: 'base' });
    return (body as { sandboxID: string }).sandboxID;
  };

  it('has what was there all the time exactly once, in order, whatever comes and goes', async () => {
    const steps = fc.array(fc.constantFrom<Step>('create', 'kill', 'pause', 'nothing'), { maxLength: 12 });
    const order = fc.constantFrom('asc', 'desc');
    await fc.assert(
      fc.asyncProperty(
        steps,
        order,
        fc.integer({ min: 1, max: 3 }),
        fc.nat(),
        async (todo, order, limit, seed) => {
          const old = await Promise.all(Array.from({ length: 5 }, create)); // several of one millisecond
          const all = [...old];
          const killed = new Set<string>();
          const seen: Listed[] = [];
          let token = '';
          do {
            const next = token === '' ? '' : `&nextToken=${encodeURIComponent(token)}`;
            const page = await ask('GET', `/v2/sandboxes?limit=${limit}&order=${order}${next}`);
            expect(page.status).toBe(200);
            seen.push(...(page.body as Listed[]));
            token = String(page.headers['x-next-token'] ?? '');
            const step = todo.pop();
            const victim = all[(seed + todo.length) % all.length] ?? '';
            if (step === 'create') all.push(await create());
            if (step === 'pause') await ask('POST', `/sandboxes/${victim}/pause`);
            if (step === 'kill') {
              await ask('DELETE', `/sandboxes/${victim}`);
              killed.add(victim);
            }
          } while (token !== '');
          const ids = seen.map((each) => each.sandboxID);
          expect(new Set(ids).size).toBe(ids.length);
          expect(old.filter((id) => !killed.has(id) && !ids.includes(id))).toEqual([]);
          const times = seen.map((each) => each.startedAt);
          expect(times).toEqual(order === 'asc' ? [...times].sort() : [...times].sort().reverse());
          for (const id of all) await ask('DELETE', `/sandboxes/${id}`);
        },
      ),
      { numRuns: 25 },
    );
  }, 60_000);

  it('goes on behind a sandbox that is gone', async () => {
    const made = await Promise.all(Array.from({ length: 4 }, create));
    const first = await ask('GET', '/v2/sandboxes?limit=2');
    const token = String(first.headers['x-next-token']);
    const ids = (body: unknown) => (body as Listed[]).map((each) => each.sandboxID);
    for (const id of ids(first.body)) await ask('DELETE', `/sandboxes/${id}`);
    const rest = await ask('GET', `/v2/sandboxes?nextToken=${token}`);
    expect([...ids(first.body), ...ids(rest.body)].sort()).toEqual(made.sort());
  });

  it('tells nothing of a team by a token of another', async () => {
    const id = await api.create(); // of the default team
    await create();
    const answer = await api.ask('GET', `/v2/sandboxes?limit=1&nextToken=zzzzzzzz-${id}`, { key });
    expect(answer.text).not.toContain(id);
  });
});
