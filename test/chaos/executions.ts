import type { Cell } from './cells';
import { checkLines, readMark } from './cells';
import { judge } from './faults';
import type { Observed } from './faults';
import { api, lines } from './http';
import { now } from './log';
import { until, within } from './world';
import type { Running, World } from './world';

/** Beyond what the cell itself takes: restarts of kernels and of the service, on a busy machine. */
const END_DEADLINE_MS = 240_000;
/** Larger records are compared by their numbers and ends only. */
const COMPARED_LINES = 3_000;

export interface OutputLine {
  seq?: number;
  type: string;
  text?: string;
  name?: string;
  termination?: string;
  state_survived?: boolean | null;
  signal?: string;
  exit_code?: number;
  [field: string]: unknown;
}

/** What an execution came to, as its readers were told. */
export interface Outcome {
  end: string;
  /** Of `end_of_execution`; undefined when nobody told it. */
  ending: OutputLine | undefined;
  stdout: string;
  events: OutputLine[];
  detail: string;
}

export interface Asked {
  running: Running;
  sentAt: number;
  owner: string;
  isPlain: boolean;
}

/** Runs a cell by the native API to its end, coming back as often as the stream breaks. `cutAfter`: hang up once after so many lines. */
export async function runNative(
  world: World,
  asked: Asked,
  detached: boolean,
  cutAfter: number,
): Promise<Outcome> {
  const { running } = asked;
  const { sandboxId, contextId, cell } = running;
  const events: OutputLine[] = [];
  const body = { code: cell.code, context_id: contextId, timeout_ms: cell.timeoutMs, detached };
  let response: Response;
  try {
    response = await api(world, 'POST', `/v1/sandboxes/${sandboxId}/executions`, body);
    if (response.status >= 300) return refused(response.status, await response.text());
  } catch (error) {
    // It may run all the same: nobody has told us its id.
    return (await findByCode(world, asked, events)) ?? refused(0, String(error));
  }
  if (detached) {
    try {
      running.executionId = ((await response.json()) as { execution_id: string }).execution_id;
    } catch (error) {
      return (await findByCode(world, asked, events)) ?? refused(0, String(error)); // cut off within the answer
    }
    return follow(world, asked, events, undefined, cutAfter);
  }
  running.executionId = response.headers.get('x-execution-id') ?? undefined;
  return follow(world, asked, events, response, 0);
}

/** The record of an execution that was begun by somebody who was not told its id, as E2B's clients are not. */
export async function findByCode(
  world: World,
  asked: Asked,
  events: OutputLine[] = [],
): Promise<Outcome | undefined> {
  const { sandboxId, cell } = asked.running;
  let response: Response | undefined;
  while (response === undefined) {
    await world.service.whenUp();
    response = await api(world, 'GET', `/v1/sandboxes/${sandboxId}/executions?limit=50`).catch(
      () => undefined, // killed once more: asked again when it is up
    );
    if (response === undefined) await until(200, () => undefined, 200);
  }
  if (response.status === 404) return { ...refused(404, await response.text()), end: 'gone' };
  const { items = [] } = (await response.json()) as {
    items?: Array<{ execution_id: string; code_first_line: string }>;
  };
  const found = items.find(({ code_first_line }) => code_first_line === cell.code.split('\n')[0]);
  if (found === undefined) return undefined;
  asked.running.executionId = found.execution_id;
  return follow(world, asked, events, undefined, 0);
}

function refused(status: number, text: string): Outcome {
  return {
    end: 'refused',
    ending: undefined,
    stdout: '',
    events: [],
    detail: `${status} ${text.slice(0, 300)}`,
  };
}

/** Reads events until the end, from where the last stream broke. */
export async function follow(
  world: World,
  { running, owner }: Asked,
  events: OutputLine[],
  first: Response | undefined,
  cutAfter: number,
): Promise<Outcome> {
  const { sandboxId, executionId, cell } = running;
  const base = `/v1/sandboxes/${sandboxId}/executions/${executionId}`;
  const deadlineMs = END_DEADLINE_MS + cell.lastsMs + cell.timeoutMs;
  let stdout = '';
  const outcome = (end: string, detail = ''): Outcome => ({
    end,
    ending: events.at(-1),
    stdout,
    events,
    detail,
  });
  const read = async (response: Response, cut: number): Promise<boolean> => {
    for await (const line of lines(response)) {
      const event = JSON.parse(line) as OutputLine;
      if (event.type === 'keepalive') continue;
      const { seq } = event;
      if (seq !== events.length)
        world.log.fail(
          'events come without gap or double',
          `${owner}: got ${seq} after ${events.length - 1}`,
          tell(events),
        );
      events.push(event);
      if (event.type === 'stdout') stdout += event.text ?? '';
      running.mark ??= readMark(stdout, cell.id);
      if (event.type === 'end_of_execution') return true;
      if (cut > 0 && events.length >= cut) return false;
    }
    return false;
  };
  const work = async (): Promise<Outcome> => {
    let response = first;
    let cut = cutAfter;
    for (let attempt = 0; ; attempt++) {
      const brokeAt = now();
      if (response?.status === 404) {
        const text = await response.text();
        return (await sandboxIsThere(world, sandboxId)) ? outcome('forgotten', text) : outcome('gone', text);
      }
      if (response?.status === 200) {
        const ended = await read(response, cut).catch(() => false); // broken: looked into below
        if (ended) return outcome(endOf(events));
        if (cut > 0 && events.length >= cut) world.log.count('streams left and taken up again');
        else noteBreak(world, sandboxId, brokeAt);
        cut = 0;
      }
      if (attempt > 0) await until(1_000, () => undefined, 1_000);
      await world.service.whenUp();
      response = await api(world, 'GET', `${base}/events?from=${events.length}`, undefined, {
        deadlineMs,
      }).catch(
        () => undefined, // not up again: another turn
      );
    }
  };
  return within(deadlineMs, `the end of ${cell.plan.does} ${cell.id}`, work());
}

/** Its termination, or a word that tells more. */
function endOf(events: readonly OutputLine[]): string {
  const last = events.at(-2);
  if (last?.type === 'error' && /^(NeverStarted|ContextError)$/.test(last.name ?? '')) return 'never_started';
  return events.at(-1)?.termination ?? 'none';
}

/** A stream that ended before its execution did. */
function noteBreak(world: World, sandboxId: string, from: number): void {
  world.log.count('streams broken and taken up again');
  const causes = world.log.touching({ sandboxId }, from);
  if (causes.some(({ kind }) => ['service', 'machine', 'kill-sandbox', 'pause-sandbox'].includes(kind)))
    return;
  world.log.fail('streams break only for a cause', `a stream of ${sandboxId} ended before its execution`);
}

export async function sandboxIsThere(world: World, sandboxId: string): Promise<boolean> {
  for (;;) {
    await world.service.whenUp();
    const response = await api(world, 'GET', `/sandboxes/${sandboxId}`).catch(() => undefined); // killed once more
    await response?.body?.cancel();
    if (response !== undefined && response.status < 500) return response.status === 200;
    await until(200, () => undefined, 200);
  }
}

export function observe({ running, sentAt, isPlain }: Asked, end: string): Observed {
  const { sandboxId, contextId, executionId, cell, mark } = running;
  return { sandboxId, contextId, executionId, cell, isPlain, sentAt, mark, seenAt: now(), end };
}

/** Holds an end against the log of faults, and everything that was told of it against each other. */
export async function check(world: World, asked: Asked, outcome: Outcome): Promise<void> {
  const { log } = world;
  const { end, ending, stdout, events, detail } = outcome;
  const { cell, executionId, sandboxId, contextId } = asked.running;
  const { allowed, causes } = judge(observe(asked, end), log.faults);
  const name = `${cell.plan.does} ${cell.id} in ${sandboxId}/${contextId.slice(0, 8)}`;
  log.count(`ended ${end}`);
  if (causes.length > 0) log.count('executions that a fault touched');
  if (!allowed.includes(end)) {
    const why = causes.map((fault) => `#${fault.number} ${fault.kind}`).join(', ') || 'no fault';
    log.fail(
      'ends are what the log says',
      `${name} (execution ${executionId}) ended ${end} ${detail}; allowed: ${allowed.join(', ')} (${why})`,
      tell(events),
    );
  }
  if (ending?.type !== 'end_of_execution') return;
  const gaps = gapsOf(events);
  const wrong = wrongFields(cell, ending, causes.length === 0) ?? checkOutput(asked, end, stdout, gaps);
  if (gaps > 0 && checkOutput(asked, end, stdout, 0) !== undefined)
    log.count('executions that lost output on its way');
  if (wrong !== undefined) log.fail('an end tells the truth', `${name}: ${wrong}`, tell(events));
  await checkRecord(world, asked, outcome, name);
}

/** Where lines may be missing: what was on its way to a service that was killed is lost, once for each time. */
function gapsOf(events: readonly OutputLine[]): number {
  return events.filter(({ type }) => type === 'reattached').length;
}

function checkOutput(
  { owner, running }: Asked,
  end: string,
  stdout: string,
  gaps: number,
): string | undefined {
  const { cell, mark } = running;
  if (mark === undefined) return end === 'ok' ? 'it ended ok and has told nothing' : undefined;
  if (mark.env !== owner) return `its environment says ${JSON.stringify(mark.env)}, not ${owner}`;
  return checkLines(cell, owner, stdout, end === 'ok', gaps);
}

/** What goes with a termination, by the contract's table. */
function wrongFields({ plan }: Cell, ending: OutputLine, undisturbed: boolean): string | undefined {
  const { termination = '', state_survived: survived, signal, exit_code: exitCode } = ending;
  const kept = ['ok', 'error', 'interrupted', 'timeout_interrupted', 'client_gone'].includes(termination);
  const lost = ['exited', 'timeout_killed', 'oom', 'crashed', 'restarted'].includes(termination);
  if (survived !== (kept ? true : lost ? false : null))
    return `${termination} with state_survived ${JSON.stringify(survived)}`;
  if (!undisturbed) return undefined;
  if (plan.does === 'crash' && signal !== plan.signal) return `signal ${signal}, not ${plan.signal}`;
  if (plan.does === 'exit' && exitCode !== plan.code) return `exit code ${exitCode}, not ${plan.code}`;
  return undefined;
}

/** The record says the same, the second time too, and has one end. */
async function checkRecord(world: World, { running }: Asked, outcome: Outcome, name: string): Promise<void> {
  const base = `/v1/sandboxes/${running.sandboxId}/executions/${running.executionId}`;
  const from = now();
  try {
    const [info, again] = await Promise.all([
      api(world, 'GET', base),
      outcome.events.length > COMPARED_LINES ? undefined : api(world, 'GET', `${base}/events`),
    ]);
    if (info.status !== 200) throw new Error(`the record answers ${info.status}`);
    const { termination, state } = (await info.json()) as { termination: string; state: string };
    if (termination !== outcome.ending?.termination || state !== 'ended')
      world.log.fail(
        'an execution ends once',
        `${name}: ${outcome.end} was told, the record says ${state} ${termination}`,
      );
    if (again === undefined) return;
    const told: OutputLine[] = [];
    for await (const line of lines(again)) {
      const event = JSON.parse(line) as OutputLine;
      if (event.type !== 'keepalive') told.push(event);
    }
    const ends = told.filter(({ type }) => type === 'end_of_execution').length;
    if (ends !== 1) world.log.fail('an execution ends once', `${name}: ${ends} ends`, tell(told));
    const first = told.slice(0, outcome.events.length);
    if (JSON.stringify(first) !== JSON.stringify(outcome.events))
      world.log.fail('a record reads the same twice', name, [
        ...tell(outcome.events),
        '— and then —',
        ...tell(told),
      ]);
  } catch (error) {
    // With the sandbox or the service gone in the meantime there is nothing to compare.
    const { sandboxId } = running;
    const gone = world.log.touching({ sandboxId }, from).map(({ kind }) => kind);
    if (!gone.some((kind) => ['service', 'machine', 'kill-sandbox'].includes(kind)))
      world.log.fail('records are kept', `${name}: ${String(error)}`, tell(outcome.events));
  }
}

export function tell(events: readonly OutputLine[]): string[] {
  return events.map((event) => JSON.stringify(event));
}
