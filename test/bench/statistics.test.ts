import { formatMs, markdownTable, percentile, ratioOf, summarise } from '../../bench/statistics';

describe('percentile()', () => {
  it('gives a value that was measured, by nearest rank', () => {
    const sorted = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
    expect([50, 95, 99, 100].map((percent) => percentile(sorted, percent))).toEqual([5, 10, 10, 10]);
  });

  it('gives the only one of one, and NaN of none', () => {
    expect(percentile([7], 1)).toBe(7);
    expect(percentile([], 50)).toBeNaN();
  });
});

describe('summarise()', () => {
  it('does not depend on the order and leaves it alone', () => {
    const values = [30, 1, 2];
    expect(summarise(values)).toEqual({ n: 3, p50: 2, p95: 30, min: 1, max: 30 });
    expect(values).toEqual([30, 1, 2]);
  });
});

describe('ratioOf()', () => {
  it('compares the middles, and says nothing where one is missing', () => {
    expect(ratioOf([1, 2, 300], [4])).toBe('0.50×');
    expect(ratioOf([], [4])).toBe('–');
    expect(ratioOf([1], undefined)).toBe('–');
  });
});

describe('formatMs()', () => {
  it('keeps about three digits', () => {
    expect([1.234, 12.34, 1234.5, Number.NaN].map(formatMs)).toEqual(['1.23', '12.3', '1235', '–']);
  });
});

describe('markdownTable()', () => {
  it('aligns the first column to the left and all others to the right', () => {
    expect(markdownTable(['row', 'n'], [['longer name', '5']])).toBe(
      ['| row         |   n |', '| ----------- | --: |', '| longer name |   5 |'].join('\n'),
    );
  });
});
