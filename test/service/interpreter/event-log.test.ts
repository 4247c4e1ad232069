import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { decodeLines, encodeLine } from '../../../protocol/ndjson';
import { EventLog } from '../../../service/interpreter/event-log';
import type { DiskBudget } from '../../../service/interpreter/spool-file';

interface Line {
  seq: number;
  n: number;
}

class Room implements DiskBudget {
  used = 0;

  constructor(private readonly limit = Infinity) {}

  take(bytes: number): boolean {
    if (this.used + bytes > this.limit) return false;
    this.used += bytes;
    return true;
  }

  give(bytes: number): void {
    this.used -= bytes;
  }
}

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(path.join(os.tmpdir(), 'cbx-log-'));
});
afterEach(() => rmSync(directory, { recursive: true, force: true }));

function newLog(room = new Room(), failures: unknown[] = []): EventLog {
  return new EventLog(path.join(directory, 'deep', 'events'), room, (error) => failures.push(error));
}

function line(n: number): string {
  return encodeLine({ n, padding: 'p'.repeat((n * 7919) % 5000) });
}

async function read(log: EventLog, from = 0, signal = new AbortController().signal): Promise<Line[]> {
  const lines: Line[] = [];
  for await (const each of decodeLines(log.read(from, signal))) lines.push(each as Line);
  return lines;
}

it('keeps what is short in memory, and makes no file', async () => {
  const log = newLog();
  for (let n = 0; n < 10; n++) log.append(encodeLine({ n }), false);
  log.end();
  expect((await read(log)).map(({ seq, n }) => [seq, n])).toEqual(
    Array.from({ length: 10 }, (_, n) => [n, n]),
  );
  expect(readdirSync(directory)).toEqual([]);
});

it('gives every reader every event from its own on, on the disk or in memory, while it grows', async () => {
  const log = newLog();
  const total = 1000;
  const starts = [0, 1, 500, 999, 1000];
  const readers = starts.map((from) => read(log, from));
  for (let n = 0; n < total; n++) {
    log.append(line(n), false);
    if (n % 50 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  const late = [0, 3, 777, 998].map((from) => read(log, from));
  log.end();
  const seen = await Promise.all([...readers, ...late]);
  for (const [index, from] of [...starts, 0, 3, 777, 998].entries()) {
    const expected = Array.from({ length: total - from }, (_, offset) => [from + offset, from + offset]);
    expect(seen[index]?.map(({ seq, n }) => [seq, n])).toEqual(expected);
  }
  expect(log.memoryBytes).toBeLessThan(300 * 1024);
  await log.remove();
});

it('lets a reader go that does not want to wait', async () => {
  const log = newLog();
  const gone = new AbortController();
  const reading = read(log, 0, gone.signal);
  gone.abort();
  expect(await reading).toEqual([]);
});

it('gives its room back when it is removed, and leaves no file', async () => {
  const room = new Room();
  const log = newLog(room);
  for (let n = 0; n < 500; n++) log.append(line(n), false);
  expect(room.used).toBeGreaterThan(256 * 1024);
  await log.remove();
  await log.remove();
  expect(room.used).toBe(0);
  expect(readdirSync(path.join(directory, 'deep'))).toEqual([]);
});

it('counts what finds no room, keeps what is essential, and numbers without a gap', async () => {
  const log = newLog(new Room(400 * 1024));
  let refused = 0;
  for (let n = 0; n < 1000; n++) {
    if (!log.append(line(n), false)) refused += line(n).length;
  }
  expect(log.append(encodeLine({ n: -1 }), true)).toBe(true);
  log.end();
  expect(log.omittedBytes).toBe(refused);
  expect(refused).toBeGreaterThan(1_000_000);
  const lines = await read(log);
  expect(lines.map(({ seq }) => seq)).toEqual(Array.from({ length: log.count }, (_, seq) => seq));
  expect(lines.at(-1)?.n).toBe(-1);
});

it('tells of a disk that fails, and breaks off whoever reads what was lost instead of skipping it', async () => {
  writeFileSync(path.join(directory, 'deep'), 'a file where the directory should be');
  const failures: unknown[] = [];
  const log = newLog(new Room(), failures);
  for (let n = 0; n < 300; n++) log.append(line(n), false);
  log.end();
  await expect(read(log)).rejects.toThrow('lost with the disk');
  expect(failures).toHaveLength(1);
  const last = log.count - 1;
  expect((await read(log, last)).map(({ seq }) => seq)).toEqual([last]);
});
