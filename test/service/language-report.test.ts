import pino from 'pino';
import { LanguageReport } from '../../service/language-report';

const silent = pino({ level: 'silent' });
const HOME = { runtime: 'local' } as const;

describe('LanguageReport', () => {
  it('asks when it is first wanted, and once', async () => {
    let asked = 0;
    const report = new LanguageReport(
      HOME,
      () => {
        asked++;
        return Promise.resolve(
          JSON.stringify({
            python3: { available: true, missing: null },
            r: { available: false, missing: 'R' },
          }),
        );
      },
      silent,
    );
    expect(asked).toBe(0);
    const [first, second] = await Promise.all([report.list(), report.list(), report.read()]);
    expect(asked).toBe(1);
    expect(second).toEqual(first);
    expect(first.find(({ name }) => name === 'python')).toEqual({ name: 'python' });
    expect(first.find(({ name }) => name === 'r')?.missing).toEqual(expect.stringContaining('R'));
  });

  it.each([
    ['fails', () => Promise.reject(new Error('no engine'))],
    ['is no report', () => Promise.resolve('Traceback')],
  ])('takes every language to be there when the answer %s', async (_case, ask) => {
    const report = new LanguageReport(HOME, ask, silent);
    expect((await report.list()).every(({ missing }) => missing === undefined)).toBe(true);
  });
});
