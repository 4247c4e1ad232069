import type { IncomingMessage } from 'node:http';
import { performance } from 'node:perf_hooks';
import type { Sandbox } from '@e2b/code-interpreter';
import { figuresOf } from './figures';
import type { Figures, Section } from './figures';
import { endFleet, startFleet } from './fleet';
import { usageCells, usageFigures, USAGE_HEADER } from './limits';
import { openStream } from './native';
import { isChart, LINES_CODE, LINES_EXPECTED } from './scenarios';
import { EXECUTION_TIMEOUT_MS } from './sdk-subject';
import type { MeasuredService, Usage } from './service';
import { readSlowly } from './slow-reader';
import { formatMs, formatSummary, markdownTable, summarise } from './statistics';
import { within } from './subject';
import type { Subject } from './subject';

const BIG_BYTES = 50_000_000;
const BIG_CODE = `print("x" * ${BIG_BYTES - 1})`;
/** Small pictures: their number is what is measured. */
const CHARTS_SETUP = 'import matplotlib.pyplot as plt\nplt.rcParams["figure.figsize"] = (2, 1.5)';
const NEIGHBOUR_ROUNDS = 40;
const SLOW_BYTES_PER_SECOND = 64 * 1024;

interface OutputRow {
  name: string;
  samples: number[];
  floor: number[];
  usage: Usage;
}

/**
 * Outputs that are large or many, and what the service needs for them. `floor`: the same kernel without any server.
 * Each way checks that everything arrived.
 */
export async function measureOutputs(
  service: MeasuredService,
  floor: Subject,
  quick: boolean,
): Promise<Section> {
  const fleet = await startFleet(service, 2);
  const [busy, neighbour] = fleet as [Sandbox, Sandbox];
  const rounds = quick ? 1 : 3;
  const charts = quick ? 50 : 1000;
  const chartsCode = `for i in range(${charts}):\n    plt.plot([i, 4, 9, 16])\n    plt.show()`;
  try {
    await busy.runCode(CHARTS_SETUP);
    await floor.run(CHARTS_SETUP);
    const rows: OutputRow[] = [];
    const measure = async (
      name: string,
      n: number,
      ours: () => Promise<unknown>,
      theirs?: () => Promise<number>,
    ): Promise<void> => {
      console.error(`measuring ${name}: ${n} rounds`);
      const row: OutputRow = { name, samples: [], floor: [], usage: await peakless(service) };
      for (let round = 0; round < n; round++) {
        if (theirs !== undefined) row.floor.push(await theirs());
        const started = performance.now();
        await ours();
        row.samples.push(performance.now() - started);
      }
      row.usage = await service.usage();
      rows.push(row);
    };
    const floorTime = async (
      code: string,
      isComplete: (sample: { stdout: string; types: string[] }) => boolean,
    ) => {
      const sample = await floor.run(code);
      if (!isComplete(sample)) throw new Error('the floor lacks some of an output');
      return sample.ms;
    };
    const bigFloor = (): Promise<number> => floorTime(BIG_CODE, ({ stdout }) => stdout.length === BIG_BYTES);

    await measure(
      '100,000 lines (SDK)',
      rounds,
      async () => mustBe(await stdoutOf(busy, LINES_CODE), LINES_EXPECTED, 'the lines'),
      () => floorTime(LINES_CODE, ({ stdout }) => stdout === LINES_EXPECTED),
    );
    await measure(
      'one 50 MB output (SDK)',
      rounds,
      async () => mustBe((await stdoutOf(busy, BIG_CODE)).length, BIG_BYTES, 'the output'),
      bigFloor,
    );
    await measure(
      'one 50 MB output (native API)',
      rounds,
      async () =>
        mustBe(
          await textLength(await openStream(service, busy.sandboxId, BIG_CODE, 'native')),
          BIG_BYTES,
          'the output',
        ),
      bigFloor,
    );
    await measure(
      `${charts.toLocaleString('en')} charts (SDK)`,
      1,
      async () => {
        const { results } = await busy.runCode(chartsCode, { timeoutMs: EXECUTION_TIMEOUT_MS });
        mustBe(results.filter(isChart).length, charts, 'the charts');
      },
      () =>
        floorTime(chartsCode, ({ types }) => types.filter((type) => type === 'image/png').length === charts),
    );
    const slow = await measureSlowReader(service, busy, neighbour, quick);
    return section(rows, slow);
  } finally {
    await endFleet(fleet);
  }
}

interface SlowReader {
  alone: number[];
  beside: number[];
  usage: Usage;
  /** Bytes that the slow reader had taken when the neighbour's last round was over, and in the end. */
  takenBytes: number;
  totalBytes: number;
}

/** `1+1` in one sandbox while somebody takes the output of another one at 64 KiB a second. */
async function measureSlowReader(
  service: MeasuredService,
  busy: Sandbox,
  neighbour: Sandbox,
  quick: boolean,
): Promise<SlowReader> {
  console.error('measuring a slow reader');
  const rounds = quick ? 10 : NEIGHBOUR_ROUNDS;
  const round = async (): Promise<number> => {
    const started = performance.now();
    mustBe((await neighbour.runCode('1+1')).text, '2', '1+1');
    return performance.now() - started;
  };
  const some = async (): Promise<number[]> => {
    const samples: number[] = [];
    for (let n = 0; n < rounds; n++) samples.push(await round());
    return samples;
  };
  await some();
  const alone = await some();
  await peakless(service);
  const reader = readSlowly(
    await openStream(service, busy.sandboxId, BIG_CODE, 'e2b'),
    SLOW_BYTES_PER_SECOND,
  );
  try {
    await within(30, 'first bytes of the slow reader', reader.hasBegun);
    const beside = await some();
    const { takenBytes } = reader;
    const usage = await service.usage();
    if (reader.isOver) throw new Error('the slow reader got everything at once: nothing held it back');
    const totalBytes = await within(120, 'rest of the slow reader', reader.takeAll());
    if (totalBytes < BIG_BYTES) throw new Error(`the slow reader got ${totalBytes} bytes only`);
    return { alone, beside, usage, takenBytes, totalBytes };
  } finally {
    reader.close();
  }
}

/** Forgets what the service needed so far. */
async function peakless(service: MeasuredService): Promise<Usage> {
  await service.resetUsage();
  return service.usage();
}

async function stdoutOf(sandbox: Sandbox, code: string): Promise<string> {
  const execution = await sandbox.runCode(code, { timeoutMs: EXECUTION_TIMEOUT_MS });
  if (execution.error) throw new Error(`${execution.error.name}: ${execution.error.value}`);
  return execution.logs.stdout.join('');
}

/** How much text of stdout the lines of a stream hold, read as they come. */
async function textLength(stream: IncomingMessage): Promise<number> {
  let length = 0;
  let rest: Buffer[] = [];
  const take = (line: Buffer): void => {
    const event = JSON.parse(line.toString()) as { type: string; text?: string };
    if (event.type === 'stdout') length += event.text?.length ?? 0;
  };
  for await (const chunk of stream as AsyncIterable<Buffer>) {
    let start = 0;
    for (let end = chunk.indexOf(10); end !== -1; end = chunk.indexOf(10, start)) {
      take(Buffer.concat([...rest, chunk.subarray(start, end)]));
      rest = [];
      start = end + 1;
    }
    if (start < chunk.length) rest.push(chunk.subarray(start));
  }
  return length;
}

function section(rows: readonly OutputRow[], slow: SlowReader): Section {
  const figures: Figures[] = rows.flatMap((row) => [
    figuresOf(row.name, 'Cellbox', row.samples),
    figuresOf(row.name, 'floor', row.floor),
    usageFigures(row.name, row.usage),
  ]);
  const p50 = (values: readonly number[]): number => summarise(values).p50;
  return {
    name: 'outputs',
    figures: Object.assign(
      {
        ...figuresOf('slow reader', 'alone', slow.alone),
        ...figuresOf('slow reader', 'beside', slow.beside),
        ...usageFigures('slow reader', slow.usage),
      },
      ...figures,
    ) as Figures,
    data: { rows, slow },
    lines: [
      markdownTable(
        ['p50 / p95 in ms', 'n', 'Cellbox', 'raw ZeroMQ', '÷ floor', ...USAGE_HEADER],
        [
          ...rows.map((row) => [
            row.name,
            String(row.samples.length),
            formatSummary(summarise(row.samples)),
            formatSummary(summarise(row.floor)),
            `${(p50(row.samples) / p50(row.floor)).toFixed(2)}×`,
            ...usageCells(row.usage),
          ]),
          [
            '1+1 beside a slow reader',
            String(slow.beside.length),
            formatSummary(summarise(slow.beside)),
            '–',
            '–',
            ...usageCells(slow.usage),
          ],
        ],
      ),
      '',
      `Slow reader: takes 50 MB at 64 KiB a second from a neighbouring sandbox; alone \`1+1\` took ${formatMs(p50(slow.alone))} ms. ` +
        `It had taken ${(slow.takenBytes / 1e6).toFixed(1)} MB by then, read on at full speed, and got all of it.`,
      '',
    ],
  };
}

function mustBe<T>(got: T, expected: T, what: string): void {
  if (got !== expected) throw new Error(`${what}: not as printed (${String(got).slice(0, 60)} …)`);
}
