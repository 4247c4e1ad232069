import { markedScore } from './process/launch';
import { listProcesses, oomScore } from './process/process-list';
import type { ListedProcess } from './process/process-list';
import { log, reason } from './log';

/** A process that the agent told of and has not told the end of. */
export interface TrackedProcess {
  pid: number;
  startTime: string | undefined;
}

export interface Family {
  /** Roots of the agent's processes as far as they are known. */
  tracked: readonly TrackedProcess[];
  /** Everything below it stays: the gateway, with its kernels. */
  spared: number | undefined;
  /** Who adopts every orphan of this sandbox and of no other, if there is such a process. */
  init: number | undefined;
  /** From this score on, a process below `init` is one of the agent's, however it got away from its parents. */
  mark: number | undefined;
}

/** Each round sees whatever was forked during the one before; a process that is being killed forks no more. */
const MAX_ROUNDS = 50;

/**
 * Ends what a dead agent left behind, with all descendants. Synchronous, a few milliseconds: the next agent starts after
 * it, and must find nothing of the old one.
 */
export function endOrphans(
  tracked: readonly TrackedProcess[],
  gatewayPid: number | undefined,
  hasInit: boolean,
): void {
  const own = oomScore('self');
  const family: Family = {
    tracked,
    spared: gatewayPid,
    init: hasInit ? process.ppid : undefined,
    mark: own === undefined || markedScore(own) === own ? undefined : markedScore(own),
  };
  const killed = new Set<string>();
  for (let round = 0; round < MAX_ROUNDS; round++) {
    const listed = listProcesses();
    const found = findOrphans(listed, family, oomScore).filter(
      ({ pid, startTime }) => !killed.has(`${pid} ${startTime}`),
    );
    for (const { pid, startTime } of found) {
      killed.add(`${pid} ${startTime}`);
      kill(pid);
    }
    if (listed.length === 0) {
      // No /proc: what was told, and what stayed in its groups.
      for (const { pid } of tracked) kill(-pid);
      return;
    }
    if (found.length === 0) return;
  }
  log('supervisor: processes of the ended agent are still being made');
}

/** The agent's processes among all of these. Pure but for `score`. */
export function findOrphans(
  listed: readonly ListedProcess[],
  family: Family,
  score: (pid: number) => number | undefined,
): ListedProcess[] {
  const byPid = new Map(listed.map((each) => [each.pid, each]));
  const known = new Map(family.tracked.map(({ pid, startTime }) => [pid, startTime]));
  // A number whose process is another one by now says nothing; one that is gone may still name a session.
  for (const [pid, startTime] of known) {
    const now = byPid.get(pid);
    if (now !== undefined && startTime !== undefined && now.startTime !== startTime) known.delete(pid);
  }
  const isBelow = (each: ListedProcess, wanted: (ancestor: ListedProcess) => boolean) => {
    const seen = new Set<number>();
    for (let at: ListedProcess | undefined = each; at !== undefined && !seen.has(at.pid);) {
      if (wanted(at)) return true;
      seen.add(at.pid);
      at = byPid.get(at.parent);
    }
    return false;
  };
  const { spared, init, mark } = family;
  const belongs = (each: ListedProcess) =>
    isBelow(each, ({ pid, group, session }) => known.has(pid) || known.has(group) || known.has(session)) ||
    (init !== undefined &&
      mark !== undefined &&
      (score(each.pid) ?? 0) >= mark &&
      isBelow(each, ({ parent }) => parent === init));
  return listed.filter(
    (each) =>
      !each.isZombie &&
      each.pid !== process.pid &&
      !(spared !== undefined && isBelow(each, ({ pid }) => pid === spared)) &&
      belongs(each),
  );
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code !== 'ESRCH') log(`supervisor: can't end process ${pid}: ${reason(error)}`);
  }
}
