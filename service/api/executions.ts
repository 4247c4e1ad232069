import type { Request, RequestHandler, Response } from 'express';
import type { ServerResponse } from 'node:http';
import { pipeline } from 'node:stream/promises';
import type { TextStream } from '../../protocol/interpreter';
import { NewExecution } from '../../protocol/native';
import type { ExecutionInfo } from '../../protocol/native';
import { ServiceError } from '../errors';
import type { ExecutionRecord } from '../interpreter/execution-record';
import type { Submission } from '../interpreter/submission';
import type { RunningSandbox } from '../sandboxes/sandbox';
import type { Sandboxes } from '../sandboxes/sandboxes';
import { teamOf } from './auth';
import { parseBody, queryInteger, queryOf, sandboxIdOf } from './input';

/** Who runs code; see `Interpreter`. */
export interface ExecutionRunner {
  submit(sandbox: RunningSandbox, request: Submission, detached: boolean): Promise<ExecutionRecord>;
  interruptContext(sandbox: RunningSandbox, contextId: string): Promise<void>;
  listExecutions(sandboxId: string): ExecutionRecord[];
  findExecution(sandboxId: string, executionId: string): ExecutionRecord;
  follow(sandboxId: string, record: ExecutionRecord, from: number, res: ServerResponse): void;
}

const PAGE_LIMIT = 100;
const RANGE = /^bytes=(\d{0,15})-(\d{0,15})$/;

/** The handlers under `/v1/sandboxes/{id}` that have to do with running code. */
export function executionHandlers(sandboxes: Sandboxes, runner: ExecutionRunner | undefined) {
  const executions = (): ExecutionRunner => {
    if (runner === undefined) throw new ServiceError('unimplemented', 'This service runs no code');
    return runner;
  };

  /** The id of a sandbox of the caller's, whatever its state. */
  const knownId = (req: Request, res: Response): string => sandboxes.get(teamOf(res), sandboxIdOf(req)).id;

  const running = (req: Request, res: Response): RunningSandbox => {
    const id = knownId(req, res);
    const sandbox = sandboxes.find(id);
    if (sandbox === undefined) {
      throw new ServiceError('failed_precondition', `Sandbox ${JSON.stringify(id)} does not run`, {
        remedy: 'Resume it with POST /sandboxes/{id}/connect.',
      });
    }
    return sandbox;
  };

  const recordOf = (req: Request, res: Response): ExecutionRecord =>
    executions().findExecution(knownId(req, res), String(req.params['executionID']));

  const create: RequestHandler = async (req, res) => {
    const id = knownId(req, res);
    // As traffic to the sandbox does.
    if (sandboxes.findSleeping(id) !== undefined) await sandboxes.wake(id);
    const sandbox = running(req, res);
    const { detached, ...request } = withRemedy(() => parseBody(NewExecution, req.body));
    const record = await executions().submit(sandbox, request, detached === true);
    if (detached === true) res.status(202).json({ execution_id: record.id });
    else executions().follow(sandbox.id, record, 0, res);
  };

  const list: RequestHandler = (req, res) => {
    const query = queryOf(req);
    const limit = queryInteger(query, 'limit', { min: 1, max: PAGE_LIMIT }) ?? PAGE_LIMIT;
    const all = executions().listExecutions(knownId(req, res));
    const token = query.get('next_token') ?? '';
    // One that is forgotten by now was older than all that are left.
    const after = token === '' ? -1 : all.findIndex((record) => record.id === token);
    const rest = token !== '' && after === -1 ? [] : all.slice(after + 1);
    const items = rest.slice(0, limit);
    const next_token = rest.length > items.length ? (items.at(-1)?.id ?? null) : null;
    res.json({ items: items.map(toInfo), next_token });
  };

  const get: RequestHandler = (req, res) => {
    res.json(toInfo(recordOf(req, res)));
  };

  const events: RequestHandler = (req, res) => {
    const from = queryInteger(queryOf(req), 'from', { min: 0, max: Number.MAX_SAFE_INTEGER }) ?? 0;
    const record = recordOf(req, res);
    executions().follow(record.options.sandboxId, record, from, res);
  };

  const cancel: RequestHandler = async (req, res) => {
    const record = recordOf(req, res);
    if (record.state === 'running') running(req, res); // a kernel that stands still can't be told
    await record.cancel();
    res.status(202).json(toInfo(record));
  };

  const output: RequestHandler = async (req, res) => {
    const name = String(req.params['stream']);
    if (name !== 'stdout' && name !== 'stderr') {
      throw new ServiceError('not_found', `There is no stream ${JSON.stringify(name)}`, {
        remedy: 'Ask for stdout or stderr.',
      });
    }
    await sendOutput(recordOf(req, res), name, req, res);
  };

  const interrupt: RequestHandler = async (req, res) => {
    await executions().interruptContext(running(req, res), String(req.params['contextID']));
    res.status(202).json({});
  };

  return { create, list, get, events, cancel, output, interrupt };
}

/** What the body parser says is wrong, with an example of what is right. */
function withRemedy<Value>(parse: () => Value): Value {
  try {
    return parse();
  } catch (error) {
    if (!(error instanceof ServiceError)) throw error;
    throw new ServiceError(error.code, error.message, {
      remedy:
        'Send JSON like {"code": "1 + 1", "timeout_ms": 30000, "detached": false}; only code is required.',
    });
  }
}

async function sendOutput(
  record: ExecutionRecord,
  stream: TextStream,
  req: Request,
  res: Response,
): Promise<void> {
  const text = await record.output(stream);
  res.setHeader('content-type', 'text/plain; charset=utf-8');
  res.setHeader('accept-ranges', 'bytes');
  res.setHeader('cache-control', 'no-store');
  if (text.lostBytes > 0) res.setHeader('x-lost-bytes', String(text.lostBytes));
  const range = rangeOf(req.headers.range, text.bytes);
  if (range === 'unsatisfiable') {
    res.setHeader('content-range', `bytes */${text.bytes}`);
    res.status(416).end();
    return;
  }
  const { start, end } = range ?? { start: 0, end: text.bytes };
  if (range !== undefined) {
    res.setHeader('content-range', `bytes ${start}-${end - 1}/${text.bytes}`);
    res.status(206);
  }
  res.setHeader('content-length', String(end - start));
  if (req.method === 'HEAD' || end === start) {
    res.end();
    return;
  }
  try {
    await pipeline(text.read(start, end), res);
  } catch {
    res.destroy(); // the reader left, or the file did with its sandbox: an incomplete answer must not look complete
  }
}

/** The part that is asked for; undefined is all of it, also for what is not one range of bytes. */
function rangeOf(
  header: string | undefined,
  size: number,
): { start: number; end: number } | 'unsatisfiable' | undefined {
  const [, first = '', last = ''] = RANGE.exec(header ?? '') ?? [];
  if (first === '' && last === '') return undefined;
  if (first === '') {
    const start = Math.max(0, size - Number(last));
    return start === size ? 'unsatisfiable' : { start, end: size };
  }
  const start = Number(first);
  const end = last === '' ? size : Math.min(size, Number(last) + 1);
  if (last !== '' && Number(last) < start) return undefined;
  return start >= size ? 'unsatisfiable' : { start, end };
}

function toInfo(record: ExecutionRecord): ExecutionInfo {
  const { options, ending, startedAt, endedAt } = record;
  const { termination = null, accounting = null, ...rest } = ending ?? {};
  const time = (at: number | undefined): string | null =>
    at === undefined ? null : new Date(at).toISOString();
  return {
    execution_id: record.id,
    context_id: options.contextId,
    language: options.language,
    detached: options.detached,
    state: record.state,
    termination,
    ...rest,
    accounting,
    code_hash: record.codeHash,
    code_first_line: record.codeFirstLine,
    timeout_ms: options.timeoutMs,
    created_at: new Date(record.createdAt).toISOString(),
    started_at: time(startedAt),
    ended_at: time(endedAt),
    event_count: record.log.count,
  };
}
