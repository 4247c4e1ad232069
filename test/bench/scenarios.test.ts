import { describeDifference, scenarios } from '../../bench/scenarios';
import { nameOf } from '../../bench/memory';

const scenario = (name: string) => {
  const found = scenarios(true).find((each) => each.name === name);
  if (found === undefined) throw new Error(`there is no ${name}`);
  return found;
};

describe('scenarios', () => {
  it('accept the SDK’s names of formats as well as MIME types', () => {
    const { check } = scenario('chart');
    expect(check({ ms: 1, stdout: '', types: ['text', 'png', 'chart'] })).toBeUndefined();
    expect(check({ ms: 1, stdout: '', types: ['image/png'] })).toBeUndefined();
    expect(check({ ms: 1, stdout: '', types: ['text'] })).toBe('no picture');
  });

  it('tell where a line is missing', () => {
    expect(describeDifference('a\nb\n', 'a\nb\n')).toBeUndefined();
    expect(describeDifference('a\nc\n', 'a\nb\nc\n')).toBe(
      '2 lines instead of 3; first difference at line 1: "c" instead of "b"',
    );
  });
});

describe('nameOf()', () => {
  it('tells processes apart by what they run', () => {
    expect(nameOf(['/venv/bin/python', '-m', 'cellbox_kernel.zygote', '4', ''])).toBe(
      'cellbox_kernel.zygote',
    );
    expect(nameOf(['/usr/bin/node', '/opt/agent/supervisor.js'])).toBe('supervisor.js');
    expect(nameOf(['tini', '--', ''])).toBe('tini');
  });
});
