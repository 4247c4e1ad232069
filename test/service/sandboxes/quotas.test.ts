import fc from 'fast-check';
import { CreateRates } from '../../../service/sandboxes/quotas';

const MINUTE = 60_000;

describe('CreateRates', () => {
  let now = 0;
  let rates: CreateRates;
  beforeEach(() => {
    now = 1_000_000;
    rates = new CreateRates(() => now);
  });

  it('refuses one more within a minute, and says when there is room', () => {
    rates.take('a', 2);
    now += 10_000;
    rates.take('a', 2);
    now += 10_000;
    expect(() => rates.take('a', 2)).toThrow(
      expect.objectContaining({ code: 'resource_exhausted', retryInMs: 40_000 }),
    );
    now += 40_000;
    rates.take('a', 2);
    expect(() => rates.take('a', 2)).toThrow(expect.objectContaining({ retryInMs: 10_000 }));
  });

  it('counts each team by itself, and nothing where there is no limit', () => {
    rates.take('a', 1);
    rates.take('b', 1);
    for (let count = 0; count < 100; count++) rates.take('c', 0);
    expect(() => rates.take('a', 1)).toThrow('The limit of 1 creates a minute is reached');
  });

  it('holds to a limit that was lowered or raised in between', () => {
    for (let count = 0; count < 3; count++, now += 1_000) rates.take('a', 3);
    expect(() => rates.take('a', 1)).toThrow(expect.objectContaining({ retryInMs: MINUTE - 1_000 }));
    rates.take('a', 4);
  });

  it('lets no window of a minute hold more than the limit, and refuses only what would', () => {
    const steps = fc.array(fc.integer({ min: 0, max: 20_000 }), { maxLength: 60 });
    fc.assert(
      fc.property(steps, fc.integer({ min: 1, max: 5 }), (pauses, limit) => {
        const rates = new CreateRates(() => now);
        const taken: number[] = [];
        for (const pause of pauses) {
          now += pause;
          const within = taken.filter((at) => at > now - MINUTE).length;
          let refused = false;
          try {
            rates.take('a', limit);
            taken.push(now);
          } catch {
            refused = true; // the only thing it throws
          }
          if (refused !== within >= limit) return false;
        }
        return true;
      }),
    );
  });
});
