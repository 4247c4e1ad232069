import { setImmediate as nextTurn } from 'node:timers/promises';
import { ServiceError } from '../../../service/errors';
import { createLogger } from '../../../service/log';
import type { Instance, InstanceEnd } from '../../../service/runtime/runtime';
import { Pool } from '../../../service/sandboxes/pool';
import type { PoolHost, PoolSize } from '../../../service/sandboxes/pool';

/** A machine as far as a pool can tell. */
class Machine implements Instance {
  readonly gatewayToken = '';
  readonly ended: Promise<InstanceEnd>;
  end!: (end: InstanceEnd) => void;
  warm = true;
  fit = true;

  constructor(readonly id: string) {
    this.ended = new Promise((resolve) => (this.end = resolve));
  }

  dial = () => Promise.reject(new Error('nobody dials here'));
  setDeadline = () => Promise.resolve();
}

interface Step<Value> {
  resolve(value: Value): void;
  reject(error: Error): void;
  signal?: AbortSignal;
}

/** Starts and warm-ups wait here until the test says how they go. */
class Host implements PoolHost {
  readonly starts: Array<Step<Machine>> = [];
  readonly warmUps: Array<Step<void>> = [];
  readonly machines: Machine[] = [];
  readonly endedIds: string[] = [];
  readonly logger = createLogger('silent');
  clock = 0;
  parallel = 100;
  spare = 100;
  short = false;
  automatic = true;
  pool!: Pool;

  isBusy = () => this.pool.underWay >= this.parallel;
  changed = () => this.pool.adjust();
  room = () => this.spare - this.pool.held;
  isMemoryShort = () => this.short;
  now = () => this.clock;
  isWarm = (instance: Instance) => this.machine(instance).warm;
  end = (instance: Instance) => void this.endedIds.push(instance.id);

  start = (signal: AbortSignal): Promise<Instance> =>
    new Promise<Instance>((resolve, reject) => {
      this.starts.push({ resolve, reject, signal });
      if (this.automatic) this.started(this.starts.length - 1);
    });

  warm = (): Promise<void> =>
    new Promise((resolve, reject) => {
      this.warmUps.push({ resolve, reject });
      if (this.automatic) resolve();
    });

  check = async (instance: Instance): Promise<void> => {
    await nextTurn();
    if (!this.machine(instance).fit) throw new Error('unfit');
  };

  /** A start succeeds. */
  started(index: number): Machine {
    const machine = new Machine(`m${index + 1}`);
    this.machines.push(machine);
    this.starts[index]?.resolve(machine);
    return machine;
  }

  private machine(instance: Instance): Machine {
    const found = this.machines.find((each) => each === instance);
    if (found === undefined) throw new Error('not a machine of this host');
    return found;
  }
}

const never = new AbortController().signal;
const size = (target: number, max = target, min = 0): PoolSize => ({ min, target, max });

describe('Pool', () => {
  let host: Host;

  function make(wanted: PoolSize): Pool {
    host.pool = new Pool(wanted, host);
    host.pool.adjust();
    return host.pool;
  }

  const claimed = async (pool: Pool) => (await pool.claim(never))?.id;

  beforeEach(() => {
    host = new Host();
  });

  afterEach(async () => {
    const closing = host.pool.close();
    for (const start of host.starts) start.reject(new Error('aborted'));
    await closing;
  });

  it('fills to its target and no further', async () => {
    const pool = make(size(3, 5));
    await nextTurn();
    expect(pool.status).toMatchObject({ ready: 3, starting: 0, claimedTotal: 0, missesTotal: 0 });
    pool.adjust();
    expect(host.starts).toHaveLength(3);
  });

  it('gives the oldest first, each one once', async () => {
    const pool = make(size(3));
    await nextTurn();
    host.automatic = false;
    expect([await claimed(pool), await claimed(pool), await claimed(pool)]).toEqual(['m1', 'm2', 'm3']);
    expect(await claimed(pool)).toBeUndefined();
    expect(pool.status).toMatchObject({ ready: 0, claimedTotal: 3, missesTotal: 1 });
  });

  it('starts a successor when told that one was taken', async () => {
    const pool = make(size(2));
    await nextTurn();
    await claimed(pool);
    pool.adjust();
    await nextTurn();
    expect(pool.status).toMatchObject({ ready: 2, claimedTotal: 1 });
  });

  it('starts no more at a time than there is room for', async () => {
    host.automatic = false;
    host.parallel = 2;
    const pool = make(size(5));
    expect(host.starts).toHaveLength(2);
    host.started(0);
    await nextTurn();
    expect(host.starts).toHaveLength(2); // the first one's kernel still starts
    host.warmUps[0]?.resolve();
    await nextTurn();
    expect(host.starts).toHaveLength(3);
    expect(pool.status).toMatchObject({ ready: 1, starting: 2 });
  });

  it('never holds more machines than the host has room for, and gives room back', async () => {
    host.spare = 2;
    const pool = make(size(5));
    await nextTurn();
    expect(pool.status.ready).toBe(2);
    host.spare = 1;
    pool.adjust();
    expect(pool.status.ready).toBe(1);
    expect(host.endedIds).toEqual(['m2']);
  });

  it('starts only its minimum while memory is short, and ends none for that', async () => {
    host.short = true;
    const pool = make(size(3, 3, 1));
    await nextTurn();
    expect(pool.status).toMatchObject({ ready: 1, lastError: 'The host is short of memory' });
    host.short = false;
    pool.adjust();
    await nextTurn();
    expect(pool.status).toMatchObject({ ready: 3, lastError: undefined });
    host.short = true;
    pool.adjust();
    expect(pool.status.ready).toBe(3);
  });

  describe('with nothing ready', () => {
    it('gives a machine whose kernel still starts', async () => {
      host.automatic = false;
      const pool = make(size(1));
      host.started(0);
      await nextTurn();
      expect(await claimed(pool)).toBe('m1');
      host.warmUps[0]?.reject(new Error('too late for the pool to care'));
      await nextTurn();
      expect(host.endedIds).toEqual([]);
      expect(pool.status).toMatchObject({ claimedTotal: 1, lastError: undefined });
    });

    it('lets creates wait for the starts under way, in order, and no more of them than there are starts', async () => {
      host.automatic = false;
      host.parallel = 2;
      const pool = make(size(2));
      const results = [claimed(pool), claimed(pool), claimed(pool)];
      expect(await results[2]).toBeUndefined();
      host.started(1);
      expect(await results[0]).toBe('m2');
      host.started(0);
      expect(await results[1]).toBe('m1');
      expect(pool.status).toMatchObject({ claimedTotal: 2, missesTotal: 1 });
    });

    it('sends the last of those who wait away when a start fails', async () => {
      host.automatic = false;
      const pool = make(size(2));
      const results = [claimed(pool), claimed(pool)];
      host.clock = 1;
      host.starts[0]?.reject(new ServiceError('unavailable', 'no'));
      expect(await results[1]).toBeUndefined();
      host.started(1);
      expect(await results[0]).toBe('m2');
    });

    it('lets go of a create that gives up', async () => {
      host.automatic = false;
      const pool = make(size(1));
      const caller = new AbortController();
      const waiting = pool.claim(caller.signal);
      caller.abort();
      expect(await waiting).toBeUndefined();
      host.started(0);
      await nextTurn();
      host.warmUps[0]?.resolve();
      await nextTurn();
      expect(pool.status.ready).toBe(1);
    });

    it('grows up to its maximum, and shrinks again in quiet times', async () => {
      const pool = make(size(1, 3));
      await nextTurn();
      host.automatic = false;
      await claimed(pool);
      for (let miss = 0; miss < 4; miss++) await claimed(pool);
      host.automatic = true;
      pool.adjust();
      await nextTurn();
      expect(pool.status.ready).toBe(3);
      host.clock += 59_000;
      await pool.check();
      expect(pool.status.ready).toBe(3);
      host.clock += 1_000;
      await pool.check();
      expect(pool.status.ready).toBe(1);
    });

    it('prefers a machine whose kernel answers now', async () => {
      const pool = make(size(2));
      await nextTurn();
      const [first] = host.machines;
      if (first !== undefined) first.warm = false;
      expect(await claimed(pool)).toBe('m2');
      expect(await claimed(pool)).toBe('m1');
    });
  });

  describe('after failures', () => {
    it('waits twice as long each time, tells why, and starts over after a claim', async () => {
      host.automatic = false;
      const pool = make(size(1));
      const pauses: number[] = [];
      for (let attempt = 0; attempt < 8; attempt++) {
        host.starts.at(-1)?.reject(new ServiceError('unavailable', `no ${attempt}`));
        await nextTurn();
        const failedAt = host.clock;
        expect(pool.status.lastErrorAt).toBe(failedAt);
        const before = host.starts.length;
        while (host.starts.length === before) {
          host.clock += 500;
          pool.adjust();
        }
        pauses.push(host.clock - failedAt);
      }
      expect(pauses).toEqual([1, 2, 4, 8, 16, 32, 60, 60].map((seconds) => seconds * 1000));
      expect(pool.status.lastError).toBe('no 7');
      host.automatic = true;
      host.started(host.starts.length - 1);
      await nextTurn();
      expect(pool.status).toMatchObject({ ready: 1, lastError: 'no 7' });
      await claimed(pool);
      expect(pool.status.lastError).toBeUndefined();
      expect(pool.status.lastErrorAt).toBe(host.clock - 60_000);
    });

    it('ends a machine whose kernel does not start', async () => {
      host.automatic = false;
      const pool = make(size(1));
      host.started(0);
      await nextTurn();
      host.warmUps[0]?.reject(new Error('secret detail'));
      await nextTurn();
      expect(host.endedIds).toEqual(['m1']);
      expect(pool.status).toMatchObject({ ready: 0, lastError: 'Something went wrong inside the service' });
    });

    it('replaces a machine that died, after a pause', async () => {
      const pool = make(size(1));
      await nextTurn();
      host.machines[0]?.end({ reason: 'exited', detail: 'killed' });
      await nextTurn();
      expect(host.endedIds).toEqual(['m1']);
      expect(host.starts).toHaveLength(1);
      host.clock += 1_000;
      pool.adjust();
      await nextTurn();
      expect(pool.status).toMatchObject({ ready: 1, lastError: expect.stringContaining('ended') });
    });

    it('tries again at once with a new size', async () => {
      host.automatic = false;
      const pool = make(size(1));
      host.starts[0]?.reject(new Error('no'));
      await nextTurn();
      host.automatic = true;
      pool.setSize(size(2));
      pool.adjust();
      await nextTurn();
      expect(pool.status).toMatchObject({ target: 2, ready: 2 });
    });
  });

  describe('check', () => {
    it('ends a machine that is not fit any more, and forgets old failures for one that is', async () => {
      const pool = make(size(2));
      await nextTurn();
      const [first] = host.machines;
      if (first !== undefined) first.fit = false;
      await pool.check();
      expect(host.endedIds).toEqual(['m1']);
      expect(pool.status.lastError).toContain('no longer fit');
      await pool.check();
      expect(pool.status).toMatchObject({ ready: 1, lastError: undefined });
    });

    it('leaves a machine alone that was claimed meanwhile', async () => {
      const pool = make(size(1));
      await nextTurn();
      const [first] = host.machines;
      if (first !== undefined) first.fit = false;
      const checking = pool.check();
      expect(await claimed(pool)).toBe('m1');
      await checking;
      expect(host.endedIds).toEqual([]);
    });
  });

  it('ends the newest when its size is lowered, and gives nothing with none', async () => {
    const pool = make(size(3));
    await nextTurn();
    pool.setSize(size(1));
    pool.adjust();
    expect(host.endedIds).toEqual(['m3', 'm2']);
    pool.setSize(size(0));
    pool.adjust();
    expect(host.endedIds).toEqual(['m3', 'm2', 'm1']);
    expect(await claimed(pool)).toBeUndefined();
    expect(pool.status.missesTotal).toBe(0);
  });

  describe('close', () => {
    it('ends what is ready, breaks off what starts, and waits for that', async () => {
      const pool = make(size(1));
      await nextTurn();
      host.automatic = false;
      pool.setSize(size(3));
      pool.adjust();
      const [, second, third] = host.starts;
      let closed = false;
      const closing = pool.close().then(() => (closed = true));
      expect(host.endedIds).toEqual(['m1']);
      expect([second?.signal?.aborted, third?.signal?.aborted]).toEqual([true, true]);
      await nextTurn();
      expect(closed).toBe(false);
      second?.reject(new Error('aborted'));
      host.started(2); // it did not listen, and came up
      await closing;
      expect(host.endedIds).toEqual(['m1', 'm3']);
      expect(await claimed(pool)).toBeUndefined();
    });

    it('sends away those who wait', async () => {
      host.automatic = false;
      const pool = make(size(1));
      const waiting = claimed(pool);
      const closing = pool.close();
      expect(await waiting).toBeUndefined();
      host.starts[0]?.reject(new Error('aborted'));
      await closing;
    });
  });

  it('keeps its promises through any order of events', async () => {
    // A small model: whatever happens, no machine is given twice or ended after it was given, and none is lost.
    const random = seeded(7);
    host.automatic = false;
    host.parallel = 3;
    const pool = make(size(3, 6));
    const given: string[] = [];
    const waiting: Promise<unknown>[] = [];
    for (let step = 0; step < 2_000; step++) {
      const choice = random(8);
      const open = host.starts.filter((each) => each.signal?.aborted === false);
      if (choice <= 1) waiting.push(pool.claim(never).then((each) => each && given.push(each.id)));
      else if (choice === 2) host.started(random(Math.max(open.length, 1)));
      else if (choice === 3) host.starts[random(host.starts.length)]?.reject(new Error('no'));
      else if (choice === 4) host.warmUps[random(host.warmUps.length)]?.resolve();
      else if (choice === 5) host.machines[random(host.machines.length)]?.end({ reason: 'stopped' });
      else if (choice === 6) host.clock += 500;
      else host.started(host.starts.length - 1);
      pool.adjust();
      await nextTurn();
      expect(pool.held).toBeLessThanOrEqual(6 + 3);
    }
    for (const start of host.starts) start.reject(new Error('end'));
    await pool.close();
    await Promise.all(waiting);
    expect(new Set(given).size).toBe(given.length);
    expect(given.filter((id) => host.endedIds.includes(id))).toEqual([]);
    expect(pool.held).toBe(0);
  });
});

/** The same numbers in each run. */
function seeded(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state * 1_103_515_245 + 12_345) % 2_147_483_648;
    return Math.floor((state / 2_147_483_648) * below);
  };
}
