import fs from 'node:fs/promises';
import type { AgentContext } from '../../app';
import { API_HOME } from '../../settings';

/** What statfs calls NFS, CIFS, SMB, SMB2 and FUSE. */
const NETWORK_TYPES = new Set([0x6969, 0xff534d42, 0x517b, 0xfe534d42, 0x65735546]);

/** Whether a file system of this type may change without this machine's kernel noticing. Pure. */
export function isNetworkType(type: number): boolean {
  return NETWORK_TYPES.has(type >>> 0);
}

/**
 * Whether a directory is on a network mount. What the sandbox itself lives on never counts as one: under an engine
 * that makes root file systems with FUSE, every directory would be refused.
 */
export async function isNetworkMount(
  context: AgentContext,
  diskPath: string,
  device: number,
): Promise<boolean> {
  if (!isNetworkType((await fs.statfs(diskPath)).type)) return false;
  const own = await Promise.all(['/', context.users.toDisk(API_HOME)].map(deviceOf));
  return !own.includes(device);
}

async function deviceOf(directory: string): Promise<number | undefined> {
  try {
    return (await fs.stat(directory)).dev;
  } catch {
    return undefined; // not there: then nothing is on it
  }
}
