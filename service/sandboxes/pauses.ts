import { ServiceError } from '../errors';
import type { Logger } from '../log';
import type { Runtime } from '../runtime/runtime';
import type { Deadlines } from './deadlines';
import { ending, gone, inTurn, isOver, step } from './entry';
import type { Entry } from './entry';
import type { PauseMode } from './lifecycle';
import type { MetricsSampler } from './metrics';
import { specOf } from './sandbox';
import type { Announcer } from './sandbox-events';
import type { SandboxLog } from './sandbox-log';
import type { Store } from './store';
import { deadline, giveUp } from './waiting';

export interface PausesOptions {
  runtime: Runtime;
  store: Store;
  logger: Logger;
  log: SandboxLog;
  metrics: MetricsSampler;
  deadlines: Deadlines;
  announcer: Announcer;
  maxTimeoutSeconds: number;
  startTimeoutMs: number;
  now: () => number;
}

export interface ConnectOptions {
  timeoutSeconds: number;
  /** Only a paused sandbox is wanted: a running one is a conflict. */
  mustBePaused?: boolean;
  /** The memory of a paused one is not wanted: it starts anew over its files. */
  reboot?: boolean;
  autoPause?: boolean;
}

/** On whose behalf a sandbox runs again, and for how long. */
interface Resume {
  readonly timeoutSeconds: number;
  readonly reason: 'request' | 'traffic';
  readonly reboot?: boolean | undefined;
}

/** How long a machine may take to freeze, thaw or halt. */
const TRANSITION_TIMEOUT_MS = 30_000;
/** How long traffic for a paused sandbox waits until that runs. */
const WAKE_TIMEOUT_MS = 60_000;
/** At least so long a sandbox runs that traffic has resumed. */
const MIN_WOKEN_SECONDS = 300;
/** A paused machine must not end itself by the deadline it had: the dead-man timer inside gets this one instead. */
const PAUSED_DEADLINE_MS = 10 * 365 * 86_400_000;

/**
 * Pauses sandboxes, with their memory or their files alone, and resumes them. What may follow what is in lifecycle.ts;
 * why it is so, and in which order machine, store and listeners are told, in docs/decisions/0013-pause.md and
 * 0015-halt.md. A sandbox may end at any moment meanwhile.
 */
export class Pauses {
  constructor(private readonly options: PausesOptions) {}

  /** Of one that runs. Until its resume it has no deadline. */
  async pause(entry: Entry, mode: PauseMode, reason: 'request' | 'deadline'): Promise<void> {
    if (entry.phase !== 'running') {
      throw new ServiceError(
        'failed_precondition',
        `Sandbox "${entry.sandbox.id}" is already paused or changing state`,
      );
    }
    await (mode === 'full' ? this.freeze(entry, reason) : this.halt(entry, reason));
  }

  /**
   * Makes a sandbox usable: resumes a paused one, extends (never shortens) the time of a running one. A pause under
   * way is waited for. Resolves with whether it was resumed.
   */
  async connect(entry: Entry, options: ConnectOptions): Promise<boolean> {
    const { store, deadlines, now } = this.options;
    const { timeoutSeconds, reboot } = options;
    const { sandbox } = entry;
    const { id } = sandbox;
    while (entry.transition !== undefined) await entry.transition;
    if (isOver(entry)) throw ending(id);
    const resumed = entry.phase !== 'running';
    if (resumed) await this.resume(entry, { timeoutSeconds, reason: 'request', reboot });
    else if (options.mustBePaused === true) {
      throw new ServiceError('failed_precondition', `Sandbox "${id}" is already running`);
    }
    if (options.autoPause !== undefined && options.autoPause !== sandbox.autoPause) {
      sandbox.autoPause = options.autoPause;
      await store.updateSandbox(id, { autoPause: options.autoPause });
    }
    const wanted = now() + timeoutSeconds * 1000;
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
    await soon(this.resume(entry, { timeoutSeconds: seconds, reason: 'traffic' }));
  }

  /** Of one that is paused. */
  private resume(entry: Entry, how: Resume): Promise<void> {
    if (entry.phase === 'paused' && how.reboot !== true) return this.thaw(entry, how);
    return this.boot(entry, how);
  }

  // --- with memory ----------------------------------------------------------------------------------------------

  private freeze(entry: Entry, reason: 'request' | 'deadline'): Promise<void> {
    const { sandbox } = entry;
    const { store, logger, log, metrics, deadlines, announcer, now } = this.options;
    // From the first moment on it counts as paused, and traffic is refused: nothing may be half-frozen.
    step(entry, 'pause');
    return inTurn(entry, async () => {
      const before = sandbox.endAt;
      sandbox.endAt = now();
      deadlines.clear(sandbox.id);
      metrics.pause(sandbox.id);
      announcer.tell('onPaused', (events) => events.onPaused?.(sandbox.id, 'full'));
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
      await store.updateSandbox(sandbox.id, {
        state: 'paused',
        pauseMode: 'full',
        endAt: sandbox.endAt,
      });
      logger.info({ sandboxId: sandbox.id }, 'sandbox paused');
      log.note(sandbox, 'info', 'The sandbox was paused', { reason, keeps: 'memory' });
    });
  }

  private thaw(entry: Entry, how: Resume): Promise<void> {
    const { sandbox } = entry;
    const { store, announcer, now } = this.options;
    step(entry, 'resume');
    return inTurn(entry, async () => {
      const pausedAt = sandbox.endAt;
      let runStartedAt: number;
      try {
        await this.setFrozen(entry, false);
        runStartedAt = now();
        // Before anybody can use it: what is written down as paused would be frozen by the next service.
        const endAt = runStartedAt + how.timeoutSeconds * 1000;
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
      this.begin(entry, runStartedAt, how);
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

  // --- with files alone -----------------------------------------------------------------------------------------

  private halt(entry: Entry, reason: 'request' | 'deadline'): Promise<void> {
    const { sandbox } = entry;
    const { id } = sandbox;
    const { runtime, store, logger, log, metrics, deadlines, announcer, now } = this.options;
    step(entry, 'halt');
    return inTurn(entry, async () => {
      const before = sandbox.endAt;
      sandbox.endAt = now();
      deadlines.clear(id);
      metrics.pause(id);
      let isTold = false;
      try {
        await entry.networkTurn; // one that is under way needs the machine
        // Before the machine: a service that came in between would take that for one that died.
        await store.updateSandbox(id, { state: 'paused', pauseMode: 'filesystem', endAt: sandbox.endAt });
        if (isOver(entry)) throw gone(id);
        isTold = true;
        announcer.tell('onPaused', (events) => events.onPaused?.(id, 'filesystem'));
        await deadline(runtime.halt(id), TRANSITION_TIMEOUT_MS, 'Pausing the sandbox');
      } catch (error) {
        if (isOver(entry)) throw gone(id);
        await this.undoHalt(entry, before, isTold);
        if (isOver(entry)) throw gone(id);
        log.note(sandbox, 'error', 'The sandbox could not be paused', { reason });
        throw error;
      }
      if (isOver(entry)) throw gone(id);
      step(entry, 'halted');
      logger.info({ sandboxId: id }, 'sandbox paused without its memory');
      log.note(sandbox, 'info', 'The sandbox was paused', { reason, keeps: 'files' });
    });
  }

  /** What is left of the machine may be anything; so it starts anew, and where that fails, too, the next resume does it. */
  private async undoHalt(entry: Entry, endAt: number, isTold: boolean): Promise<void> {
    const { sandbox } = entry;
    const { store, logger, metrics, deadlines, announcer } = this.options;
    if (isTold) {
      try {
        await this.bootMachine(entry, endAt);
      } catch (error) {
        logger.error({ sandboxId: sandbox.id, err: error }, 'a pause that failed could not be undone');
        if (!isOver(entry)) step(entry, 'halted');
        return;
      }
    }
    // Where that fails, the next service finds it paused, and loses no file.
    await store
      .updateSandbox(sandbox.id, { state: 'running', endAt })
      .catch((error: unknown) => logger.error({ sandboxId: sandbox.id, err: error }, 'a pause that failed stays recorded')); // prettier-ignore
    if (isOver(entry)) return;
    step(entry, 'halt-failed');
    deadlines.set(entry, endAt);
    metrics.start(sandbox);
    if (isTold) announcer.tell('onBooted', (events) => events.onBooted?.(sandbox));
  }

  /** Anew over its files, with memory that it may still have given up. */
  private boot(entry: Entry, how: Resume): Promise<void> {
    const { sandbox } = entry;
    const { id } = sandbox;
    const { runtime, store, announcer, now } = this.options;
    return inTurn(entry, async () => {
      if (entry.phase === 'paused') {
        // Before the machine: from there on the memory is not to be had any more.
        await store.updateSandbox(id, { pauseMode: 'filesystem' });
        if (isOver(entry)) throw ending(id);
        step(entry, 'boot');
        announcer.tell('onPaused', (events) => events.onPaused?.(id, 'filesystem'));
      } else step(entry, 'boot');
      let runStartedAt: number;
      try {
        await this.bootMachine(entry, now() + how.timeoutSeconds * 1000);
        runStartedAt = now();
        const endAt = runStartedAt + how.timeoutSeconds * 1000;
        if (!isOver(entry)) await store.updateSandbox(id, { state: 'running', runStartedAt, endAt });
      } catch (error) {
        // What has come up meanwhile was used by nobody. The next boot takes it as it is.
        if (!isOver(entry))
          await deadline(runtime.halt(id), TRANSITION_TIMEOUT_MS, 'Halting').catch(() => undefined);
        if (isOver(entry)) throw ending(id);
        step(entry, 'boot-failed');
        throw error;
      }
      if (isOver(entry)) throw ending(id);
      step(entry, 'booted');
      this.begin(entry, runStartedAt, how);
      entry.announced = true;
      announcer.tell('onBooted', (events) => events.onBooted?.(sandbox));
    });
  }

  private async bootMachine({ sandbox }: Entry, deadlineAt: number): Promise<void> {
    const { runtime, startTimeoutMs } = this.options;
    const signal = AbortSignal.timeout(startTimeoutMs);
    try {
      await giveUp(runtime.boot({ ...specOf(sandbox), deadlineAt }, signal), signal);
    } catch (error) {
      if (!signal.aborted) throw error;
      const message = `The sandbox did not start within ${startTimeoutMs / 1000} s`;
      throw new ServiceError('deadline_exceeded', message, { cause: error });
    }
  }

  // --- either way -----------------------------------------------------------------------------------------------

  /** It runs from now on. In one go with what comes before and after: whoever finds it finds all of it. */
  private begin(entry: Entry, runStartedAt: number, { timeoutSeconds, reason }: Resume): void {
    const { sandbox } = entry;
    const { logger, log, metrics, deadlines } = this.options;
    sandbox.runStartedAt = runStartedAt;
    deadlines.set(entry, runStartedAt + timeoutSeconds * 1000);
    logger.info({ sandboxId: sandbox.id, endAt: sandbox.endAt }, 'sandbox resumed');
    log.note(sandbox, 'info', 'The sandbox was resumed', { reason });
    metrics.start(sandbox);
  }
}
