import { afterAwake } from '../../../kernel-image/agent/process/awake-timer';

describe('a timer of the time in which the machine runs', () => {
  let clock: number;
  beforeEach(() => {
    jest.useFakeTimers();
    clock = 0;
  });
  afterEach(() => jest.useRealTimers());

  /** The machine runs, its timers are as late as `lateMs` says. */
  function run(ms: number, lateMs = 0): void {
    clock += ms + lateMs;
    jest.advanceTimersByTime(ms);
  }

  function started(ms: number): { elapsed: jest.Mock; cancel: () => void } {
    const elapsed = jest.fn();
    return { elapsed, cancel: afterAwake(ms, elapsed, () => clock) };
  }

  it('fires after its time, also a long one and none', () => {
    const { elapsed } = started(3_500);
    for (let second = 0; second < 3; second++) run(1_000);
    expect(elapsed).not.toHaveBeenCalled();
    run(500);
    expect(elapsed).toHaveBeenCalledTimes(1);
    const { elapsed: atOnce } = started(0);
    run(1);
    expect(atOnce).toHaveBeenCalledTimes(1);
  });

  it('does not count a standstill', () => {
    const { elapsed } = started(3_000);
    run(1_000);
    run(1_000, 3_600_000);
    expect(elapsed).not.toHaveBeenCalled();
    run(1_000);
    expect(elapsed).toHaveBeenCalledTimes(1);
  });

  it('counts the time of a machine that is only slow', () => {
    const { elapsed } = started(5_000);
    run(1_000, 1_500);
    run(1_000, 1_500);
    expect(elapsed).toHaveBeenCalledTimes(1);
  });

  it('never fires once it was cancelled', () => {
    const { elapsed, cancel } = started(1_500);
    run(1_000);
    cancel();
    run(1_000);
    expect(elapsed).not.toHaveBeenCalled();
    expect(jest.getTimerCount()).toBe(0);
  });
});
