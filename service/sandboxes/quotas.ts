import { ServiceError } from '../errors';

/** What one team may have. */
export interface TeamLimits {
  /** Live sandboxes, paused ones and those that are starting included. */
  readonly maxSandboxes: number;
  /** 0 is no limit. */
  readonly createsPerMinute: number;
}

const WINDOW_MS = 60_000;

/** Counts the creates of each team within any minute. Memory of one service: a restart begins anew. */
export class CreateRates {
  /** By team: when it created, oldest first; never more than its limit. */
  private readonly recent = new Map<string, number[]>();

  constructor(private readonly now: () => number) {}

  /**
   * Counts one create.
   *
   * @throws ServiceError `resource_exhausted` that says when there is room again
   */
  take(teamId: string, limit: number): void {
    if (limit === 0) {
      this.recent.delete(teamId);
      return;
    }
    const now = this.now();
    const recent = (this.recent.get(teamId) ?? []).filter((at) => at > now - WINDOW_MS);
    const oldest = recent[recent.length - limit]; // of those that fill the limit, should it have been lowered
    if (oldest !== undefined) {
      throw new ServiceError('resource_exhausted', `The limit of ${limit} creates a minute is reached`, {
        remedy:
          'Try again when Retry-After says so; whoever runs the service can raise the limit of the team.',
        retryInMs: oldest + WINDOW_MS - now,
      });
    }
    recent.push(now);
    this.recent.set(teamId, recent);
  }
}
