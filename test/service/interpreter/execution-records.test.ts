import { mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { tell } from '../../../service/interpreter/endings';
import type { Outcome } from '../../../service/interpreter/endings';
import type { ExecutionRecord } from '../../../service/interpreter/execution-record';
import { ExecutionRecords } from '../../../service/interpreter/execution-records';
import { ExecutionTotals } from '../../../service/interpreter/execution-totals';
import { createLogger } from '../../../service/log';

let directory: string;
let totals: ExecutionTotals;
let records: ExecutionRecords;
beforeEach(() => {
  directory = mkdtempSync(path.join(os.tmpdir(), 'cbx-records-'));
  totals = new ExecutionTotals();
  records = open();
});
afterEach(async () => {
  await records.close();
  rmSync(directory, { recursive: true, force: true });
});

function open(diskBytes = 1e9): ExecutionRecords {
  return new ExecutionRecords({
    sandboxId: 'isb',
    directory: path.join(directory, 'isb'),
    keepMs: 60_000,
    diskBytes,
    inlineBytes: 1e9,
    totals,
    logger: createLogger('silent'),
  });
}

function add(code = '1'): ExecutionRecord {
  return records.add({ contextId: 'c', language: 'python', detached: true, timeoutMs: 0 }, code);
}

function end(record: ExecutionRecord, outcome: Outcome = { type: 'done' }): void {
  record.end(
    tell(outcome, {
      replyStatus: 'ok',
      sawError: false,
      stop: undefined,
      interruptKeepsState: true,
      traceback: '',
      timeoutMs: 0,
      graceMs: 0,
    }),
  );
}

it('refuses one more when a thousand wait and run, until one has ended', () => {
  const all = Array.from({ length: 1000 }, () => add());
  expect(() => add()).toThrow(/1000 executions/);
  end(all[500] as ExecutionRecord);
  expect(() => add()).not.toThrow();
});

it('forgets the oldest that ended first, and none that runs', () => {
  const running = add('running');
  const first = add('first');
  end(first);
  for (let index = 0; index < 1000; index++) end(add());
  expect(() => records.get(first.id)).toThrow(/not found/);
  expect(records.get(running.id)).toBe(running);
});

it('makes room on the disk by forgetting the oldest that ended', () => {
  records = open(1_500_000);
  const print = (record: ExecutionRecord): void => {
    for (let index = 0; index < 10; index++) {
      record.send({ type: 'result', html: 'x'.repeat(100_000), extra: {}, is_main_result: false });
    }
  };
  const [first, second] = [add(), add()];
  print(first);
  end(first);
  print(second);
  end(second);
  expect(() => records.get(first.id)).toThrow(/not found/);
  expect(second.ending?.termination).toBe('ok');
  expect(second.log.omittedBytes).toBe(0);
});

it('ends once, by the first way that comes', () => {
  const record = add();
  end(record, { type: 'timeout_killed' });
  end(record);
  expect(record.ending?.termination).toBe('timeout_killed');
  expect(record.log.count).toBe(2);
});

it('adds up every end by its name', () => {
  end(add());
  end(add());
  end(add(), { type: 'died', death: { oom: true } });
  expect([...totals.byTermination].filter(([, count]) => count > 0)).toEqual([
    ['ok', 2],
    ['oom', 1],
  ]);
});
