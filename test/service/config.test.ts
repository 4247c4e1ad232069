import { describeSettings, loadConfig, SETTINGS } from '../../service/config';
import { ServiceError } from '../../service/errors';

function mistakesOf(env: NodeJS.ProcessEnv, argv: string[] = []): string[] {
  try {
    loadConfig(env, argv);
  } catch (error) {
    if (error instanceof ServiceError)
      return error.message
        .split('\n')
        .slice(1)
        .map((line) => line.trim());
    throw error;
  }
  return [];
}

describe('loadConfig', () => {
  it('has a default for everything that a first start needs', () => {
    expect(loadConfig({}, [])).toMatchObject({
      host: '127.0.0.1',
      port: 3210,
      runtime: 'auto',
      imageFlavor: 'slim',
    });
  });

  it('lets a flag win over a variable, in both spellings', () => {
    expect(loadConfig({ CELLBOX_PORT: '1' }, ['--port', '2']).port).toBe(2);
    expect(loadConfig({ CELLBOX_PORT: '1' }, ['--port=3', '--data-dir=/x=y'])).toMatchObject({
      port: 3,
      dataDir: '/x=y',
    });
  });

  it('takes an empty variable as unset', () => {
    expect(loadConfig({ CELLBOX_PORT: '' }, []).port).toBe(3210);
  });

  it('names every mistake at once', () => {
    const mistakes = mistakesOf(
      {
        CELLBOX_PORT: 'many',
        CELLBOX_RUNTIME: 'podman',
        CELLBOX_API_KEY: 'e2b_XYZ',
        CELLBOX_PROT: '1',
        CELLBOX_MEMORY_MB: '1.5',
      },
      ['--nope', '--host'],
    );
    expect(mistakes).toEqual([
      '--nope: unknown option (--help lists them)',
      '--host: needs a value',
      'CELLBOX_PROT: no such setting (--help lists them)',
      'CELLBOX_PORT="many": must be a number',
      'CELLBOX_RUNTIME="podman": must be auto, docker or local',
      'CELLBOX_API_KEY="e2b_XYZ": must be e2b_ followed by lower-case hex digits',
      'CELLBOX_MEMORY_MB="1.5": must be a whole number',
    ]);
  });

  it('takes a certificate only with its key, and not beside a local authority', () => {
    expect(mistakesOf({ CELLBOX_TLS_CERT: 'a.pem' })).toEqual([
      'CELLBOX_TLS_CERT and CELLBOX_TLS_KEY: give both or neither',
    ]);
    expect(mistakesOf({ CELLBOX_TLS: 'dev', CELLBOX_TLS_CERT: 'a', CELLBOX_TLS_KEY: 'b' })).toEqual([
      'CELLBOX_TLS=dev: makes its own certificate, so CELLBOX_TLS_CERT has no place beside it',
    ]);
    expect(mistakesOf({ CELLBOX_TLS_CERT: 'a', CELLBOX_TLS_KEY: 'b' })).toEqual([]);
  });

  it('takes no maximum below what a sandbox has without asking', () => {
    expect(mistakesOf({ CELLBOX_MAX_CPU_COUNT: '1', CELLBOX_MAX_PIDS: '500', CELLBOX_PIDS: '500' })).toEqual([
      'CELLBOX_MAX_CPU_COUNT=1: is less than CELLBOX_CPU_COUNT, which is 2',
    ]);
  });

  it('takes the URL of a PostgreSQL database, and repeats no secret in a mistake', () => {
    const urls = ['postgres://u:p@h:5432/d', 'postgresql://h/d', 'postgres://u@/d?host=/run/postgresql'];
    for (const url of urls) expect(mistakesOf({ CELLBOX_DATABASE_URL: url })).toEqual([]);
    expect(loadConfig({ CELLBOX_DATABASE_URL: '' }, []).databaseUrl).toBeUndefined();
    expect(
      mistakesOf({ CELLBOX_DATABASE_URL: 'mysql://u:hush@h/d', CELLBOX_ADMIN_TOKEN: 'hush hush' }).sort(),
    ).toEqual([
      expect.stringMatching(/^CELLBOX_ADMIN_TOKEN: must be /),
      'CELLBOX_DATABASE_URL: must be postgres://user:password@host:port/database',
    ]);
  });

  it.each([['127.0.0.1:9464'], ['localhost:0'], ['[::1]:9464'], ['0.0.0.0:65535']])(
    'takes %s as an address for metrics',
    (address) => expect(mistakesOf({ CELLBOX_METRICS_ADDRESS: address })).toEqual([]),
  );

  it.each([['9464'], [':9464'], ['::1:9464'], ['localhost'], ['http://localhost:9464'], ['a:b']])(
    'takes %s as no address for metrics',
    (address) =>
      expect(mistakesOf({ CELLBOX_METRICS_ADDRESS: address })).toEqual([
        `CELLBOX_METRICS_ADDRESS="${address}": must be host:port`,
      ]),
  );

  it("takes Node's own extra authorities for image builds unless told otherwise", () => {
    expect(loadConfig({ NODE_EXTRA_CA_CERTS: '/a.pem' }, []).extraCa).toBe('/a.pem');
    expect(loadConfig({ NODE_EXTRA_CA_CERTS: '/a.pem', CELLBOX_EXTRA_CA: '/b.pem' }, []).extraCa).toBe(
      '/b.pem',
    );
  });
});

describe('describeSettings', () => {
  it('shows each setting with its flag', () => {
    const text = describeSettings();
    for (const each of Object.values(SETTINGS)) expect(text).toContain(each.env);
    expect(text).toContain('--image-flavor');
  });
});
