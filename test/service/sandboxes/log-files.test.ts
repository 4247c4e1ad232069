import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { createLogger } from '../../../service/log';
import { LogFiles } from '../../../service/sandboxes/log-files';
import type { LogRecord } from '../../../service/sandboxes/log-files';

const TEAM = 'team-a';

function line(at: number, message = `line ${at}`): LogRecord {
  return { at, level: 'info', message, fields: { logger: 'service' } };
}

describe('LogFiles', () => {
  let home: string;
  let directory: string;
  let live: Set<string>;
  let now: number;

  const make = (): LogFiles =>
    new LogFiles({
      directory,
      logger: createLogger('silent'),
      now: () => now,
      isLive: (id) => live.has(id),
    });

  beforeEach(() => {
    home = fs.mkdtempSync(path.join(os.tmpdir(), 'cbx-logs-'));
    directory = path.join(home, 'logs');
    live = new Set();
    now = Date.now();
  });

  afterEach(() => fs.rmSync(home, { recursive: true, force: true }));

  it('gives back what was written, in order, to the own team only, and after a restart', async () => {
    const logs = make();
    expect(await logs.read('i1', TEAM)).toEqual([]);
    logs.write('i1', TEAM, [line(1), line(2, 'with "quotes"\nand an end of line')]);
    logs.write('i1', TEAM, [line(3)]);
    logs.write('i2', 'team-b', [line(4)]);
    const all = [line(1), line(2, 'with "quotes"\nand an end of line'), line(3)];
    expect(await logs.read('i1', TEAM)).toEqual(all);
    expect(await logs.read('i1', 'team-b')).toEqual([]);
    await logs.settled();
    expect(await make().read('i1', TEAM)).toEqual(all);
    expect(await make().read('i2', TEAM)).toEqual([]);
    expect(fs.statSync(path.join(directory, 'i1.ndjson')).mode & 0o777).toBe(0o600);
  });

  it('keeps the newest of a long log, in whole lines, within its bounds', async () => {
    const logs = make();
    const text = 'ü'.repeat(1000);
    for (let at = 0; at < 400; at++) logs.write('i1', TEAM, [line(at, text)]);
    const kept = await logs.read('i1', TEAM);
    expect(fs.statSync(path.join(directory, 'i1.ndjson')).size).toBeLessThanOrEqual(256 * 1024);
    expect(kept.length).toBeGreaterThan(50);
    expect(kept.at(-1)).toEqual(line(399, text));
    expect(kept.map(({ at }) => at)).toEqual(kept.map((_, index) => 400 - kept.length + index));
  });

  it('leaves out a line that a crash cut off, and goes on behind it', async () => {
    const logs = make();
    logs.write('i1', TEAM, [line(1)]);
    await logs.settled();
    fs.appendFileSync(path.join(directory, 'i1.ndjson'), '{"team":"team-a","at":2,"mess');
    fs.appendFileSync(path.join(directory, 'i1.ndjson'), '\n{"team":"team-a","at":"then"}\n');
    logs.write('i1', TEAM, [line(3)]);
    expect(await logs.read('i1', TEAM)).toEqual([line(1), line(3)]);
  });

  it('removes the logs of sandboxes that ended a day ago, and the oldest of very many', async () => {
    const logs = make();
    for (const id of ['ilive', 'iold', 'inew']) logs.write(id, TEAM, [line(1)]);
    await logs.settled();
    const dayAgo = new Date(now - 24 * 3_600_000 - 1_000);
    for (const id of ['ilive', 'iold']) fs.utimesSync(path.join(directory, `${id}.ndjson`), dayAgo, dayAgo);
    live.add('ilive');
    await logs.prune();
    expect(fs.readdirSync(directory).sort()).toEqual(['ilive.ndjson', 'inew.ndjson']);

    const hourAgo = new Date(now - 3_600_000);
    for (let count = 0; count < 1_000; count++) {
      const file = path.join(directory, `i${count}.ndjson`);
      fs.writeFileSync(file, '');
      if (count === 500) fs.utimesSync(file, hourAgo, hourAgo);
    }
    await logs.prune(); // a moment after the last one: not yet
    expect(fs.readdirSync(directory)).toHaveLength(1_002);
    now += 61_000;
    await logs.prune();
    expect(fs.readdirSync(directory)).toHaveLength(1_001);
    expect(fs.existsSync(path.join(directory, 'i500.ndjson'))).toBe(false);
  });

  it('fails nobody when it can not write', async () => {
    fs.writeFileSync(directory, 'a file in the place of the directory');
    const logs = make();
    logs.write('i1', TEAM, [line(1)]);
    await logs.settled();
    await logs.prune();
    expect(fs.readFileSync(directory, 'utf8')).toContain('a file');
  });
});
