import type { FileHandle } from 'node:fs/promises';
import type { IncomingMessage } from 'node:http';
import { errorCode } from './filesystem/failure';
import { HttpError } from './http-error';
import { log, reason } from './log';
import { METADATA_PREFIX, readFileMetadata, replaceFileMetadata } from './xattr';
import type { Metadata } from './xattr';

const HEADER_PREFIX = 'x-metadata-';
const MAX_KEY_BYTES = 246;
const MAX_TOTAL_BYTES = 4096;
const PRINTABLE = /^[\x20-\x7e]*$/;

/**
 * The metadata that an upload's headers ask for. Of several headers for one key the first one counts.
 *
 * @throws HttpError 400
 */
export function requestedMetadata(request: Pick<IncomingMessage, 'rawHeaders'>): Metadata {
  const found = new Map<string, string>();
  let total = 0;
  for (let i = 0; i + 1 < request.rawHeaders.length; i += 2) {
    const name = (request.rawHeaders[i] ?? '').toLowerCase();
    const value = request.rawHeaders[i + 1] ?? '';
    if (!name.startsWith(HEADER_PREFIX)) continue;
    const key = name.slice(HEADER_PREFIX.length);
    if (found.has(key)) continue;
    if (key === '' || key.length > MAX_KEY_BYTES) {
      throw new HttpError(400, `a metadata key must have 1 to ${MAX_KEY_BYTES} bytes`);
    }
    if (!PRINTABLE.test(key) || !PRINTABLE.test(value)) {
      throw new HttpError(400, `metadata '${key}' must be printable ASCII`);
    }
    total += METADATA_PREFIX.length + key.length + value.length;
    found.set(key, value);
  }
  if (total > MAX_TOTAL_BYTES) {
    throw new HttpError(400, `metadata has ${total} bytes, attribute names included; ${MAX_TOTAL_BYTES} fit`);
  }
  return Object.fromEntries(found);
}

/** Gives an open file this metadata in place of what it has, and tells what then is on disk; nothing as `undefined`. */
export function applyMetadata(file: FileHandle, wanted: Metadata, isNew: boolean): Metadata | undefined {
  const wantsNone = Object.keys(wanted).length === 0;
  if (isNew && wantsNone) return undefined;
  try {
    replaceFileMetadata(file.fd, wanted);
  } catch (error) {
    const code = errorCode(error);
    // ENODATA: a program inside removed it first.
    if (code !== 'ENOTSUP' && code !== 'EOPNOTSUPP' && code !== 'ENODATA') throw error;
    log(`agent: metadata of a file could not be kept: ${reason(error)}`);
  }
  if (wantsNone) return undefined;
  const kept = readFileMetadata(file.fd);
  return Object.keys(kept).length === 0 ? undefined : kept;
}
