import { spawn } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';
import { ApiHarness, KEY } from '../service/api/api-harness';
import { cleanEnv, prepared } from '../started-service';

/** What needs no machine runs over machines in memory: a create takes no time there. */
describe.each([
  ['newest', 'b'],
  ['2.45 era', 'a'],
] as const)('the control plane by the Python SDK, %s', (_name, generation) => {
  let api: ApiHarness;

  beforeEach(async () => {
    api = await ApiHarness.open();
  });

  afterEach(() => api.close());

  it.each(['test_lists.py', 'test_later.py'])(
    'passes: %s',
    async (file) => {
      const child = spawn(
        prepared().sdkPython[generation],
        ['-m', 'pytest', '-q', '-p', 'no:cacheprovider', file],
        {
          cwd: path.join(__dirname, 'python'),
          env: cleanEnv({ E2B_API_URL: api.url, E2B_API_KEY: KEY, PYTHONDONTWRITEBYTECODE: '1' }),
          stdio: ['ignore', 'pipe', 'pipe'],
          timeout: 120_000,
        },
      );
      let report = '';
      for (const stream of [child.stdout, child.stderr])
        stream.on('data', (chunk) => (report += String(chunk)));
      const [code] = (await once(child, 'close')) as [number | null];
      if (code !== 0) throw new Error(report);
    },
    130_000,
  );
});
