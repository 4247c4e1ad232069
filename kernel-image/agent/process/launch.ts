import { accessSync, constants, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { log, reason } from '../log';
import type { SandboxUser, Users } from '../users';

/** What starts a process, ready for `execve`; everything in it was checked. */
export interface Launch {
  argv: readonly [string, ...string[]];
  env: Readonly<Record<string, string>>;
  cwd: string;
  /** Who the process will be; undefined where everybody is the agent's own user. */
  owner: { uid: number; gid: number } | undefined;
}

/** Never by PATH: it begins with a directory that users can write, and this runs as root. */
const PROGRAM_DIRECTORIES = ['/usr/bin', '/bin', '/usr/sbin', '/sbin', '/run/current-system/sw/bin'];

/**
 * The command behind the program that turns the agent's child into the user's process and then *becomes* the command, so
 * that the process id stays. `setpriv` sets user and groups (nothing that starts processes can set supplementary groups). Where there is nothing to
 * set, `nice` does nothing but what is wanted of both: an unknown command is exit code 127 and a sentence on stderr.
 */
export function chain(
  users: Users,
  user: SandboxUser,
  groups: readonly number[],
  command: readonly [string, ...string[]],
): readonly [string, ...string[]] {
  if (!users.canChown) return [program('nice'), '-n', '0', '--', ...command];
  const identity = [`--reuid=${user.uid}`, `--regid=${user.gid}`, `--groups=${groups.join(',')}`];
  return [program('setpriv'), ...identity, '--', ...command];
}

const programs = new Map<string, string>();

function program(name: string): string {
  const known = programs.get(name);
  if (known !== undefined) return known;
  for (const directory of PROGRAM_DIRECTORIES) {
    const file = path.join(directory, name);
    try {
      accessSync(file, constants.X_OK);
    } catch {
      continue; // not there: look further
    }
    programs.set(name, file);
    return file;
  }
  throw new Error(`this sandbox has no program '${name}', which starts processes`);
}

const OWN_SCORE = '/proc/self/oom_score_adj';
/** How much sooner the kernel ends what users started, when memory runs out, than the agent and the kernels. */
const OOM_SCORE_MORE = 100;
const MAX_OOM_SCORE = 1000;

/** By this, which every descendant inherits, the supervisor knows a process that the agent had started. */
export function markedScore(own: number): number {
  return Math.min(MAX_OOM_SCORE, own + OOM_SCORE_MORE);
}

/**
 * Runs `start`, which forks, with the mark already on: the child has it from its first instruction on. Synchronous, so
 * that nothing else is ever forked in between. Without /proc there is no mark.
 */
export function marked<T>(start: () => T): T {
  let own: string;
  try {
    own = readFileSync(OWN_SCORE, 'latin1').trim();
    writeFileSync(OWN_SCORE, String(markedScore(Number(own))));
  } catch {
    return start(); // not Linux, or a kernel that keeps no scores
  }
  try {
    return start();
  } finally {
    try {
      writeFileSync(OWN_SCORE, own);
    } catch (error) {
      log(`agent: oom_score_adj: ${reason(error)}`);
    }
  }
}
