import fs from 'node:fs';
import path from 'node:path';
import { create } from '@bufbuild/protobuf';
import { TimestampSchema } from '@bufbuild/protobuf/wkt';
import type { Timestamp } from '@bufbuild/protobuf/wkt';
import { EntryInfoSchema, FileType } from '../../../protocol/envd/gen/filesystem_pb';
import type { EntryInfo } from '../../../protocol/envd/gen/filesystem_pb';
import type { AgentContext } from '../app';
import type { SandboxUser } from '../users';
import { readMetadata } from '../xattr';
import type { DiskPath } from '../xattr';
import { callerSpelling } from './disk-path';
import { readOwners } from './owners';
import type { Owners } from './owners';

const NS_PER_S = 1_000_000_000n;
const { S_IFMT, S_IFREG, S_IFDIR, S_IFLNK, S_IFBLK, S_IFCHR, S_IFIFO, S_IFSOCK } = fs.constants;
/** All other kinds are told as unspecified. */
const TYPES: ReadonlyMap<number, FileType> = new Map([
  [S_IFREG, FileType.FILE],
  [S_IFDIR, FileType.DIRECTORY],
]);

/** What telling about files needs to know. Made per request: names of users change. */
export interface EntryView {
  owners: Owners;
  spell: (diskPath: string) => string;
}

export function entryView(context: AgentContext, caller: SandboxUser): EntryView {
  return { owners: readOwners(context.users, caller), spell: callerSpelling(context.users) };
}

/** What callers are told about the file of a path as they spell it. Throws Node's error when there is none. */
export function readEntry(context: AgentContext, caller: SandboxUser, apiPath: string): EntryInfo {
  return describe(entryView(context, caller), apiPath, context.users.toDisk(apiPath));
}

/**
 * The same for a known place on disk. Synchronous: four system calls of microseconds, where the thread pool's detours
 * would cost ten times that.
 *
 * About the file itself, with two exceptions: a link has the type and the mode of what it leads to.
 */
export function describe(view: EntryView, apiPath: string, diskPath: DiskPath): EntryInfo {
  const own = fs.lstatSync(diskPath, { bigint: true });
  const ownMode = Number(own.mode);
  const isLink = kindOf(ownMode) === S_IFLNK;
  // Numbers from here on: a list has thousands of entries, and each question to big ones makes several more.
  const mode = isLink ? followedMode(diskPath) : ownMode;
  const kind = kindOf(mode);
  // Field by field: to have them copied in costs as much as to read the file's state.
  const entry = create(EntryInfoSchema);
  entry.name = path.posix.basename(apiPath) || '/';
  entry.type = TYPES.get(kind) ?? FileType.UNSPECIFIED;
  entry.path = apiPath;
  entry.size = own.size;
  entry.mode = mode & 0o777;
  entry.permissions = permissions(ownMode);
  entry.owner = view.owners.user(Number(own.uid));
  entry.group = view.owners.group(Number(own.gid));
  entry.modifiedTime = timestamp(own.mtimeNs);
  if (isLink) entry.symlinkTarget = linkTarget(view, apiPath, diskPath);
  // Nothing else can carry attributes that users set.
  if (TYPES.has(kind)) entry.metadata = readMetadata(diskPath);
  return entry;
}

/** The mode of what a link leads to, with its kind; 0 when it leads nowhere. */
function followedMode(diskPath: DiskPath): number {
  try {
    return fs.statSync(diskPath).mode;
  } catch {
    return 0; // dangling, cyclic, or leads where we may not look
  }
}

function kindOf(mode: number): number {
  return mode & S_IFMT;
}

function linkTarget(view: EntryView, apiPath: string, diskPath: DiskPath): string {
  try {
    return view.spell(fs.realpathSync.native(diskPath));
  } catch {
    return apiPath; // the rule for links that lead nowhere
  }
}

/** Absent for the epoch itself, which is what files without a time have. */
function timestamp(ns: bigint): Timestamp | undefined {
  if (ns === 0n) return undefined;
  const nanos = ((ns % NS_PER_S) + NS_PER_S) % NS_PER_S;
  const time = create(TimestampSchema);
  time.seconds = (ns - nanos) / NS_PER_S;
  time.nanos = Number(nanos);
  return time;
}

/** In the order in which they are told. A character device is a device, too. */
const LETTERS: ReadonlyArray<readonly [string, (mode: number) => boolean]> = [
  ['d', (mode) => kindOf(mode) === S_IFDIR],
  ['L', (mode) => kindOf(mode) === S_IFLNK],
  ['D', (mode) => kindOf(mode) === S_IFBLK || kindOf(mode) === S_IFCHR],
  ['p', (mode) => kindOf(mode) === S_IFIFO],
  ['S', (mode) => kindOf(mode) === S_IFSOCK],
  ['u', (mode) => (mode & 0o4000) !== 0],
  ['g', (mode) => (mode & 0o2000) !== 0],
  ['c', (mode) => kindOf(mode) === S_IFCHR],
  ['t', (mode) => (mode & 0o1000) !== 0],
];

/** Few modes occur in a directory of thousands; at most 65,536 exist. */
const known = new Map<number, string>();

/** A mode as text: every letter that applies, or one dash, and three times `rwx`. Pure. */
export function permissions(mode: number): string {
  let text = known.get(mode);
  if (text === undefined) {
    const letters = LETTERS.filter(([, applies]) => applies(mode)).map(([letter]) => letter);
    const bits = [...'rwxrwxrwx'].map((letter, index) => ((mode >> (8 - index)) & 1 ? letter : '-'));
    text = (letters.join('') || '-') + bits.join('');
    known.set(mode, text);
  }
  return text;
}
