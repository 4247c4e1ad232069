import fs from 'node:fs';
import path from 'node:path';
import { FileType } from '../../../protocol/envd/gen/filesystem_pb';
import type { AgentContext } from '../app';
import type { SandboxUser } from '../users';
import { readMetadata } from '../xattr';
import type { DiskPath, Metadata } from '../xattr';
import { callerSpelling } from './disk-path';
import { readFileState } from './file-state';
import type { FileState, OpenPlace } from './file-state';
import { readOwners } from './owners';
import type { Owners } from './owners';
import { WithoutMetadata } from './without-metadata';

const { S_IFMT, S_IFREG, S_IFDIR, S_IFLNK, S_IFBLK, S_IFCHR, S_IFIFO, S_IFSOCK } = fs.constants;
/** All other kinds are told as unspecified. */
const TYPES: ReadonlyMap<number, FileType> = new Map([
  [S_IFREG, FileType.FILE],
  [S_IFDIR, FileType.DIRECTORY],
]);

const withoutMetadata = new WithoutMetadata();

/** What callers are told about one file, before it is put in a message. */
export interface FileEntry {
  name: string;
  type: FileType;
  /** As the caller spells it. */
  path: string;
  /** In bytes. */
  size: number;
  /** The permission bits alone. */
  mode: number;
  /** The mode as text, with the kind of file. */
  permissions: string;
  owner: string;
  group: string;
  /** Of the last change of the content; seconds since the epoch and nanoseconds in them. */
  modifiedSeconds: number;
  modifiedNanos: number;
  /** Absent for what is no link. */
  symlinkTarget: string | undefined;
  metadata: Metadata;
}

/** What telling about files needs to know. Made per request: names of users change. */
export interface EntryView {
  owners: Owners;
  spell: (diskPath: string) => string;
}

export function entryView(context: AgentContext, caller: SandboxUser): EntryView {
  return { owners: readOwners(context.users, caller), spell: callerSpelling(context.users) };
}

/** What callers are told about the file of a path as they spell it. Throws Node's error when there is none. */
export function readEntry(context: AgentContext, caller: SandboxUser, apiPath: string): FileEntry {
  return describe(entryView(context, caller), apiPath, context.users.toDisk(apiPath));
}

/**
 * The same for a known place on disk. Synchronous: three system calls of microseconds, where the thread pool's detours
 * would cost ten times that.
 *
 * About the file itself, with two exceptions: a link has the type and the mode of what it leads to.
 */
export function describe(
  view: EntryView,
  apiPath: string,
  diskPath: DiskPath,
  name = path.posix.basename(apiPath) || '/',
  within?: OpenPlace,
): FileEntry {
  const own = readFileState(diskPath, within);
  const isLink = kindOf(own.mode) === S_IFLNK;
  const mode = isLink ? followedMode(diskPath) : own.mode;
  const type = TYPES.get(kindOf(mode)) ?? FileType.UNSPECIFIED;
  return {
    name,
    type,
    path: apiPath,
    size: own.size,
    mode: mode & 0o777,
    permissions: permissions(own.mode),
    owner: view.owners.user(own.uid),
    group: view.owners.group(own.gid),
    modifiedSeconds: own.modifiedSeconds,
    modifiedNanos: own.modifiedNanos,
    symlinkTarget: isLink ? linkTarget(view, apiPath, diskPath) : undefined,
    // Nothing else can carry attributes that users set.
    metadata: metadataOf(type, isLink, own, diskPath),
  };
}

function metadataOf(type: FileType, isLink: boolean, own: FileState, diskPath: DiskPath): Metadata {
  if (type === FileType.UNSPECIFIED) return {};
  return isLink ? readMetadata(diskPath) : withoutMetadata.metadataOf(own, diskPath);
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
