import { demultiplex } from '../../../service/runtime/docker-helper';
import { parseEvent } from '../../../service/runtime/docker';

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

describe('demultiplex()', () => {
  const frame = (text: string, stream = 1) => {
    const head = Buffer.alloc(8);
    head[0] = stream;
    head.writeUInt32BE(Buffer.byteLength(text), 4);
    return Buffer.concat([head, Buffer.from(text)]);
  };

  it('joins the frames of both streams in order, also characters that two frames share', () => {
    const e = Buffer.from('é');
    const half = (byte: number) => {
      const part = frame('x');
      part[8] = byte;
      return part;
    };
    expect(demultiplex(Buffer.concat([frame('one\n'), frame('two\n', 2)]))).toBe('one\ntwo\n');
    expect(demultiplex(Buffer.concat([half(e[0] ?? 0), half(e[1] ?? 0)]))).toBe('é');
  });

  it('ends at a frame that is cut off', () => {
    expect(demultiplex(frame('whole').subarray(0, 10))).toBe('wh');
    expect(demultiplex(Buffer.from([1, 0, 0]))).toBe('');
  });
});
