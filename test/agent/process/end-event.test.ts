import { exitFromStatus, toEnd } from '../../../kernel-image/agent/process/end-event';

const MIB = 1_048_576;

describe('toEnd', () => {
  it.each([
    [{ code: 0 }, { exitCode: 0, exited: true, status: 'exit status 0' }],
    [{ code: 7 }, { exitCode: 7, exited: true, status: 'exit status 7', error: 'exit status 7' }],
    [
      { signal: 'SIGKILL' },
      { exitCode: -1, exited: false, status: 'signal: killed', error: 'signal: killed' },
    ],
    [
      exitFromStatus(11 | 0x80),
      {
        exitCode: -1,
        exited: false,
        status: 'signal: segmentation fault (core dumped)',
        error: 'signal: segmentation fault (core dumped)',
      },
    ],
  ])('says of %j what the wire says', (exit, end) => {
    expect(toEnd(exit)).toEqual(end);
  });

  it('tells memory that ran out in the error alone', () => {
    const full = { peakBytes: 512 * MIB, limitBytes: 512 * MIB };
    expect(toEnd({ signal: 'SIGKILL' }, full)).toEqual({
      exitCode: -1,
      exited: false,
      status: 'signal: killed',
      error: 'signal: killed: out of memory (peak 512 MiB of 512 MiB)',
    });
    expect(toEnd({ code: 137 }, full)).toEqual({
      exitCode: 137,
      exited: true,
      status: 'exit status 137',
      error: 'exit status 137: out of memory (peak 512 MiB of 512 MiB)',
    });
  });

  it('leaves out figures that nobody knows', () => {
    const error = (figures: object) => toEnd({ signal: 'SIGKILL' }, figures).error;
    expect(error({ peakBytes: 3 * MIB })).toBe('signal: killed: out of memory (peak 3 MiB)');
    expect(error({})).toBe('signal: killed: out of memory');
  });
});
