import { randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import fs from 'node:fs/promises';
import type { FileHandle } from 'node:fs/promises';
import type { IncomingMessage, ServerResponse } from 'node:http';
import path from 'node:path';
import { pipeline } from 'node:stream/promises';
import zlib from 'node:zlib';
import type { AgentContext } from './app';
import { chooseEncoding, isWorthCompressing, SAMPLE_BYTES } from './content-encoding';
import { HttpError } from './http-error';
import { resolvePath } from './users';
import type { SandboxUser } from './users';

const CHUNK_BYTES = 256 * 1024;
const SNIFF_BYTES = 512;
/** A request for more pieces than this gets the whole file: that is cheaper for both sides. */
const MAX_RANGES = 100;

/** The user that a file request means. */
export function requestUser(context: AgentContext, query: URLSearchParams): SandboxUser {
  const name = query.get('username') || context.state.defaultUser;
  if (name === '') throw new HttpError(400, 'no username given and no default user configured');
  return context.users.find(name);
}

/** `GET /files`. Constant memory; the file is open for as long as the client reads. */
export async function download(
  context: AgentContext,
  request: IncomingMessage,
  response: ServerResponse,
  query: URLSearchParams,
): Promise<void> {
  const user = requestUser(context, query);
  const apiPath = resolvePath(query.get('path') ?? '', user, context.state.defaultWorkdir);
  const file = await openRegular(context.users.toDisk(apiPath), apiPath);
  try {
    await send(file, path.posix.basename(apiPath), request, response);
  } finally {
    await file.close();
  }
}

/** Opens a file to read it; the caller closes it. Rejects with 404 and 400 for what is not there or no file. */
export async function openRegular(diskPath: string, apiPath: string): Promise<FileHandle> {
  let file: FileHandle;
  try {
    const found = await fs.stat(diskPath);
    if (found.isDirectory()) throw new HttpError(400, `path '${apiPath}' is a directory`);
    if (!found.isFile()) throw new HttpError(400, `path '${apiPath}' is not a regular file`);
    // Non-blocking, for the case that a FIFO took the file's place since: opening one waits for its writer.
    file = await fs.open(diskPath, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code === 'ENOENT' || code === 'ENOTDIR') {
      throw notFound(apiPath, error);
    }
    throw error;
  }
  return file;
}

/** The answer for a file that is not there. */
export function notFound(apiPath: string, cause?: unknown): HttpError {
  return new HttpError(404, `path '${apiPath}' does not exist`, { cause });
}

async function send(
  file: FileHandle,
  name: string,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const stat = await file.stat();
  if (!stat.isFile()) throw new HttpError(400, `'${name}' is not a regular file`);
  const type = typeByName(name);
  response.setHeader('Vary', 'Accept-Encoding');
  response.setHeader('Content-Disposition', contentDisposition(name));
  // Empty files stay as they are: a client tells them by their length of 0.
  if (await isCompressed(file, stat.size, request)) {
    response.writeHead(200, {
      'Content-Encoding': 'gzip',
      'Content-Type': type ?? 'application/octet-stream',
    });
    const level = zlib.constants.Z_BEST_SPEED;
    await pipeline(bytesOf(file, 0, undefined), zlib.createGzip({ level }), response);
    return;
  }
  const lastModified = new Date(Math.floor(stat.mtimeMs / 1000) * 1000);
  response.setHeader('Content-Type', type ?? sniffType(await readStart(file, SNIFF_BYTES)));
  response.setHeader('Last-Modified', lastModified.toUTCString());
  response.setHeader('Accept-Ranges', 'bytes');
  const since = Date.parse(request.headers['if-modified-since'] ?? '');
  if (request.headers['if-none-match'] === undefined && lastModified.getTime() <= since) {
    response.removeHeader('Content-Type');
    response.writeHead(304).end();
    return;
  }
  const ranges = rangesOf(request, stat.size, lastModified);
  if (ranges === 'unsatisfiable') {
    response.setHeader('Content-Range', `bytes */${stat.size}`);
    // Not an HttpError: the header above must stay.
    response.writeHead(416, { 'Content-Type': 'application/json' });
    response.end(JSON.stringify({ code: 416, message: `the file has ${stat.size} bytes` }));
    return;
  }
  const [only, ...others] = ranges ?? [];
  if (only === undefined) await sendWhole(file, stat.size, response);
  else if (others.length === 0) {
    response.setHeader('Content-Range', `bytes ${only.start}-${only.end}/${stat.size}`);
    response.writeHead(206, { 'Content-Length': only.end - only.start + 1 });
    await pipeline(bytesOf(file, only.start, only.end), response);
  } else await sendParts(file, stat.size, [only, ...others], response);
}

async function isCompressed(file: FileHandle, size: number, request: IncomingMessage): Promise<boolean> {
  const encoding = chooseEncoding(request);
  if (encoding === 'identity' || size === 0) return false;
  return encoding === 'gzip only' || isWorthCompressing(await readStart(file, SAMPLE_BYTES), size);
}

async function sendWhole(file: FileHandle, size: number, response: ServerResponse): Promise<void> {
  if (size > 0) {
    response.writeHead(200, { 'Content-Length': size });
    // Exactly the announced length: a file that grows meanwhile must not spoil the connection.
    await pipeline(bytesOf(file, 0, size - 1), response);
    return;
  }
  // Files of /proc claim to be empty and are not.
  const start = await readStart(file, SNIFF_BYTES);
  if (start.length === 0) {
    response.writeHead(200, { 'Content-Length': 0 }).end();
    return;
  }
  response.removeHeader('Accept-Ranges');
  response.writeHead(200);
  await pipeline(bytesOf(file, 0, undefined), response);
}

async function sendParts(
  file: FileHandle,
  size: number,
  ranges: readonly Range[],
  response: ServerResponse,
): Promise<void> {
  const boundary = randomBytes(15).toString('hex');
  const type = String(response.getHeader('Content-Type'));
  const heads = ranges.map(
    ({ start, end }, index) =>
      `${index === 0 ? '' : '\r\n'}--${boundary}\r\nContent-Type: ${type}\r\n` +
      `Content-Range: bytes ${start}-${end}/${size}\r\n\r\n`,
  );
  const tail = `\r\n--${boundary}--\r\n`;
  const length = ranges.reduce((sum, { start, end }, index) => {
    return sum + Buffer.byteLength(heads[index] ?? '') + end - start + 1;
  }, tail.length);
  response.writeHead(206, {
    'Content-Type': `multipart/byteranges; boundary=${boundary}`,
    'Content-Length': length,
  });
  await pipeline(async function* () {
    for (const [index, range] of ranges.entries()) {
      yield Buffer.from(heads[index] ?? '');
      yield* bytesOf(file, range.start, range.end);
    }
    yield Buffer.from(tail);
  }, response);
}

/** Bytes `start` to `end` inclusive, or to the end of the file. A file that shrank meanwhile breaks the stream. */
export async function* bytesOf(
  file: FileHandle,
  start: number,
  end: number | undefined,
): AsyncGenerator<Buffer> {
  let position = start;
  while (end === undefined || position <= end) {
    const wanted = end === undefined ? CHUNK_BYTES : Math.min(CHUNK_BYTES, end - position + 1);
    const { bytesRead, buffer } = await file.read(Buffer.allocUnsafe(wanted), 0, wanted, position);
    if (bytesRead === 0) {
      if (end === undefined) return;
      throw new Error('the file became shorter while it was read');
    }
    position += bytesRead;
    yield buffer.subarray(0, bytesRead);
  }
}

async function readStart(file: FileHandle, bytes: number): Promise<Buffer> {
  const { bytesRead, buffer } = await file.read(Buffer.alloc(bytes), 0, bytes, 0);
  return buffer.subarray(0, bytesRead);
}

export interface Range {
  start: number;
  /** Inclusive. */
  end: number;
}

/** The pieces that a request wants, or `undefined` for the whole file. Malformed requests want the whole file. */
function rangesOf(
  request: IncomingMessage,
  size: number,
  lastModified: Date,
): readonly Range[] | 'unsatisfiable' | undefined {
  const { range } = request.headers;
  const condition = request.headers['if-range'];
  if (range === undefined) return undefined;
  // We give no ETags, so a condition that is not our date names another file.
  if (condition !== undefined && Date.parse(condition.toString()) !== lastModified.getTime())
    return undefined;
  return parseRanges(range, size);
}

export function parseRanges(header: string, size: number): readonly Range[] | 'unsatisfiable' | undefined {
  if (!header.startsWith('bytes=')) return undefined;
  const ranges: Range[] = [];
  let total = 0;
  for (const part of header.slice('bytes='.length).split(',')) {
    const match = /^\s*(\d{0,15})-(\d{0,15})\s*$/.exec(part);
    const [, first = '', last = ''] = match ?? [];
    if (match === null || (first === '' && last === '')) return undefined;
    const start = first === '' ? Math.max(0, size - Number(last)) : Number(first);
    const end = first === '' || last === '' ? size - 1 : Math.min(Number(last), size - 1);
    if (first !== '' && last !== '' && Number(last) < Number(first)) return undefined;
    if (start > end || start >= size) continue;
    total += end - start + 1;
    ranges.push({ start, end });
  }
  if (ranges.length === 0) return 'unsatisfiable';
  // Overlapping pieces that add up to more than the file are an attack or a mistake.
  return ranges.length > MAX_RANGES || total > size ? undefined : ranges;
}

/** Quoted where it must be; names that are not ASCII in the extended form. */
export function contentDisposition(name: string): string {
  if (/^[A-Za-z0-9!#$&+.^_`|~-]+$/.test(name)) return `inline; filename=${name}`;
  if (/^[\x20-\x7e]+$/.test(name)) return `inline; filename="${name.replace(/["\\]/g, '\\$&')}"`;
  const encoded = Buffer.from(name, 'utf8').reduce((text, byte) => {
    const letter = String.fromCharCode(byte);
    return (
      text +
      (/[A-Za-z0-9!#$&+.^_`|~-]/.test(letter)
        ? letter
        : `%${byte.toString(16).padStart(2, '0').toUpperCase()}`)
    );
  }, '');
  return `inline; filename*=utf-8''${encoded}`;
}

const TYPES: Record<string, string> = {
  css: 'text/css; charset=utf-8',
  csv: 'text/csv; charset=utf-8',
  gif: 'image/gif',
  gz: 'application/gzip',
  htm: 'text/html; charset=utf-8',
  html: 'text/html; charset=utf-8',
  ipynb: 'application/x-ipynb+json',
  jpeg: 'image/jpeg',
  jpg: 'image/jpeg',
  js: 'text/javascript; charset=utf-8',
  json: 'application/json',
  md: 'text/markdown; charset=utf-8',
  mjs: 'text/javascript; charset=utf-8',
  mp4: 'video/mp4',
  parquet: 'application/vnd.apache.parquet',
  pdf: 'application/pdf',
  png: 'image/png',
  svg: 'image/svg+xml',
  tar: 'application/x-tar',
  txt: 'text/plain; charset=utf-8',
  wasm: 'application/wasm',
  webp: 'image/webp',
  xlsx: 'application/vnd.openxmlformats-officedocument.spreadsheetml.sheet',
  xml: 'text/xml; charset=utf-8',
  zip: 'application/zip',
};

function typeByName(name: string): string | undefined {
  const extension = path.posix.extname(name).slice(1).toLowerCase();
  return Object.hasOwn(TYPES, extension) ? TYPES[extension] : undefined;
}

const MAGIC: ReadonlyArray<readonly [string, string]> = [
  ['\x89PNG\r\n\x1a\n', 'image/png'],
  ['\xff\xd8\xff', 'image/jpeg'],
  ['GIF8', 'image/gif'],
  ['%PDF-', 'application/pdf'],
  ['PK\x03\x04', 'application/zip'],
  ['\x1f\x8b\x08', 'application/gzip'],
  ['\x00asm', 'application/wasm'],
];

/** A type by the first bytes: well-known signatures, else text when no control byte speaks against it. */
export function sniffType(start: Buffer): string {
  const text = start.toString('latin1');
  const known = MAGIC.find(([magic]) => text.startsWith(magic));
  if (known !== undefined) return known[1];
  return /[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]/.test(text)
    ? 'application/octet-stream'
    : 'text/plain; charset=utf-8';
}
