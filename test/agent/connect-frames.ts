/** One message of a stream, or its end, as it goes over the wire. */
export interface Frame {
  flags: number;
  message: unknown;
}

export const ENVELOPE_BYTES = 5;

/** Text is sent as it is, also where it is no JSON. */
export function envelope(message: unknown, flags = 0): Buffer {
  const payload = Buffer.from(typeof message === 'string' ? message : JSON.stringify(message));
  const head = Buffer.alloc(ENVELOPE_BYTES);
  head.writeUInt8(flags, 0);
  head.writeUInt32BE(payload.length, 1);
  return Buffer.concat([head, payload]);
}

export function framesOf(body: Buffer): Frame[] {
  const frames: Frame[] = [];
  for (let at = 0; at < body.length;) {
    const begin = at + ENVELOPE_BYTES;
    const end = begin + body.readUInt32BE(at + 1);
    const message = JSON.parse(body.subarray(begin, end).toString()) as unknown;
    frames.push({ flags: body.readUInt8(at), message });
    at = end;
  }
  return frames;
}
