import fs from 'node:fs/promises';
import path from 'node:path';
import { z } from 'zod';
import { LOG_LEVELS } from '../../protocol/control-plane';
import type { LogLevel } from '../../protocol/control-plane';
import type { Logger } from '../log';

/** One line of a sandbox's log. */
export interface LogRecord {
  /** Milliseconds since the epoch. */
  readonly at: number;
  readonly level: LogLevel;
  readonly message: string;
  /**
   * `logger` tells who says it: `service`, `kernel` (what the service knows of one), `supervisor`,
   * `agent`, `gateway`, or `sandbox` where nobody signed.
   */
  readonly fields: Readonly<Record<string, string>>;
}

export interface LogFilesOptions {
  /** Made at the first line. */
  directory: string;
  logger: Logger;
  now: () => number;
  /** A log is not removed while its sandbox is there. */
  isLive: (id: string) => boolean;
}

/** Beyond it the older half goes. */
const MAX_FILE_BYTES = 256 * 1024;
/** How long the log of a sandbox that ended can be read. */
const KEEP_MS = 24 * 3_600_000;
/** Logs of ended sandboxes beyond it go earlier, the oldest first. */
const MAX_ENDED = 1_000;
const PRUNE_EVERY_MS = 60_000;

const Line = z.object({
  team: z.string(),
  at: z.number(),
  level: z.enum(LOG_LEVELS),
  message: z.string(),
  fields: z.record(z.string(), z.string()),
});

/**
 * What happened to each sandbox, in one small file each: `<directory>/<id>.ndjson`. Outlives the service, and the
 * sandbox by a day. Every line names its team, so that a reader never has to trust a name of a file.
 *
 * Writing never fails for the caller: what can't be written is told in the service's own log.
 */
export class LogFiles {
  /** By sandbox: the last of its writes. They run one after another and never reject. */
  private readonly writes = new Map<string, Promise<void>>();
  private prunedAt = 0;

  constructor(private readonly options: LogFilesOptions) {}

  /** Adds lines behind those that are there. Returns at once. */
  write(id: string, teamId: string, records: readonly LogRecord[]): void {
    if (records.length === 0) return;
    const text = records.map((record) => `${JSON.stringify({ team: teamId, ...record })}\n`).join('');
    const before = this.writes.get(id) ?? Promise.resolve();
    const done: Promise<void> = before
      .then(() => this.append(id, text))
      .catch((error: unknown) =>
        this.options.logger.warn({ sandboxId: id, err: error }, 'the log of a sandbox could not be written'),
      )
      .finally(() => {
        if (this.writes.get(id) === done) this.writes.delete(id);
      });
    this.writes.set(id, done);
  }

  /** The lines that are for this team, in the order written, those included that are still being written. */
  async read(id: string, teamId: string): Promise<LogRecord[]> {
    await this.writes.get(id);
    let text: string;
    try {
      text = await fs.readFile(this.file(id), 'utf8');
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
      throw error;
    }
    return text.split('\n').flatMap((line) => {
      const parsed = parseLine(line);
      if (parsed?.team !== teamId) return [];
      const { team: _team, ...record } = parsed;
      return [record];
    });
  }

  /** Removes logs of sandboxes that ended long ago, unless that was done a moment ago. Never rejects. */
  async prune(): Promise<void> {
    const { directory, logger, now, isLive } = this.options;
    if (now() - this.prunedAt < PRUNE_EVERY_MS) return;
    this.prunedAt = now();
    await this.settled(); // what is being written is new, whatever its file's time says
    try {
      const names = (await fs.readdir(directory)).filter((name) => !isLive(path.parse(name).name));
      const found = await Promise.all(
        names.map(async (name) => ({ name, at: (await fs.stat(path.join(directory, name))).mtimeMs })),
      );
      found.sort((one, other) => other.at - one.at);
      const old = found.filter(({ at }, index) => index >= MAX_ENDED || at < now() - KEEP_MS);
      await Promise.all(old.map(({ name }) => fs.rm(path.join(directory, name), { force: true })));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return; // nothing was ever written, or it went meanwhile
      logger.warn({ err: error }, 'old logs of sandboxes could not be removed');
    }
  }

  /** Resolves when everything is written. */
  async settled(): Promise<void> {
    await Promise.all(this.writes.values());
  }

  private async append(id: string, text: string): Promise<void> {
    const file = this.file(id);
    await fs.mkdir(this.options.directory, { recursive: true, mode: 0o700 });
    await fs.appendFile(file, text, { mode: 0o600 });
    if ((await fs.stat(file)).size <= MAX_FILE_BYTES) return;
    const all = await fs.readFile(file);
    const half = all.subarray(all.length - MAX_FILE_BYTES / 2);
    // Aside and renamed: a crash in between leaves the long one.
    await fs.writeFile(`${file}.tmp`, half.subarray(half.indexOf(10) + 1), { mode: 0o600 });
    await fs.rename(`${file}.tmp`, file);
  }

  private file(id: string): string {
    return path.join(this.options.directory, `${id}.ndjson`);
  }
}

/** Undefined for what a crash left half-written. */
function parseLine(line: string): z.infer<typeof Line> | undefined {
  try {
    return Line.safeParse(JSON.parse(line)).data;
  } catch {
    return undefined; // not JSON: cut off
  }
}
