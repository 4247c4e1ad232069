import type { LogLevel } from '../../protocol/control-plane';
import type { Logger } from '../log';
import type { Runtime } from '../runtime/runtime';
import { toLogRecords } from './machine-output';
import type { Sandbox } from './sandbox';
import { LogFiles } from './log-files';
import type { LogRecord } from './log-files';
import { deadline } from './waiting';

/** Why a sandbox is no more; `detail` is a sentence for people. */
export interface EndReason {
  readonly reason:
    'request' | 'deadline' | 'machine_ended' | 'disk_full' | 'service_stopped' | 'service_restarted';
  readonly detail?: string;
}

export interface SandboxLogOptions {
  runtime: Pick<Runtime, 'output'>;
  logger: Logger;
  directory: string | undefined;
  now: () => number;
  isLive: (id: string) => boolean;
}

type Owned = Pick<Sandbox, 'id' | 'teamId'>;

/** How long a machine's output is waited for: at its end, and by a reader, who is told the rest all the same. */
const OUTPUT_TIMEOUT_MS = 2_000;
/** Of the machine's output, what is kept behind its end: a hostile program must not push our own lines out of the file. */
const COPIED_CHARS = 64 * 1024;
/** What a line takes beside its message. */
const LINE_CHARS = 128;

/**
 * The log of a sandbox as its team reads it: what the service did with it, kept in a file, and what the machine's own
 * programs said, which stays with the machine while it lives and is copied when it ends.
 *
 * A machine that ended by itself may have taken its output along; then only the service's part is left.
 */
export class SandboxLog {
  private readonly files: LogFiles | undefined;

  constructor(private readonly options: SandboxLogOptions) {
    const { directory, ...rest } = options;
    this.files = directory === undefined ? undefined : new LogFiles({ ...rest, directory });
  }

  created(sandbox: Sandbox, pooled: boolean): void {
    // One that was kept ready started before it was anybody's.
    const fields = { template: sandbox.templateAlias, pooled: String(pooled) };
    const record = this.record('info', 'The sandbox was created', fields);
    // As the other routes tell it; and nothing that the machine said comes before.
    this.files?.write(sandbox.id, sandbox.teamId, [{ ...record, at: sandbox.startedAt }]);
  }

  /** One line in the service's own words. */
  note(sandbox: Owned, level: LogLevel, message: string, fields: Record<string, string> = {}): void {
    this.files?.write(sandbox.id, sandbox.teamId, [this.record(level, message, fields)]);
  }

  /** Notes the end and copies what the machine said; resolves, and never rejects, when the machine may go. */
  async ended(sandbox: Owned & Partial<Pick<Sandbox, 'startedAt'>>, why: EndReason): Promise<void> {
    if (this.files === undefined) return;
    const { reason, detail } = why;
    const text = detail === undefined ? 'The sandbox ended' : `The sandbox ended: ${detail}`;
    const isFailure = reason === 'machine_ended' || reason === 'disk_full';
    this.note(sandbox, isFailure ? 'error' : 'info', text, { reason });
    // Behind the end in the file; readers sort by time.
    if (sandbox.startedAt !== undefined) {
      const said = await this.said(sandbox.id, sandbox.startedAt);
      this.files.write(sandbox.id, sandbox.teamId, newest(said, COPIED_CHARS));
    }
  }

  /** Of a sandbox that is there. */
  async read(sandbox: Owned & Pick<Sandbox, 'startedAt'>): Promise<LogRecord[]> {
    const { id, teamId, startedAt } = sandbox;
    const [kept, said] = await Promise.all([this.files?.read(id, teamId), this.said(id, startedAt)]);
    return inOrder([...(kept ?? []), ...said]);
  }

  /** Of one that ended; empty when nothing is known of it, or not to this team. */
  async readEnded(id: string, teamId: string): Promise<LogRecord[]> {
    return inOrder((await this.files?.read(id, teamId)) ?? []);
  }

  /** Removes what is too old. Never rejects. */
  async prune(): Promise<void> {
    await this.files?.prune();
  }

  async settled(): Promise<void> {
    await this.files?.settled();
  }

  private async said(id: string, startedAt: number): Promise<LogRecord[]> {
    const { runtime, logger, now } = this.options;
    try {
      const lines = await deadline(
        runtime.output(id),
        OUTPUT_TIMEOUT_MS,
        'Reading the output of the machine',
      );
      return toLogRecords(lines, startedAt, now());
    } catch (error) {
      logger.debug({ sandboxId: id, err: error }, 'what a machine said could not be read');
      return [];
    }
  }

  private record(level: LogLevel, message: string, fields: Record<string, string>): LogRecord {
    return { at: this.options.now(), level, message, fields: { logger: 'service', ...fields } };
  }
}

/** By time; lines of one moment in the order in which they were written. */
function inOrder(records: LogRecord[]): LogRecord[] {
  return records.sort((one, other) => one.at - other.at);
}

function newest(records: LogRecord[], chars: number): LogRecord[] {
  let left = chars;
  const first = records.findLastIndex(({ message }) => (left -= message.length + LINE_CHARS) < 0);
  return records.slice(first + 1);
}
