import * as newest from 'e2b';
import * as older from 'e2b-a';
import { ApiHarness, KEY } from './api-harness';

/** What of E2B is not here yet, by the official SDK: each method says so by its own error, and nothing is left behind. */
describe.each<[string, typeof newest]>([
  ['newest', newest],
  // The classes have the same methods; only private members make the types differ.
  ['2.45 era', older as unknown as typeof newest],
])('the e2b SDK, %s', (_generation, sdk) => {
  const { BuildError, Sandbox, Secret, SecretError, Template, TemplateError, Volume, VolumeError } = sdk;
  const { SandboxError } = sdk;
  let api: ApiHarness;
  let sandbox: newest.Sandbox;
  let connection: { apiUrl: string; apiKey: string; requestTimeoutMs: number };

  beforeEach(async () => {
    api = await ApiHarness.open();
    connection = { apiUrl: api.url, apiKey: KEY, requestTimeoutMs: 5_000 };
    sandbox = await Sandbox.create(connection);
  });

  afterEach(() => api.close());

  type Call = () => Promise<unknown>;
  const builds = 'Building templates';
  const tags = 'Template tags';
  const build = { templateId: 'x', buildId: '00000000-0000-4000-8000-000000000000' };
  const template = () => Template().fromImage('python:3').runCmd('true');

  it.each<[string, new (...args: never[]) => Error, string, Call]>([
    ['fork()', SandboxError, 'Forking a sandbox', () => sandbox.fork()],
    ['Sandbox.fork()', SandboxError, 'Forking a sandbox', () => Sandbox.fork(sandbox.sandboxId, connection)],
    ['createSnapshot()', SandboxError, 'Snapshots', () => sandbox.createSnapshot()],
    [
      'Sandbox.createSnapshot()',
      SandboxError,
      'Snapshots',
      () => Sandbox.createSnapshot(sandbox.sandboxId, connection),
    ],
    ['listSnapshots()', SandboxError, 'Snapshots', () => sandbox.listSnapshots().nextItems()],
    [
      'Sandbox.listSnapshots()',
      SandboxError,
      'Snapshots',
      () => Sandbox.listSnapshots(connection).nextItems(),
    ],
    [
      'Sandbox.deleteSnapshot()',
      SandboxError,
      'Deleting a template or snapshot',
      () => Sandbox.deleteSnapshot('team/name:v1', connection),
    ],
    ['Template.build()', BuildError, builds, () => Template.build(template(), 'my-template', connection)],
    [
      'Template.buildInBackground()',
      BuildError,
      builds,
      () => Template.buildInBackground(template(), 'my-template:v1', connection),
    ],
    ['Template.getBuildStatus()', BuildError, builds, () => Template.getBuildStatus(build, connection)],
    ['Template.getTags()', TemplateError, tags, () => Template.getTags('x', connection)],
    ['Template.assignTags()', TemplateError, tags, () => Template.assignTags('x:v1', ['v2'], connection)],
    ['Template.removeTags()', TemplateError, tags, () => Template.removeTags('x', ['v2'], connection)],
    ['Volume.create()', VolumeError, 'Volumes', () => Volume.create('name', connection)],
    ['Volume.connect()', VolumeError, 'Volumes', () => Volume.connect('id', connection)],
    ['Volume.getInfo()', VolumeError, 'Volumes', () => Volume.getInfo('id', connection)],
    ['Volume.list()', VolumeError, 'Volumes', () => Volume.list(connection)],
    ['Volume.destroy()', VolumeError, 'Volumes', () => Volume.destroy('id', connection)],
    ['Secret.create()', SecretError, 'Secrets', () => Secret.create('name', 'value', connection)],
    ['Secret.update()', SecretError, 'Secrets', () => Secret.update('name', 'value', connection)],
    ['Secret.getInfo()', SecretError, 'Secrets', () => Secret.getInfo('name', connection)],
    ['Secret.exists()', SecretError, 'Secrets', () => Secret.exists('name', connection)],
    ['Secret.list()', SecretError, 'Secrets', () => Secret.list(connection).nextItems()],
    ['Secret.destroy()', SecretError, 'Secrets', () => Secret.destroy('name', connection)],
  ])('is told that %s comes later, by %p: %s', async (_name, errorClass, feature, call) => {
    const error: unknown = await call().catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(errorClass);
    expect((error as Error).message).toBe(`501: ${feature} is not implemented yet`);
    expect([...api.engine.machines.keys()]).toEqual([sandbox.sandboxId]);
    expect((await sandbox.getInfo()).state).toBe('running');
  });

  it.each<[string, object]>([
    ['mcp', { mcp: { browserbase: { apiKey: 'x', geminiApiKey: 'y', projectId: 'z' } } }],
    ['iam', { iam: { tokens: { a: { audience: 'x', tokenType: 'JWT-SVID' } } } }],
    ['volumeMounts', { volumeMounts: { '/data': 'my-volume' } }],
  ])('is told at the create that %s comes later', async (name, options) => {
    const error: unknown = await Sandbox.create({ ...connection, ...options }).catch(
      (reason: unknown) => reason,
    );
    expect(error).toBeInstanceOf(SandboxError);
    expect((error as Error).message).toBe(`501: ${name} is not implemented yet`);
    expect([...api.engine.machines.keys()]).toEqual([sandbox.sandboxId]);
  });

  it('has no volume whose contents there could be, and no token for any', async () => {
    const volume = new Volume('id', 'name', 'token');
    for (const call of [
      () => volume.list('/', connection),
      () => volume.makeDir('/a', connection),
      () => volume.getInfo('/a', connection),
      () => volume.exists('/a', connection),
      () => volume.updateMetadata('/a', { mode: 0o600 }, connection),
      () => volume.readFile('/a', connection),
      () => volume.writeFile('/a', 'text', connection),
      () => volume.remove('/a', connection),
    ] as Call[]) {
      const error: unknown = await call().catch((reason: unknown) => reason);
      expect(error).toBeInstanceOf(Error);
      expect((error as Error).message).toContain('API key is missing');
    }
  });

  it('does by itself what needs no service: recipes, placeholders, addresses', async () => {
    const recipe = Template().fromImage('python:3').runCmd('true');
    expect(JSON.parse(await Template.toJSON(recipe))).toMatchObject({ fromImage: 'python:3' });
    expect(Template.toDockerfile(recipe)).toContain('FROM python:3');
    expect(String(Secret.fill('name'))).toContain('e2b.secrets.name');
    expect(sandbox.getMcpUrl()).toBe(`https://50005-${sandbox.sandboxId}.box.example:8443/mcp`);
  });

  it('knows which templates there are', async () => {
    expect(await Template.exists('base', connection)).toBe(true);
    expect(await Template.exists('no-such-template', connection)).toBe(false);
    expect(await Template.aliasExists('code-interpreter-v1', connection)).toBe(true);
  });
});
