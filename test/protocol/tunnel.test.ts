import fc from 'fast-check';
import {
  formatHello,
  formatReply,
  formatRequest,
  LineBuffer,
  MAX_LINE_BYTES,
  parseHello,
  parseReply,
  parseRequest,
  TunnelLineError,
} from '../../protocol/tunnel';

const bytes = (text: string) => Buffer.from(text, 'latin1');

describe('tunnel lines', () => {
  it('read back what was written', () => {
    for (const hello of [
      { type: 'idle', token: 'abc' },
      { type: 'call', port: 49999, token: 'a+/=' },
    ] as const) {
      expect(parseHello(formatHello(hello).slice(0, -1))).toEqual(hello);
    }
    expect(parseRequest(formatRequest({ type: 'dial', port: 1 }).trimEnd())).toEqual({
      type: 'dial',
      port: 1,
    });
    expect(parseRequest(formatRequest({ type: 'deadline', at: 1_700_000_000_000.7 }).trimEnd())).toEqual({
      type: 'deadline',
      at: 1_700_000_000_000,
    });
    expect(parseReply('ok')).toEqual({ type: 'ok' });
    expect(parseReply('refused')).toEqual({ type: 'refused' });
    expect(parseReply(formatReply({ type: 'error', text: 'no\nway ✗' }).slice(0, -1))).toEqual({
      type: 'error',
      text: 'no?way ?',
    });
  });

  it.each([
    'CELLBOX/2 idle t',
    'CELLBOX/1 idle',
    'CELLBOX/1 idle ',
    'CELLBOX/1 idle a b',
    'CELLBOX/1 call t',
    'CELLBOX/1 call 0 t',
    'CELLBOX/1 call 65536 t',
    'CELLBOX/1 call 080 t',
    'CELLBOX/1 other t',
    'GET / HTTP/1.1',
    '',
  ])('refuse the greeting %j', (line) => {
    expect(parseHello(line)).toBeUndefined();
  });

  it.each([
    'dial',
    'dial 0',
    'dial 65536',
    'dial -1',
    'dial 1e3',
    'dial 80 81',
    'deadline x',
    'deadline ',
    'ok',
    '',
  ])('refuse the request %j', (line) => {
    expect(parseRequest(line)).toBeUndefined();
  });

  it('refuse a token that would be another line', () => {
    expect(() => formatHello({ type: 'idle', token: 'a\nok' })).toThrow('printable');
    expect(() => formatHello({ type: 'idle', token: '' })).toThrow('printable');
  });

  it('bound the text of an error', () => {
    expect(formatReply({ type: 'error', text: 'x'.repeat(10_000) }).length).toBeLessThan(MAX_LINE_BYTES);
  });
});

describe('LineBuffer', () => {
  it('finds the same line however the bytes are cut, and leaves the rest alone', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(40), { maxLength: 10 }), (cuts) => {
        const whole = bytes('dial 8080\n\x00\xff\nrest');
        const buffer = new LineBuffer();
        let at = 0;
        for (const size of [...cuts, whole.length]) {
          const found = buffer.push(whole.subarray(at, at + size));
          at = Math.min(whole.length, at + size);
          if (found === undefined) continue;
          expect(found.line).toBe('dial 8080');
          expect(Buffer.concat([found.rest, whole.subarray(at)])).toEqual(bytes('\x00\xff\nrest'));
          return;
        }
        throw new Error('no line found');
      }),
    );
  });

  it('takes a line of exactly the limit and refuses one byte more', () => {
    expect(new LineBuffer().push(bytes(`${'x'.repeat(MAX_LINE_BYTES - 1)}\n`))?.line.length).toBe(
      MAX_LINE_BYTES - 1,
    );
    expect(() => new LineBuffer().push(bytes(`${'x'.repeat(MAX_LINE_BYTES)}\n`))).toThrow(TunnelLineError);
    const buffer = new LineBuffer();
    expect(() => {
      for (let i = 0; i < MAX_LINE_BYTES; i++) buffer.push(bytes('x'));
    }).toThrow(TunnelLineError);
  });

  it.each(['\x00', '\x1b', '\r', '\x7f', '\xff'])('refuses the byte %j in a line', (byte) => {
    expect(() => new LineBuffer().push(bytes(`ok${byte}\n`))).toThrow(TunnelLineError);
  });
});
