import { setImmediate as nextTurn } from 'node:timers/promises';
import { ExecutionTrace } from '../../../service/observability/execution-trace';
import {
  currentScope,
  inScope,
  logFields,
  noteSandbox,
  outsideScope,
  traced,
} from '../../../service/observability/scope';
import type { Attributes, RequestInfo, Span } from '../../../service/observability/scope';

/** Writes down what happens to it and to those below it. */
class WrittenSpan implements Span {
  readonly traceId = 'trace';

  constructor(
    readonly spanId: string,
    private readonly notes: string[],
  ) {}

  child(name: string): Span {
    this.notes.push(`${this.spanId} > ${name}`);
    return new WrittenSpan(name, this.notes);
  }

  set(attributes: Attributes): void {
    this.notes.push(`${this.spanId} ${JSON.stringify(attributes)}`);
  }

  end(error?: unknown): void {
    this.notes.push(`${this.spanId} ${error instanceof Error ? error.message : 'ended'}`);
  }
}

const request = (id: string): RequestInfo => ({ id, sandboxId: undefined, isOver: false });

describe('a scope', () => {
  it('follows its work through promises and timers, and no other work', async () => {
    const seen: Array<string | undefined> = [];
    const look = async (): Promise<void> => {
      await nextTurn();
      await new Promise((resolve) => setTimeout(resolve, 1));
      seen.push(currentScope()?.request.id);
    };
    await Promise.all([
      inScope({ request: request('a'), span: undefined }, look),
      inScope({ request: request('b'), span: undefined }, look),
      look(),
    ]);
    expect(seen.sort()).toEqual(['a', 'b', undefined]);
  });

  it('is left by what comes with time', async () => {
    await inScope({ request: request('a'), span: undefined }, async () => {
      expect(logFields()).toEqual({ requestId: 'a' });
      await outsideScope(async () => {
        await nextTurn();
        expect(logFields()).toEqual({});
      });
      expect(logFields()).toEqual({ requestId: 'a' });
    });
  });

  it('takes note of a sandbox where there is a request', () => {
    noteSandbox('inone'); // outside of all
    const info = request('a');
    inScope({ request: info, span: undefined }, () => noteSandbox('ione'));
    expect(info.sandboxId).toBe('ione');
  });
});

describe('traced', () => {
  it('does nothing but the work where nothing is traced', async () => {
    expect(await traced('step', {}, () => Promise.resolve(1))).toBe(1);
    const scope = { request: request('a'), span: undefined };
    expect(await inScope(scope, () => traced('step', {}, () => Promise.resolve(2)))).toBe(2);
  });

  it('nests steps, and ends each with its failure', async () => {
    const notes: string[] = [];
    const scope = { request: request('a'), span: new WrittenSpan('root', notes) };
    const failing = () =>
      traced('outer', {}, async () => {
        expect(logFields()).toMatchObject({ requestId: 'a', traceId: 'trace', spanId: 'outer' });
        await traced('inner', {}, () => Promise.resolve());
        throw new Error('no luck');
      });
    await expect(inScope(scope, failing)).rejects.toThrow('no luck');
    expect(notes).toEqual(['root > outer', 'outer > inner', 'inner ended', 'outer no luck']);
  });
});

describe('ExecutionTrace', () => {
  it('belongs to the request that made it, wherever it runs', () => {
    const notes: string[] = [];
    const scope = { request: request('a'), span: new WrittenSpan('root', notes) };
    const trace = inScope(scope, () => new ExecutionTrace({}));
    inScope({ request: request('b'), span: undefined }, () =>
      trace.run(() => expect(currentScope()?.request.id).toBe('a')),
    );
    trace.begin('k1');
    trace.end('ok');
    expect(notes).toEqual([
      'root > execution',
      'execution > execution.queued',
      'execution.queued ended',
      'execution > execution.running',
      'execution.running ended',
      'execution {"cellbox.execution.termination":"ok"}',
      'execution ended',
    ]);
  });

  it('ends its time in the queue when it never ran', () => {
    const notes: string[] = [];
    const scope = { request: request('a'), span: new WrittenSpan('root', notes) };
    inScope(scope, () => new ExecutionTrace({})).end('interrupted');
    expect(notes.filter((note) => note.startsWith('execution.'))).toEqual(['execution.queued ended']);
  });
});
