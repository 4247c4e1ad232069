import type { IncomingMessage, ServerResponse } from 'node:http';
import { ServiceError } from '../errors';
import type { Logger } from '../log';
import { answer } from './app';
import type { AppOptions } from './app';
import { Contexts } from './contexts';
import type { Machine } from './contexts';
import { sendError } from './error-response';
import { resetConnection } from './event-stream';

export type { Machine } from './contexts';

const KEEPALIVE_MS = 5_000;
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
}

/** All that is held of one machine. */
interface Resident {
  contexts: Contexts;
  /** Answers under way, for `drop` to break off. */
  answers: Set<ServerResponse>;
}

/**
 * Port 49999 of every sandbox: contexts, executions, and the stream of what they put out.
 *
 * A machine is known from `prepare`, `adopt` or its first request until `drop`, or until it ends by itself.
 */
export class Interpreter {
  private readonly residents = new Map<string, Resident>();
  private readonly appOptions: AppOptions;
  private readonly options: Required<Pick<InterpreterOptions, 'home'>> & InterpreterOptions;
  private closed = false;

  constructor(options: InterpreterOptions) {
    const home = options.home ?? HOME;
    this.options = { ...options, home };
    this.appOptions = {
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
    answer(this.appOptions, contexts, req, res).catch((error: unknown) => {
      sendError(res, error, this.options.logger);
    });
  }

  /** A fresh machine: its default contexts are listed from now on, and Python's kernel starts in the background. */
  prepare(machine: Machine): void {
    if (!this.closed && !this.residents.has(machine.id)) this.resident(machine).contexts.prepare();
  }

  /**
   * A machine that an earlier service, or this one before a pause, has used: takes over its kernels. Resolves when
   * that is done; requests wait for it. Never rejects: what can't be found again is made anew.
   */
  async adopt(machine: Machine): Promise<void> {
    if (!this.closed && !this.residents.has(machine.id)) await this.resident(machine).contexts.adopt();
  }

  /**
   * The sandbox ended, or is not to be reached for a while: every answer under way is reset, nothing of it is left
   * here. Kernels that still run are not touched.
   */
  drop(machineId: string): void {
    const resident = this.residents.get(machineId);
    if (resident === undefined) return;
    this.residents.delete(machineId);
    resident.contexts.close();
    for (const res of resident.answers) resetConnection(res);
  }

  /** Drops all machines and refuses later requests. Idempotent. */
  async close(): Promise<void> {
    this.closed = true;
    for (const id of [...this.residents.keys()]) this.drop(id);
  }

  private resident(machine: Machine): Resident {
    const known = this.residents.get(machine.id);
    if (known !== undefined) return known;
    const { kernelTimeoutMs, home, logger } = this.options;
    const resident: Resident = {
      contexts: new Contexts({ machine, kernelTimeoutMs, home, logger }),
      answers: new Set(),
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
