import { Readable, Writable } from 'node:stream';
import { finished } from 'node:stream/promises';
import v8 from 'node:v8';
import vm from 'node:vm';
import { passOn } from '../../../service/edge/pass-on';

const MB = 1024 * 1024;
const CHUNK_BYTES = 64 * 1024;

/** Most megabytes in buffers while 256 MB go by, above those at its start. */
async function peakInBuffers(): Promise<number> {
  const before = process.memoryUsage().arrayBuffers;
  let peak = before;
  const source = Readable.from(
    (function* () {
      for (let sent = 0; sent < 256 * MB; sent += CHUNK_BYTES) yield Buffer.alloc(CHUNK_BYTES, sent);
    })(),
  );
  const sink = new Writable({
    write(_chunk, _encoding, done) {
      peak = Math.max(peak, process.memoryUsage().arrayBuffers);
      setImmediate(done);
    },
  });
  passOn(source, sink);
  await finished(sink);
  return (peak - before) / MB;
}

describe('passOn', () => {
  // As the service runs: buffers are given back when they are found, not when a thread gets its turn.
  beforeAll(() => v8.setFlagsFromString('--no-concurrent-array-buffer-sweeping'));

  it('lets less than 16 MB of buffers pile up, where V8 alone lets 32', async () => {
    expect(await peakInBuffers()).toBeLessThan(16);
  });

  it('leaves contexts made later without a way to collect', async () => {
    await peakInBuffers();
    expect(vm.runInNewContext('typeof gc')).toBe('undefined');
  });
});
