import { PausableTimer } from '../../../service/interpreter/pausable-timer';

/** By the fake clock, reading what has arrived takes two rounds of a millisecond. */
const READING_MS = 2;

describe('a timer that can be paused', () => {
  beforeEach(() => jest.useFakeTimers());
  afterEach(() => jest.useRealTimers());

  function started(ms: number): { timer: PausableTimer; elapsed: jest.Mock } {
    const timer = new PausableTimer();
    const elapsed = jest.fn();
    timer.start(ms, elapsed);
    return { timer, elapsed };
  }

  it('counts only the time between pauses', () => {
    const { timer, elapsed } = started(100);
    jest.advanceTimersByTime(60);
    timer.pause();
    timer.pause();
    jest.advanceTimersByTime(10_000);
    timer.resume();
    timer.resume();
    jest.advanceTimersByTime(39);
    expect(elapsed).not.toHaveBeenCalled();
    jest.advanceTimersByTime(1 + READING_MS);
    expect(elapsed).toHaveBeenCalledTimes(1);
  });

  it('waits for the resume when it is started in a pause', () => {
    const timer = new PausableTimer();
    const elapsed = jest.fn();
    timer.pause();
    timer.start(0, elapsed);
    jest.advanceTimersByTime(10_000);
    expect(elapsed).not.toHaveBeenCalled();
    timer.resume();
    jest.advanceTimersByTime(READING_MS);
    expect(elapsed).toHaveBeenCalledTimes(1);
  });

  it('is one at a time, also when started anew by what it calls', () => {
    const { timer, elapsed } = started(100);
    timer.start(50, () => timer.start(20, elapsed));
    jest.advanceTimersByTime(69);
    expect(elapsed).not.toHaveBeenCalled();
    jest.advanceTimersByTime(1000);
    expect(elapsed).toHaveBeenCalledTimes(1);
  });

  it('never fires after it was cleared, whatever is resumed', () => {
    const { timer, elapsed } = started(100);
    timer.pause();
    timer.clear();
    timer.resume();
    jest.advanceTimersByTime(1000);
    expect(elapsed).not.toHaveBeenCalled();
    expect(jest.getTimerCount()).toBe(0);
  });

  it.each(['clear', 'pause'] as const)('lets what arrives just before it %s it', (change) => {
    const { timer, elapsed } = started(0);
    setTimeout(() => setImmediate(() => timer[change]()), 0); // a message that was there when the time was up
    jest.advanceTimersByTime(1000);
    expect(elapsed).not.toHaveBeenCalled();
    timer.resume();
    jest.advanceTimersByTime(1000);
    expect(elapsed).toHaveBeenCalledTimes(change === 'pause' ? 1 : 0);
  });
});
