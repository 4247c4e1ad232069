import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { performance } from 'node:perf_hooks';
import { promisify } from 'node:util';
import type { Sandbox } from '@e2b/code-interpreter';
import { agentHttp } from './agent-http';
import type { AgentHttp } from './agent-http';
import type { Cellbox } from './cellbox';
import type { DockerRival } from './docker-rival';
import type { BareFiles } from './bare-files';
import { figuresOf } from './figures';
import type { Section } from './figures';
import { formatSummary, markdownTable, ratioOf, summarise } from './statistics';

const run = promisify(execFile);

/** Samples of one row in milliseconds, by the way it was done. */
interface ComputerRow {
  readonly name: string;
  readonly samples: Record<string, number[]>;
}

/** One thing that a sandbox does as a computer, done in several ways; each way does it once, and checks it. */
interface Comparison {
  name: string;
  rounds: number;
  warmup: number;
  ways: Record<string, () => Promise<void>>;
}

const MB = 1_000_000;
/** As the SDKs run a command: a login shell. */
const SHELL = ['/bin/bash', '-l', '-c'] as const;
/** No profile of whoever runs the bench: a sandbox has none either. */
const BARE = { PATH: '/usr/bin:/bin', HOME: '/nonexistent' };
const MANY_FILES = 'i=0; while [ $i -lt COUNT ]; do : > f$i; i=$((i+1)); done';

/** Commands, transfers and lists, the ways of each taking turns. */
export async function measureComputer(
  { sandbox, service }: Cellbox,
  bare: BareFiles,
  docker: DockerRival | undefined,
  quick: boolean,
): Promise<Section> {
  const rows: ComputerRow[] = [];
  const plain = agentHttp(service.url, sandbox);
  for (const { name, rounds, warmup, ways } of comparisons(sandbox, plain, bare, docker, quick)) {
    console.error(`measuring ${name}: ${warmup} + ${rounds} rounds`);
    const names = Object.keys(ways);
    const samples = Object.fromEntries(names.map((way): [string, number[]] => [way, []]));
    for (let round = 0; round < warmup + rounds; round++) {
      for (let turn = 0; turn < names.length; turn++) {
        const way = names[(turn + round) % names.length] ?? '';
        const started = performance.now();
        await ways[way]?.();
        if (round >= warmup) samples[way]?.push(performance.now() - started);
      }
    }
    rows.push({ name, samples });
  }
  plain.close();
  return {
    name: 'computer',
    figures: Object.assign(
      {},
      ...rows.flatMap(({ name, samples }) =>
        Object.entries(samples).map(([way, values]) => figuresOf(name, way, values)),
      ),
    ),
    data: rows,
    lines: computerTable(rows),
  };
}

/** The rows as a table: this service, the floor, and the engine's own command where it was measured. */
function computerTable(rows: readonly ComputerRow[]): string[] {
  const cell = (values: readonly number[] | undefined): string =>
    values === undefined ? '–' : formatSummary(summarise(values));
  return [
    markdownTable(
      [
        'p50 / p95 in ms',
        'n',
        'Cellbox',
        'without SDK',
        'floor',
        'docker exec, cp',
        '÷ floor',
        'without SDK ÷ floor',
        '÷ docker',
      ],
      rows.map((row) => [
        row.name,
        String(row.samples['Cellbox']?.length ?? 0),
        cell(row.samples['Cellbox']),
        cell(row.samples['without SDK']),
        cell(row.samples['floor']),
        cell(row.samples['docker']),
        ratioOf(row.samples['Cellbox'], row.samples['floor']),
        ratioOf(row.samples['without SDK'], row.samples['floor']),
        ratioOf(row.samples['Cellbox'], row.samples['docker']),
      ]),
    ),
    '',
    'Without SDK: the requests that it makes, by Node’s own HTTP client. Floor: the same login shell started by Node on the host; the same bytes to and from a file, and a list of as many files, by Node’s own HTTP server on the host.',
    '',
  ];
}

/** The engine's own command is compared where there is an engine. */
function comparisons(
  sandbox: Sandbox,
  plain: AgentHttp,
  bare: BareFiles,
  docker: DockerRival | undefined,
  quick: boolean,
): Comparison[] {
  const many = quick ? { rounds: 5, warmup: 1 } : { rounds: 50, warmup: 5 };
  const few = quick ? { rounds: 1, warmup: 1 } : { rounds: 7, warmup: 1 };
  const rival = (work: (docker: DockerRival) => Promise<void>): Record<string, () => Promise<void>> =>
    docker === undefined ? {} : { docker: () => work(docker) };

  const transfer = (megabytes: number, rounds: { rounds: number; warmup: number }): Comparison[] => {
    const data = randomBytes(megabytes * MB);
    const blob = new Blob([data]);
    const name = `bench-${megabytes}`;
    return [
      {
        name: `${megabytes} MB up`,
        ...rounds,
        ways: {
          Cellbox: async () => void (await sandbox.files.write(name, blob, { useOctetStream: true })),
          'without SDK': () => plain.upload(name, data),
          floor: () => bare.upload(name, data),
          ...rival((engine) => engine.upload(name, data)),
        },
      },
      {
        name: `${megabytes} MB down`,
        ...rounds,
        ways: {
          Cellbox: async () =>
            mustBe((await sandbox.files.read(name, { format: 'bytes' })).length, data.length),
          'without SDK': async () => mustBe(await plain.download(name), data.length),
          floor: async () => mustBe(await bare.download(name), data.length),
          ...rival(async (engine) => mustBe(await engine.download(name), data.length)),
        },
      },
    ];
  };

  const list = (count: number, rounds: { rounds: number; warmup: number }): Comparison => {
    const make = `mkdir -p list-${count} && cd list-${count} && ${MANY_FILES.replace('COUNT', String(count))}`;
    let made: Promise<unknown> | undefined;
    let madeInRival: Promise<unknown> | undefined;
    let madeBare: Promise<unknown> | undefined;
    return {
      name: `list ${count.toLocaleString('en')} files`,
      ...rounds,
      ways: {
        Cellbox: async () => {
          await (made ??= sandbox.commands.run(make));
          mustBe((await sandbox.files.list(`list-${count}`)).length, count);
        },
        'without SDK': async () => {
          await (made ??= sandbox.commands.run(make));
          mustBe(await plain.list(`list-${count}`), count);
        },
        floor: async () => {
          await (madeBare ??= run('/bin/sh', ['-c', make], { cwd: bare.directory }));
          mustBe(await bare.list(`list-${count}`), count);
        },
        ...rival(async (engine) => {
          await (madeInRival ??= engine.exec(make));
          mustBe(
            (await engine.exec(`ls -l --time-style=full-iso list-${count}`)).split('\n').length - 2,
            count,
          );
        }),
      },
    };
  };

  return [
    {
      name: 'command',
      ...many,
      ways: {
        Cellbox: async () => mustBe((await sandbox.commands.run('echo hello')).stdout, 'hello\n'),
        'without SDK': async () => mustBe(await plain.run('echo hello'), 'hello\n'),
        floor: async () =>
          mustBe((await run(SHELL[0], [SHELL[1], SHELL[2], 'echo hello'], { env: BARE })).stdout, 'hello\n'),
        ...rival(async (engine) => mustBe(await engine.exec('echo hello'), 'hello\n')),
      },
    },
    ...transfer(1, many),
    ...transfer(100, few),
    list(1_000, many),
    list(10_000, few),
  ];
}

function mustBe<T>(got: T, expected: T): void {
  if (got !== expected) throw new Error(`got ${String(got)} instead of ${String(expected)}`);
}
