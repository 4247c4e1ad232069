import fc from 'fast-check';
import { MetricHistory } from '../../../service/sandboxes/metrics-history';
import type { MetricSample } from '../../../service/sandboxes/metrics-history';

const HOUR = 3_600_000;

function sampleAt(at: number): MetricSample {
  return {
    at,
    cpuCount: 2,
    cpuUsedPct: 12.34,
    memUsed: 2 ** 40 + 1,
    memTotal: 2 ** 41,
    memCache: 3,
    diskUsed: 4,
    diskTotal: 2 ** 50,
  };
}

function filled(count: number, everyMs: number, from = 0): MetricHistory {
  const history = new MetricHistory();
  for (let index = 0; index < count; index++) history.add(sampleAt(from + index * everyMs));
  return history;
}

const times = (samples: MetricSample[]) => samples.map(({ at }) => at);

describe('MetricHistory', () => {
  it('is empty at first', () => {
    const history = new MetricHistory();
    expect(history.last).toBeUndefined();
    expect(history.between(0, Infinity)).toEqual([]);
  });

  it('gives back whole samples, in order, from start to end and both of them', () => {
    const history = filled(5, 1000, 10_000);
    expect(history.last).toEqual(sampleAt(14_000));
    expect(history.between(0, Infinity)).toEqual([10_000, 11_000, 12_000, 13_000, 14_000].map(sampleAt));
    expect(times(history.between(11_000, 13_000))).toEqual([11_000, 12_000, 13_000]);
    expect(history.between(0, 9_999)).toEqual([]);
    expect(history.between(14_001, Infinity)).toEqual([]);
  });

  it('keeps the last hour in full, and one a minute of what is older', () => {
    const found = times(filled(2160, 5000).between(0, Infinity)); // three hours
    const lastAt = 2159 * 5000;
    const recent = found.filter((at) => at > lastAt - HOUR);
    expect(recent).toHaveLength(720);
    expect(recent.every((at, index) => index === 0 || at - (recent[index - 1] ?? 0) === 5000)).toBe(true);
    const older = found.slice(0, -720);
    expect(older).toEqual(Array.from({ length: 120 }, (_, minute) => minute * 60_000));
  });

  it('forgets what is older than a day, and holds no more than it promises', () => {
    const found = times(filled(2 * 17_280, 5000).between(0, Infinity)); // two days
    const lastAt = (2 * 17_280 - 1) * 5000;
    expect(found.length).toBeLessThanOrEqual(720 + 1440);
    expect(lastAt - (found[0] ?? 0)).toBeLessThanOrEqual(24 * HOUR);
    expect(lastAt - (found[0] ?? 0)).toBeGreaterThan(23.9 * HOUR);
  });

  it('forgets an old stretch before a long pause', () => {
    const history = filled(2, 1000);
    history.add(sampleAt(25 * HOUR));
    expect(times(history.between(0, Infinity))).toEqual([25 * HOUR]);
  });

  it('stays in order and bounded, whatever the rhythm', () => {
    const gaps = fc.array(fc.integer({ min: 1, max: 400_000 }), { minLength: 1, maxLength: 3000 });
    fc.assert(
      fc.property(gaps, (each) => {
        const history = new MetricHistory();
        let at = 0;
        for (const gap of each) history.add(sampleAt((at += gap)));
        const found = times(history.between(0, Infinity));
        expect(found.length).toBeLessThanOrEqual(720 + 1440);
        expect(found).toEqual([...found].sort((one, other) => one - other));
        expect(found[found.length - 1]).toBe(at);
      }),
      { numRuns: 20 },
    );
  });
});
