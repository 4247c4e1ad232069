import { PausableTimer } from '../../../service/interpreter/pausable-timer';

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
    jest.advanceTimersByTime(1);
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
    jest.advanceTimersByTime(0);
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
});
