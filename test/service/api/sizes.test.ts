import { Templates } from '../../../service/sandboxes/templates';
import { ApiHarness, CONFIG } from './api-harness';

let api: ApiHarness;

beforeEach(async () => {
  const templates = new Templates(CONFIG, {
    sizes: new Map([['tiny', { cpuCount: 1, memoryMB: 256, diskSizeMB: 512, pids: 64 }]]),
    templates: new Map([['code-interpreter-v1', { resources: { size: '4vcpu-8gb' } }]]),
    maximum: { cpuCount: 8, memoryMB: 16_384 },
  });
  // Ready for those who ask for nothing else.
  const warmer = { warm: () => Promise.resolve(), isWarm: () => true, drop: () => undefined, underWay: 0 };
  const sizes = new Map([['cellboxbase0template', { min: 0, target: 1, max: 1 }]]);
  api = await ApiHarness.open({}, { warmer, sizes, freeMemoryMB: () => 8192 }, templates);
});

afterEach(() => api.close());

async function create(body: object, path = '/v2/sandboxes'): Promise<string> {
  const answer = await api.ask('POST', path, { body: { templateID: 'base', ...body } });
  expect([answer.status, answer.text]).toEqual([201, expect.any(String)]);
  return (answer.body as { sandboxID: string }).sandboxID;
}

describe('a create that asks for a size', () => {
  it.each(['/sandboxes', '/v2/sandboxes'])('gets it from %s, and reads tell it', async (path) => {
    const id = await create({ size: 'tiny', openFiles: 500 }, path);
    const told = { cpuCount: 1, memoryMB: 256, diskSizeMB: 512 };
    expect(api.engine.machine(id).spec.resources).toEqual({ ...told, pids: 64, openFiles: 500 });
    expect((await api.ask('GET', `/sandboxes/${id}`)).body).toMatchObject(told);
    for (const list of ['/sandboxes', '/v2/sandboxes'])
      expect((await api.ask('GET', list)).body).toEqual([
        expect.objectContaining({ sandboxID: id, ...told }),
      ]);
    expect((await api.store.listSandboxes())[0]?.resources).toEqual({ ...told, pids: 64, openFiles: 500 });
  });

  it('gets it by the reference to the template, which lists find it by without', async () => {
    const id = await create({ templateID: 'code-interpreter-v1@apps-s-1vcpu-2gb' });
    expect(api.engine.machine(id).spec.resources).toMatchObject({ cpuCount: 1, memoryMB: 2048 });
    const found = await api.ask('GET', '/v2/sandboxes?template=code-interpreter-v1');
    expect(found.body).toEqual([
      expect.objectContaining({
        sandboxID: id,
        templateID: 'cellboxcodeinterp001',
        alias: 'code-interpreter-v1',
      }),
    ]);
  });

  it('gets what it asks for, and the rest as the template has it', async () => {
    const id = await create({ templateID: 'code-interpreter-v1', memoryMB: 1024, pids: null });
    expect(api.engine.machine(id).spec.resources).toMatchObject({ cpuCount: 4, memoryMB: 1024, pids: 1024 });
  });

  it.each<[object, string]>([
    [{ size: 'huge' }, 'size: "huge" is not known; there are tiny, 1vcpu-0.5gb'],
    [{ templateID: 'base@huge' }, 'size: "huge" is not known; there are tiny, 1vcpu-0.5gb'],
    [{ size: '8vcpu-32gb' }, 'size: "8vcpu-32gb" is more than a sandbox may have here'],
    [{ size: 'tiny', cpuCount: 1 }, 'size: can not be given together with cpuCount'],
    [{ cpuCount: 9 }, 'cpuCount: at most 8 CPUs'],
    [{ memoryMB: 20_000 }, 'memoryMB: at most 16384 MiB'],
    [{ pids: 5000 }, 'pids: at most 1024 processes'],
    [{ cpuCount: 0 }, 'cpuCount: '],
    [{ cpuCount: 1.5 }, 'cpuCount: '],
    [{ memoryMB: 127 }, 'memoryMB: '],
    [{ pids: 63 }, 'pids: '],
    [{ diskSizeMB: '1024' }, 'diskSizeMB: '],
    [{ size: '' }, 'size: '],
  ])('is refused with %j', async (body, message) => {
    const answer = await api.ask('POST', '/v2/sandboxes', { body: { templateID: 'base', ...body } });
    expect([answer.status, answer.body]).toEqual([
      400,
      { code: 400, message: expect.stringContaining(message) },
    ]);
    expect(api.engine.started).toEqual([]);
  });

  it('starts a machine of its own, and takes the one kept ready when it asks for what that has', async () => {
    api.sandboxes.pools?.open();
    const deadline = Date.now() + 5_000;
    while (api.sandboxes.pools?.list()[0]?.ready !== 1) {
      if (Date.now() > deadline) throw new Error('the pool is not full in time');
      await new Promise((resolve) => setImmediate(resolve));
    }
    const [pooled] = api.engine.started;
    expect(await create({ cpuCount: 1 })).not.toBe(pooled);
    expect(await create({ cpuCount: CONFIG.cpuCount, memoryMB: CONFIG.memoryMB })).toBe(pooled);
  });

  it('is another create for an Idempotency-Key than one that asks for none', async () => {
    const ask = (body: object) =>
      api.ask('POST', '/v2/sandboxes', {
        headers: { 'idempotency-key': 'k1' },
        body: { templateID: 'base', ...body },
      });
    const first = await ask({ size: 'tiny' });
    expect((await ask({ size: 'tiny' })).body).toEqual(first.body);
    expect((await ask({})).status).toBe(409);
  });
});

describe('what the service offers', () => {
  it('is told of each template', async () => {
    const { body } = await api.ask('GET', '/templates');
    expect(body).toEqual([
      expect.objectContaining({ cpuCount: 2, memoryMB: 2048, diskSizeMB: 10_240 }),
      expect.objectContaining({ cpuCount: 4, memoryMB: 8192, diskSizeMB: 40_960 }),
    ]);
    expect((await api.ask('GET', '/templates/code-interpreter-v1')).body).toMatchObject({
      builds: [{ cpuCount: 4, memoryMB: 8192, diskSizeMB: 40_960 }],
    });
  });

  it('is told by the native API, with every size', async () => {
    const { body } = await api.ask('GET', '/v1/info');
    const { sizes, templates, limits } = body as Record<string, unknown> & { sizes: Array<{ name: string }> };
    expect(sizes[0]).toEqual({
      name: 'tiny',
      cpu_count: 1,
      memory_bytes: 268_435_456,
      disk_bytes: 536_870_912,
      pids: 64,
      open_files: 16_384,
    });
    expect(sizes.map(({ name }) => name)).not.toContain('8vcpu-32gb');
    expect(templates).toEqual([
      expect.objectContaining({ alias: 'base', cpu_count: 2 }),
      expect.objectContaining({ alias: 'code-interpreter-v1', cpu_count: 4, memory_bytes: 8_589_934_592 }),
    ]);
    expect(limits).toMatchObject({ cpu_count: 2, max_cpu_count: 8, max_memory_bytes: 17_179_869_184 });
  });
});
