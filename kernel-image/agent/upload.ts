import busboy from 'busboy';
import { once } from 'node:events';
import type { FileHandle } from 'node:fs/promises';
import type { IncomingMessage } from 'node:http';
import path from 'node:path';
import { Readable } from 'node:stream';
import zlib from 'node:zlib';
import type { AgentContext } from './app';
import { BatchedWriter } from './batched-writer';
import { requestUser } from './download';
import { applyMetadata, requestedMetadata } from './file-metadata';
import { HttpError } from './http-error';
import { openToWrite, writeFailure } from './open-to-write';
import { resolvePath } from './users';
import type { SandboxUser } from './users';
import type { Metadata } from './xattr';

/** A client that sends nothing for this long is gone. */
const UPLOAD_IDLE_MS = 600_000;
/** A part without a file name is held in memory whole. Parts with one are streamed and have no limit. */
const MAX_NAMELESS_BYTES = 32 * 1024 * 1024;

/** One element of the answer. */
export interface WrittenFile {
  path: string;
  name: string;
  type: 'file';
  /** Read back from the disk; absent when there is none. */
  metadata?: Metadata;
}

interface Destination {
  context: AgentContext;
  user: SandboxUser;
  /** `path` of the query, which names the destination of every part. */
  path: string | undefined;
  /** Of every file of the request. */
  metadata: Metadata;
  /** What the client announced, for the message when the disk is full. */
  announcedBytes: number | undefined;
}

/** `POST /files`: raw or multipart, possibly gzipped. Files that were complete before a failure stay. */
export async function upload(
  context: AgentContext,
  request: IncomingMessage,
  query: URLSearchParams,
): Promise<WrittenFile[]> {
  const body = decoded(request);
  const user = requestUser(context, query);
  const metadata = requestedMetadata(request);
  // Compressed bytes say nothing about what has to fit on the disk.
  const length = body === request ? Number(request.headers['content-length'] ?? Number.NaN) : Number.NaN;
  const destination: Destination = {
    context,
    user,
    path: query.get('path') ?? undefined,
    metadata,
    announcedBytes: Number.isFinite(length) ? length : undefined,
  };
  const type = (request.headers['content-type'] ?? '').split(';', 1)[0]?.trim().toLowerCase() ?? '';
  request.setTimeout(UPLOAD_IDLE_MS, () => request.destroy(new Error('the upload stalled')));
  try {
    if (type === 'application/octet-stream') {
      if (!destination.path)
        throw new HttpError(400, 'path is required for an application/octet-stream body');
      return [await writeFile(destination, resolve(destination, destination.path), body)];
    }
    if (type.startsWith('multipart/')) return await writeParts(destination, request, body);
    throw new HttpError(
      400,
      `Content-Type must be multipart/form-data or application/octet-stream, not '${type}'`,
    );
  } catch (error) {
    if (isGzipError(error)) throw new HttpError(400, 'the body is not valid gzip', { cause: error });
    throw error;
  } finally {
    request.setTimeout(0);
    // Whoever stopped reading early leaves the rest of the request to be dropped as it comes.
    if (body !== request) request.unpipe();
  }
}

function decoded(request: IncomingMessage): Readable {
  const encoding = (request.headers['content-encoding'] ?? 'identity').trim().toLowerCase();
  if (encoding === 'identity' || encoding === '') return request;
  if (encoding !== 'gzip') throw new HttpError(400, `Content-Encoding '${encoding}' is not supported`);
  const gunzip = zlib.createGunzip();
  // Whoever reads hears of it; after an early answer nobody does, and nobody needs to.
  gunzip.on('error', () => {});
  request.on('error', (error) => gunzip.destroy(error));
  return request.pipe(gunzip);
}

function isGzipError(error: unknown): boolean {
  return String((error as NodeJS.ErrnoException | undefined)?.code ?? '').startsWith('Z_');
}

function resolve(destination: Destination, text: string): string {
  const { context, user } = destination;
  return resolvePath(text, user, context.state.defaultWorkdir);
}

async function writeParts(
  destination: Destination,
  request: IncomingMessage,
  body: Readable,
): Promise<WrittenFile[]> {
  const parser = createParser(request);
  const written: WrittenFile[] = [];
  const taken = new Set<string>();
  let failure: unknown;
  let pending = 0;
  let queue = Promise.resolve();
  let wake = () => {};

  const enqueue = (name: string | undefined, part: Readable) => {
    pending += 1;
    queue = queue
      .then(async () => {
        if (failure !== undefined) throw failure;
        const text = destination.path || name;
        if (text === undefined || text === '') {
          throw new HttpError(400, 'a part has no file name and the query has no path');
        }
        const apiPath = resolve(destination, text);
        if (taken.has(apiPath)) throw new HttpError(400, `two parts are for the same path '${apiPath}'`);
        taken.add(apiPath);
        written.push(await writeFile(destination, apiPath, part));
      })
      .catch((error: unknown) => {
        failure ??= error;
        part.resume();
      })
      .finally(() => {
        pending -= 1;
        wake();
      });
  };

  parser.on('file', (field, part, info) => {
    // Errors of a part are those of the body or of our own write; both are handled there.
    part.on('error', () => {});
    if (field === 'file') enqueue(info.filename, part);
    else part.resume();
  });
  parser.on('field', (field, value, info) => {
    if (field !== 'file') return;
    if (info.valueTruncated) {
      failure ??= new HttpError(
        413,
        `a part without a file name may have ${MAX_NAMELESS_BYTES} bytes at most`,
      );
    } else enqueue(undefined, Readable.from([Buffer.from(value, 'latin1')], { objectMode: false }));
  });
  parser.on('error', (error) => {
    failure ??= new HttpError(500, `the multipart body is malformed: ${(error as Error).message}`, {
      cause: error,
    });
    wake();
  });

  const ended = once(parser, 'close').catch(() => {}); // its errors are collected above
  try {
    for await (const chunk of chunksOf(body)) {
      if (failure !== undefined) break;
      if (!parser.write(chunk)) {
        await new Promise<void>((go) => {
          wake = go;
          parser.once('drain', go);
        });
      }
      // All parts but the last are complete by now, so waiting for them can't wait for bytes still to come. Without
      // this, a body of tiny parts would pile up in memory faster than files are made.
      while (pending > 1 && failure === undefined) await new Promise<void>((go) => (wake = go));
    }
    if (failure === undefined) {
      parser.end();
      await ended;
    }
  } catch (error) {
    failure ??= error;
  }
  // Ends the part that is being written, which waits for bytes that will not come.
  if (failure !== undefined) parser.destroy();
  await queue;
  if (failure !== undefined) throw failure;
  return written;
}

function createParser(request: IncomingMessage): busboy.Busboy {
  const unlimited = Number.POSITIVE_INFINITY;
  try {
    return busboy({
      headers: request.headers,
      preservePath: true,
      defParamCharset: 'utf8',
      // Bytes as they are: the value is a file's content, not text.
      defCharset: 'latin1',
      limits: {
        fieldSize: MAX_NAMELESS_BYTES,
        fileSize: unlimited,
        files: unlimited,
        fields: unlimited,
        parts: unlimited,
      },
    });
  } catch (error) {
    throw new HttpError(400, `the multipart body can't be read: ${(error as Error).message}`, {
      cause: error,
    });
  }
}

async function writeFile(destination: Destination, apiPath: string, content: Readable): Promise<WrittenFile> {
  const { context, user } = destination;
  const entry: WrittenFile = { path: apiPath, name: path.posix.basename(apiPath), type: 'file' };
  try {
    const { file, isNew } = await openToWrite(context, user, apiPath);
    try {
      await copyInto(file, content);
      const metadata = applyMetadata(file, destination.metadata, isNew);
      return metadata === undefined ? entry : { ...entry, metadata };
    } finally {
      await file.close();
    }
  } catch (error) {
    throw writeFailure(error, apiPath, destination.announcedBytes);
  }
}

/** Whatever arrived before the content broke off stays in the file, as with any writer that is interrupted. */
async function copyInto(file: FileHandle, content: Readable): Promise<void> {
  const writer = new BatchedWriter(file);
  try {
    for await (const chunk of chunksOf(content)) await writer.add(chunk);
  } catch (error) {
    await writer.end().catch(() => {}); // the first failure is the one to tell
    throw error;
  }
  await writer.end();
}

/** The stream's bytes; stopping early leaves it open, because closing a request would take its answer with it. */
function chunksOf(stream: Readable): AsyncIterable<Buffer> {
  return stream.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>;
}
