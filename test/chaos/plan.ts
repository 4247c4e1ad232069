import { random } from './random';
import type { Random } from './random';

/** What a cell does after it has told who it is. Durations are lower bounds: a busy machine makes them longer. */
export type CellPlan =
  | { does: 'lines'; lines: number; everyMs: number }
  | { does: 'error' }
  | { does: 'result' }
  | { does: 'exit'; code: number }
  | { does: 'crash'; signal: 'SIGSEGV' | 'SIGABRT' | 'SIGKILL' }
  | { does: 'sleep'; limitMs: number }
  | { does: 'stubborn'; limitMs: number }
  | { does: 'much'; lines: number }
  | { does: 'oom' };

/** How a client has a cell run. */
export type Via = 'sdk' | 'attached' | 'detached';

/** One thing a client does. `context` picks among those it has. */
export type Step =
  | { step: 'run'; via: Via; context: number; cell: CellPlan; cutAfter: number }
  | { step: 'queue'; context: number; cells: CellPlan[] }
  | { step: 'leave'; context: number; afterMs: number }
  | { step: 'cancel-ended'; context: number }
  | { step: 'file'; action: 'write' | 'read' | 'remove'; name: number; bytes: number }
  | { step: 'command'; action: 'read-file' | 'count' | 'fail' | 'background'; name: number }
  | { step: 'look-around' }
  | { step: 'context'; action: 'create' | 'restart' | 'remove' | 'remove-busy' }
  | { step: 'pause' }
  | { step: 'recycle' }
  | { step: 'bad'; number: number };

/** What is broken from outside; see `faults.ts` for what each causes. */
export type FaultKind =
  'kernel' | 'gateway' | 'agent' | 'machine' | 'service' | 'interrupt' | 'cancel' | 'restart';

export interface FaultPlan {
  /** Pause before it. */
  afterMs: number;
  kinds: FaultKind[];
  /** Picks the target among those there are. */
  pick: number;
  /** For kinds that have variants: the signal, which process. */
  variant: number;
}

export const CLIENTS = 4;
export const CLIENT_PAUSE_MS = { from: 100, to: 900 };
const FAULT_PAUSE_MS = { from: 2_000, to: 6_000 };

function cellPlan(rng: Random): CellPlan {
  return rng.weighted<() => CellPlan>([
    [10, () => ({ does: 'lines', lines: rng.between(1, 40), everyMs: rng.between(20, 150) })],
    [12, () => ({ does: 'lines', lines: rng.between(20, 60), everyMs: rng.between(100, 200) })],
    [3, () => ({ does: 'error' })],
    [3, () => ({ does: 'result' })],
    [1, () => ({ does: 'exit', code: rng.between(0, 9) })],
    [1, () => ({ does: 'crash', signal: rng.pick(['SIGSEGV', 'SIGABRT', 'SIGKILL']) })],
    [3, () => ({ does: 'sleep', limitMs: rng.between(3_000, 6_500) })],
    [2, () => ({ does: 'stubborn', limitMs: rng.between(3_000, 5_500) })],
    [2, () => ({ does: 'much', lines: rng.between(1_000, 40_000) })],
    [0.5, () => ({ does: 'oom' })],
  ])();
}

/** What one client does, step by step, without end. */
export function* clientPlan(seed: number, client: number): Generator<{ step: Step; pauseMs: number }, never> {
  const rng = random(seed, `client ${client}`);
  const context = (): number => rng.between(0, 1);
  const name = (): number => rng.between(0, 5);
  const via = (): Via => rng.pick(['sdk', 'sdk', 'attached', 'detached', 'detached']);
  for (;;) {
    const step = rng.weighted<() => Step>([
      [
        40,
        () => ({
          step: 'run',
          via: via(),
          context: context(),
          cell: cellPlan(rng),
          cutAfter: rng.between(0, 25),
        }),
      ],
      [
        5,
        () => ({
          step: 'queue',
          context: context(),
          cells: Array.from({ length: rng.between(2, 4) }, () => cellPlan(rng)),
        }),
      ],
      [4, () => ({ step: 'leave', context: context(), afterMs: rng.between(100, 1_500) })],
      [1, () => ({ step: 'cancel-ended', context: context() })],
      [
        12,
        () => ({
          step: 'file',
          action: rng.pick(['write', 'write', 'read', 'read', 'remove']),
          name: name(),
          bytes: 2 ** rng.between(0, 18),
        }),
      ],
      [
        8,
        () => ({
          step: 'command',
          action: rng.pick(['read-file', 'count', 'fail', 'background']),
          name: name(),
        }),
      ],
      [2, () => ({ step: 'look-around' })],
      [
        4,
        () => ({
          step: 'context',
          action: rng.pick(['create', 'create', 'restart', 'remove', 'remove-busy']),
        }),
      ],
      [2, () => ({ step: 'pause' })],
      [2, () => ({ step: 'recycle' })],
      [4, () => ({ step: 'bad', number: rng.between(0, 1_000) })],
    ])();
    yield { step, pauseMs: rng.between(CLIENT_PAUSE_MS.from, CLIENT_PAUSE_MS.to) };
  }
}

/** What the injector does, without end. Two kinds at once race each other. */
export function* faultPlan(seed: number): Generator<FaultPlan, never> {
  const rng = random(seed, 'injector');
  const kind = (): FaultKind =>
    rng.weighted([
      [4, 'kernel'],
      [2.5, 'gateway'],
      [2.5, 'agent'],
      [1, 'machine'],
      [1.5, 'service'],
      [3, 'interrupt'],
      [2, 'cancel'],
      [2, 'restart'],
    ]);
  for (;;) {
    const kinds = rng.chance(0.15) ? [kind(), kind()] : [kind()];
    yield {
      afterMs: rng.between(FAULT_PAUSE_MS.from, FAULT_PAUSE_MS.to),
      kinds,
      pick: rng.next(),
      variant: rng.next(),
    };
  }
}
