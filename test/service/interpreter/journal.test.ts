import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Journal, readJournal } from '../../../service/interpreter/journal';
import type { Entry, NewEntry } from '../../../service/interpreter/journal';

let directory: string;
let file: string;
beforeEach(() => {
  directory = fs.mkdtempSync(path.join(os.tmpdir(), 'cbx-journal-'));
  file = path.join(directory, 'deep', 'journal');
});
afterEach(() => fs.rmSync(directory, { recursive: true, force: true }));

function created(id: string, firstLine = '1'): NewEntry {
  return {
    type: 'new',
    id,
    context_id: 'c',
    language: 'python',
    detached: true,
    timeout_ms: 0,
    code_hash: 'h',
    code_first_line: firstLine,
    created_at: 1,
  };
}

function started(id: string): Entry {
  return {
    type: 'started',
    id,
    at: 2,
    kernel_id: 'k',
    session: 's',
    message_id: 'm',
    is_plain: false,
    env_names: [],
  };
}

function open(entries: () => Entry[] = () => [], failures: unknown[] = []): Journal {
  return new Journal(file, entries, (error) => failures.push(error));
}

it('has every entry in the file when the call returns', async () => {
  const journal = open();
  journal.append(created('a'));
  journal.append(created('b'));
  journal.append(started('b'));
  expect(await readJournal(file)).toEqual([
    { created: created('a') },
    { created: created('b'), started: started('b') },
  ]);
  journal.append({ type: 'forgotten', id: 'a' });
  expect((await readJournal(file)).map(({ created }) => created.id)).toEqual(['b']);
  journal.close();
  journal.append(created('c'));
  expect(await readJournal(file)).toHaveLength(1);
});

it('is read up to a line that was cut off, at any byte', async () => {
  const journal = open();
  journal.append(created('a'));
  const whole = fs.statSync(file).size;
  journal.append(created('b', 'é\n"'));
  journal.close();
  const bytes = fs.readFileSync(file);
  for (let length = whole; length < bytes.length - 1; length++) {
    fs.writeFileSync(file, bytes.subarray(0, length));
    expect((await readJournal(file)).map(({ created }) => created.id)).toEqual(['a']);
  }
});

it('leaves what an earlier one could not finish behind when it is renewed', async () => {
  fs.mkdirSync(path.dirname(file));
  fs.writeFileSync(file, `${JSON.stringify(created('a'))}\n{"type":"ne`);
  const journal = open(() => [created('a')]);
  journal.renew();
  journal.append(created('b'));
  journal.close();
  expect((await readJournal(file)).map(({ created }) => created.id)).toEqual(['a', 'b']);
});

it('does not grow with what is forgotten', async () => {
  const live = created('live');
  const journal = open(() => [live]);
  journal.append(live);
  for (let n = 0; n < 3_000; n++) {
    journal.append(created(`x${n}`, 'y'.repeat(2_000)));
    journal.append({ type: 'forgotten', id: `x${n}` });
  }
  journal.close();
  expect(fs.statSync(file).size).toBeLessThan(4.5 * 1024 * 1024);
  expect((await readJournal(file)).some(({ created }) => created.id === 'live')).toBe(true);
});

it('tells of a disk that fails once, and has everything again when it works', async () => {
  fs.writeFileSync(path.dirname(file), 'a file where the directory should be');
  const failures: unknown[] = [];
  const entries: Entry[] = [];
  const journal = open(() => entries, failures);
  for (const id of ['a', 'b', 'c']) {
    entries.push(created(id));
    journal.append(created(id));
  }
  expect(failures).toHaveLength(1);
  fs.rmSync(path.dirname(file));
  journal.renew();
  expect((await readJournal(file)).map(({ created }) => created.id)).toEqual(['a', 'b', 'c']);
  journal.close();
});

it('is empty where there is none', async () => {
  expect(await readJournal(file)).toEqual([]);
});
