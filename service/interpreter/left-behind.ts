import fs from 'node:fs';
import { stat, truncate } from 'node:fs/promises';
import path from 'node:path';
import { encodeLine } from '../../protocol/ndjson';
import type { OutputEvent, TextStream } from '../../protocol/interpreter';
import type { LogState } from './event-log';
import type { LeftBehind, TextLeftBehind } from './execution-record';
import { readJournal } from './journal';
import type { EndedEntry, JournalledExecution } from './journal';

export const JOURNAL_FILE = 'journal';

/**
 * The executions of one sandbox as an earlier service left them, oldest first; their files are put in order. One that
 * can't be read is left out.
 */
export async function readLeftBehind(
  directory: string,
  onFailure: (error: unknown, executionId: string) => void,
): Promise<LeftBehind[]> {
  const all: LeftBehind[] = [];
  for (const execution of await readJournal(path.join(directory, JOURNAL_FILE))) {
    try {
      all.push(await readOne(directory, execution));
    } catch (error) {
      onFailure(error, execution.created.id);
    }
  }
  return all;
}

async function readOne(directory: string, execution: JournalledExecution): Promise<LeftBehind> {
  const { ended } = execution;
  const file = (name: string): string => path.join(directory, `${execution.created.id}.${name}`);
  if (ended === undefined) return readUnended(execution, file);
  const log = await readLog(file('events'), ended);
  const texts = { stdout: await textOf(file, ended, 'stdout'), stderr: await textOf(file, ended, 'stderr') };
  return { ...execution, log, texts, outputBytes: 0, results: 0 };
}

/** The events of one that has ended. What was on its way to the file when the service died is told as left out. */
async function readLog(file: string, { file_events, file_bytes, tail }: EndedEntry): Promise<LogState> {
  const size = await sizeOf(file);
  if (size === file_bytes) return { fileEvents: file_events, fileBytes: size, tail };
  if (size > file_bytes) {
    // Late output was appended, or memory was made free: with the tail, or with half of it.
    const { events, bytes } = await scan(file, file_bytes);
    if (events >= linesIn(tail)) {
      await truncate(file, file_bytes + bytes);
      return { fileEvents: file_events + events, fileBytes: file_bytes + bytes, tail: '' };
    }
    await truncate(file, file_bytes);
    return { fileEvents: file_events, fileBytes: file_bytes, tail };
  }
  const { events, bytes } = await scan(file, 0);
  if (size > 0) await truncate(file, bytes);
  const gap: OutputEvent = { type: 'truncated', stream: 'events', omitted_bytes: file_bytes - bytes };
  return { fileEvents: events, fileBytes: bytes, tail: encodeLine(gap) + tail };
}

async function textOf(
  file: (name: string) => string,
  ended: EndedEntry,
  stream: TextStream,
): Promise<TextLeftBehind> {
  return { state: ended[stream], fileBytes: await sizeOf(file(stream)), text: '' };
}

/** One that waited or ran when the service died: what its files have is what is known. */
async function readUnended(
  execution: JournalledExecution,
  file: (name: string) => string,
): Promise<LeftBehind> {
  const texts = { stdout: '', stderr: '' };
  const inline = { stdout: 0, stderr: 0 };
  const omitted = { stdout: 0, stderr: 0 };
  const hasFile = { stdout: await sizeOf(file('stdout')), stderr: await sizeOf(file('stderr')) };
  let outputBytes = 0;
  let results = 0;
  const { events, bytes } = await scan(file('events'), 0, (line) => {
    const event = JSON.parse(line) as OutputEvent; // a whole line that we wrote
    if (event.type === 'stdout' || event.type === 'stderr') {
      inline[event.type] += Buffer.byteLength(event.text);
      if (hasFile[event.type] === 0) texts[event.type] += event.text;
    } else if (event.type === 'result' || event.type === 'display' || event.type === 'update_display') {
      outputBytes += line.length;
      if (event.type !== 'update_display') results++;
    } else if (event.type === 'truncated' && event.stream !== 'events') {
      omitted[event.stream] = event.omitted_bytes;
    }
  });
  if ((await sizeOf(file('events'))) > bytes) await truncate(file('events'), bytes);
  const text = (stream: TextStream): TextLeftBehind => {
    const kept = hasFile[stream];
    const total = Math.max(inline[stream], kept);
    outputBytes += total;
    const isCut = omitted[stream] > 0;
    const state = {
      bytes: total,
      omitted_bytes: isCut ? Math.max(1, total - inline[stream]) : 0,
      kept_bytes: kept > 0 ? kept : null,
    };
    return { state, fileBytes: kept, text: texts[stream] };
  };
  const left = { stdout: text('stdout'), stderr: text('stderr') };
  const log = { fileEvents: events, fileBytes: bytes, tail: '' };
  return { ...execution, log, texts: left, outputBytes, results };
}

/** Whole lines from `start` on: how many, and their bytes. */
async function scan(
  file: string,
  start: number,
  onLine?: (line: string) => void,
): Promise<{ events: number; bytes: number }> {
  let events = 0;
  let bytes = 0;
  let rest: Buffer[] = [];
  let size = 0;
  if ((await sizeOf(file)) <= start) return { events, bytes };
  for await (const chunk of fs.createReadStream(file, { start }) as AsyncIterable<Buffer>) {
    let from = 0;
    for (let at = chunk.indexOf(0x0a); at !== -1; at = chunk.indexOf(0x0a, from)) {
      if (onLine !== undefined) {
        onLine(Buffer.concat([...rest, chunk.subarray(from, at)]).toString('latin1'));
        rest = [];
      }
      events++;
      from = at + 1;
      bytes = size + from;
    }
    if (onLine !== undefined && from < chunk.length) rest.push(chunk.subarray(from));
    size += chunk.length;
  }
  return { events, bytes };
}

function linesIn(text: string): number {
  return text.split('\n').length - 1;
}

async function sizeOf(file: string): Promise<number> {
  try {
    return (await stat(file)).size;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return 0; // made at the first write
    throw error;
  }
}
