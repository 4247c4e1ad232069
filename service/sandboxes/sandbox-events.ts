import type { ErrorCode } from '../errors';
import type { Logger } from '../log';
import type { PauseMode } from './lifecycle';
import type { RunningSandbox } from './sandbox';

/**
 * What happens to sandboxes, told to whoever keeps something per sandbox. Called in order for one sandbox, never
 * before the change is visible through `find`. An exception in a callback is logged and changes nothing.
 */
export interface SandboxEvents {
  /** A create has ended, with `ok` or the word of its failure. */
  onCreate?(outcome: { result: 'ok' | ErrorCode; pooled: boolean; seconds: number }): void;
  /** A new sandbox runs. */
  onReady?(sandbox: RunningSandbox): void;
  /**
   * A sandbox of an earlier process runs, with the kernels it has. One that was paused is told of at its resume, with
   * the moment since when it was (milliseconds since the epoch).
   */
  onAdopted?(sandbox: RunningSandbox, pausedAt: number | undefined): void;
  /**
   * About to be paused: its connections are to be dropped. `full`: its memory stays; `filesystem`: all that runs in it is
   * over. The latter is told again when an earlier service has done that, or when a pause gives up the memory it had.
   */
  onPaused?(sandboxId: string, keeps: PauseMode): void;
  /** Thawed, with the kernels it had. */
  onResumed?(sandbox: RunningSandbox): void;
  /** Runs anew over its files, and its kernels are new. */
  onBooted?(sandbox: RunningSandbox): void;
  /** Gone for good, told once. */
  onEnded?(sandboxId: string): void;
}

/** Tells listeners, whose exceptions change nothing. */
export class Announcer {
  constructor(
    private readonly events: SandboxEvents | undefined,
    private readonly logger: Logger,
  ) {}

  tell(name: keyof SandboxEvents, call: (events: SandboxEvents) => void): void {
    try {
      if (this.events !== undefined) call(this.events);
    } catch (error) {
      this.logger.error({ event: name, err: error }, 'a listener for sandboxes failed');
    }
  }
}
