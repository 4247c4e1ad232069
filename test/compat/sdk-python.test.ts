import { spawnSync } from 'node:child_process';
import path from 'node:path';
import { cleanEnv, prepared, runtimesUnderTest, startService } from '../started-service';
import type { StartedService } from '../started-service';

const SUITES = path.join(__dirname, 'python');

/** Runs one pytest file with the official SDK of a generation; the whole report is the failure's text. */
function runPytest(
  generation: 'a' | 'b',
  file: string,
  service: StartedService,
): { ok: boolean; report: string } {
  const done = spawnSync(
    prepared().sdkPython[generation],
    ['-m', 'pytest', '-q', '-p', 'no:cacheprovider', file],
    {
      cwd: SUITES,
      env: cleanEnv({ ...service.exported, PYTHONDONTWRITEBYTECODE: '1' }),
      encoding: 'utf8',
      timeout: 240_000,
    },
  );
  return { ok: done.status === 0, report: `${done.stdout}${done.stderr}` };
}

for (const { runtime, skip } of runtimesUnderTest()) {
  const describeRuntime = skip === undefined ? describe : describe.skip;
  describeRuntime(`Python SDK on ${runtime}${skip === undefined ? '' : ` (skipped: ${skip})`}`, () => {
    let service: StartedService;

    beforeAll(async () => {
      service = await startService({ runtime });
    }, 180_000);

    afterAll(async () => {
      await service?.stop();
    }, 60_000);

    it.each([
      ['newest', 'sync', 'b', 'test_sync.py'],
      ['newest', 'async', 'b', 'test_async.py'],
      ['2.45 era', 'sync', 'a', 'test_sync.py'],
      ['2.45 era', 'async', 'a', 'test_async.py'],
    ] as const)(
      'passes with the %s SDK, %s',
      (_name, _style, generation, file) => {
        const { ok, report } = runPytest(generation, file, service);
        if (!ok) throw new Error(report);
      },
      260_000,
    );
  });
}
