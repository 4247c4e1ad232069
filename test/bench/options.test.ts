import { GROUPS, HELP, readOptions } from '../../bench/options';

describe('readOptions()', () => {
  it('chooses everything where nothing is named, and only what is named otherwise', () => {
    expect(readOptions([]).isChosen('load')).toBe(true);
    const { isChosen } = readOptions(['--only', '1+1', '--only', 'burst']);
    expect(['1+1', 'burst', 'load'].map(isChosen)).toEqual([true, true, false]);
  });

  it('uses fewer sandboxes for less time when it shall be quick', () => {
    expect(readOptions([])).toMatchObject({ sandboxes: 50, seconds: 60, runtime: 'local' });
    expect(readOptions(['--quick', '--seconds', '5'])).toMatchObject({ sandboxes: 8, seconds: 5 });
  });

  it('names a mistake', () => {
    expect(() => readOptions(['--only', 'speed'])).toThrow(/--only speed: must be of 1\+1, .*restart/);
    expect(() => readOptions(['--runtime', 'vm'])).toThrow('--runtime vm: must be local or docker');
    expect(() => readOptions(['--sandboxes', 'many'])).toThrow('--sandboxes many: must be a whole number');
    expect(() => readOptions(['--speed'])).toThrow(/--speed/);
  });

  it('tells of every group in the help', () => {
    expect(GROUPS.filter((name) => !new RegExp(`^ +${name} `, 'm').test(HELP))).toEqual([]);
  });
});
