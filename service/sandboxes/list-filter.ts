import type { Sandbox } from './sandbox';

/** Which sandboxes a list tells, and in which order. */
export interface ListFilter {
  states?: readonly Sandbox['state'][];
  metadata?: ReadonlyMap<string, string>;
  templateId?: string;
  /** Milliseconds since the epoch, inclusive. */
  startedAfter?: number;
  order?: 'asc' | 'desc';
}

/** Whether a list with this filter tells the sandbox. */
export function matches(sandbox: Sandbox, filter: ListFilter): boolean {
  if (filter.states !== undefined && !filter.states.includes(sandbox.state)) return false;
  if (filter.templateId !== undefined && filter.templateId !== sandbox.templateId) return false;
  if (filter.startedAfter !== undefined && sandbox.startedAt < filter.startedAfter) return false;
  for (const [key, value] of filter.metadata ?? []) {
    if (!Object.hasOwn(sandbox.metadata, key) || sandbox.metadata[key] !== value) return false;
  }
  return true;
}
