import { serialize } from '@jupyterlab/services/lib/kernel/serialize';
import { KernelMessage } from '@jupyterlab/services/lib/kernel';
import fc from 'fast-check';
import { deserializeMessage } from '../../../service/interpreter/kernel-socket';

const V1 = 'v1.kernel.websocket.jupyter.org';

const message = KernelMessage.createMessage({
  msgType: 'execute_request',
  channel: 'shell',
  session: 's',
  content: { code: 'h\u00e9 \u{1F600}' } as never,
  metadata: { a: 1 },
});

describe('deserializeMessage', () => {
  it('reads the binary framing', () => {
    const bytes = Buffer.from(serialize(message, V1) as ArrayBuffer);
    expect(deserializeMessage(bytes, V1)).toEqual(message);
  });

  it('reads the framing of old servers', () => {
    expect(deserializeMessage(serialize(message), '')).toEqual({ ...message, buffers: [] });
  });

  it('takes numbers that JSON does not have for null, outside of strings', () => {
    const text = '{"content": {"a": [NaN, -Infinity, Infinity], "b": "NaN \\" Infinity"}}';
    expect(deserializeMessage(text)).toMatchObject({
      content: { a: [null, null, null], b: 'NaN " Infinity' },
    });
  });

  it('throws for anything else, and does nothing worse', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        expect(() => deserializeMessage(Buffer.from(bytes), V1)).toThrow();
      }),
    );
    const huge = Buffer.alloc(16, 0xff);
    expect(() => deserializeMessage(huge, V1)).toThrow();
  });
});
