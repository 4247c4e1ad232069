import { AuthenticationError, RateLimitError, Sandbox, SandboxNotFoundError } from 'e2b';
import { ApiHarness, CONFIG, KEY } from './api-harness';

/** The newest official SDK, unmodified, against the control plane alone. */
describe('the e2b SDK', () => {
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
    expect(info).toMatchObject({
      sandboxId: sandbox.sandboxId,
      name: 'base',
      metadata: { who: 'ann' },
      state: 'running',
      cpuCount: 2,
      memoryMB: 2048,
      envdVersion: '0.6.13',
    });
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
    const metrics = await Sandbox.getMetrics(sandbox.sandboxId, connection);
    expect(metrics).toMatchObject([{ cpuCount: 2, memUsed: 52_428_800 }]);
  });
});
