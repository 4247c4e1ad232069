import type { MemoryFigures, SandboxMemory } from '../sandbox-memory';
import type { Exit } from './end-event';

/** What a shell exits with when what it ran was killed: 128 and the signal's number. */
const SHELL_SAYS_KILLED = 137;

/** Tells of an end whether memory was its cause, as far as this can be known. */
export type OutOfMemory = (exit: Exit) => MemoryFigures | undefined;

/**
 * Counts from now on; to be called before the process starts. The system kills for memory by SIGKILL, and counts before
 * it kills. It does not say whom: one that is killed otherwise while memory kills another is told as killed by memory.
 */
export function watchMemory(memory: SandboxMemory): OutOfMemory {
  const before = memory.oomKills();
  return (exit) => {
    const isKilled = 'signal' in exit && exit.signal === 'SIGKILL';
    if (!isKilled && !('code' in exit && exit.code === SHELL_SAYS_KILLED)) return undefined;
    const now = memory.oomKills();
    if (before !== undefined && now !== undefined) {
      if (now <= before) return undefined;
      const { limitBytes, peakBytes = limitBytes } = memory.figures();
      return { peakBytes, limitBytes };
    }
    // Nobody counts: a full sandbox and a kill are all that is known. An exit code may be anything's.
    const { peakBytes, limitBytes } = memory.figures();
    const isFull = peakBytes !== undefined && limitBytes !== undefined && peakBytes >= limitBytes;
    return isKilled && isFull ? { peakBytes, limitBytes } : undefined;
  };
}
