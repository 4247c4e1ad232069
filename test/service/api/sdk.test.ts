import * as newest from 'e2b';
import * as older from 'e2b-a';
import { eventually } from '../../agent/agent-fixture';
import { ApiHarness, CONFIG, KEY } from './api-harness';

/** Both generations of the official SDK, unmodified, against the control plane alone. */
describe.each<[string, typeof newest]>([
  ['newest', newest],
  // The classes have the same methods; only private members make the types differ.
  ['2.45 era', older as unknown as typeof newest],
])('the e2b SDK, %s', (_generation, sdk) => {
  const { AuthenticationError, RateLimitError, Sandbox, SandboxNotFoundError } = sdk;
  let api: ApiHarness;
  let connection: { apiUrl: string; apiKey: string; requestTimeoutMs: number };

  beforeEach(async () => {
    api = await ApiHarness.open();
    connection = { apiUrl: api.url, apiKey: KEY, requestTimeoutMs: 5_000 };
  });

  afterEach(() => api.close());

  it('creates, tells, extends and kills a sandbox', async () => {
    const sandbox = await Sandbox.create({ ...connection, metadata: { who: 'ann' }, timeoutMs: 60_000 });
    expect(sandbox.sandboxId).toMatch(/^i[a-z0-9]{20}$/);
    expect(sandbox.getHost(3000)).toBe(`3000-${sandbox.sandboxId}.box.example:8443`);
    const info = await sandbox.getInfo();
    await sandbox.setTimeout(600_000);
    const later = await sandbox.getInfo();
    expect(later.endAt.getTime() - info.endAt.getTime()).toBeGreaterThan(500_000);
    expect(await sandbox.kill()).toBe(true);
    expect(await Sandbox.kill(sandbox.sandboxId, connection)).toBe(false);
    await expect(Sandbox.getInfo(sandbox.sandboxId, connection)).rejects.toBeInstanceOf(SandboxNotFoundError);
    await expect(Sandbox.setTimeout(sandbox.sandboxId, 1000, connection)).rejects.toBeInstanceOf(
      SandboxNotFoundError,
    );
    await expect(Sandbox.connect(sandbox.sandboxId, connection)).rejects.toBeInstanceOf(SandboxNotFoundError);
  });

  it('works by the options of a client of its own, without the environment', async () => {
    const client = new sdk.E2B(connection);
    const sandbox = await client.Sandbox.create();
    expect((await client.Sandbox.list().nextItems()).map((each) => each.sandboxId)).toEqual([
      sandbox.sandboxId,
    ]);
    expect(await sandbox.kill()).toBe(true);
  });

  it('is told everything about a sandbox, as it is', async () => {
    const before = Date.now();
    const sandbox = await Sandbox.create('code-interpreter-v1', {
      ...connection,
      timeoutMs: 60_000,
      metadata: { who: 'ann', '': 'ünïcode & =' },
      allowInternetAccess: false,
      network: { allowPublicTraffic: false },
      lifecycle: { onTimeout: 'pause' },
    } as newest.SandboxOpts);
    const info = await sandbox.getInfo();
    expect(info).toEqual({
      sandboxId: sandbox.sandboxId,
      templateId: 'cellboxcodeinterp001',
      name: 'code-interpreter-v1',
      metadata: { who: 'ann', '': 'ünïcode & =' },
      startedAt: expect.any(Date) as Date,
      endAt: new Date(info.startedAt.getTime() + 60_000),
      state: 'running',
      cpuCount: CONFIG.cpuCount,
      memoryMB: CONFIG.memoryMB,
      envdVersion: '0.6.13',
      allowInternetAccess: false,
      network: { allowPublicTraffic: false },
      lifecycle: { onTimeout: 'pause', autoResume: false },
      volumeMounts: [],
      sandboxDomain: 'box.example:8443',
    });
    expect(info.startedAt.getTime()).toBeGreaterThanOrEqual(before);
    expect(info.startedAt.getTime()).toBeLessThanOrEqual(Date.now());
    expect(await Sandbox.getInfo(sandbox.sandboxId, connection)).toEqual(info);
    expect(await Sandbox.getFullInfo(sandbox.sandboxId, connection)).toEqual(info);
    await sandbox.pause();
    const paused = await sandbox.getInfo();
    expect(paused).toEqual({ ...info, state: 'paused', endAt: expect.any(Date) as Date });
    expect(Math.abs(paused.endAt.getTime() - Date.now())).toBeLessThan(5_000); // when it was paused
  });

  it('sets a time-out that is at once, part of a second, or longer than allowed', async () => {
    const sandbox = await Sandbox.create({ ...connection, timeoutMs: 60_000 });
    const before = Date.now();
    await sandbox.setTimeout(20_500); // in seconds on the wire, rounded up
    const after = Date.now();
    const shorter = (await sandbox.getInfo()).endAt.getTime();
    expect(shorter - before).toBeGreaterThanOrEqual(21_000);
    expect(shorter - after).toBeLessThanOrEqual(21_000);
    await sandbox.setTimeout(100 * 3_600_000);
    const { startedAt, endAt } = await sandbox.getInfo();
    expect(endAt.getTime() - startedAt.getTime()).toBe(CONFIG.maxTimeoutSeconds * 1000);
    await sandbox.setTimeout(0);
    const gone = sandbox.getInfo().then(() => sandbox.getInfo()); // its timer may be a turn late
    await expect(gone).rejects.toBeInstanceOf(SandboxNotFoundError);
    const tooLong = Sandbox.create({ ...connection, timeoutMs: 100 * 3_600_000 });
    await expect(tooLong).rejects.toThrow(/400: Timeout cannot be greater than 24 hours/);
  });

  it('lists by metadata and state, page by page', async () => {
    const ids: string[] = [];
    for (const who of ['ann & bob', 'ann & bob', 'cy']) {
      ids.push((await Sandbox.create({ ...connection, metadata: { who } })).sandboxId);
    }
    await Sandbox.pause(ids[0] ?? '', connection);
    const list = async (query: object) => {
      const pages = Sandbox.list({ ...connection, limit: 1, query });
      const found: string[] = [];
      while (pages.hasNext) found.push(...(await pages.nextItems()).map((each) => each.sandboxId));
      return found.sort();
    };
    expect(await list({})).toEqual([...ids].sort());
    expect(await list({ metadata: { who: 'ann & bob' } })).toEqual(ids.slice(0, 2).sort());
    expect(await list({ metadata: { who: 'ann & bob' }, state: ['running'] })).toEqual([ids[1]]);
    expect(await list({ state: ['running', 'paused'] })).toEqual([...ids].sort());
  });

  it.each([
    'a b',
    'a+b',
    'a%20b',
    '100%',
    'y&z=1',
    "!'()*~-._/:@,;?#[]",
    'ünïcödé 🧪',
    '"quoted"\\',
    '\t\n',
    '',
  ])('finds metadata whose key and value are %j, and only that', async (text) => {
    const metadata = { [text]: text, second: text };
    const { sandboxId } = await Sandbox.create({ ...connection, metadata });
    await Sandbox.create({ ...connection, metadata: { [`${text}.`]: text, second: `${text}.` } });
    const find = async (wanted: Record<string, string>) =>
      (await Sandbox.list({ ...connection, query: { metadata: wanted } }).nextItems()).map((each) => [
        each.sandboxId,
        each.metadata,
      ]);
    expect(await find({ [text]: text })).toEqual([[sandboxId, metadata]]);
    expect(await find(metadata)).toEqual([[sandboxId, metadata]]);
    expect(await find({ ...metadata, third: '' })).toEqual([]);
  });

  it('lists by time and template, in the order asked for', async () => {
    const first = await Sandbox.create(connection);
    const { startedAt } = await first.getInfo();
    let second = startedAt;
    while (second.getTime() === startedAt.getTime()) second = new Date(); // the next one is to start later
    const other = await Sandbox.create('code-interpreter-v1', connection);
    const list = async (options: object) =>
      (await Sandbox.list({ ...connection, ...options }).nextItems()).map((each) => each.sandboxId);
    expect(await list({})).toEqual([other.sandboxId, first.sandboxId]);
    expect(await list({ order: 'asc' })).toEqual([first.sandboxId, other.sandboxId]);
    expect(await list({ query: { startedAfter: startedAt } })).toEqual([other.sandboxId, first.sandboxId]);
    expect(await list({ query: { startedAfter: second } })).toEqual([other.sandboxId]);
    expect(await list({ query: { template: 'code-interpreter-v1' } })).toEqual([other.sandboxId]);
    expect(await list({ query: { template: 'cellboxbase0template' } })).toEqual([first.sandboxId]);
    expect(await list({ query: { template: 'no-such-template' } })).toEqual([]);
  });

  it('is told what is wrong with a page', async () => {
    await expect(Sandbox.list({ ...connection, limit: 101 }).nextItems()).rejects.toThrow(/400: limit: /);
    const forged = Sandbox.list({ ...connection, nextToken: 'forged!' }).nextItems();
    await expect(forged).rejects.toThrow(/400: nextToken: /);
  });

  it('pauses, and resumes by connecting', async () => {
    const sandbox = await Sandbox.create(connection);
    const connected = await Sandbox.connect(sandbox.sandboxId, connection);
    expect(connected.sandboxId).toBe(sandbox.sandboxId);
    expect(await sandbox.pause()).toBe(true);
    expect(await sandbox.pause()).toBe(false);
    expect((await sandbox.getInfo()).state).toBe('paused');
    await Sandbox.connect(sandbox.sandboxId, connection);
    expect((await sandbox.getInfo()).state).toBe('running');
  });

  it('tells a wrong key and a full service by the errors it has for them, at once', async () => {
    const wrong = { ...connection, apiKey: 'e2b_ff' };
    await expect(Sandbox.create(wrong)).rejects.toBeInstanceOf(AuthenticationError);
    for (let count = 0; count < CONFIG.maxSandboxes; count++) await Sandbox.create(connection);
    await expect(Sandbox.create(connection)).rejects.toBeInstanceOf(RateLimitError);
    expect(api.engine.started).toHaveLength(CONFIG.maxSandboxes);
  });

  it('tells a team that creates too often by the same error, or waits where there is time', async () => {
    const { id } = await api.teams.create('busy', { maxSandboxes: null, createsPerMinute: 1 });
    const { key } = await api.teams.createKey(id, 'test');
    const busy = { ...connection, apiKey: key };
    await Sandbox.create(busy);
    await expect(Sandbox.create(busy)).rejects.toBeInstanceOf(RateLimitError); // its time-out is shorter than the wait
    expect(api.engine.started).toHaveLength(1);
  });

  it('reads metrics', async () => {
    const sandbox = await Sandbox.create(connection);
    const metrics = () => Sandbox.getMetrics(sandbox.sandboxId, connection);
    await eventually(async () =>
      expect(await metrics()).toMatchObject([{ cpuCount: 2, memUsed: 52_428_800 }]),
    );
  });
});
