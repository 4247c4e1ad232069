import { setImmediate as nextTurn } from 'node:timers/promises';
import { Turns } from '../../service/turns';

describe('Turns', () => {
  const never = new AbortController().signal;
  const LONG_MS = 60_000;

  /** Work that ends when told to. */
  class Work {
    hasBegun = false;
    end: () => void = () => undefined;

    readonly begin = (): Promise<void> => {
      this.hasBegun = true;
      return new Promise((resolve) => (this.end = resolve));
    };
  }

  it('lets so many go on at a time and no more, in the order in which they came', async () => {
    const turns = new Turns(2);
    const works = [0, 1, 2, 3].map(() => new Work());
    const all = works.map((work) => turns.run(never, LONG_MS, work.begin));
    const begun = (): boolean[] => works.map((work) => work.hasBegun);
    await nextTurn();
    expect(begun()).toEqual([true, true, false, false]);
    expect(turns.length).toBe(4);

    works[1]?.end();
    await nextTurn();
    expect(begun()).toEqual([true, true, true, false]);

    works[0]?.end();
    await nextTurn();
    for (const work of works) work.end();
    await Promise.all(all);
    expect(turns.length).toBe(0);
  });

  it('goes on after work that fails', async () => {
    const turns = new Turns(1);
    const failed = turns.run(never, LONG_MS, () => Promise.reject(new Error('no')));
    const next = turns.run(never, LONG_MS, () => Promise.resolve('yes'));
    await expect(failed).rejects.toThrow('no');
    await expect(next).resolves.toBe('yes');
  });

  it('gives the turn of one that gave up waiting to the next', async () => {
    const turns = new Turns(1);
    const [first, third] = [new Work(), new Work()];
    const done = turns.run(never, LONG_MS, first.begin);
    const abort = new AbortController();
    const second = turns.run(abort.signal, LONG_MS, () => Promise.resolve());
    const last = turns.run(never, LONG_MS, third.begin);
    abort.abort(new Error('gone'));
    await expect(second).rejects.toThrow('gone');
    await expect(turns.run(abort.signal, LONG_MS, () => Promise.resolve())).rejects.toThrow('gone');

    first.end();
    await done;
    await nextTurn();
    expect(third.hasBegun).toBe(true);
    third.end();
    await last;
    expect(turns.length).toBe(0);
  });

  it('does not let work that never ends hold up the others', async () => {
    const turns = new Turns(1);
    const endless = new Work();
    const first = turns.run(never, 1, endless.begin);
    await expect(turns.run(never, LONG_MS, () => Promise.resolve('next'))).resolves.toBe('next');
    endless.end();
    await first;
    expect(turns.length).toBe(0);
  });
});
