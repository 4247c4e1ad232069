import fs from 'node:fs';
import { unwatchable } from './watch-failure';

export interface ListedEntry {
  /** Latin1. */
  name: string;
  /** Itself, not what a link leads to. */
  isDirectory: boolean;
}

/** Hold no files of anyone, are huge, and tell of no changes. */
const WITHOUT_EVENTS = new Set(['/proc', '/sys']);

/**
 * The entries of a directory, in the order of their bytes; none when it is gone meanwhile. `place` in latin1.
 *
 * Synchronous: while it lasts nothing else is told, and a listing takes a tenth of what the thread pool's detour costs.
 */
export function listDirectory(place: string): ListedEntry[] {
  if (WITHOUT_EVENTS.has(place)) return [];
  try {
    const entries = fs.readdirSync(Buffer.from(place, 'latin1'), { withFileTypes: true, encoding: 'buffer' });
    return entries
      .map((entry) => ({ name: entry.name.toString('latin1'), isDirectory: entry.isDirectory() }))
      .sort((a, b) => (a.name < b.name ? -1 : 1));
  } catch (error) {
    if (unwatchable(error)) return [];
    throw error;
  }
}
