import { CREATE_ROWS } from '../../bench/creates';
import { figure, figuresOf } from '../../bench/figures';
import { judge, targetsTable } from '../../bench/targets';

const verdictOn = (what: string, figures: Record<string, number>) =>
  judge(figures).find((each) => each.what.includes(what));

describe('judge()', () => {
  it('keeps a promise that every one of its numbers keeps', () => {
    const samples = [...Array.from({ length: 99 }, () => 10), 39];
    expect(verdictOn('from the pool', figuresOf(CREATE_ROWS.pooled, 'Cellbox', samples))).toEqual({
      what: '`Sandbox.create` from the pool',
      target: 'p50 ≤ 15 ms, p99 ≤ 40 ms',
      measured: '10 ms, 10 ms',
      met: true,
    });
  });

  it('breaks it for one number that does not', () => {
    const figures = {
      [figure(CREATE_ROWS.pooled, 'Cellbox', 'p50')]: 10,
      [figure(CREATE_ROWS.pooled, 'Cellbox', 'p99')]: 41,
    };
    expect(verdictOn('from the pool', figures)?.met).toBe(false);
  });

  it('says nothing of what was not measured, or not all of it', () => {
    expect(verdictOn('from the pool', {})?.met).toBeUndefined();
    const half = { [figure('1+1', 'Cellbox', 'p50')]: 1, [figure('1+1', 'raw ZeroMQ', 'p50')]: 1 };
    expect(verdictOn('1+1', half)).toMatchObject({ measured: '1×, –', met: undefined });
  });

  it('holds the service to its limits by the worst of all rows', () => {
    const figures = {
      'load | service memory peak MB': 120,
      'burst | service memory peak MB': 251,
      'load | event loop p99 ms': 3,
    };
    expect(verdictOn('the service', figures)).toMatchObject({ measured: '251 MB, 3 ms', met: false });
  });

  it('takes speed, not time, for copies', () => {
    const figures = {
      [figure('100 MB up', 'floor', 'p50')]: 100,
      [figure('100 MB up', 'Cellbox', 'p50')]: 190,
      [figure('100 MB down', 'floor', 'p50')]: 100,
      [figure('100 MB down', 'Cellbox', 'p50')]: 210,
    };
    expect(verdictOn('100 MB', figures)).toMatchObject({ measured: '0.53×, 0.48×', met: false });
  });
});

describe('targetsTable()', () => {
  it('writes one line for each promise', () => {
    const lines = targetsTable(judge({})).join('\n').split('\n');
    expect(lines.filter((line) => line.startsWith('|'))).toHaveLength(judge({}).length + 2);
  });
});
