import type { Usage } from './service';

/** What the service may need whatever it is asked to do. */
export const LIMITS = { rssPeakMB: 250, loopDelayP99Ms: 50 } as const;

const MB = 1_000_000;

/** The two readings for a table: memory at its peak, and how late the event loop was. */
export function usageCells(usage: Usage): string[] {
  return [(usage.rssPeakBytes / MB).toFixed(0), usage.loopDelayP99Ms.toFixed(1)];
}

export const USAGE_HEADER = ['service: peak MB', 'event loop p99 ms'] as const;

/** The same as figures, under the name of what was done meanwhile. */
export function usageFigures(row: string, usage: Usage): Record<string, number> {
  return {
    [`${row} | service memory peak MB`]: usage.rssPeakBytes / MB,
    [`${row} | event loop p99 ms`]: usage.loopDelayP99Ms,
  };
}
