import { Code, ConnectError } from '@connectrpc/connect';
import type { ProcessConfig, ProcessSelector } from '../../../protocol/envd/gen/process_pb';
import type { EndedProcess, ToSupervisor } from '../supervision';
import { toEnd } from './end-event';
import type { End } from './end-event';
import { startTime } from './process-list';
import type { RunningProcess } from './running-process';

/** How long after its end a process can still be asked how it ended. */
const REMEMBERED_MS = 30_000;
/** More ends than this within that time, and the oldest are forgotten early. */
const MAX_REMEMBERED = 10_000;

/** What the caller asked for, beside the process that came of it. */
export interface Entry {
  process: RunningProcess;
  config: ProcessConfig | undefined;
  tag: string | undefined;
}

/** A process that is no more, for a while. */
export interface Ended {
  pid: number;
  tag: string | undefined;
  end: End;
}

/**
 * All processes that were started here and have not ended, and for half a minute those that have. Tells the supervisor of
 * each, because only that one is left to end them when the agent is killed.
 */
export class ProcessTable {
  private readonly running = new Map<number, Entry>();
  /** In the order of their ends. */
  private readonly remembered = new Map<number, Ended & { forget: NodeJS.Timeout }>();
  private readonly tell: (message: ToSupervisor) => void;

  constructor(tell: (message: ToSupervisor) => void) {
    this.tell = tell;
  }

  add(entry: Entry): void {
    const { process, tag } = entry;
    const { pid } = process;
    this.tell({ type: 'process', pid, startTime: startTime(pid), tag });
    // One that only waits for the end of its output may have lost its number to this one.
    this.running.get(pid)?.process.signal('SIGKILL');
    this.running.set(pid, entry);
    for (const ended of this.remembered.values()) {
      if (ended.pid === pid || (tag !== undefined && ended.tag === tag)) this.forget(ended.pid);
    }
    void process.ended.then((end) => {
      this.tell({ type: 'process-ended', pid });
      if (this.running.get(pid) !== entry) return;
      this.running.delete(pid);
      this.remember({ pid, tag, end });
    });
  }

  /** What a dead agent left, and the supervisor ended. */
  addEnded(processes: readonly EndedProcess[]): void {
    const end = toEnd({ signal: 'SIGKILL' });
    for (const { pid, tag } of processes) this.remember({ pid, tag, end });
  }

  /** Those whose process exists, in the order of their starts. */
  list(): Entry[] {
    return [...this.running.values()].filter(({ process }) => process.isAlive);
  }

  /** @throws ConnectError `not_found`, or `unimplemented` when it selects by nothing known */
  find(selector: ProcessSelector | undefined): Entry {
    const found = this.findRunning(selector);
    if (found === undefined) throw notFound(selector);
    return found;
  }

  /** As `find`, and also among those that ended a moment ago. */
  findRecent(selector: ProcessSelector | undefined): Entry | Ended {
    const found = this.findRunning(selector) ?? this.findRemembered(selector);
    if (found === undefined) throw notFound(selector);
    return found;
  }

  /** Ends whatever still runs. For the agent's own end; idempotent. */
  close(): void {
    for (const { process } of this.running.values()) {
      try {
        process.signal('SIGKILL');
      } catch {
        // Ended just now.
      }
    }
    for (const { pid } of [...this.remembered.values()]) this.forget(pid);
  }

  private findRunning(by: ProcessSelector | undefined): Entry | undefined {
    const selector = by?.selector;
    if (selector?.case === 'pid') return this.running.get(selector.value);
    if (selector?.case === 'tag') return [...this.running.values()].find(({ tag }) => tag === selector.value);
    throw new ConnectError('a process is selected by its pid or its tag', Code.Unimplemented);
  }

  private findRemembered(by: ProcessSelector | undefined): Ended | undefined {
    const selector = by?.selector;
    if (selector?.case === 'pid') return this.remembered.get(selector.value);
    return [...this.remembered.values()].find(({ tag }) => tag === selector?.value);
  }

  private remember(ended: Ended): void {
    this.forget(ended.pid);
    const forget = setTimeout(() => this.remembered.delete(ended.pid), REMEMBERED_MS);
    forget.unref();
    this.remembered.set(ended.pid, { ...ended, forget });
    if (this.remembered.size <= MAX_REMEMBERED) return;
    for (const { pid } of this.remembered.values()) {
      this.forget(pid);
      break;
    }
  }

  private forget(pid: number): void {
    clearTimeout(this.remembered.get(pid)?.forget);
    this.remembered.delete(pid);
  }
}

function notFound(by: ProcessSelector | undefined): ConnectError {
  const selector = by?.selector;
  return new ConnectError(`there is no process with ${selector?.case} ${selector?.value}`, Code.NotFound);
}
