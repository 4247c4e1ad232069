import os from 'node:os';
import type { MemoryFigures } from '../sandbox-memory';

/** How a process ended: by itself with a code, or by a signal. */
export type Exit = { code: number } | { signal: string; dumpedCore?: boolean };

/** What the wire's `EndEvent` says. `error` is absent, not empty, where nothing went wrong. */
export interface End {
  exitCode: number;
  exited: boolean;
  status: string;
  error?: string;
}

/** The names that callers of the reference see, which are not the C library's. */
const SIGNAL_NAMES: Partial<Record<string, string>> = {
  SIGHUP: 'hangup',
  SIGINT: 'interrupt',
  SIGQUIT: 'quit',
  SIGILL: 'illegal instruction',
  SIGTRAP: 'trace/breakpoint trap',
  SIGABRT: 'aborted',
  SIGBUS: 'bus error',
  SIGFPE: 'floating point exception',
  SIGKILL: 'killed',
  SIGUSR1: 'user defined signal 1',
  SIGSEGV: 'segmentation fault',
  SIGUSR2: 'user defined signal 2',
  SIGPIPE: 'broken pipe',
  SIGALRM: 'alarm clock',
  SIGTERM: 'terminated',
};

/** With figures when it was killed for memory, which only the error tells: clients read the rest by program. Pure. */
export function toEnd(exit: Exit, outOfMemory?: MemoryFigures): End {
  const told = outOfMemory === undefined ? '' : `: out of memory${inWords(outOfMemory)}`;
  if ('code' in exit) {
    const status = `exit status ${exit.code}`;
    const error = exit.code === 0 ? {} : { error: status + told };
    return { exitCode: exit.code, exited: true, status, ...error };
  }
  const name = SIGNAL_NAMES[exit.signal] ?? exit.signal;
  const status = `signal: ${name}${exit.dumpedCore === true ? ' (core dumped)' : ''}`;
  return { exitCode: -1, exited: false, status, error: status + told };
}

function inWords({ peakBytes, limitBytes }: MemoryFigures): string {
  if (peakBytes === undefined) return '';
  return ` (peak ${mebibytes(peakBytes)}${limitBytes === undefined ? '' : ` of ${mebibytes(limitBytes)}`})`;
}

function mebibytes(bytes: number): string {
  return `${Math.round(bytes / 1_048_576)} MiB`;
}

/** Reads what `waitpid` says about a child that is no more. Pure. */
export function exitFromStatus(status: number): Exit {
  const signal = status & 0x7f;
  if (signal === 0) return { code: (status >> 8) & 0xff };
  return { signal: signalName(signal), dumpedCore: (status & 0x80) !== 0 };
}

/** `SIGKILL` for 9; real-time signals have no names. */
export function signalName(number: number): string {
  return (
    Object.entries(os.constants.signals).find(([, value]) => value === number)?.[0] ?? `signal ${number}`
  );
}
