import { ParsedFile } from '../parsed-file';
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
  const userNames = namesIn(passwd);
  const groupNames = namesIn(groups);
  const isOnly = !users.canChown && caller.uid === process.getuid?.();
  return {
    user: (uid) => (isOnly && uid === caller.uid ? caller.name : (userNames.get(uid) ?? String(uid))),
    group: (gid) => (isOnly && gid === caller.gid ? caller.name : (groupNames.get(gid) ?? String(gid))),
  };
}

type Names = ReadonlyMap<number, string>;
const NONE: Names = new Map();
const passwd = new ParsedFile('/etc/passwd', parseNames);
const groups = new ParsedFile('/etc/group', parseNames);

function namesIn(file: ParsedFile<Names>): Names {
  try {
    return file.read();
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
