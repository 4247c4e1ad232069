import { describeOnRuntimes } from '../describe-on-runtimes';
import { prepared } from '../started-service';
import type { Client } from './client';

/** One line of each kind per language, as its users would write it. */
interface Cases {
  stdout: [code: string, printed: string];
  stderr?: [code: string, printed: string];
  result?: [code: string, text: string];
  fails: [code: string, name: RegExp, value: RegExp];
  set: string;
  get: [code: string, shows: string];
  cwd: string;
  env: (name: string) => string;
}

const LANGUAGES: Record<string, Cases> = {
  python: {
    stdout: ['print("Hello, World!")', 'Hello, World!\n'],
    stderr: ['import sys; print("oops", file=sys.stderr)', 'oops\n'],
    result: ['1 + 1', '2'],
    fails: ['1 / 0', /^ZeroDivisionError$/, /division by zero/],
    set: 'x = 41',
    get: ['print(x + 1)', '42'],
    cwd: 'import os; print(os.getcwd())',
    env: (name) => `import os; print(os.environ.get("${name}", "default"))`,
  },
  javascript: {
    stdout: ['console.log("Hello, World!")', 'Hello, World!\n'],
    stderr: ['console.error("oops")', 'oops\n'],
    result: ['1 + 1', '2'],
    fails: ['throw new TypeError("bad")', /TypeError/, /bad/],
    set: 'let x = 41',
    get: ['console.log(x + 1)', '42'],
    cwd: 'console.log(process.cwd())',
    env: (name) => `console.log(process.env["${name}"] ?? "default")`,
  },
  typescript: {
    stdout: ['const hello: string = "Hello, World!"; console.log(hello)', 'Hello, World!\n'],
    result: ['(1 as number) + 1', '2'],
    fails: ['throw new TypeError("bad")', /TypeError/, /bad/],
    set: 'let y: number = 41',
    get: ['console.log(y + 1)', '42'],
    cwd: 'console.log(process.cwd())',
    env: (name) => `console.log(process.env["${name}"] ?? "default")`,
  },
  bash: {
    stdout: ['echo "Hello, World!"', 'Hello, World!\n'],
    fails: ['false', /^$/, /^1$/],
    set: 'x=41',
    get: ['echo $((x + 1))', '42'],
    cwd: 'pwd',
    env: (name) => `echo "\${${name}:-default}"`,
  },
  r: {
    stdout: ['print("Hello, World!")', '[1] "Hello, World!"\n'],
    result: ['1 + 1', '[1] 2'],
    fails: ['stop("bad")', /./, /bad/],
    set: 'x <- 41',
    get: ['cat(x + 1)', '42'],
    cwd: 'cat(getwd())',
    env: (name) => `cat(Sys.getenv("${name}", "default"))`,
  },
  java: {
    stdout: ['System.out.println("Hello, World!");', 'Hello, World!\n'],
    result: ['1 + 1', '2'],
    fails: ['throw new IllegalStateException("bad");', /^EvalException$/, /^bad$/],
    set: 'int x = 41;',
    get: ['System.out.println(x + 1);', '42'],
    cwd: 'System.out.println(System.getProperty("user.dir"));',
    env: (name) => `System.out.println(System.getProperty("${name}", "default"));`,
  },
};

function declare(client: Client, languages: string[]): void {
  let sandboxId: string;

  beforeAll(async () => {
    sandboxId = await client.create({ envVars: { TEST_ENV_VAR: 'supertest' } });
  }, 300_000);

  it.each(languages)(
    '%s has output, result, error, state, cwd and environment',
    async (language) => {
      const cases = LANGUAGES[language]!;
      const inDefault = { language };
      expect(await client.stdout(sandboxId, cases.stdout[0], inDefault)).toBe(cases.stdout[1]);
      if (cases.stderr) {
        const lines = await client.run(sandboxId, cases.stderr[0], inDefault);
        expect(
          lines
            .filter((line) => line.type === 'stderr')
            .map((line) => line.text)
            .join(''),
        ).toBe(cases.stderr[1]);
      }
      if (cases.result)
        expect((await client.text(sandboxId, cases.result[0], inDefault))?.trim()).toBe(cases.result[1]);
      const failed = await client.run(sandboxId, cases.fails[0], inDefault);
      const error = failed.find((line) => line.type === 'error');
      expect(error?.name).toMatch(cases.fails[1]);
      expect(error?.value).toMatch(cases.fails[2]);
      expect(failed.filter((line) => line.type === 'error')).toHaveLength(1);
      expect(failed.at(-1)).toEqual({ type: 'end_of_execution' });
      await client.stdout(sandboxId, cases.set, inDefault);
      expect((await client.stdout(sandboxId, cases.get[0], inDefault)).trim()).toBe(cases.get[1]);
      expect((await client.stdout(sandboxId, cases.cwd, inDefault)).trim()).toBe('/home/user');
      expect((await client.stdout(sandboxId, cases.env('TEST_ENV_VAR'), inDefault)).trim()).toBe('supertest');
      const once = { ...inDefault, env_vars: { FOO: `b'a"r`, TEST_ENV_VAR: 'other' } };
      expect((await client.stdout(sandboxId, cases.env('FOO'), once)).trim()).toBe(`b'a"r`);
      expect((await client.stdout(sandboxId, cases.env('TEST_ENV_VAR'), once)).trim()).toBe('other');
      expect((await client.stdout(sandboxId, cases.env('FOO'), inDefault)).trim()).toBe('default');
      expect((await client.stdout(sandboxId, cases.env('TEST_ENV_VAR'), inDefault)).trim()).toBe('supertest');

      const created = await client.port(sandboxId, 49999, '/contexts', {
        method: 'POST',
        body: JSON.stringify({ language, cwd: '/tmp' }),
      });
      expect(created.status).toBe(200);
      const context = (await created.json()) as { id: string; language: string; cwd: string };
      expect(context).toEqual({ id: expect.any(String) as string, language, cwd: '/tmp' });
      const own = { context_id: context.id };
      expect((await client.stdout(sandboxId, cases.cwd, own)).trim()).toBe('/tmp');
      const restarted = await client.port(sandboxId, 49999, `/contexts/${context.id}/restart`, {
        method: 'POST',
      });
      expect(restarted.status).toBe(200);
      expect((await client.stdout(sandboxId, cases.cwd, own)).trim()).toBe('/tmp');
      expect((await client.stdout(sandboxId, cases.env('TEST_ENV_VAR'), own)).trim()).toBe('supertest');
      const removed = await client.port(sandboxId, 49999, `/contexts/${context.id}`, { method: 'DELETE' });
      expect(removed.status).toBe(200);
    },
    180_000,
  );

  // Kernels of some languages take requests before they can answer them; one lost request is a mute context.
  const eager = languages.includes('java') ? it : it.skip;
  eager(
    'answers the first request of every Java kernel',
    async () => {
      for (let started = 0; started < 8; started++) {
        const created = await client.port(sandboxId, 49999, '/contexts', {
          method: 'POST',
          body: '{"language":"java"}',
        });
        const { id } = (await created.json()) as { id: string };
        expect(await client.stdout(sandboxId, 'System.out.print(1);', { context_id: id })).toBe('1');
        await client.port(sandboxId, 49999, `/contexts/${id}`, { method: 'DELETE' });
      }
    },
    300_000,
  );

  it('tells what a language lacks', async () => {
    const info = (await (await client.api('GET', '/v1/info')).json()) as {
      languages: Array<{ name: string; available: boolean; missing?: string }>;
    };
    expect(info.languages.map((each) => each.name)).toEqual(expect.arrayContaining(Object.keys(LANGUAGES)));
    for (const name of Object.keys(LANGUAGES)) {
      if (languages.includes(name)) continue;
      const response = await client.execute(sandboxId, { code: '1', language: name });
      expect(response.status).toBe(500);
      expect(await response.text()).toMatch(/^Failed to create context: /);
    }
  });
}

describeOnRuntimes('languages on local', { only: 'local' }, ({ client }) =>
  declare(client, ['python', 'javascript', 'typescript', 'bash']),
);

describeOnRuntimes(
  'languages on docker, full image',
  { only: 'docker', env: { CELLBOX_IMAGE_FLAVOR: 'full', CELLBOX_IMAGE: prepared().images.full ?? '' } },
  ({ client }) => declare(client, Object.keys(LANGUAGES)),
);
