import os from 'node:os';

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

/** Pure. */
export function toEnd(exit: Exit): End {
  if ('code' in exit) {
    const status = `exit status ${exit.code}`;
    return { exitCode: exit.code, exited: true, status, ...(exit.code === 0 ? {} : { error: status }) };
  }
  const name = SIGNAL_NAMES[exit.signal] ?? exit.signal;
  const status = `signal: ${name}${exit.dumpedCore === true ? ' (core dumped)' : ''}`;
  return { exitCode: -1, exited: false, status, error: status };
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
