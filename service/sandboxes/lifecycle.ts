/**
 * Where a sandbox is between its start and its end. `paused` has its memory, `halted` only its files. Those on their way
 * last as long as the machine takes; in them it has no deadline and is reached by nobody. See
 * docs/decisions/0013-pause.md and 0015-halt.md.
 */
export type Phase =
  'running' | 'pausing' | 'paused' | 'resuming' | 'halting' | 'halted' | 'booting' | 'ended';

/** What happens to it. `end`: killed, expired, or its machine died. */
export type Change =
  | 'pause'
  | 'frozen'
  | 'freeze-failed'
  | 'resume'
  | 'thawed'
  | 'thaw-failed'
  | 'halt'
  | 'halted'
  | 'halt-failed'
  | 'boot'
  | 'booted'
  | 'boot-failed'
  | 'end';

/** Every change that there is; what is missing must not happen. */
export const LIFECYCLE: Readonly<Record<Phase, Partial<Record<Change, Phase>>>> = {
  running: { pause: 'pausing', halt: 'halting', end: 'ended' },
  pausing: { frozen: 'paused', 'freeze-failed': 'running', end: 'ended' },
  paused: { resume: 'resuming', boot: 'booting', end: 'ended' },
  resuming: { thawed: 'running', 'thaw-failed': 'paused', end: 'ended' },
  halting: { halted: 'halted', 'halt-failed': 'running', end: 'ended' },
  halted: { boot: 'booting', end: 'ended' },
  booting: { booted: 'running', 'boot-failed': 'halted', end: 'ended' },
  ended: {},
};

/** @throws Error for a change that must not happen: a mistake in this program. */
export function phaseAfter(phase: Phase, change: Change): Phase {
  const next = LIFECYCLE[phase][change];
  if (next === undefined) throw new Error(`a sandbox that is ${phase} can not take: ${change}`);
  return next;
}

/** What callers are told; undefined: nothing, it is not there. */
export function shownAs(phase: Phase): 'running' | 'paused' | undefined {
  if (phase === 'ended') return undefined;
  return phase === 'running' ? 'running' : 'paused';
}

/** What a pause keeps: all, or files alone. */
export type PauseMode = 'full' | 'filesystem';

/** What the pause that it is in keeps, or has kept; undefined where it is in none. */
export function keptIn(phase: Phase): PauseMode | undefined {
  switch (phase) {
    case 'pausing':
    case 'paused':
    case 'resuming':
      return 'full';
    case 'halting':
    case 'halted':
    case 'booting':
      return 'filesystem';
    case 'running':
    case 'ended':
      return undefined;
  }
}
