import { isUtf8 } from 'node:buffer';
import fs from 'node:fs';
import { API_HOME } from '../settings';
import type { Users } from '../users';
import type { DiskPath } from '../xattr';

/** How callers spell a real place: the way back from `Users.toDisk`. */
export function callerSpelling(users: Users): (diskPath: string) => string {
  const home = users.toDisk(API_HOME);
  if (home === API_HOME) return (diskPath) => diskPath;
  // Resolved links lead to where the directory really is.
  const homes = [home, realPath(home)];
  return (diskPath) => {
    const inside = homes.find((place) => diskPath === place || diskPath.startsWith(`${place}/`));
    return inside === undefined ? diskPath : API_HOME + diskPath.slice(inside.length);
  };
}

function realPath(directory: string): string {
  try {
    return fs.realpathSync(directory);
  } catch {
    return directory; // gone: then nothing resolves to a place in it
  }
}

/** The path of a name in a directory. Stays text, which is quicker, as long as every name on the way is UTF-8. */
export function childPath(directory: DiskPath, name: string | Buffer): DiskPath {
  if (typeof directory === 'string' && (typeof name === 'string' || isUtf8(name))) {
    return directory.endsWith('/') ? directory + name.toString() : `${directory}/${name.toString()}`;
  }
  return Buffer.concat([Buffer.from(directory), Buffer.from('/'), Buffer.from(name)]);
}
