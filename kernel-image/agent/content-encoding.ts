import type { IncomingMessage } from 'node:http';
import { promisify } from 'node:util';
import zlib from 'node:zlib';
import { HttpError } from './http-error';

const deflate = promisify(zlib.deflateRaw);

/** How much of a file's start tells what compressing it is worth. */
export const SAMPLE_BYTES = 64 * 1024;
/** A file whose start shrinks by less than a tenth is as good as compressed already. */
const WORTHWHILE = 0.9;

/**
 * Whether to compress a file that begins like this, for a client that takes it either way. HTTP libraries ask for gzip
 * whether or not anybody wants it: 100 MB that can't shrink take us 3 s to compress, and Node's `fetch` 10 s to read.
 */
export async function isWorthCompressing(start: Buffer, size: number): Promise<boolean> {
  if (size <= SAMPLE_BYTES) return true; // costs nothing either way, and then what was asked for is simplest
  const packed = await deflate(start, { level: zlib.constants.Z_BEST_SPEED });
  return packed.length < start.length * WORTHWHILE;
}

/**
 * Which coding the client prefers; `gzip only` where it refuses to have the file as it is. Throws 406 when nothing that we
 * have is acceptable.
 */
export function chooseEncoding(request: Pick<IncomingMessage, 'headers'>): 'gzip' | 'gzip only' | 'identity' {
  const quality = new Map<string, number>();
  for (const part of (request.headers['accept-encoding'] ?? '').toString().split(',')) {
    const [name = '', ...parameters] = part.split(';').map((text) => text.trim().toLowerCase());
    if (name === '') continue;
    const q = parameters.find((text) => text.startsWith('q='));
    const value = q === undefined ? 1 : Number(q.slice(2));
    quality.set(name, Number.isFinite(value) ? Math.min(1, Math.max(0, value)) : 0);
  }
  const refused = (quality.get('identity') ?? quality.get('*') ?? 1) === 0;
  const { headers } = request;
  const partial =
    headers.range ?? headers['if-modified-since'] ?? headers['if-none-match'] ?? headers['if-range'];
  if (partial !== undefined) {
    if (refused) throw new HttpError(406, 'ranges and conditions are answered in identity encoding only');
    return 'identity';
  }
  // `*` stands for what the list doesn't name, and identity is what we have for it, unless it is refused.
  const gzip = quality.get('gzip') ?? (refused ? (quality.get('*') ?? 0) : 0);
  const identity = refused ? 0 : (quality.get('identity') ?? quality.get('*') ?? 0);
  if (gzip > 0 && gzip >= identity) return refused ? 'gzip only' : 'gzip';
  if (refused) throw new HttpError(406, 'only gzip and identity encodings are available');
  return 'identity';
}
