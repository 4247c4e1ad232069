import { ServiceError } from '../errors';
import type { Logger } from '../log';
import type { Runtime } from '../runtime/runtime';
import type { Deadlines } from './deadlines';
import { ending, gone, isOver, step } from './entry';
import type { Entry } from './entry';
import type { MetricsSampler } from './metrics';
import type { Announcer } from './sandbox-events';
import type { SandboxLog } from './sandbox-log';
import type { Store } from './store';
import { deadline } from './waiting';

export interface PausesOptions {
  runtime: Runtime;
  store: Store;
  logger: Logger;
  log: SandboxLog;
  metrics: MetricsSampler;
  deadlines: Deadlines;
  announcer: Announcer;
  maxTimeoutSeconds: number;
  now: () => number;
}

export interface ConnectOptions {
  timeoutSeconds: number;
  /** Only a paused sandbox is wanted: a running one is a conflict. */
  mustBePaused?: boolean;
  autoPause?: boolean;
}

/** How long a pause or resume may take. */
const TRANSITION_TIMEOUT_MS = 30_000;
/** How long traffic for a paused sandbox waits until that runs. */
const WAKE_TIMEOUT_MS = 60_000;
/** At least so long a sandbox runs that traffic has resumed. */
const MIN_WOKEN_SECONDS = 300;
/** A paused machine must not end itself by the deadline it had: the dead-man timer inside gets this one instead. */
const PAUSED_DEADLINE_MS = 10 * 365 * 86_400_000;

/**
 * Pauses sandboxes and resumes them. What may follow what is in lifecycle.ts; why it is so, and in which order machine,
 * store and listeners are told, in docs/decisions/0013-pause.md. A sandbox may end at any moment meanwhile.
 */
export class Pauses {
  constructor(private readonly options: PausesOptions) {}

  /** Freezes memory and processors of one that runs. Until its resume it has no deadline. */
  async pause(entry: Entry, reason: 'request' | 'deadline'): Promise<void> {
    if (entry.phase !== 'running') {
      throw new ServiceError(
        'failed_precondition',
        `Sandbox "${entry.sandbox.id}" is already paused or changing state`,
      );
    }
    await this.freeze(entry, reason);
  }

  private freeze(entry: Entry, reason: 'request' | 'deadline'): Promise<void> {
    const { sandbox } = entry;
    const { store, logger, log, metrics, deadlines, announcer, now } = this.options;
    // From the first moment on it counts as paused, and traffic is refused: nothing may be half-frozen.
    step(entry, 'pause');
    return change(entry, async () => {
      const before = sandbox.endAt;
      sandbox.endAt = now();
      deadlines.clear(sandbox.id);
      metrics.pause(sandbox.id);
      announcer.tell('onPaused', (events) => events.onPaused?.(sandbox.id));
      await deadlines.tellMachine(entry, now() + PAUSED_DEADLINE_MS);
      try {
        await this.setFrozen(entry, true);
      } catch (error) {
        // Whatever it is now, thawed is what the caller is going to find.
        if (!isOver(entry)) await this.setFrozen(entry, false).catch(() => undefined); // most often it was never frozen
        if (isOver(entry)) throw gone(sandbox.id);
        step(entry, 'freeze-failed');
        deadlines.set(entry, before);
        metrics.start(sandbox);
        announcer.tell('onResumed', (events) => events.onResumed?.(sandbox));
        log.note(sandbox, 'error', 'The sandbox could not be paused and goes on', { reason });
        throw error;
      }
      if (isOver(entry)) throw gone(sandbox.id);
      step(entry, 'frozen');
      await store.updateSandbox(sandbox.id, { state: 'paused', endAt: sandbox.endAt });
      logger.info({ sandboxId: sandbox.id }, 'sandbox paused');
      log.note(sandbox, 'info', 'The sandbox was paused', { reason });
    });
  }

  /**
   * Makes a sandbox usable: resumes a paused one, extends (never shortens) the time of a running one. A pause under
   * way is waited for. Resolves with whether it was resumed.
   */
  async connect(entry: Entry, options: ConnectOptions): Promise<boolean> {
    const { store, deadlines, now } = this.options;
    const { sandbox } = entry;
    const { id } = sandbox;
    let resumed = false;
    while (entry.transition !== undefined) await entry.transition;
    if (isOver(entry)) throw ending(id);
    if (entry.phase === 'paused') {
      await this.resume(entry, options.timeoutSeconds, 'request');
      resumed = true;
    } else if (options.mustBePaused === true) {
      throw new ServiceError('failed_precondition', `Sandbox "${id}" is already running`);
    }
    if (options.autoPause !== undefined && options.autoPause !== sandbox.autoPause) {
      sandbox.autoPause = options.autoPause;
      await store.updateSandbox(id, { autoPause: options.autoPause });
    }
    const wanted = now() + options.timeoutSeconds * 1000;
    if (!resumed && wanted > sandbox.endAt) await deadlines.move(entry, wanted);
    return resumed;
  }

  /**
   * Resumes a sandbox that traffic has come for, for as long as it was created for. Whoever brings the traffic was
   * found to have the right. Resolves when it runs.
   *
   * @throws ServiceError `not_found` when there is none that wants this, `deadline_exceeded` when it takes too long.
   */
  async wake(entry: Entry): Promise<void> {
    const { id, autoResume, timeoutSeconds } = entry.sandbox;
    const deadlineAt = Date.now() + WAKE_TIMEOUT_MS;
    const soon = (work: Promise<void>) =>
      deadline(work, Math.max(0, deadlineAt - Date.now()), 'Resuming the sandbox');
    while (entry.transition !== undefined) await soon(entry.transition);
    if (isOver(entry)) throw gone(id);
    if (entry.phase === 'running') return;
    if (!autoResume) throw gone(id);
    const seconds = Math.min(Math.max(timeoutSeconds, MIN_WOKEN_SECONDS), this.options.maxTimeoutSeconds);
    await soon(this.resume(entry, seconds, 'traffic'));
  }

  /** Of one that is paused. */
  private resume(entry: Entry, timeoutSeconds: number, reason: 'request' | 'traffic'): Promise<void> {
    const { sandbox } = entry;
    const { store, logger, log, metrics, deadlines, announcer, now } = this.options;
    step(entry, 'resume');
    return change(entry, async () => {
      const pausedAt = sandbox.endAt;
      let runStartedAt: number;
      try {
        await this.setFrozen(entry, false);
        runStartedAt = now();
        // Before anybody can use it: what is written down as paused would be frozen by the next service.
        const endAt = runStartedAt + timeoutSeconds * 1000;
        if (!isOver(entry)) await store.updateSandbox(sandbox.id, { state: 'running', runStartedAt, endAt });
      } catch (error) {
        if (!isOver(entry)) await this.setFrozen(entry, true).catch(() => undefined); // the next resume takes it as it is
        if (isOver(entry)) throw ending(sandbox.id);
        step(entry, 'thaw-failed');
        throw error;
      }
      if (isOver(entry)) throw ending(sandbox.id);
      // All of this in one go: whoever finds it running finds its kernels, too.
      step(entry, 'thawed');
      sandbox.runStartedAt = runStartedAt;
      deadlines.set(entry, runStartedAt + timeoutSeconds * 1000);
      logger.info({ sandboxId: sandbox.id, endAt: sandbox.endAt }, 'sandbox resumed');
      log.note(sandbox, 'info', 'The sandbox was resumed', { reason });
      metrics.start(sandbox);
      if (entry.announced) announcer.tell('onResumed', (events) => events.onResumed?.(sandbox));
      else announcer.tell('onAdopted', (events) => events.onAdopted?.(sandbox, pausedAt));
      entry.announced = true;
    });
  }

  /** Whatever it is now: an attempt that was given up may have been carried out after all. */
  private async setFrozen(entry: Entry, frozen: boolean): Promise<void> {
    const { runtime } = this.options;
    const { id } = entry.sandbox;
    const [work, what] = frozen
      ? [() => runtime.pause(id), 'Pausing the sandbox']
      : [() => runtime.resume(id), 'Resuming the sandbox'];
    try {
      await deadline(work(), TRANSITION_TIMEOUT_MS, what);
    } catch (error) {
      if (!(error instanceof ServiceError && error.code === 'failed_precondition')) throw error;
    }
  }
}

/** Runs one change of state; the next one waits for it. */
function change(entry: Entry, work: () => Promise<void>): Promise<void> {
  const result = work();
  const transition = result
    .catch(() => undefined) // the caller of `change` hears of it
    .then(() => {
      if (entry.transition === transition) entry.transition = undefined;
    });
  entry.transition = transition;
  return result;
}
