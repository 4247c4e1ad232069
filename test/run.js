'use strict';

/**
 * `npm test`: sets up what it lacks, then runs everything and ends with `N passed, N failed` over all of it.
 * Without a container engine the docker cases are skipped, visibly; CELLBOX_REQUIRE_DOCKER=1 makes that a failure.
 */
const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { stripVTControlCharacters } = require('node:util');
const { installPackages } = require('../install.js');

const root = path.join(__dirname, '..');
/** A failed test that leaves something open keeps its runner from ending. */
const STEP_DEADLINE_MS = 45 * 60_000;
/** Of a failure's message, what is said again at the end; all of it stands where it happened. */
const REPEATED_LINES = 15;
const totals = { passed: 0, failed: 0, skipped: 0 };
const failures = [];

function step(name, command, args, { env = {}, count } = {}) {
  const started = Date.now();
  console.log(`\n=== ${name}`);
  const done = spawnSync(command, args, {
    cwd: root,
    stdio: 'inherit',
    env: { ...process.env, ...env },
    timeout: STEP_DEADLINE_MS,
    killSignal: 'SIGKILL',
  });
  const ok = done.status === 0;
  const counted = count?.();
  if (counted) {
    for (const key of Object.keys(totals)) totals[key] += counted[key];
    if (!ok && counted.failed === 0) totals.failed += 1; // the runner itself broke
  } else {
    totals[ok ? 'passed' : 'failed'] += 1;
  }
  if (!ok) failures.push(...(counted?.failures.length ? counted.failures : [name]));
  console.log(
    `=== ${name}: ${ok ? 'ok' : `failed (exit ${done.status ?? done.signal})`} in ${((Date.now() - started) / 1000).toFixed(0)} s`,
  );
  return ok;
}

function jest(project, scratch, extra = []) {
  const report = path.join(scratch, `${project}.json`);
  const args = [
    require.resolve('jest/bin/jest'),
    '--selectProjects',
    project,
    '--json',
    '--outputFile',
    report,
    '--ci',
    ...extra,
  ];
  step(`jest: ${project}`, process.execPath, args, {
    count: () => {
      if (!fs.existsSync(report)) return undefined;
      const result = JSON.parse(fs.readFileSync(report, 'utf8'));
      return {
        passed: result.numPassedTests,
        failed: result.numFailedTests + result.numRuntimeErrorTestSuites,
        skipped: result.numPendingTests,
        failures: jestFailures(result),
      };
    },
  });
}

/** Each failed test, or suite that could not run, by its name and the head of what it said. */
function jestFailures(report) {
  const described = (name, message) =>
    `${name}\n${stripVTControlCharacters(message).trim().split('\n').slice(0, REPEATED_LINES).join('\n')}`;
  return report.testResults.flatMap(({ name, message, status, assertionResults }) => {
    const file = path.relative(root, name);
    const failed = assertionResults.filter((result) => result.status === 'failed');
    if (failed.length === 0) return status === 'failed' ? [described(file, message)] : [];
    return failed.map((test) => described(`${file}: ${test.fullName}`, test.failureMessages.join('\n')));
  });
}

async function main() {
  installPackages({ full: true });
  await require('../build.js').build();
  const scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'cellbox-test-'));
  const only = process.argv.slice(2);
  const wanted = (name) => only.length === 0 || only.includes(name);
  try {
    if (wanted('check')) {
      step('types', 'npm', ['run', '--silent', 'types']);
      step('lint', 'npm', ['run', '--silent', 'lint']);
      step('format', 'npm', ['run', '--silent', 'format']);
    }
    if (wanted('unit')) jest('unit', scratch);
    if (wanted('prepare')) step('prepare runtimes', process.execPath, ['test/prepare.js']);
    if (wanted('python')) step('python package', process.execPath, ['test/python.js']);
    if (wanted('integration')) jest('integration', scratch, ['--runInBand']);
    // The SDKs keep their idle connections open for minutes, hence --forceExit.
    if (wanted('compat')) jest('compat', scratch, ['--runInBand', '--forceExit']);
    const pythonDir = { CELLBOX_PYTHON_DIR: path.join(root, '.cellbox', 'test') };
    if (wanted('guard'))
      step('speed: ratios', process.execPath, ['dist/bench.js', '--guard'], { env: pythonDir });
    if (wanted('chaos'))
      step('chaos', process.execPath, ['dist/chaos.js', '--minutes', '2', '--seed', '1'], { env: pythonDir });
  } finally {
    fs.rmSync(scratch, { recursive: true, force: true });
  }
  // The end of a long output is what is read first.
  for (const failure of failures) console.log(`\nFAILED ${failure}`);
  console.log(`\n${totals.passed} passed, ${totals.failed} failed, ${totals.skipped} skipped`);
  process.exitCode = totals.failed === 0 ? 0 : 1;
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
