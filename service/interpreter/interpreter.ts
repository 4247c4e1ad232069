import { readdir } from 'node:fs/promises';
import type { IncomingMessage, ServerResponse } from 'node:http';
import os from 'node:os';
import path from 'node:path';
import { ServiceError } from '../errors';
import type { Logger } from '../log';
import { Turns } from '../turns';
import { answer } from './app';
import type { AppOptions } from './app';
import type { OnKernelDeath, Turn } from './context';
import { Contexts } from './contexts';
import type { Machine, UsedDefault } from './contexts';
import { tellLost } from './endings';
import type { Outcome } from './endings';
import { sendError } from './error-response';
import { resetConnection } from './event-stream';
import type { ExecutionRecord } from './execution-record';
import { ExecutionRecords, recordsDirectory } from './execution-records';
import { ExecutionTotals } from './execution-totals';
import { follow } from './follow';
import { GatewayRefusal } from './gateway';
import { normalizeLanguage } from './languages';
import { contextOf, createExecution, start } from './submission';
import type { Submission } from './submission';

export type { Machine } from './contexts';

const KEEPALIVE_MS = 5_000;
const RESTORED_AT_ONCE = 8;
/** Many times what a gateway and a kernel need that have a processor each. */
const LONGEST_TURN_MS = 15_000;
const NEVER = new AbortController().signal;
const HOME = '/home/user';

export interface InterpreterOptions {
  logger: Logger;
  /** How long a kernel may take to start. */
  kernelTimeoutMs: number;
  /** A line is sent after this long without one. */
  keepaliveMs?: number;
  maxBodyBytes: number;
  /** One sentence that says how to get a language that a sandbox can't start. */
  remedyFor?: ((language: string) => string | undefined) | undefined;
  /** The user's home as clients name it. */
  home?: string;
  /** A kernel of a machine ended by itself; must not throw. */
  onKernelDeath?: ((machineId: string, ended: Parameters<OnKernelDeath>[0]) => void) | undefined;
  /** Settings of executions; see `config.ts`. */
  executions?: Partial<ExecutionSettings>;
}

export interface ExecutionSettings {
  /** Time limit where a request has none; 0 is no limit. */
  timeoutMs: number;
  /** Between the interrupt at the limit and the kernel's death. */
  interruptGraceMs: number;
  /** How long ended executions are kept. */
  keepMs: number;
  /** Text of each stream that goes into the events. */
  inlineBytes: number;
  /** For the files of all executions of one sandbox. */
  diskBytes: number;
  /** Where these files are; see `restore` for what an earlier service left there. */
  directory: string;
}

const EXECUTION_DEFAULTS: ExecutionSettings = {
  timeoutMs: 0,
  interruptGraceMs: 2_000,
  keepMs: 3_600_000,
  inlineBytes: 256 * 1024 * 1024,
  diskBytes: 2 * 1024 * 1024 * 1024,
  directory: path.join(os.tmpdir(), `cellbox-executions-${process.pid}`),
};

/** All that is held of one machine. */
interface Resident {
  contexts: Contexts;
  /** Made ready ahead of time, for whom is not known yet. */
  isUnclaimed: boolean;
  /** Answers under way, for `drop` to break off. */
  answers: Set<ServerResponse>;
}

/**
 * Port 49999 of every sandbox: contexts, executions, and the stream of what they put out.
 *
 * A machine is known from `prepare`, `adopt` or its first request until `drop`, or until it ends by itself.
 */
export class Interpreter {
  readonly totals = new ExecutionTotals();
  private readonly residents = new Map<string, Resident>();
  /** By sandbox; they outlive a pause. */
  private readonly records = new Map<string, ExecutionRecords>();
  /** Default contexts whose variables went with what ran in their sandbox, until `boot` has them told. */
  private readonly losses = new Map<string, UsedDefault[]>();
  /** Files that are being removed. */
  private readonly removing = new Set<Promise<void>>();
  private readonly settings: ExecutionSettings;
  private readonly appOptions: AppOptions;
  private readonly options: Required<Pick<InterpreterOptions, 'home'>> & InterpreterOptions;
  private readonly turns = new Turns(os.availableParallelism());
  private readonly turn: Turn = (start) => this.turns.run(NEVER, LONGEST_TURN_MS, start);
  private closed = false;

  constructor(options: InterpreterOptions) {
    const home = options.home ?? HOME;
    this.options = { ...options, home };
    this.settings = { ...EXECUTION_DEFAULTS, ...options.executions };
    const { timeoutMs, interruptGraceMs } = this.settings;
    this.appOptions = {
      timeoutMs,
      interruptGraceMs,
      keepaliveMs: options.keepaliveMs ?? KEEPALIVE_MS,
      maxBodyBytes: options.maxBodyBytes,
      home,
      remedyFor: options.remedyFor,
      logger: options.logger,
    };
    keepConsoleQuiet(options.logger);
  }

  /** Answers one HTTP request for the machine's port 49999. Never throws; owns `res`. */
  handle(machine: Machine, req: IncomingMessage, res: ServerResponse): void {
    if (this.closed) {
      sendError(res, new ServiceError('unavailable', 'The service is shutting down'), this.options.logger);
      return;
    }
    this.prepare(machine);
    const { answers, contexts } = this.resident(machine);
    answers.add(res);
    res.once('close', () => answers.delete(res));
    answer(this.appOptions, contexts, this.recordsOf(machine.id), req, res).catch((error: unknown) => {
      sendError(res, error, this.options.logger);
    });
  }

  /**
   * Runs code for the native API: resolves when it has its place in its context's queue. It goes on whoever listens.
   *
   * @throws ServiceError `not_found` for an unknown context, `invalid_argument` for what makes no sense.
   */
  async submit(machine: Machine, request: Submission, detached: boolean): Promise<ExecutionRecord> {
    if (this.closed) throw new ServiceError('unavailable', 'The service is shutting down');
    this.prepare(machine);
    const { contexts } = this.resident(machine);
    const records = this.recordsOf(machine.id); // now: by the time there is a context, the sandbox may be gone
    await contexts.whenKnown;
    const context = await contextOf(contexts, request).catch((error: unknown) => {
      throw this.startFailure(error, request);
    });
    const execution = createExecution(context, records, this.settings, request, detached);
    start(context, execution, request.code);
    return execution.record;
  }

  /** The executions of a sandbox, newest first. */
  listExecutions(machineId: string): ExecutionRecord[] {
    return this.records.get(machineId)?.list() ?? [];
  }

  /** @throws ServiceError `not_found`. */
  findExecution(machineId: string, executionId: string): ExecutionRecord {
    const records = this.records.get(machineId);
    if (records === undefined) throw new ServiceError('not_found', 'Nothing has run in this sandbox');
    return records.get(executionId);
  }

  /** Sends a record's events from number `from` on, and those that come, until the end. Owns `res`. */
  follow(machineId: string, record: ExecutionRecord, from: number, res: ServerResponse): void {
    const answers = this.residents.get(machineId)?.answers;
    answers?.add(res);
    res.once('close', () => answers?.delete(res));
    void follow(record, from, res, this.appOptions.keepaliveMs); // never rejects
  }

  /** Interrupts what runs in a context; nothing happens where nothing does. @throws ServiceError `not_found`. */
  async interruptContext(machine: Machine, contextId: string): Promise<void> {
    this.prepare(machine);
    const { contexts } = this.resident(machine);
    await contexts.whenKnown;
    await contexts.get(contextId).interruptRunning();
  }

  /**
   * A fresh machine: its default contexts are listed from now on, and Python's kernel starts in the background. One
   * that was made ready ahead of time gets its environment, before anything that is asked of it from now on.
   *
   * @param inTurn its gateway waits, and so does the kernel, for those of other machines.
   */
  prepare(machine: Machine, inTurn = false): void {
    if (this.closed) return;
    const known = this.residents.get(machine.id);
    if (known === undefined) this.resident(machine).contexts.prepare(inTurn ? this.turn : undefined);
    else if (known.isUnclaimed) {
      known.isUnclaimed = false;
      known.contexts.claim(machine.env);
    }
  }

  /**
   * Makes a machine ready ahead of time: resolves when its default kernel can be used at once, rejects when it did not
   * come up. `prepare` then makes it somebody's, also before this has resolved; `drop` ends it.
   */
  async warm(machine: Machine): Promise<void> {
    if (this.closed) throw new ServiceError('unavailable', 'The service is shutting down');
    const resident = this.resident(machine);
    resident.isUnclaimed = true;
    resident.contexts.prepare();
    await resident.contexts.whenWarm();
  }

  /** Kernels of fresh machines that start, or wait for their turn to. */
  get kernelsUnderWay(): number {
    return this.turns.length;
  }

  /** Whether the default kernel can be used at once. */
  isWarm(machineId: string): boolean {
    return this.residents.get(machineId)?.contexts.isWarm ?? false;
  }

  /**
   * A machine that an earlier service has used: takes over its kernels. Resolves when that is done; requests wait for
   * it. Never rejects: what can't be found again is made anew.
   *
   * @param pausedAt since when it was paused until now (milliseconds since the epoch), if it was.
   */
  async adopt(machine: Machine, pausedAt?: number): Promise<void> {
    if (this.closed || this.residents.has(machine.id)) return;
    await this.resident(machine).contexts.adopt(this.records.get(machine.id)?.unanswered, pausedAt);
  }

  /** After `suspend`: contexts and what runs in them go on. Never rejects. */
  async resume(machine: Machine): Promise<void> {
    const resident = this.residents.get(machine.id);
    if (resident === undefined) await this.adopt(machine, Date.now());
    else resident.contexts.thaw();
  }

  /** After `halt`: contexts begin anew. The first execution in one that had variables is told that they are lost. */
  boot(machine: Machine): void {
    if (this.closed) return;
    this.release(machine.id, { type: 'halted' });
    const lost = this.losses.get(machine.id) ?? [];
    this.losses.delete(machine.id);
    this.resident(machine).contexts.boot(lost);
  }

  /**
   * Reads what an earlier service wrote down of executions, before any machine is taken over: those that ended can be
   * asked for again, those that ran go on with `adopt`.
   */
  async restore(): Promise<void> {
    const { directory } = this.settings;
    const names = await readdir(directory).catch(() => []); // made at the first write
    // Some at a time: what is read of one is in memory for a moment.
    const restoreNext = async (): Promise<void> => {
      for (let name = names.pop(); name !== undefined; name = names.pop()) await this.restoreOne(name);
    };
    await Promise.all(Array.from({ length: RESTORED_AT_ONCE }, restoreNext));
  }

  /** Forgets the executions of sandboxes that are no more, with their files, once it is known which ones those are. */
  retain(isThere: (sandboxId: string) => boolean): void {
    for (const id of [...this.records.keys()]) if (!isThere(id)) this.drop(id);
  }

  /**
   * The sandbox ended: every answer under way is reset, nothing of it is left here. Kernels that still run are not
   * touched.
   */
  drop(machineId: string): void {
    this.release(machineId);
    this.losses.delete(machineId);
    const records = this.records.get(machineId);
    if (records === undefined) return;
    this.records.delete(machineId);
    const removed = records
      .close()
      .catch((error: unknown) =>
        this.options.logger.warn({ err: error }, 'files of executions could not be removed'),
      )
      .finally(() => this.removing.delete(removed));
    this.removing.add(removed);
  }

  /**
   * The sandbox is being paused: every answer under way is reset. Executions that were asked for by the native API go
   * on with `resume`, those of E2B's end; their cells go on all the same.
   */
  suspend(machineId: string): void {
    const resident = this.residents.get(machineId);
    if (resident === undefined) return;
    if (!resident.contexts.freeze()) {
      this.release(machineId);
      return;
    }
    for (const res of [...resident.answers]) resetConnection(res);
  }

  /**
   * All that runs in the sandbox is being ended, kernels included; only files stay. Every answer under way is reset, every
   * execution ends, and what they have put out can be asked for.
   */
  halt(machineId: string): void {
    const lost = this.residents.get(machineId)?.contexts.usedDefaults;
    if (lost !== undefined) this.losses.set(machineId, lost);
    this.release(machineId, { type: 'halted' });
    // Those of an earlier service, which nobody has found again.
    for (const record of this.records.get(machineId)?.unanswered ?? [])
      record.end(tellLost({ type: 'halted' }));
  }

  /** Lets go of a machine, but keeps what its executions have put out. */
  private release(machineId: string, outcome: Outcome = { type: 'sandbox_ended' }): void {
    const resident = this.residents.get(machineId);
    if (resident === undefined) return;
    this.residents.delete(machineId);
    resident.contexts.close(outcome);
    for (const res of resident.answers) resetConnection(res);
  }

  /**
   * Lets go of all machines and refuses later requests; resolves when what is to be kept for the next service is on the
   * disk. Kernels and what they run are left alone. Idempotent.
   */
  async close(): Promise<void> {
    this.closed = true;
    const left = [...this.records.values()].map((records) => records.leave());
    for (const id of [...this.residents.keys()]) this.release(id);
    this.records.clear();
    await Promise.all([...left, ...this.removing]);
  }

  private async restoreOne(machineId: string): Promise<void> {
    try {
      await this.recordsOf(machineId).restore();
    } catch (error) {
      this.options.logger.error({ err: error, sandboxId: machineId }, 'executions could not be restored');
    }
  }

  private recordsOf(machineId: string): ExecutionRecords {
    const known = this.records.get(machineId);
    if (known !== undefined) return known;
    const { keepMs, inlineBytes, diskBytes, directory } = this.settings;
    const records = new ExecutionRecords({
      sandboxId: machineId,
      directory: recordsDirectory(directory, machineId),
      keepMs,
      inlineBytes,
      diskBytes,
      totals: this.totals,
      logger: this.options.logger,
    });
    this.records.set(machineId, records);
    return records;
  }

  /** Why there is no context, in the words of the native API. */
  private startFailure(error: unknown, { language }: Submission): unknown {
    if (!(error instanceof GatewayRefusal)) return error;
    const remedy = this.options.remedyFor?.(normalizeLanguage(language));
    return new ServiceError('invalid_argument', `There is no kernel for ${JSON.stringify(language)} here`, {
      cause: error,
      ...(remedy !== undefined && { remedy }),
    });
  }

  private resident(machine: Machine): Resident {
    const known = this.residents.get(machine.id);
    if (known !== undefined) return known;
    const { kernelTimeoutMs, home, logger } = this.options;
    const resident: Resident = {
      contexts: new Contexts({
        machine,
        kernelTimeoutMs,
        interruptGraceMs: this.settings.interruptGraceMs,
        lastUse: (contextId) => this.records.get(machine.id)?.lastUse(contextId),
        home,
        logger,
        onKernelDeath: (ended) => this.options.onKernelDeath?.(machine.id, ended),
      }),
      answers: new Set(),
      isUnclaimed: false,
    };
    this.residents.set(machine.id, resident);
    void machine.ended.then(() => {
      // The same sandbox may have been dropped and taken up again, as after a pause.
      if (this.residents.get(machine.id) === resident) this.drop(machine.id);
    });
    return resident;
  }
}

let quiet = false;

/**
 * jupyterlab's client tells the console about each connection. Nothing else in the service uses `console.debug` and
 * `console.warn`; both become debug lines of the log.
 */
function keepConsoleQuiet(logger: Logger): void {
  if (quiet) return;
  quiet = true;
  const write = (...words: unknown[]): void => logger.debug({ from: 'console' }, words.map(String).join(' '));
  console.debug = write;
  console.warn = write;
}
