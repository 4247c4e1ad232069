import { DEFAULT_TEAM_ID } from '../../../service/sandboxes/store-teams';
import { ADMIN_TOKEN, ApiHarness, CONFIG, KEY } from './api-harness';
import type { Answer, Ask } from './api-harness';

const ISO = expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);
const UUID = expect.stringMatching(/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);

interface Created {
  key: string;
  key_id: string;
}

describe('/v1/admin', () => {
  let api: ApiHarness;
  beforeEach(async () => {
    api = await ApiHarness.open();
  });
  afterEach(() => api.close());

  const admin = (method: string, path: string, ask: Ask = {}): Promise<Answer> =>
    api.ask(method, `/v1/admin/teams${path}`, {
      key: null,
      ...ask,
      headers: { 'x-admin-token': ADMIN_TOKEN },
    });
  const makeTeam = async (name: string, limits = {}): Promise<void> => {
    expect((await admin('POST', '', { body: { name, ...limits } })).status).toBe(201);
  };
  const makeKey = async (team: string): Promise<Created> =>
    (await admin('POST', `/${team}/keys`, { body: { name: 'ci' } })).body as Created;
  const create = (key: string): Promise<Answer> =>
    api.ask('POST', '/v2/sandboxes', { key, body: { templateID: 'base', timeout: 60 } });

  it.each([
    ['no token', {}, null, 'The admin token is missing: send it in the X-Admin-Token header'],
    ['only an API key', {}, KEY, 'The admin token is missing: send it in the X-Admin-Token header'],
    ['a wrong token', { 'x-admin-token': `${ADMIN_TOKEN}0` }, null, 'The admin token is not valid'],
    ['an API key as token', { 'x-admin-token': KEY }, KEY, 'The admin token is not valid'],
  ])('refuses %s', async (_what, headers, key, message) => {
    for (const [method, path] of [
      ['GET', '/v1/admin/teams'],
      ['POST', '/v1/admin/teams'],
      ['DELETE', '/v1/admin/teams/default/keys/x'],
    ] as const) {
      const answer = await api.ask(method, path, { key, headers });
      expect([answer.status, answer.body]).toEqual([401, { code: 401, error: 'unauthenticated', message }]);
    }
  });

  it('takes no admin token for an API key', async () => {
    expect((await api.ask('GET', '/sandboxes', { key: ADMIN_TOKEN })).status).toBe(401);
    const answer = await api.ask('GET', '/sandboxes', {
      key: null,
      headers: { 'x-admin-token': ADMIN_TOKEN },
    });
    expect(answer.status).toBe(401);
  });

  it('creates, shows, changes and lists teams', async () => {
    const created = await admin('POST', '', { body: { name: 'acme', max_sandboxes: 2 } });
    const acme = {
      team_id: UUID,
      name: 'acme',
      max_sandboxes: 2,
      creates_per_minute: null,
      limits: { max_sandboxes: 2, creates_per_minute: 0 },
      created_at: ISO,
    };
    expect([created.status, created.body]).toEqual([201, acme]);
    const { team_id } = created.body as { team_id: string };
    expect((await admin('GET', `/${team_id}`)).body).toEqual(created.body);
    const changed = await admin('PATCH', '/acme', { body: { max_sandboxes: null, creates_per_minute: 9 } });
    expect(changed.body).toEqual({
      ...acme,
      max_sandboxes: null,
      creates_per_minute: 9,
      limits: { max_sandboxes: CONFIG.maxSandboxes, creates_per_minute: 9 },
    });
    expect((await admin('PATCH', '/acme', { body: {} })).body).toEqual(changed.body);
    const { items, next_token } = (await admin('GET', '')).body as { items: unknown[]; next_token: unknown };
    expect([items.length, next_token]).toEqual([2, null]);
    expect(items).toContainEqual(changed.body);
    expect(items).toContainEqual(expect.objectContaining({ team_id: DEFAULT_TEAM_ID, name: 'default' }));
  });

  it('gives lists in pages', async () => {
    for (const name of ['a', 'b', 'c']) await makeTeam(name);
    const seen: string[] = [];
    let token = '';
    do {
      const { body } = await admin('GET', `?limit=3&next_token=${token}`);
      const page = body as { items: Array<{ name: string }>; next_token: string | null };
      seen.push(...page.items.map((each) => each.name));
      token = page.next_token ?? '';
    } while (token !== '');
    expect(seen.sort()).toEqual(['a', 'b', 'c', 'default']);
    for (const query of ['limit=0', 'limit=101', 'next_token=nope']) {
      expect((await admin('GET', `?${query}`)).status).toBe(400);
    }
  });

  it.each<[string, string, unknown, number, string]>([
    ['POST', '', { name: 'Acme' }, 400, 'invalid_argument'],
    ['POST', '', { name: '' }, 400, 'invalid_argument'],
    ['POST', '', { name: 'a/b' }, 400, 'invalid_argument'],
    ['POST', '', { name: 'x', max_sandboxes: -1 }, 400, 'invalid_argument'],
    ['POST', '', { name: 'x', max_sandbox: 1 }, 400, 'invalid_argument'],
    ['POST', '', { name: 'default' }, 409, 'already_exists'],
    ['PATCH', '/nobody', {}, 404, 'not_found'],
    ['GET', '/nobody', undefined, 404, 'not_found'],
    ['GET', '/nobody/keys', undefined, 404, 'not_found'],
    ['POST', '/nobody/keys', { name: 'x' }, 404, 'not_found'],
    ['POST', '/default/keys', { name: '' }, 400, 'invalid_argument'],
    ['DELETE', '/default/keys/none', undefined, 404, 'not_found'],
    ['DELETE', '/default/keys/service-local', undefined, 409, 'failed_precondition'],
  ])('answers %s %s %j with %i', async (method, path, body, status, error) => {
    const answer = await admin(method, path, { body });
    expect([answer.status, answer.body]).toMatchObject([status, { code: status, error }]);
  });

  it('shows a key once, and afterwards only its mask', async () => {
    await makeTeam('acme');
    const created = await admin('POST', '/acme/keys', { body: { name: 'ci' } });
    const { key } = created.body as Created;
    expect(key).toMatch(/^e2b_[0-9a-f]{40}$/);
    const shown = {
      key_id: UUID,
      name: 'ci',
      mask: {
        prefix: 'e2b_',
        value_length: 40,
        masked_value_prefix: key.slice(4, 6),
        masked_value_suffix: key.slice(-4),
      },
      created_at: ISO,
    };
    expect([created.status, created.body]).toEqual([201, { ...shown, key }]);
    expect(created.headers['cache-control']).toBe('no-store');
    expect((await admin('GET', '/acme/keys')).body).toEqual({ items: [shown], next_token: null });
    expect(JSON.stringify(await api.store.teams.listKeys((await api.store.teams.find('acme'))?.id ?? '')))
      .not.toContain(key.slice(4, 40)); // prettier-ignore
  });

  it('shows nothing of a short key that somebody chose', async () => {
    await api.teams.setServiceKey('e2b_00aa');
    const { items } = (await admin('GET', '/default/keys')).body as { items: Array<{ mask: unknown }> };
    expect(items.map((each) => each.mask)).toEqual([
      { prefix: 'e2b_', value_length: 4, masked_value_prefix: '', masked_value_suffix: '' },
    ]);
  });

  it('makes keys that work at once, several for a team, each until it is revoked', async () => {
    await makeTeam('acme');
    const [one, two] = [await makeKey('acme'), await makeKey('acme')];
    const { sandboxID } = (await create(one.key)).body as { sandboxID: string };
    expect((await api.ask('GET', `/sandboxes/${sandboxID}`, { key: two.key })).status).toBe(200);
    expect((await admin('DELETE', `/default/keys/${one.key_id}`)).status).toBe(404);
    expect((await admin('DELETE', `/acme/keys/${one.key_id}`)).status).toBe(204);
    expect((await api.ask('GET', `/sandboxes/${sandboxID}`, { key: one.key })).status).toBe(401);
    expect((await api.ask('GET', `/sandboxes/${sandboxID}`, { key: two.key })).status).toBe(200);
  });

  it('lets each team reach its own limit of sandboxes, told without what others have', async () => {
    await makeTeam('small', { max_sandboxes: 1 });
    await makeTeam('plain');
    const [small, plain] = [await makeKey('small'), await makeKey('plain')];
    await api.create({ timeout: 30 }); // the default team's ends sooner than all of theirs
    expect((await create(small.key)).status).toBe(201);
    for (let count = 0; count < CONFIG.maxSandboxes; count++)
      expect((await create(plain.key)).status).toBe(201);
    for (const [key, limit] of [
      [small.key, 1],
      [plain.key, CONFIG.maxSandboxes],
    ] as const) {
      const refused = await create(key);
      const message = `The limit of ${limit} concurrent sandboxes is reached`;
      expect([refused.status, refused.body]).toEqual([429, { code: 429, message }]);
      expect(refused.headers['should-retry']).toBe('false');
      const inSeconds = (Date.parse(String(refused.headers['retry-after'])) - Date.now()) / 1000;
      expect(inSeconds).toBeGreaterThan(40);
    }
    expect((await create(KEY)).status).toBe(201);
    await admin('PATCH', '/small', { body: { max_sandboxes: 2 } });
    expect((await create(small.key)).status).toBe(201);
    expect((await api.ask('GET', '/v1/info', { key: small.key })).body).toMatchObject({
      limits: { max_sandboxes: 2, creates_per_minute: 0 },
    });
  });

  it('tells a team that creates too often when to come back, in the form that SDKs wait by', async () => {
    await makeTeam('busy', { creates_per_minute: 1 });
    const { key } = await makeKey('busy');
    expect((await create(key)).status).toBe(201);
    const refused = await create(key);
    const message = 'The limit of 1 creates a minute is reached';
    expect([refused.status, refused.body]).toEqual([429, { code: 429, message }]);
    expect(refused.headers['should-retry']).toBe('true');
    expect(Number(refused.headers['retry-after'])).toBeGreaterThan(50);
    expect(Number(refused.headers['retry-after'])).toBeLessThanOrEqual(60);
    expect((await create(KEY)).status).toBe(201);
  });

  it('counts a replayed create once', async () => {
    await makeTeam('busy', { creates_per_minute: 1 });
    const { key } = await makeKey('busy');
    const again = { key, headers: { 'idempotency-key': 'k' }, body: { templateID: 'base' } };
    const answers = [
      await api.ask('POST', '/v2/sandboxes', again),
      await api.ask('POST', '/v2/sandboxes', again),
    ];
    expect(answers.map((each) => each.status)).toEqual([201, 201]);
  });

  it('keeps pools to the default team', async () => {
    await makeTeam('acme');
    const { key } = await makeKey('acme');
    for (const answer of [
      await api.ask('GET', '/v1/pools', { key }),
      await api.ask('PUT', '/v1/pools/base', { key, body: { target: 0 } }),
    ]) {
      expect([answer.status, answer.body]).toMatchObject([403, { error: 'permission_denied' }]);
    }
  });
});
