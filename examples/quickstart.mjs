// One analysis from a CSV file to a chart, with the E2B SDK as it comes from npm.
//
//   npm install @e2b/code-interpreter
//   export E2B_API_URL=… E2B_SANDBOX_URL=… E2B_API_KEY=…     (printed by `npm start`)
//   node examples/quickstart.mjs
import { Sandbox } from '@e2b/code-interpreter';

const CSV = 'city,year,sales\nOslo,2025,10\nOslo,2026,14\nBergen,2025,7\nBergen,2026,9\n';

const sandbox = await Sandbox.create();
try {
  console.log(`sandbox ${sandbox.sandboxId}`);

  await sandbox.files.write('/home/user/sales.csv', CSV);
  const execution = await sandbox.runCode(`
import pandas as pd, matplotlib.pyplot as plt
df = pd.read_csv('sales.csv')
totals = df.groupby('city', as_index=False).sales.sum()
plt.bar(totals.city, totals.sales)
plt.title('Sales by city')
plt.show()
totals
`);
  if (execution.error) throw new Error(execution.error.traceback);

  const chart = execution.results.find((result) => result.chart);
  const png = Buffer.from(chart.png, 'base64');
  console.log(`chart "${chart.chart.title}" (${chart.chart.type}), also as a PNG of ${png.length} bytes`);
  for (const bar of chart.chart.elements) console.log(`  ${bar.label}: ${bar.value}`);

  const table = execution.results.find((result) => result.isMainResult);
  console.log(`table ${JSON.stringify(table.data)}`);

  // Variables are still there in the next cell: it is the same kernel.
  const best = await sandbox.runCode('print(totals.loc[totals.sales.idxmax(), "city"])');
  console.log(`best city: ${best.logs.stdout.join('').trim()}`);
} finally {
  await sandbox.kill();
}
