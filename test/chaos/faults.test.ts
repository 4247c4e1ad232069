import { checkLines, makeCell } from './cells';
import { judge } from './faults';
import type { Fault, Observed } from './faults';
import { clientPlan, faultPlan } from './plan';

const OWNER = 'own0s1r00ff00x';
const LONG = makeCell({ does: 'lines', lines: 100, everyMs: 100 }, 'c0n1', OWNER, 512);
const STUBBORN = makeCell({ does: 'stubborn', limitMs: 10_000 }, 'c0n2', OWNER, 512);

/** A cell that was sent at 1 s and told its mark at 2 s. */
function observed(more: Partial<Observed> = {}): Observed {
  return {
    sandboxId: 'a',
    contextId: 'one',
    executionId: 'e',
    cell: LONG,
    isPlain: false,
    sentAt: 1_000,
    mark: { mark: 'c0n1', pid: 28, t: 2, old: null, env: OWNER },
    seenAt: 15_000,
    end: 'ok',
    ...more,
  };
}

function fault(kind: Fault['kind'], at: number, more: Partial<Fault> = {}): Fault {
  return {
    number: 0,
    kind,
    sandboxId: 'a',
    contextId: undefined,
    executionId: undefined,
    pid: undefined,
    detail: '',
    at,
    doneAt: at + 10,
    overAt: undefined,
    missed: false,
    ...more,
  };
}

describe('an execution that no fault touched', () => {
  it.each([
    ['before it', fault('interrupt', 500)],
    ['in another sandbox', fault('kernel', 5_000, { sandboxId: 'b' })],
    ['in another context', fault('kernel', 5_000, { contextId: 'two' })],
    ['of another execution', fault('cancel', 5_000, { executionId: 'f' })],
    ['that found nothing to do', fault('kernel', 5_000, { missed: true })],
    ['that came after its end', fault('kernel', 16_000)],
  ])('ends as its code says: a fault %s', (_title, one) => {
    expect(judge(observed(), [one]).allowed).toEqual(['ok']);
  });
});

describe('an execution that certainly ran', () => {
  it.each([
    ['kernel', 'crashed'],
    ['gateway', 'crashed'],
    ['interrupt', 'interrupted'],
    ['restart', 'restarted'],
  ] as const)('ends by a fault of %s and not otherwise', (kind, end) => {
    expect(judge(observed(), [fault(kind, 5_000, { overAt: 5_500 })]).allowed).toEqual([end]);
  });

  it('goes on when the agent or the service is killed', () => {
    for (const kind of ['agent', 'service'] as const) {
      const one = fault(kind, 5_000, { overAt: 6_000, ...(kind === 'service' && { sandboxId: undefined }) });
      expect(judge(observed(), [one]).allowed).toEqual(['ok']);
    }
  });

  it("may be ended for its client's leaving with the service, by E2B's API", () => {
    const one = fault('service', 5_000, { sandboxId: undefined });
    expect(judge(observed({ isPlain: true }), [one]).allowed).toEqual(['ok', 'client_gone']);
  });

  it('ends by either of two faults that race, and by the first of two that do not', () => {
    const first = fault('interrupt', 5_000);
    const race = fault('kernel', 6_000, { number: 1 });
    expect(judge(observed(), [first, race]).allowed).toEqual(['interrupted', 'crashed']);
    const late = fault('kernel', 9_500, { number: 1 });
    expect(judge(observed(), [first, late]).allowed).toEqual(['interrupted']);
  });

  it('is not hit by an interrupt that it ignores', () => {
    const stubborn = observed({ cell: STUBBORN });
    expect(judge(stubborn, [fault('interrupt', 5_000)]).allowed).toEqual(['timeout_killed']);
  });
});

describe('an execution that may have run', () => {
  it('may obey the interrupt at its time limit while it has not told that it obeys none', () => {
    expect(judge(observed({ cell: STUBBORN, mark: undefined }), []).allowed).toEqual([
      'timeout_killed',
      'timeout_interrupted',
    ]);
    expect(judge(observed({ cell: STUBBORN }), []).allowed).toEqual(['timeout_killed']);
  });

  it('ends as its code says or by the fault', () => {
    const waiting = observed({ mark: undefined });
    expect(judge(waiting, [fault('kernel', 5_000)]).allowed).toEqual(['ok', 'crashed']);
    const almostDone = fault('kernel', 13_000); // it lasts from 2 s to 12 s at least
    expect(judge(observed(), [almostDone]).allowed).toEqual(['ok', 'crashed']);
  });
});

describe('the lines of a cell', () => {
  const cell = makeCell({ does: 'lines', lines: 3, everyMs: 1 }, 'c', OWNER, 512);
  const text = (...numbers: Array<number | 'DONE'>): string =>
    ['mark', ...numbers.map((n) => (n === 'DONE' ? 'DONE c' : `${OWNER} line ${n}`)), ''].join('\n');

  it('are complete, or the first of them where the cell was ended', () => {
    expect(checkLines(cell, OWNER, text(0, 1, 2, 'DONE'), true, 0)).toBeUndefined();
    expect(checkLines(cell, OWNER, text(0, 1), false, 0)).toBeUndefined();
    expect(checkLines(cell, OWNER, text(0, 1, 2), true, 0)).toMatch(/ends after 3 lines of 4/);
  });

  it('have no gap, double or stranger, but for the gaps that are known', () => {
    expect(checkLines(cell, OWNER, text(0, 2, 'DONE'), true, 0)).toMatch(/line 2 is/);
    expect(checkLines(cell, OWNER, text(0, 2, 'DONE'), true, 1)).toBeUndefined();
    expect(checkLines(cell, OWNER, text(0, 0, 1, 2, 'DONE'), true, 1)).toMatch(/line 2 is/);
    expect(checkLines(cell, 'own9s1r00ff00x', text(0, 1, 2, 'DONE'), true, 0)).toMatch(/line 1 is/);
  });
});

describe('a plan', () => {
  it('is the same for the same seed, and another for another', () => {
    const draw = (seed: number): string => {
      const client = clientPlan(seed, 0);
      const faults = faultPlan(seed);
      return JSON.stringify(Array.from({ length: 50 }, () => [client.next().value, faults.next().value]));
    };
    expect(draw(1)).toBe(draw(1));
    expect(draw(1)).not.toBe(draw(2));
  });
});
