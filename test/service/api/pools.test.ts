import type { PoolInfo } from '../../../protocol/native';
import { ApiHarness } from './api-harness';

const ID = 'cellboxcodeinterp001';
const warmer = { warm: () => Promise.resolve(), isWarm: () => true, drop: () => undefined, underWay: 0 };

let api: ApiHarness;
beforeEach(async () => {
  const sizes = new Map([[ID, { min: 0, target: 1, max: 2 }]]);
  api = await ApiHarness.open({}, { warmer, sizes, freeMemoryMB: () => 8192 });
});
afterEach(() => api.close());

const put = (template: string, body: unknown) => api.ask('PUT', `/v1/pools/${template}`, { body });

describe('GET /v1/pools', () => {
  it('tells size and state of every pool', async () => {
    const { status, body } = await api.ask('GET', '/v1/pools');
    const empty = { ready: 0, starting: 0, claimed_total: 0, misses_total: 0, last_error: null };
    expect([status, body]).toEqual([
      200,
      {
        items: [
          { template: 'base', template_id: 'cellboxbase0template', min: 0, target: 0, max: 0, ...empty },
          { template: 'code-interpreter-v1', template_id: ID, min: 0, target: 1, max: 2, ...empty },
        ],
        next_token: null,
      },
    ]);
  });

  it('counts claims, and creates that found nothing', async () => {
    api.engine.beforeStart = () => Promise.reject(new Error('no'));
    api.sandboxes.pools?.open();
    await api.ask('POST', '/v2/sandboxes', { body: { templateID: 'code-interpreter-v1' } });
    const { body } = await api.ask('GET', '/v1/pools');
    const { items } = body as { items: PoolInfo[] };
    expect(items[1]).toMatchObject({ claimed_total: 0, misses_total: 1 });
  });

  it('asks for a key', async () => {
    expect((await api.ask('GET', '/v1/pools', { key: null })).status).toBe(401);
  });
});

describe('PUT /v1/pools/{template}', () => {
  it.each([ID, 'code-interpreter-v1', 'default/code-interpreter-v1'.replace('/', '%2F')])(
    'sets the size of the pool of %s',
    async (name) => {
      const { status, body } = await put(name, { min: 1, target: 3, max: 5 });
      expect(status).toBe(200);
      expect(body).toMatchObject({ template: 'code-interpreter-v1', min: 1, target: 3, max: 5 });
      expect(api.sandboxes.pools?.list()[1]).toMatchObject({ min: 1, target: 3, max: 5 });
    },
  );

  it('keeps the pool from growing when no maximum is given', async () => {
    expect((await put('base', { target: 2 })).body).toMatchObject({ min: 0, target: 2, max: 2 });
  });

  it.each([
    [{}, 'target'],
    [{ target: -1 }, 'target'],
    [{ target: 1.5 }, 'target'],
    [{ target: 1001 }, 'target'],
    [{ target: 1, size: 2 }, 'size'],
    [{ min: 2, target: 1 }, 'min ≤ target ≤ max'],
    [{ target: 2, max: 1 }, 'min ≤ target ≤ max'],
  ])('refuses %j and says what is wrong', async (body, words) => {
    const answer = await put(ID, body);
    expect(answer.status).toBe(400);
    expect((answer.body as { message: string }).message).toContain(words);
    expect(api.sandboxes.pools?.list()[1]).toMatchObject({ min: 0, target: 1, max: 2 });
  });

  it('knows only templates that there are', async () => {
    expect(await put('other', { target: 1 })).toMatchObject({
      status: 404,
      body: { code: 404, error: 'not_found', message: "template 'other' not found" },
    });
  });
});
