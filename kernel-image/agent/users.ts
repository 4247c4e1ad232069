import path from 'node:path';
import { HttpError } from './http-error';
import { ParsedFile } from './parsed-file';
import { API_HOME } from './settings';

/** A user of the sandbox, as far as files are concerned. */
export interface SandboxUser {
  name: string;
  uid: number;
  gid: number;
  /** As callers spell it. `toDisk` leads to the real place. */
  home: string;
}

export interface Users {
  /** @throws HttpError 401 when there is no such user (or none that this sandbox offers) */
  find(name: string): SandboxUser;
  /** All groups of a user, the primary one first. */
  groups(user: SandboxUser): readonly number[];
  /** Where a path as callers spell it really is. */
  toDisk(apiPath: string): string;
  /** Whether files can be given to another user at all. */
  readonly canChown: boolean;
}

export function createUsers(settings: { singleUser: boolean; home: string }): Users {
  return settings.singleUser ? singleUser(settings.home) : systemUsers('/etc/passwd', '/etc/group');
}

function singleUser(home: string): Users {
  return {
    canChown: false,
    groups: ({ gid }) => [gid],
    find: (name) => {
      if (name !== 'user') {
        throw new HttpError(
          401,
          `user '${name}' is not available: this sandbox runs everything as one user, known as 'user'`,
        );
      }
      return { name, uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0, home: API_HOME };
    },
    toDisk: (apiPath) => {
      if (home === API_HOME) return apiPath;
      const clean = path.posix.normalize(apiPath);
      const inHome = clean === API_HOME || clean.startsWith(`${API_HOME}/`);
      return inHome ? home + clean.slice(API_HOME.length) : apiPath;
    },
  };
}

/** Looks at both files at each request: programs inside add and remove users. */
export function systemUsers(passwdFile: string, groupFile: string): Users {
  const passwd = new ParsedFile(passwdFile, parsePasswd);
  const groups = new ParsedFile(groupFile, parseGroups);
  return {
    canChown: process.getuid?.() === 0,
    toDisk: (apiPath) => apiPath,
    groups: ({ name, gid }) => [...new Set([gid, ...(readOrNone(groups).get(name) ?? [])])],
    find: (name) => {
      const user = passwd.read().get(name);
      if (user === undefined) throw new HttpError(401, `user '${name}' does not exist in this sandbox`);
      return user;
    },
  };
}

/** A system without the file has no further groups. */
function readOrNone<Key, Value>(file: ParsedFile<Map<Key, Value>>): Map<Key, Value> {
  try {
    return file.read();
  } catch {
    return new Map();
  }
}

/** Users by name, the first line of each winning. Lines that make no sense are passed over. Pure. */
export function parsePasswd(text: string): Map<string, SandboxUser> {
  const users = new Map<string, SandboxUser>();
  for (const line of text.split('\n')) {
    const [name = '', , uid, gid, , home] = line.split(':');
    if (users.has(name) || !/^\d+$/.test(uid ?? '') || !/^\d+$/.test(gid ?? '')) continue;
    users.set(name, { name, uid: Number(uid), gid: Number(gid), home: home || '/' });
  }
  return users;
}

/** Ids of the groups that list a user as a member, by its name. Lines that make no sense are passed over. Pure. */
export function parseGroups(text: string): Map<string, number[]> {
  const groups = new Map<string, number[]>();
  for (const line of text.split('\n')) {
    const [, , gid, members = ''] = line.split(':');
    if (!/^\d+$/.test(gid ?? '')) continue;
    for (const name of members.split(',')) {
      const ids = groups.get(name);
      if (ids === undefined) groups.set(name, [Number(gid)]);
      else ids.push(Number(gid));
    }
  }
  return groups;
}

/**
 * Where a path of a request leads, spelled for callers. Absolute paths stay exactly as they are; relative ones are
 * relative to the user's home, never to the default working directory, which only stands in for an empty path.
 */
export function resolvePath(text: string, user: SandboxUser, defaultWorkdir: string): string {
  if (text.includes('\0')) throw new HttpError(400, 'a path must not contain a NUL character');
  const given = text === '' ? defaultWorkdir : text;
  if (given === '~' || given.startsWith('~/')) return path.posix.join(user.home, given.slice(1));
  if (given.startsWith('~')) throw new HttpError(400, `'${given}': homes of other users are not resolved`);
  return given.startsWith('/') ? given : path.posix.join(user.home, given);
}
