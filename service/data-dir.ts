import crypto from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { ServiceError } from './errors';

/** Makes the directory that holds all state, readable by this user only. */
export function openDataDir(dataDir: string): void {
  try {
    fs.mkdirSync(dataDir, { recursive: true, mode: 0o700 });
    fs.accessSync(dataDir, fs.constants.W_OK | fs.constants.R_OK | fs.constants.X_OK);
  } catch (cause) {
    throw new ServiceError(
      'failed_precondition',
      `The data directory ${dataDir} can't be written. Give another one with CELLBOX_DATA_DIR.`,
      { cause },
    );
  }
}

/**
 * Takes the data directory for this process: two services on one directory would reap each other's sandboxes. The
 * lock file names its owner; one whose owner is gone is taken over. Returns the release.
 */
export function lockDataDir(dataDir: string): () => void {
  const file = path.join(dataDir, 'service.pid');
  for (let attempt = 0; attempt < 3; attempt++) {
    try {
      fs.writeFileSync(file, `${process.pid}\n`, { flag: 'wx', mode: 0o600 });
      return () => fs.rmSync(file, { force: true });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    }
    const owner = Number(readIfThere(file) ?? Number.NaN);
    if (Number.isInteger(owner) && owner !== process.pid && isService(owner)) {
      throw new ServiceError(
        'failed_precondition',
        `Another Cellbox service (pid ${owner}) uses the data directory ${dataDir}. Stop it, or give this one its own with CELLBOX_DATA_DIR.`,
      );
    }
    fs.rmSync(file, { force: true });
  }
  throw new ServiceError('unavailable', `The data directory ${dataDir} is being taken by another service.`);
}

/** Alive, and really a Node process: a pid is reused after a reboot. */
function isService(pid: number): boolean {
  try {
    process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
  const command = readIfThere(`/proc/${pid}/cmdline`);
  return command === undefined || command.includes('node') || command.includes('start.js');
}

function readIfThere(file: string): string | undefined {
  try {
    return fs.readFileSync(file, 'utf8');
  } catch {
    return undefined; // absent or unreadable alike: there is nothing to learn from it
  }
}

/** The key given in the configuration, or the one made once and kept in `<data dir>/api-key` (mode 0600). */
export function loadApiKey(dataDir: string, configured: string | undefined): string {
  if (configured !== undefined) return configured;
  const file = path.join(dataDir, 'api-key');
  const kept = readIfThere(file)?.trim();
  if (kept !== undefined && /^e2b_[0-9a-f]+$/.test(kept)) return kept;
  const key = `e2b_${crypto.randomBytes(20).toString('hex')}`;
  fs.writeFileSync(file, `${key}\n`, { mode: 0o600 });
  return key;
}

/** The admin token given in the configuration, or the one made once and kept in `<data dir>/admin-token` (mode 0600). */
export function loadAdminToken(dataDir: string, configured: string | undefined): string {
  if (configured !== undefined) return configured;
  const file = path.join(dataDir, 'admin-token');
  const kept = readIfThere(file)?.trim();
  if (kept !== undefined && /^[0-9a-f]{40}$/.test(kept)) return kept;
  const token = crypto.randomBytes(20).toString('hex');
  fs.writeFileSync(file, `${token}\n`, { mode: 0o600 });
  return token;
}
