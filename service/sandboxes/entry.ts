import { ServiceError } from '../errors';
import { keptIn, phaseAfter, shownAs } from './lifecycle';
import type { Change, Phase } from './lifecycle';
import type { RunningSandbox } from './sandbox';

/** A live sandbox with what only this folder needs to know of it. */
export interface Entry {
  readonly sandbox: RunningSandbox;
  /** Changed by `step` alone, which keeps `sandbox.state` in line with it. */
  phase: Phase;
  /** The listeners have heard of it: not so for one that was taken over while paused. */
  announced: boolean;
  /**
   * A pause or resume under way, or a change of its network while it is paused; settles without rejecting. Whoever starts
   * the next one awaits it first.
   */
  transition: Promise<void> | undefined;
  /** The last change of its network; never rejects. The next one comes after it. */
  networkTurn: Promise<void>;
}

/** One that the listeners have heard of, unless it was taken over while paused. */
export function newEntry(sandbox: RunningSandbox, phase: Phase, announced: boolean): Entry {
  return { sandbox, phase, announced, transition: undefined, networkTurn: Promise.resolve() };
}

/** Takes it on by one change, and what callers see of it with it. */
export function step(entry: Entry, change: Change): void {
  entry.phase = phaseAfter(entry.phase, change);
  entry.sandbox.state = shownAs(entry.phase) ?? entry.sandbox.state;
  entry.sandbox.pauseMode = keptIn(entry.phase);
}

/** Runs one change of a sandbox that does not run, or will not; the next one waits for it. */
export function inTurn(entry: Entry, work: () => Promise<void>): Promise<void> {
  const result = work();
  const transition = result
    .catch(() => undefined) // the caller hears of it
    .then(() => {
      if (entry.transition === transition) entry.transition = undefined;
    });
  entry.transition = transition;
  return result;
}

/** The sandbox, when it can be used. */
export function running(entry: Entry): RunningSandbox | undefined {
  return entry.phase === 'running' ? entry.sandbox : undefined;
}

/** Asked again after each wait: it can end at any moment. */
export function isOver(entry: Entry): boolean {
  return entry.phase === 'ended';
}

/** For a caller to whom there is no such sandbox. */
export function gone(id: string): ServiceError {
  return new ServiceError('not_found', `Sandbox "${id}" doesn't exist or you don't have access to it`);
}

/** For a caller who meets its end. */
export function ending(id: string): ServiceError {
  return new ServiceError('failed_precondition', `Sandbox "${id}" is being killed`);
}
