import { parseEvent } from '../../../service/runtime/docker-events';

describe('parseEvent()', () => {
  it('reads the end of a container and running out of memory', () => {
    const event = (Action: string, Attributes = {}) =>
      JSON.stringify({ Action, Actor: { ID: 'c1', Attributes } });
    expect(parseEvent(event('die', { exitCode: '137' }))).toEqual({
      action: 'die',
      containerId: 'c1',
      exitCode: '137',
    });
    expect(parseEvent(event('oom'))).toEqual({ action: 'oom', containerId: 'c1' });
  });

  it.each([
    '',
    '{',
    'null',
    '[]',
    '7',
    '{"Action":"die"}',
    '{"Action":"start","Actor":{"ID":"c"}}',
    '{"Action":"die","Actor":{"ID":7}}',
  ])('makes nothing of %j', (line) => {
    expect(parseEvent(line)).toBeUndefined();
  });
});
