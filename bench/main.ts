import { execFile } from 'node:child_process';
import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { parseArgs, promisify } from 'node:util';
import { loadConfig } from '../service/config';
import type { Config } from '../service/config';
import { prepareImage } from '../service/prepare';
import { preparePython } from '../service/runtime/local-python';
import { startCellbox } from './cellbox';
import type { Cellbox } from './cellbox';
import { computerTable, measureComputer } from './computer';
import type { ComputerRow } from './computer';
import { measureCreates } from './creates';
import type { CreateRow } from './creates';
import { startDockerRival } from './docker-rival';
import { dockerFloor, localFloor } from './machine-floor';
import { startRawCopy } from './raw-copy';
import { startRawZeroMq } from './raw-zeromq';
import { SETUP, scenarios } from './scenarios';
import type { Scenario } from './scenarios';
import { formatSummary, markdownTable, summarise } from './statistics';
import type { Summary } from './statistics';
import { startStockGateway } from './stock-gateway';
import type { Subject } from './subject';

/*
 * `npm run bench`: the same code through Cellbox, a stock kernel gateway and bare ZeroMQ, on the same machine in the
 * same minutes. Rounds are interleaved, so that a busy moment of the machine hits all of them alike.
 */

const HELP = `Usage: npm run bench -- [--quick] [--runtime local|docker] [--python <path>] [--only <scenario>]

  --quick      few rounds, for CI: proves that everything works, the numbers are coarse
  --runtime    where Cellbox runs its sandboxes (default local)
  --python     interpreter for the stock gateway and for raw ZeroMQ; default: the local runtime's own environment,
               which is made where \`npm start\` makes it
  --only       a scenario by name, may be given several times; \`create\` is all rows about new
               sandboxes, \`computer\` those about commands and files`;

interface Measured {
  scenario: string;
  /** Milliseconds by subject's name, in the order measured. */
  samples: Record<string, number[]>;
}

/** The name of all rows about new sandboxes: they are measured together. */
const CREATES = 'create';
/** All rows about commands and files. */
const COMPUTER = 'computer';

/** dist/bench.js lies one below the root. */
const ROOT = path.join(__dirname, '..');

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      quick: { type: 'boolean', default: false },
      runtime: { type: 'string', default: 'local' },
      python: { type: 'string' },
      only: { type: 'string', multiple: true },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) {
    console.log(HELP);
    return;
  }
  const { runtime } = values;
  if (runtime !== 'local' && runtime !== 'docker')
    throw new Error(`--runtime ${runtime}: must be local or docker`);
  const all = scenarios(values.quick);
  const names: string[] = [...all.map((each) => each.name), COMPUTER, CREATES];
  const isChosen = (name: string): boolean => values.only?.includes(name) ?? true;
  const chosen = all.filter((each) => isChosen(each.name));
  const unknown = values.only?.filter((name) => !names.includes(name)) ?? [];
  if (unknown.length > 0) {
    throw new Error(`--only ${unknown.join(', ')}: must be of ${names.join(', ')}`);
  }

  const config = loadConfig(process.env, []);
  const pythonDir = config.pythonDir ?? config.dataDir;
  const python =
    values.python ??
    (
      await preparePython({
        dataDir: pythonDir,
        kernelImageDir: path.join(ROOT, 'kernel-image'),
        onProgress: (text) => console.error(text),
      })
    ).python;

  const subjects: Subject[] = [];
  let cellbox: Cellbox | undefined;
  const endAll = async (): Promise<void> => {
    for (const subject of subjects.splice(0).reverse()) {
      await subject.close().catch((error: unknown) => {
        console.error(`ending ${subject.name}: ${String(error)}`);
        process.exitCode = 1;
      });
    }
  };
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.once(signal, () => void endAll().then(() => process.exit(130)));
  }
  try {
    const starts: [string, () => Promise<Subject>][] = [
      [
        'Cellbox',
        async () => (cellbox = await startCellbox({ root: ROOT, runtime, pythonDir, startSeconds: 1800 })),
      ],
      ['stock gateway', () => startStockGateway(python)],
      ['raw ZeroMQ', () => startRawZeroMq(ROOT, python)],
    ];
    for (const [name, start] of starts) {
      console.error(`starting ${name}`);
      subjects.push(await start());
    }
    for (const subject of subjects) await subject.run(SETUP);
    const measured: Measured[] = [];
    for (const scenario of chosen) {
      console.error(`measuring ${scenario.name}: ${scenario.warmup} + ${scenario.rounds} rounds`);
      measured.push(await measure(scenario, subjects));
    }
    let computer: ComputerRow[] | undefined;
    if (isChosen(COMPUTER) && cellbox !== undefined) {
      console.error(`measuring ${COMPUTER}`);
      computer = await measureWithRivals(cellbox, runtime === 'docker' ? config : undefined, values.quick);
    }
    let creates: Creates | undefined;
    if (isChosen(CREATES) && cellbox !== undefined) {
      console.error(`measuring ${CREATES}: some minutes, most of them waiting for the pool`);
      const floor = runtime === 'docker' ? await dockerFloor(config) : await localFloor(python);
      try {
        creates = { rows: await measureCreates(cellbox, floor, values.quick), floor: floor.description };
      } finally {
        await floor.close();
      }
    }
    await report(measured, computer, creates, subjects, { quick: values.quick, runtime, python });
  } finally {
    await endAll();
  }
}

async function measure(scenario: Scenario, subjects: readonly Subject[]): Promise<Measured> {
  const samples = Object.fromEntries(subjects.map((subject): [string, number[]] => [subject.name, []]));
  for (let round = 0; round < scenario.warmup + scenario.rounds; round++) {
    for (let turn = 0; turn < subjects.length; turn++) {
      // Whoever comes first in a round may find caches cold, so they take turns.
      const subject = subjects[(turn + round) % subjects.length];
      if (subject === undefined) continue;
      const sample =
        scenario.where === 'same context'
          ? await subject.run(scenario.code)
          : await subject.newContext(scenario.code);
      const wrong = scenario.check(sample);
      if (wrong !== undefined) throw new Error(`${scenario.name} through ${subject.name}: ${wrong}`);
      if (round >= scenario.warmup) samples[subject.name]?.push(sample.ms);
    }
  }
  return { scenario: scenario.name, samples };
}

/** `docker`: with what a kernel image is found, where the engine's own command is a rival. */
async function measureWithRivals(
  { sandbox }: Cellbox,
  docker: Config | undefined,
  quick: boolean,
): Promise<ComputerRow[]> {
  const copy = await startRawCopy();
  try {
    const rival =
      docker === undefined ? undefined : await startDockerRival(await prepareImage(docker, () => undefined)); // the service has built it
    try {
      return await measureComputer(sandbox, copy, rival, quick);
    } finally {
      await rival?.close();
    }
  } finally {
    await copy.close();
  }
}

interface Creates {
  rows: readonly CreateRow[];
  /** What the floor is. */
  floor: string;
}

/** The rows of creates, each beside what starting a machine costs without any service. */
function createsTable({ rows, floor }: Creates): string[] {
  const cell = (values: readonly number[]): string => formatSummary(summarise(values));
  const table = markdownTable(
    ['p50 / p95 in ms', 'n', 'Cellbox', 'floor', '÷ floor'],
    rows.map((row) => [
      row.name,
      String(row.samples.length),
      cell(row.samples),
      cell(row.floor),
      `${(summarise(row.samples).p50 / summarise(row.floor).p50).toFixed(2)}×`,
    ]),
  );
  return [
    table,
    '',
    `Floor: ${floor}, without any service; until its agent has connected, and for results until a kernel has answered.`,
    '',
  ];
}

async function report(
  measured: readonly Measured[],
  computer: readonly ComputerRow[] | undefined,
  creates: Creates | undefined,
  subjects: readonly Subject[],
  settings: { quick: boolean; runtime: string; python: string },
): Promise<void> {
  const { stdout } = await promisify(execFile)(settings.python, ['--version'], { timeout: 10_000 });
  const machine = {
    cpus: os.cpus().length,
    cpu: os.cpus()[0]?.model.trim() ?? 'unknown',
    memoryMB: Math.round(os.totalmem() / 1024 / 1024),
    system: `${os.type()} ${os.release()}`,
    node: process.version,
    python: stdout.trim(),
    load: os.loadavg().map((load) => Number(load.toFixed(2))),
  };
  const [ours, stock, floor] = subjects.map((subject) => subject.name);
  const results = measured.map(({ scenario, samples }) => {
    const summaries: Record<string, Summary> = Object.fromEntries(
      Object.entries(samples).map(([name, values]) => [name, summarise(values)]),
    );
    const p50 = (name: string | undefined): number => summaries[name ?? '']?.p50 ?? Number.NaN;
    return {
      scenario,
      summaries,
      ratioToStock: p50(ours) / p50(stock),
      ratioToFloor: p50(ours) / p50(floor),
      samples,
    };
  });

  const cell = (summary: Summary | undefined): string =>
    summary === undefined ? '–' : formatSummary(summary);
  const table = markdownTable(
    ['p50 / p95 in ms', 'n', ...subjects.map((subject) => subject.name), '÷ stock', '÷ floor'],
    results.map(({ scenario, summaries, ratioToStock, ratioToFloor }) => [
      scenario,
      String(summaries[ours ?? '']?.n ?? 0),
      ...subjects.map((subject) => cell(summaries[subject.name])),
      `${ratioToStock.toFixed(2)}×`,
      `${ratioToFloor.toFixed(2)}×`,
    ]),
  );
  const text = [
    `# Bench${settings.quick ? ' (quick: coarse numbers)' : ''}`,
    '',
    ...(measured.length > 0 ? [table, ''] : []),
    ...(computer === undefined ? [] : computerTable(computer)),
    ...(creates === undefined ? [] : createsTable(creates)),
    'Ratios compare the p50. Every answer was checked; where 100,000 lines were printed, they arrived complete and in order.',
    '',
    ...subjects.map((subject) => `- ${subject.name}: ${subject.description}`),
    ...(settings.runtime === 'docker'
      ? ['- Cellbox ran in containers with the image’s Python; the other two on the host with its own.']
      : []),
    `- ${machine.cpus} × ${machine.cpu}, ${machine.memoryMB} MiB, ${machine.system}, Node ${machine.node}, ${machine.python}, load ${machine.load.join(' ')}`,
    '',
  ].join('\n');

  const directory = path.join(ROOT, 'bench-results');
  await fs.mkdir(directory, { recursive: true });
  const file = path.join(directory, `bench-${new Date().toISOString().replace(/[:.]/g, '-')}`);
  const { python: _python, ...kept } = settings; // a path of this machine tells the reader nothing
  await fs.writeFile(
    `${file}.json`,
    `${JSON.stringify({ settings: kept, machine, results, computer, creates }, null, 1)}\n`,
  );
  await fs.writeFile(`${file}.md`, text);
  console.log(text);
  console.log(`Written to ${path.relative(process.cwd(), file)}.json and .md`);
}

main().then(
  // The SDK and the gateway's client keep idle connections open; nothing of ours is left.
  () => process.exit(process.exitCode ?? 0),
  (error: unknown) => {
    console.error(error instanceof Error ? error.message : error);
    process.exit(1);
  },
);
