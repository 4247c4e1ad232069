// Output while the cell runs: lines as they are printed, charts as they are drawn.
//
//   node examples/streaming.mjs     (with the three E2B_* variables that `npm start` prints)
import { Sandbox } from '@e2b/code-interpreter';

const sandbox = await Sandbox.create();
try {
  // A new sandbox answers before its kernel is up; this cell waits for it, so that the times below are the cell's own.
  await sandbox.runCode('import matplotlib.pyplot');

  const started = Date.now();
  const tell = (text) => console.log(`${((Date.now() - started) / 1000).toFixed(1)} s  ${text}`);
  const execution = await sandbox.runCode(
    `
import matplotlib.pyplot as plt, sys, time
for step in range(1, 4):
    print(f'step {step} of 3')
    plt.plot([0, step], [0, step * step], label='growth')
    plt.title(f'After step {step}')
    plt.show()
    time.sleep(0.5)
print('done', file=sys.stderr)
`,
    {
      onStdout: (message) => tell(`stdout  ${message.line.trimEnd()}`),
      onStderr: (message) => tell(`stderr  ${message.line.trimEnd()}`),
      onResult: (result) =>
        tell(`chart   ${result.chart.title}: ${result.chart.type}, ${result.png.length} characters of PNG`),
      onError: (error) => tell(`error   ${error.name}: ${error.value}`),
    },
  );
  tell(`the cell has ended with ${execution.results.length} charts`);
} finally {
  await sandbox.kill();
}
