import fs from 'node:fs';
import type { Stats } from 'node:fs';
import path from 'node:path';
import { Code, ConnectError } from '@connectrpc/connect';
import { resolvePath } from '../users';
import type { SandboxUser, Users } from '../users';

/**
 * Where a process of this user, with these groups, starts, as a path on disk; checked before anything is started, because
 * a process that can't enter its directory would otherwise look like one whose program is missing. Synchronous: some system
 * calls of microseconds, where each detour to the thread pool costs a tenth of the command.
 *
 * @throws ConnectError `invalid_argument` with the path as callers spell it
 */
export function workingDirectory(
  users: Users,
  user: SandboxUser,
  groups: readonly number[],
  where: { requested: string; defaultWorkdir: string },
): string {
  const shown = resolvePath(where.requested, user, where.defaultWorkdir);
  let real: string;
  let steps: Stats[];
  try {
    real = fs.realpathSync.native(users.toDisk(shown));
    steps = stepsTo(real).map((step) => fs.statSync(step));
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const why = code === 'ENOENT' ? 'does not exist' : `can't be reached (${code ?? 'unknown error'})`;
    throw new ConnectError(`cwd '${shown}' ${why}`, Code.InvalidArgument);
  }
  if (steps[0]?.isDirectory() !== true) {
    throw new ConnectError(`cwd '${shown}' is not a directory`, Code.InvalidArgument);
  }
  const mayEnter = users.canChown ? passes(steps, user, groups) : canEnter(real);
  if (!mayEnter) {
    throw new ConnectError(`cwd '${shown}' can't be entered by user '${user.name}'`, Code.InvalidArgument);
  }
  return real;
}

/** The path itself and every directory above it. */
function stepsTo(real: string): string[] {
  const above = path.dirname(real);
  return above === real ? [real] : [real, ...stepsTo(above)];
}

/** By permission bits, since the agent itself may enter everything. A directory's further access lists don't count. */
function passes(steps: readonly Stats[], user: SandboxUser, groups: readonly number[]): boolean {
  if (user.uid === 0) return true;
  return steps.every(({ mode, uid, gid }) => {
    const bit = uid === user.uid ? 0o100 : groups.includes(gid) ? 0o010 : 0o001;
    return (mode & bit) !== 0;
  });
}

function canEnter(real: string): boolean {
  try {
    fs.accessSync(real, fs.constants.X_OK);
    return true;
  } catch {
    return false; // whatever the reason
  }
}
