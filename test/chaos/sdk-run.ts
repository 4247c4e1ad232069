import type { Sandbox } from '@e2b/code-interpreter';
import { readMark } from './cells';
import { findByCode } from './executions';
import type { Asked, Outcome } from './executions';
import { now } from './log';
import type { World } from './world';

const RUN_DEADLINE_MS = 240_000;

/** What the SDK's `execution.error` is called after each end. */
const NAMES: Readonly<Record<string, string | undefined>> = {
  ok: undefined,
  error: 'ValueError',
  exited: 'ContextRestarting',
  crashed: 'ContextRestarting',
  interrupted: 'KeyboardInterrupt',
  oom: 'OutOfMemoryError',
  restarted: 'UnexpectedEndOfExecution',
  transport_lost: 'UnexpectedEndOfExecution',
};

/** Runs a cell by the official SDK, streaming, and compares what it got with what the record says. */
export async function runBySdk(world: World, asked: Asked, sandbox: Sandbox): Promise<Outcome> {
  const { running } = asked;
  const { cell, contextId, sandboxId } = running;
  let streamed = '';
  const from = now();
  let failure: unknown;
  const execution = await sandbox
    .runCode(cell.code, {
      context: { id: contextId, language: 'python', cwd: '/home/user' },
      timeoutMs: RUN_DEADLINE_MS,
      onStdout: ({ line }) => {
        streamed += line;
        running.mark ??= readMark(streamed, cell.id);
      },
    })
    .catch((error: unknown) => {
      failure = error;
      return undefined;
    });
  const told = await findByCode(world, asked);
  const outcome = told ?? {
    end: failure === undefined ? 'unrecorded' : 'forgotten',
    ending: undefined,
    stdout: streamed,
    events: [],
    detail: String(failure),
  };
  if (
    told === undefined &&
    failure !== undefined &&
    /\b(4|5)\d\d\b|fetch failed|not found/i.test(String(failure))
  )
    outcome.end = 'refused';
  const broken = world.log
    .touching({ sandboxId }, from)
    .some(({ kind }) => ['service', 'machine', 'kill-sandbox', 'pause-sandbox'].includes(kind));
  if (failure !== undefined && !broken && outcome.end !== 'refused')
    world.log.fail('the SDK gets an end', `${cell.id} (${outcome.end}): ${String(failure)}`);
  if (execution !== undefined) {
    const name = execution.error?.name;
    if (execution.logs.stdout.join('') !== streamed || (told !== undefined && streamed !== told.stdout))
      world.log.fail('the SDK gets what the record says', `${cell.id}: ${streamed.length} characters streamed, ${told?.stdout.length} recorded`); // prettier-ignore
    if (outcome.end in NAMES && name !== NAMES[outcome.end])
      world.log.fail('the SDK gets what the record says', `${cell.id}: ${outcome.end} as ${name}: ${execution.error?.value}`); // prettier-ignore
    if (
      cell.plan.does === 'result' &&
      outcome.end === 'ok' &&
      !execution.results[0]?.html?.includes(asked.owner)
    )
      world.log.fail('the SDK gets what the record says', `${cell.id}: no table`);
  }
  return outcome;
}
