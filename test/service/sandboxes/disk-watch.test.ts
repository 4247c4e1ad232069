import { ServiceError } from '../../../service/errors';
import { createLogger } from '../../../service/log';
import { DiskWatch } from '../../../service/sandboxes/disk-watch';
import { gate } from '../../fakes/fake-runtime';
import { RESOURCES } from './sandboxes-options';

const MIB = 1_048_576;
const DEADLINE_MS = 5_000;
const sandbox = (id: string) => ({ id, resources: { ...RESOURCES, diskSizeMB: 100 } });

let used: Map<string, number>;
let looks: string[];
let told: string[];
let watch: DiskWatch;
let beforeAnswer: () => Promise<void>;

beforeEach(() => {
  used = new Map();
  looks = [];
  told = [];
  beforeAnswer = () => Promise.resolve();
  watch = new DiskWatch({
    runtime: {
      diskUsage: async (id) => {
        looks.push(id);
        await beforeAnswer();
        const bytes = used.get(id);
        if (bytes === undefined) throw new ServiceError('not_found', 'no such machine');
        return bytes;
      },
    },
    logger: createLogger('silent'),
    note: (id, level, message) => told.push(`${id} ${level}: ${message}`),
    end: (id, detail) => {
      told.push(`${id} ended: ${detail}`);
      return Promise.resolve();
    },
    everyMs: { min: 1, max: 5 },
  });
});

afterEach(() => watch.close());

async function until(condition: () => boolean): Promise<void> {
  const deadline = Date.now() + DEADLINE_MS;
  while (!condition()) {
    if (Date.now() > deadline) throw new Error(`not in time; told: ${told.join('\n')}`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

/** Waits for so many more looks, so that an answer from before has been acted upon. */
const looked = (times = 2) => {
  const wanted = looks.length + times;
  return until(() => looks.length >= wanted);
};

it('says once that a disk is full, and once that it has room again', async () => {
  used.set('a', 100 * MIB);
  watch.start(sandbox('a'));
  await looked();
  expect([watch.isFull('a'), told]).toEqual([false, []]);

  used.set('a', 101 * MIB);
  await until(() => watch.isFull('a'));
  await looked();
  expect(told).toEqual([
    'a error: The sandbox uses 0.10 GiB of disk where it may use 0.10 GiB: uploads are refused, and at 0.20 GiB it is ended',
  ]);

  used.set('a', 10 * MIB);
  await until(() => !watch.isFull('a'));
  await looked();
  expect(told.slice(1)).toEqual(['a info: The sandbox has room on its disk again']);
});

it('ends who uses twice the limit, once, and looks no more', async () => {
  used.set('a', 200 * MIB);
  used.set('b', 0);
  watch.start(sandbox('a'));
  watch.start(sandbox('b'));
  await until(() => watch.isFull('a'));
  used.set('a', 201 * MIB);
  await until(() => told.length === 2);
  expect(told[1]).toBe('a ended: it used 0.20 GiB of disk where it may use 0.10 GiB');
  const before = looks.filter((id) => id === 'a').length;
  await looked(4);
  expect(looks.filter((id) => id === 'a')).toHaveLength(before);
  expect(watch.isFull('a')).toBe(false);
});

it('measures one at a time', async () => {
  let atOnce = 0;
  let most = 0;
  beforeAnswer = async () => {
    most = Math.max(most, ++atOnce);
    await new Promise((resolve) => setTimeout(resolve, 3));
    atOnce--;
  };
  for (const id of ['a', 'b', 'c', 'd']) {
    used.set(id, 0);
    watch.start(sandbox(id));
  }
  await until(() => new Set(looks).size === 4);
  expect(most).toBe(1);
});

it('leaves a paused sandbox alone, remembers that it is full, and goes on with the next run', async () => {
  used.set('a', 150 * MIB);
  watch.start(sandbox('a'));
  await until(() => watch.isFull('a'));
  watch.pause('a');
  used.set('b', 0);
  watch.start(sandbox('b'));
  await until(() => looks.at(-1) === 'b');
  looks.length = 0;
  await looked(4);
  expect(looks).not.toContain('a');
  expect(watch.isFull('a')).toBe(true);
  watch.start(sandbox('a'));
  await until(() => looks.includes('a'));
});

it('takes no notice of what it learns too late', async () => {
  const answer = gate();
  beforeAnswer = () => answer.opened;
  used.set('a', 900 * MIB);
  watch.start(sandbox('a'));
  await until(() => looks.length === 1);
  watch.forget('a');
  answer.open();
  used.set('b', 0);
  watch.start(sandbox('b'));
  await until(() => looks.includes('b'));
  expect([told, looks.filter((id) => id === 'a')]).toEqual([[], ['a']]);
});

it('tries again where it could not measure', async () => {
  let failures = 3;
  beforeAnswer = () =>
    failures-- > 0
      ? Promise.reject(new ServiceError('unavailable', 'the engine is away'))
      : Promise.resolve();
  used.set('a', 150 * MIB);
  watch.start(sandbox('a'));
  await until(() => watch.isFull('a'));
});

it('does nothing once it is closed', async () => {
  used.set('a', 0);
  watch.start(sandbox('a'));
  watch.close();
  watch.close();
  watch.start(sandbox('a'));
  await new Promise((resolve) => setTimeout(resolve, 20));
  expect(looks).toEqual([]);
});
