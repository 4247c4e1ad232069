/** One byte of flags and four of length stand before each message of a stream. */
export const ENVELOPE_BYTES = 5;

export function envelope(flags: number, message: Buffer): Buffer {
  const frame = Buffer.allocUnsafe(ENVELOPE_BYTES + message.length);
  frame.writeUInt8(flags, 0);
  frame.writeUInt32BE(message.length, 1);
  message.copy(frame, ENVELOPE_BYTES);
  return frame;
}
