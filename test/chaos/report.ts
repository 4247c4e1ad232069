import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import type { Log } from './log';

export interface RunFacts {
  seed: number;
  minutes: number;
  runtime: string;
  /** Of the whole machine while the clients were at work, 0 to 1. */
  busy: number;
  residentBytes: readonly number[];
  leftovers: readonly string[];
}

const MIB = 1_048_576;

/** Writes what happened as Markdown and JSON; returns the Markdown. */
export function writeReport(directory: string, log: Log, facts: RunFacts): { file: string; text: string } {
  const text = toMarkdown(log, facts);
  fs.mkdirSync(directory, { recursive: true });
  const file = path.join(directory, `chaos-${facts.runtime}-seed-${facts.seed}`);
  const { faults, violations } = log;
  const counts = Object.fromEntries([...log.counts].sort());
  const told = faults.map((fault) => log.describe(fault));
  fs.writeFileSync(
    `${file}.json`,
    `${JSON.stringify({ ...facts, counts, violations, faults: told }, null, 1)}\n`,
  );
  fs.writeFileSync(`${file}.md`, text);
  return { file, text };
}

function toMarkdown(log: Log, facts: RunFacts): string {
  const { counts, violations } = log;
  const named = (prefix: string): Array<[string, number]> =>
    [...counts]
      .filter(([name]) => name.startsWith(prefix))
      .map(([name, count]) => [name.slice(prefix.length), count]);
  const list = (prefix: string): string =>
    named(prefix)
      .sort(([, a], [, b]) => b - a)
      .map(([name, count]) => `${name} ${count}`)
      .join(', ') || 'none';
  const total = (prefix: string): number => named(prefix).reduce((sum, [, count]) => sum + count, 0);
  const others = [...counts].filter(([name]) => !/^(fault|ended|step) /.test(name)).sort();
  const memory = [...facts.residentBytes].sort((a, b) => a - b);
  const mib = (bytes: number | undefined): string =>
    bytes === undefined ? '–' : `${Math.round(bytes / MIB)} MiB`;
  return [
    `## Seed ${facts.seed}, ${facts.minutes} minutes, ${facts.runtime} runtime: ${violations.length === 0 ? 'no violation' : `${violations.length} violations`}`,
    '',
    `- ${total('fault ')} faults: ${list('fault ')}.`,
    `- ${total('ended ')} executions, each with one end: ${list('ended ')}.`,
    `- ${total('step ')} steps of clients: ${list('step ')}.`,
    ...others.map(([name, count]) => `- ${name}: ${count}.`),
    `- Memory of the service: median ${mib(memory[Math.floor(memory.length / 2)])}, most ${mib(memory.at(-1))}.`,
    `- Left behind at the end: ${facts.leftovers.length === 0 ? 'nothing' : facts.leftovers.join('; ')}.`,
    `- Processors (${os.cpus().length}) ${Math.round(facts.busy * 100)} % busy.`,
    '',
    ...violations.flatMap((violation) => ['```', log.tell(violation), '```', '']),
  ].join('\n');
}
