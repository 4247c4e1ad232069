/**
 * Where a sandbox is between its start and its end. `pausing` and `resuming` last as long as the machine takes; in them
 * it has no deadline and is reached by nobody. See docs/decisions/0013-pause.md.
 */
export type Phase = 'running' | 'pausing' | 'paused' | 'resuming' | 'ended';

/** What happens to it. `end`: killed, expired, or its machine died. */
export type Change = 'pause' | 'frozen' | 'freeze-failed' | 'resume' | 'thawed' | 'thaw-failed' | 'end';

/** Every change that there is; what is missing must not happen. */
export const LIFECYCLE: Readonly<Record<Phase, Partial<Record<Change, Phase>>>> = {
  running: { pause: 'pausing', end: 'ended' },
  pausing: { frozen: 'paused', 'freeze-failed': 'running', end: 'ended' },
  paused: { resume: 'resuming', end: 'ended' },
  resuming: { thawed: 'running', 'thaw-failed': 'paused', end: 'ended' },
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
