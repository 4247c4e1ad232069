import { randomBytes } from 'node:crypto';
import type { Stats } from 'node:fs';
import fs from 'node:fs/promises';
import type { IncomingMessage, ServerResponse } from 'node:http';
import path from 'node:path';
import type { AgentContext } from './app';
import { BatchedWriter } from './batched-writer';
import { bytesOf, notFound, openRegular } from './download';
import { errorCode } from './filesystem/failure';
import { HttpError, sendJson } from './http-error';
import { log, reason } from './log';
import { openToWrite, writeFailure } from './open-to-write';
import { resolvePath } from './users';

const MAX_BODY_BYTES = 1024 * 1024;

interface Order {
  sources: string[];
  destination: string;
  username: string | undefined;
}

interface Place {
  apiPath: string;
  diskPath: string;
}

/**
 * `POST /files/compose`: makes one file of several, in order, and removes them. Until the whole is on the disk, in a
 * file beside the destination, neither the destination nor any source is touched.
 */
export async function compose(
  context: AgentContext,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const order = parseOrder(await readBody(request));
  const user = context.users.find(order.username || context.state.defaultUser);
  const place = (text: string): Place => {
    const apiPath = resolvePath(text, user, context.state.defaultWorkdir);
    return { apiPath, diskPath: context.users.toDisk(apiPath) };
  };
  const sources = order.sources.map(place);
  const destination = place(order.destination);
  await checkPlaces(sources, destination);

  const name = path.posix.basename(destination.apiPath);
  const whole = place(path.posix.join(path.posix.dirname(destination.apiPath), temporaryName()));
  try {
    const { file } = await openToWrite(context, user, whole.apiPath);
    try {
      const writer = new BatchedWriter(file);
      for (const source of sources) await append(writer, source);
      await writer.end();
    } finally {
      await file.close();
    }
    await fs.rename(whole.diskPath, destination.diskPath);
  } catch (error) {
    await fs.rm(whole.diskPath, { force: true });
    throw writeFailure(error, destination.apiPath, undefined);
  }
  for (const source of sources) {
    await fs.unlink(source.diskPath).catch((error: unknown) => {
      // Named twice, or removed by somebody else; for any other reason it stays, and the file asked for is there.
      if (errorCode(error) !== 'ENOENT') log(`agent: a composed source stays: ${reason(error)}`);
    });
  }
  sendJson(response, 200, { path: destination.apiPath, name, type: 'file' });
}

async function append(writer: BatchedWriter, source: Place): Promise<void> {
  const file = await openRegular(source.diskPath, source.apiPath);
  try {
    for await (const chunk of bytesOf(file, 0, undefined)) await writer.add(chunk);
  } finally {
    await file.close();
  }
}

async function checkPlaces(sources: readonly Place[], destination: Place): Promise<void> {
  const target = await statOf(destination);
  if (target?.isDirectory()) throw new HttpError(400, `path '${destination.apiPath}' is a directory`);
  for (const source of sources) {
    const found = await statOf(source);
    if (found === undefined) throw notFound(source.apiPath);
    if (!found.isFile()) throw new HttpError(400, `path '${source.apiPath}' is not a regular file`);
    // Also when spelled differently, or through a link: it would be removed after it was made.
    if (target !== undefined && found.dev === target.dev && found.ino === target.ino) {
      throw new HttpError(400, `source '${source.apiPath}' is the destination`);
    }
  }
}

async function statOf({ apiPath, diskPath }: Place): Promise<Stats | undefined> {
  try {
    return await fs.stat(diskPath);
  } catch (error) {
    if (errorCode(error) === 'ENOENT') return undefined;
    throw writeFailure(error, apiPath, undefined);
  }
}

function temporaryName(): string {
  return `.compose-${randomBytes(8).toString('hex')}`;
}

async function readBody(request: IncomingMessage): Promise<unknown> {
  const chunks: Buffer[] = [];
  let length = 0;
  // Stopping early must not close the request: that would take the answer with it.
  for await (const chunk of request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    length += chunk.length;
    if (length > MAX_BODY_BYTES) throw new HttpError(413, `the body is larger than ${MAX_BODY_BYTES} bytes`);
    chunks.push(chunk);
  }
  try {
    return JSON.parse(Buffer.concat(chunks).toString('utf8'));
  } catch (error) {
    throw new HttpError(400, 'the body is not valid JSON', { cause: error });
  }
}

function parseOrder(body: unknown): Order {
  if (typeof body !== 'object' || body === null) throw new HttpError(400, 'the body must be a JSON object');
  const fields = body as Record<string, unknown>;
  const { source_paths: sources, destination, username } = fields;
  if (!Array.isArray(sources) || sources.length === 0 || !sources.every(isPath)) {
    throw new HttpError(400, 'source_paths must be a list of one or more paths');
  }
  if (!isPath(destination)) throw new HttpError(400, 'destination must be a path');
  if (username != null && typeof username !== 'string') throw new HttpError(400, 'username must be a string');
  return { sources, destination, username: username ?? undefined };
}

function isPath(value: unknown): value is string {
  return typeof value === 'string' && value !== '';
}
