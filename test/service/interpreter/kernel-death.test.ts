import { describeDeath } from '../../../service/interpreter/kernel-death';

describe('a death of a kernel, for people', () => {
  it.each([
    [{}, 'A kernel ended'],
    [{ exitCode: 3 }, 'A kernel ended with exit code 3'],
    [{ exitCode: 0 }, 'A kernel ended with exit code 0'],
    [{ signal: 'SIGSEGV' }, 'A kernel was killed by SIGSEGV'],
    [{ signal: 'SIGKILL', oom: false }, 'A kernel was killed by SIGKILL'],
    [{ signal: 'SIGKILL', oom: true }, 'A kernel was killed because the memory ran out'],
    [
      { signal: 'SIGKILL', oom: true, memoryPeakBytes: 2 ** 29, memoryLimitBytes: 2 ** 29 },
      'A kernel was killed because the memory of 512 MiB ran out',
    ],
  ])('%j is told as %j', (death, text) => {
    expect(describeDeath(death)).toBe(text);
  });
});
