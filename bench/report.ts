import { execFile } from 'node:child_process';
import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';
import type { Figures, Section } from './figures';
import { quotedTable } from './quoted';
import type { Subject } from './subject';
import { judge, targetsTable } from './targets';

export interface ReportSettings {
  root: string;
  quick: boolean;
  runtime: 'local' | 'docker';
  /** Of the stock gateways, raw ZeroMQ and the bare chain. */
  python: string;
}

/** Prints what was found as Markdown, and keeps it with every sample under `bench-results/`. */
export async function report(
  sections: readonly Section[],
  subjects: readonly Pick<Subject, 'name' | 'description'>[],
  settings: ReportSettings,
): Promise<void> {
  const machine = await describeMachine(settings.python);
  const figures = Object.assign({}, ...sections.map((section) => section.figures)) as Figures;
  const verdicts = judge(figures);
  const text = [
    `# Bench${settings.quick ? ' (quick: coarse numbers)' : ''}, ${settings.runtime} runtime`,
    '',
    ...sections.flatMap((section) => section.lines),
    ...quotedTable(figures),
    ...targetsTable(verdicts),
    'Ratios compare the p50. Every answer was checked; where 100,000 lines were printed, they arrived complete and in order.',
    '',
    ...subjects.map((subject) => `- ${subject.name}: ${subject.description}`),
    ...(settings.runtime === 'docker'
      ? [
          '- Cellbox ran in containers with the image’s Python; gateways, raw ZeroMQ and the bare chain on the host with its own.',
        ]
      : []),
    `- ${machine.cpus} × ${machine.cpu}, ${machine.memoryMB} MiB, ${machine.system}, Node ${machine.node}, ${machine.python}, load ${machine.load.join(' ')}`,
    '',
  ].join('\n');
  const directory = path.join(settings.root, 'bench-results');
  await fs.mkdir(directory, { recursive: true });
  const file = path.join(directory, `bench-${new Date().toISOString().replace(/[:.]/g, '-')}`);
  const { quick, runtime } = settings; // paths of this machine tell the reader nothing
  const data = Object.fromEntries(sections.map((section) => [section.name, section.data]));
  await fs.writeFile(
    `${file}.json`,
    `${JSON.stringify({ settings: { quick, runtime }, machine, targets: verdicts, figures, sections: data }, null, 1)}\n`,
  );
  await fs.writeFile(`${file}.md`, text);
  console.log(text);
  console.log(`Written to ${path.relative(process.cwd(), file)}.json and .md`);
}

async function describeMachine(python: string) {
  const { stdout } = await promisify(execFile)(python, ['--version'], { timeout: 10_000 });
  return {
    cpus: os.cpus().length,
    cpu: os.cpus()[0]?.model.trim() ?? 'unknown',
    memoryMB: Math.round(os.totalmem() / 1024 / 1024),
    system: `${os.type()} ${os.release()}`,
    node: process.version,
    python: stdout.trim(),
    load: os.loadavg().map((load) => Number(load.toFixed(2))),
  };
}
