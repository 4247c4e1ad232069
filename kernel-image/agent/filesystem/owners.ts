import fs from 'node:fs';
import { readText } from '../read-text';
import type { SandboxUser, Users } from '../users';

/** Names of users and groups by their numbers; a number without a name is told as a number. */
export interface Owners {
  user(uid: number): string;
  group(gid: number): string;
}

/**
 * As things are now: programs inside add and remove users. Where everything runs as one user, that user and its group
 * have the caller's name whatever the machine calls them.
 */
export function readOwners(users: Users, caller: SandboxUser): Owners {
  const userNames = namesIn('/etc/passwd');
  const groupNames = namesIn('/etc/group');
  const isOnly = !users.canChown && caller.uid === process.getuid?.();
  return {
    user: (uid) => (isOnly && uid === caller.uid ? caller.name : (userNames.get(uid) ?? String(uid))),
    group: (gid) => (isOnly && gid === caller.gid ? caller.name : (groupNames.get(gid) ?? String(gid))),
  };
}

type Names = ReadonlyMap<number, string>;
const NONE: Names = new Map();
const cache = new Map<string, { version: string; names: Names }>();

/** Read when the file is another than last time. Synchronous, because files told about one by one ask each time. */
function namesIn(file: string): Names {
  try {
    const { ino, size, mtimeNs } = fs.statSync(file, { bigint: true });
    const version = `${ino} ${size} ${mtimeNs}`;
    const cached = cache.get(file);
    if (cached?.version === version) return cached.names;
    const names = parseNames(readText(file));
    cache.set(file, { version, names });
    return names;
  } catch {
    return NONE; // a machine without the file has numbers only
  }
}

/** Third column → first column, the first line winning, as in passwd and group files. */
export function parseNames(text: string): Map<number, string> {
  const names = new Map<number, string>();
  for (const line of text.split('\n')) {
    const [name, , id] = line.split(':');
    if (name === undefined || name === '' || id === undefined || !/^\d+$/.test(id)) continue;
    if (!names.has(Number(id))) names.set(Number(id), name);
  }
  return names;
}
