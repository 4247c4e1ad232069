import { isUtf8 } from 'node:buffer';
import { lastError, libcFunction } from './libc';
import { log, reason } from './log';

/**
 * Metadata of files: what callers attach to them, kept as extended attributes `user.e2b.<key>`. All calls are
 * synchronous: each is a system call of microseconds.
 */
export type Metadata = Record<string, string>;

/** A path on disk: text, or bytes where a name in it is not UTF-8. */
export type DiskPath = string | Buffer;

export const METADATA_PREFIX = 'user.e2b.';

/** The kernel's own limit for a value and for a list of names, in bytes. */
const MAX_BYTES = 65_536;

/** Reads into `into`, or tells the size when given 0. Negative is a failure. */
type Read = (into: Buffer | null, size: number) => number;

interface Attributes {
  list: Read;
  get: (name: Buffer) => Read;
}

interface Calls {
  listPath: (path: DiskPath, list: Buffer | null, size: number) => number;
  getPath: (path: DiskPath, name: Buffer, value: Buffer | null, size: number) => number;
  listFile: (fd: number, list: Buffer | null, size: number) => number;
  getFile: (fd: number, name: Buffer, value: Buffer | null, size: number) => number;
  setFile: (fd: number, name: Buffer, value: Buffer, size: number, flags: number) => number;
  removeFile: (fd: number, name: Buffer) => number;
}

let calls: Calls | null | undefined;
/** Shared by all calls: each copies what it read before it returns. */
let scratch: Buffer | undefined;

/** `null` where there is nothing to call: other systems number and shape these calls differently. */
function systemCalls(): Calls | null {
  if (calls !== undefined) return calls;
  try {
    calls = process.platform === 'linux' ? declareCalls() : null;
  } catch (error) {
    log(`agent: no metadata of files: ${reason(error)}`);
    calls = null;
  }
  return calls;
}

function declareCalls(): Calls {
  // Without a type of its own: converting one, even a null, takes as long as the call.
  const value = 'void *value, size_t size';
  return {
    listPath: libcFunction(`int64_t listxattr(const char *path, ${value})`),
    getPath: libcFunction(`int64_t getxattr(const char *path, const char *name, ${value})`),
    listFile: libcFunction(`int64_t flistxattr(int fd, ${value})`),
    getFile: libcFunction(`int64_t fgetxattr(int fd, const char *name, ${value})`),
    setFile: libcFunction(
      'int fsetxattr(int fd, const char *name, const uint8_t *value, size_t size, int flags)',
    ),
    removeFile: libcFunction('int fremovexattr(int fd, const char *name)'),
  };
}

/** Metadata of what the path leads to, links followed. What can't be read or is not UTF-8 is left out. */
export function readMetadata(path: DiskPath): Metadata {
  const libc = systemCalls();
  if (libc === null) return {};
  const file = typeof path === 'string' ? path : terminated(path);
  // The way out for nearly every file of a long list.
  if (libc.listPath(file, null, 0) <= 0) return {};
  return readAll({
    list: (into, size) => libc.listPath(file, into, size),
    get: (name) => (into, size) => libc.getPath(file, name, into, size),
  });
}

/** Metadata of an open file. */
export function readFileMetadata(fd: number): Metadata {
  const libc = systemCalls();
  return libc === null ? {} : readAll(ofFile(libc, fd));
}

/**
 * Makes `wanted` the whole metadata of an open file, with no call for what already is as it should be: each one is an
 * event to whoever watches the file. Throws `ENOTSUP` where the file system has no such attributes.
 */
export function replaceFileMetadata(fd: number, wanted: Metadata): void {
  const libc = systemCalls();
  if (libc === null) {
    if (Object.keys(wanted).length === 0) return;
    throw Object.assign(new Error('no extended attributes on this system'), { code: 'ENOTSUP' });
  }
  const file = ofFile(libc, fd);
  const left = new Map(Object.entries(wanted));
  for (const name of metadataNames(file)) {
    const key = keyOf(name);
    const value = left.get(key);
    left.delete(key);
    const bytes = value === undefined ? undefined : Buffer.from(value);
    if (bytes === undefined) check(libc.removeFile(fd, name), 'fremovexattr');
    else if (read(file.get(name))?.equals(bytes) !== true) set(libc, fd, name, bytes);
  }
  for (const [key, value] of left)
    set(libc, fd, Buffer.from(`${METADATA_PREFIX}${key}\0`), Buffer.from(value));
}

function ofFile(libc: Calls, fd: number): Attributes {
  return {
    list: (into, size) => libc.listFile(fd, into, size),
    get: (name) => (into, size) => libc.getFile(fd, name, into, size),
  };
}

function set(libc: Calls, fd: number, name: Buffer, value: Buffer): void {
  check(libc.setFile(fd, name, value, value.length, 0), 'fsetxattr');
}

function check(result: number, call: string): void {
  if (result < 0) throw lastError(call);
}

function readAll(file: Attributes): Metadata {
  const entries: Array<[string, string]> = [];
  for (const name of metadataNames(file)) {
    const value = read(file.get(name));
    if (value !== undefined && isUtf8(name) && isUtf8(value)) entries.push([keyOf(name), value.toString()]);
  }
  // Not by assignment: a key may be `__proto__`.
  return Object.fromEntries(entries);
}

/** Names that carry metadata, each with its terminating NUL, as calls take them. */
function metadataNames(file: Attributes): Buffer[] {
  const list = read(file.list);
  const names: Buffer[] = [];
  if (list === undefined) return names;
  for (let start = 0; start < list.length;) {
    const end = list.indexOf(0, start) + 1;
    if (end === 0) break;
    const name = list.subarray(start, end);
    if (name.length > METADATA_PREFIX.length + 1 && name.toString('latin1').startsWith(METADATA_PREFIX)) {
      names.push(name);
    }
    start = end;
  }
  return names;
}

/** A copy of what a call gives; `undefined` when it fails. */
function read(call: Read): Buffer | undefined {
  scratch ??= Buffer.alloc(MAX_BYTES);
  const length = call(scratch, MAX_BYTES);
  return length < 0 ? undefined : Buffer.from(scratch.subarray(0, length));
}

function keyOf(name: Buffer): string {
  return name.toString('utf8', METADATA_PREFIX.length, name.length - 1);
}

/** As calls of the C library take it. */
export function terminated(path: Buffer): Buffer {
  return Buffer.concat([path, Buffer.from([0])]);
}
