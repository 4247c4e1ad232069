import { performance } from 'node:perf_hooks';
import type { Section } from './figures';
import { endFleet, startFleet } from './fleet';
import { startService } from './service';
import type { ServiceOptions } from './service';
import { formatMs, markdownTable } from './statistics';

const FILE = '/home/user/kept.txt';
const ANSWER_DEADLINE_MS = 60_000;

/** A service of its own is stopped with live sandboxes and started again, as a deploy does. */
export async function measureRestart(options: ServiceOptions, sandboxes: number): Promise<Section> {
  const service = await startService(options);
  try {
    const fleet = await startFleet(service, sandboxes);
    await Promise.all(
      fleet.map((sandbox, n) =>
        sandbox.runCode(`import os; kept = ${n}; pid = os.getpid(); open('${FILE}', 'w').write('${n}')`),
      ),
    );
    const pids = await Promise.all(fleet.map(async (sandbox) => (await sandbox.runCode('pid')).text));
    const stopping = performance.now();
    await service.stop();
    const started = performance.now();
    await service.startAgain();
    const answering = performance.now();
    const lost = { kernels: 0, variables: 0, files: 0 };
    await Promise.all(
      fleet.map(async (sandbox, n) => {
        try {
          const code = `import os; print(os.getpid(), globals().get('kept'), open('${FILE}').read())`;
          const execution = await sandbox.runCode(code, { timeoutMs: ANSWER_DEADLINE_MS });
          const [pid, kept, file] = execution.logs.stdout.join('').trim().split(' ');
          if (pid !== pids[n]) lost.kernels++;
          if (kept !== String(n)) lost.variables++;
          if (file !== String(n)) lost.files++;
        } catch {
          // Whatever it was, nothing of this sandbox can be reached.
          for (const each of ['kernels', 'variables', 'files'] as const) lost[each]++;
        }
      }),
    );
    const all = performance.now();
    await endFleet(fleet);
    const times = {
      stopMs: started - stopping,
      answersMs: answering - started,
      allAnsweredMs: all - started,
    };
    return {
      name: 'restart',
      figures: {
        'restart | sandboxes': sandboxes,
        'restart | all answered ms': times.allAnsweredMs,
        'restart | answers ms': times.answersMs,
        'restart | lost': lost.kernels + lost.variables + lost.files,
      },
      data: { sandboxes, times, lost },
      lines: [
        markdownTable(
          [
            'in ms',
            'service has stopped',
            'answers again',
            'every sandbox has run a cell',
            'lost kernels / variables / files',
          ],
          [
            [
              `restart with ${sandboxes} live sandboxes`,
              formatMs(times.stopMs),
              formatMs(times.answersMs),
              formatMs(times.allAnsweredMs),
              `${lost.kernels} / ${lost.variables} / ${lost.files}`,
            ],
          ],
        ),
        '',
        'The last two times run from the start of the new process, `node start.js`, bundling included.',
        '',
      ],
    };
  } finally {
    await service.close();
  }
}
