import { performance } from 'node:perf_hooks';
import type { Execution, Sandbox } from '@e2b/code-interpreter';
import type { Sample, Subject } from './subject';

/** For one execution, in the client. Above what the slowest row needs on a busy machine. */
export const EXECUTION_TIMEOUT_MS = 300_000;

/** Runs code through the official SDK, whatever server is behind it; `close` is the caller's to add. */
export function runThrough(sandbox: Sandbox, name: string): Pick<Subject, 'run' | 'newContext'> {
  return {
    run: async (code) => {
      const started = performance.now();
      const execution = await sandbox.runCode(code, { timeoutMs: EXECUTION_TIMEOUT_MS });
      return toSample(execution, performance.now() - started, name);
    },
    newContext: async (code) => {
      const started = performance.now();
      const context = await sandbox.createCodeContext({ language: 'python' });
      try {
        const execution = await sandbox.runCode(code, { context, timeoutMs: EXECUTION_TIMEOUT_MS });
        return toSample(execution, performance.now() - started, name);
      } finally {
        await sandbox.removeCodeContext(context);
      }
    },
  };
}

function toSample(execution: Execution, ms: number, name: string): Sample {
  if (execution.error) throw new Error(`${name}: ${execution.error.name}: ${execution.error.value}`);
  return {
    ms,
    stdout: execution.logs.stdout.join(''),
    // `formats()` leaves out the text.
    types: execution.results.flatMap((result) => [
      ...(result.text === undefined ? [] : ['text']),
      ...result.formats(),
    ]),
  };
}
