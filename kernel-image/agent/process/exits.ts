import { exitFromStatus } from './end-event';
import type { Exit } from './end-event';
import { tryWait } from './posix-spawn';

/** A signal that was lost must not leave a process waited for, for ever. */
const RECHECK_MS = 1_000;

const waiting = new Map<number, (exit: Exit) => void>();
let recheck: NodeJS.Timeout | undefined;

/**
 * Resolves when a child that `posixSpawn` started has ended, and reaps it. Other children are left to whoever
 * started them, as Node leaves these to us: each waits for its own ids only.
 */
export function whenExited(pid: number): Promise<Exit> {
  return new Promise((resolve) => {
    waiting.set(pid, resolve);
    if (recheck === undefined) {
      process.on('SIGCHLD', reap);
      recheck = setInterval(reap, RECHECK_MS);
    }
    reap(); // it may have ended before anybody listened
  });
}

function reap(): void {
  for (const [pid, resolve] of waiting) {
    const status = tryWait(pid);
    if (status === undefined) continue;
    waiting.delete(pid);
    resolve(exitFromStatus(status));
  }
  if (waiting.size > 0 || recheck === undefined) return;
  process.off('SIGCHLD', reap);
  clearInterval(recheck);
  recheck = undefined;
}
