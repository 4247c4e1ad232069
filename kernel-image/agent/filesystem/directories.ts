import fs from 'node:fs/promises';
import path from 'node:path';
import type { AgentContext } from '../app';
import type { SandboxUser } from '../users';
import { errorCode } from './failure';

/**
 * Makes a directory and its missing parents, mode 0755, those it made as the user's. What exists stays as it is, made
 * meanwhile by others included. Rejects with Node's error, `EEXIST` or `ENOTDIR` where something else is in the way.
 */
export async function makeDirectories(
  context: AgentContext,
  user: SandboxUser,
  directory: string,
): Promise<void> {
  const missing: string[] = [];
  // Each path is a part of the text of the longer one: `..` behind a link must mean what it means to the kernel.
  for (let place = directory; !(await isDirectory(place)); place = path.posix.dirname(place))
    missing.push(place);
  for (const place of missing.reverse()) {
    try {
      await fs.mkdir(place, 0o755);
    } catch (error) {
      // Made meanwhile, or `.` or `..` of one that was.
      if (errorCode(error) === 'EEXIST' && (await isDirectory(place))) continue;
      throw error;
    }
    if (context.users.canChown) await fs.lchown(place, user.uid, user.gid);
  }
}

async function isDirectory(place: string): Promise<boolean> {
  try {
    if ((await fs.stat(place)).isDirectory()) return true;
  } catch (error) {
    if (errorCode(error) === 'ENOENT') return false;
    throw error;
  }
  throw Object.assign(new Error('ENOTDIR: not a directory'), { code: 'ENOTDIR' });
}
