import { demultiplex } from '../../../service/runtime/docker-helper';

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
