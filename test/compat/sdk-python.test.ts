import { spawnSync } from 'node:child_process';
import path from 'node:path';
import { describeOnRuntimes } from '../describe-on-runtimes';
import { cleanEnv, prepared } from '../started-service';
import type { StartedService } from '../started-service';

const SUITES = path.join(__dirname, 'python');

/** Runs one pytest file with the official SDK of a generation; the whole report is the failure's text. */
function runPytest(
  runtime: 'local' | 'docker',
  generation: 'a' | 'b',
  file: string,
  service: StartedService,
): { ok: boolean; report: string } {
  const done = spawnSync(
    prepared().sdkPython[generation],
    ['-m', 'pytest', '-q', '-p', 'no:cacheprovider', file],
    {
      cwd: SUITES,
      env: cleanEnv({ ...service.exported, PYTHONDONTWRITEBYTECODE: '1', CELLBOX_TEST_RUNTIME: runtime }),
      encoding: 'utf8',
      timeout: 240_000,
    },
  );
  return { ok: done.status === 0, report: `${done.stdout}${done.stderr}` };
}

describeOnRuntimes('Python SDK on $runtime', {}, ({ runtime, service }) => {
  it.each([
    ['newest', 'b', 'test_sync.py'],
    ['newest', 'b', 'test_async.py'],
    ['newest', 'b', 'test_commands_sync.py'],
    ['newest', 'b', 'test_commands_async.py'],
    ['newest', 'b', 'test_files_sync.py'],
    ['newest', 'b', 'test_files_async.py'],
    ['newest', 'b', 'test_metrics.py'],
    ['newest', 'b', 'test_pause.py'],
    ['newest', 'b', 'test_network.py'],
    ['newest', 'b', 'test_ingress.py'],
    ['2.45 era', 'a', 'test_sync.py'],
    ['2.45 era', 'a', 'test_metrics.py'],
    ['2.45 era', 'a', 'test_pause.py'],
    ['2.45 era', 'a', 'test_network.py'],
    ['2.45 era', 'a', 'test_ingress.py'],
    ['2.45 era', 'a', 'test_async.py'],
    ['2.45 era', 'a', 'test_commands_sync.py'],
    ['2.45 era', 'a', 'test_commands_async.py'],
    ['2.45 era', 'a', 'test_files_sync.py'],
    ['2.45 era', 'a', 'test_files_async.py'],
  ] as const)(
    'passes with the %s SDK (%s): %s',
    (_name, generation, file) => {
      const { ok, report } = runPytest(runtime, generation, file, service);
      if (!ok) throw new Error(report);
    },
    260_000,
  );
});
