import fc from 'fast-check';
import { ServiceError } from '../../../service/errors';
import { Sandboxes } from '../../../service/sandboxes/sandboxes';
import { Store } from '../../../service/sandboxes/store';
import { DEFAULT_TEAM_ID as TEAM } from '../../../service/sandboxes/store-teams';
import { FakeEngine } from '../../fakes/fake-runtime';
import { createOptions } from './create-options';
import { sandboxesOptions } from './sandboxes-options';

const START = 1_800_000_000_000;

/** What a sandbox has to be, by the contract's tables alone. */
interface Model {
  state: 'running' | 'paused' | 'gone';
  /** What a pause has kept. */
  keeps: 'full' | 'filesystem' | undefined;
  autoPause: boolean;
  autoPauseMode: 'full' | 'filesystem';
  autoResume: boolean;
  endAt: number;
}

/** The part under test with a clock of the test's own, so that deadlines pass when the test says so. */
interface Real {
  sandboxes: Sandboxes;
  engine: FakeEngine;
  store: Store;
  id: string;
  clock: { now: number };
  /** What listeners were told since the last look. */
  told: string[];
}

type Command = fc.AsyncCommand<Model, Real>;

function make(real: Pick<Real, 'engine' | 'store' | 'clock' | 'told'>): Sandboxes {
  const { engine, store, clock, told } = real;
  return new Sandboxes({
    ...sandboxesOptions(engine, store),
    maxTimeoutSeconds: 1_000_000,
    metricsIntervalMs: 3_600_000,
    now: () => clock.now,
    events: {
      onPaused: (_id, keeps) => told.push(keeps === 'full' ? 'paused' : 'halted'),
      onResumed: () => told.push('resumed'),
      onBooted: () => told.push('booted'),
      onAdopted: () => told.push('resumed'),
      onEnded: () => told.push('ended'),
    },
  });
}

const codeOf = (work: Promise<unknown>): Promise<string> =>
  work.then(
    () => 'ok',
    (error: unknown) => ServiceError.from(error).code,
  );

/** Everything that can be seen of a sandbox, against the model. */
async function compare(model: Model, { sandboxes, engine, store, id, clock }: Real): Promise<void> {
  const listed = sandboxes.list(TEAM).find((each) => each.id === id);
  const rows = await store.listSandboxes();
  if (model.state === 'gone') {
    expect([listed, rows, sandboxes.find(id), sandboxes.findSleeping(id)]).toEqual([
      undefined,
      [],
      undefined,
      undefined,
    ]);
    expect(await codeOf(sandboxes.pause(TEAM, id))).toBe('not_found');
    return;
  }
  const { state, keeps, endAt, autoPause } = model;
  expect(listed).toMatchObject({ state, pauseMode: keeps, endAt, autoPause });
  expect(rows).toMatchObject([{ state, pauseMode: keeps, endAt, autoPause }]);
  expect(engine.machine(id).state).toBe(keeps === 'filesystem' ? 'halted' : state);
  expect(sandboxes.find(id) === undefined).toBe(state === 'paused');
  expect(sandboxes.findSleeping(id) !== undefined).toBe(state === 'paused' && model.autoResume);
  expect(sandboxes.nextDeadlineOf(TEAM)).toBe(state === 'running' ? endAt : undefined);
  // The timer inside must not end what is paused; what is halted has none.
  if (keeps === 'filesystem') return;
  expect(engine.machine(id).network).toBe(listed?.allowInternetAccess === false ? 'none' : 'full');
  if (state === 'paused') expect(engine.machine(id).deadlineAt).toBeGreaterThan(clock.now + 86_400_000);
  else expect(engine.machine(id).deadlineAt).toBe(endAt);
}

/** Runs one command and then compares everything. `told` is what listeners must have heard of it. */
function command(
  name: string,
  act: (model: Model, real: Real) => Promise<{ wanted: string; got: string; told?: string[] }>,
): Command {
  return {
    check: () => true,
    toString: () => name,
    run: async (model, real) => {
      real.told.length = 0;
      const { wanted, got, told = [] } = await act(model, real);
      expect(got).toBe(wanted);
      await compare(model, real);
      expect(real.told).toEqual(told);
    },
  };
}

function became(model: Model, changes: Partial<Model>): void {
  Object.assign(model, changes);
  if (model.state !== 'paused') model.keeps = undefined;
}

/** What listeners hear when a sandbox that is as the model says runs again. */
function resumedFrom({ keeps }: Model): string[] {
  return keeps === 'filesystem' ? ['booted'] : ['resumed'];
}

const pause = command('pause', async (model, { sandboxes, id, clock }) => {
  const before = model.state;
  const got = await codeOf(sandboxes.pause(TEAM, id));
  if (before === 'running') {
    became(model, { state: 'paused', keeps: 'full', endAt: clock.now });
    return { wanted: 'ok', got, told: ['paused'] };
  }
  return { wanted: before === 'gone' ? 'not_found' : 'failed_precondition', got };
});

const halt = command('pause with files alone', async (model, { sandboxes, id, clock }) => {
  const before = model.state;
  const got = await codeOf(sandboxes.pause(TEAM, id, 'filesystem'));
  if (before === 'running') {
    became(model, { state: 'paused', keeps: 'filesystem', endAt: clock.now });
    return { wanted: 'ok', got, told: ['halted'] };
  }
  return { wanted: before === 'gone' ? 'not_found' : 'failed_precondition', got };
});

const haltFails = command(
  'pause with files alone on an engine that does not end it',
  async (model, { sandboxes, engine, id }) => {
    if (model.state !== 'running') return { wanted: '', got: '' };
    engine.beforeHalt = () => Promise.reject(new ServiceError('unavailable', 'stuck'));
    const got = await codeOf(sandboxes.pause(TEAM, id, 'filesystem'));
    engine.beforeHalt = () => Promise.resolve();
    return { wanted: 'unavailable', got, told: ['halted', 'booted'] };
  },
);

const reboot = command('connect without the memory', async (model, { sandboxes, id, clock }) => {
  const { state: before, keeps } = model;
  const got = await codeOf(sandboxes.connect(TEAM, id, { timeoutSeconds: 100, reboot: true }));
  if (before === 'gone') return { wanted: 'not_found', got };
  const endAt = clock.now + 100_000;
  became(model, { state: 'running', endAt: before === 'paused' ? endAt : Math.max(endAt, model.endAt) });
  if (before === 'running') return { wanted: 'ok', got };
  return { wanted: 'ok', got, told: keeps === 'full' ? ['halted', 'booted'] : ['booted'] };
});

const setNetwork = command('another network', async (model, { sandboxes, engine, id }) => {
  const isOpen = model.state !== 'gone' && engine.machine(id).network !== 'full';
  const egress = { allowInternetAccess: isOpen, allowOut: [], denyOut: [] };
  const got = await codeOf(sandboxes.setNetwork(TEAM, id, egress));
  if (model.state === 'gone') return { wanted: 'not_found', got };
  if (model.keeps !== 'filesystem') expect(engine.machine(id).network).toBe(isOpen ? 'full' : 'none');
  return { wanted: 'ok', got };
});

const pauseFails = command(
  'pause on an engine without a freezer',
  async (model, { sandboxes, engine, id }) => {
    if (model.state !== 'running') return { wanted: '', got: '' };
    engine.beforePause = () => Promise.reject(new ServiceError('unavailable', 'no freezer'));
    const got = await codeOf(sandboxes.pause(TEAM, id));
    engine.beforePause = () => Promise.resolve();
    return { wanted: 'unavailable', got, told: ['paused', 'resumed'] };
  },
);

const connect = (seconds: number) =>
  command(`connect for ${seconds} s`, async (model, { sandboxes, id, clock }) => {
    const before = model.state;
    const told = before === 'paused' ? resumedFrom(model) : [];
    const got = await codeOf(sandboxes.connect(TEAM, id, { timeoutSeconds: seconds }));
    if (before === 'gone') return { wanted: 'not_found', got };
    const endAt = clock.now + seconds * 1000;
    became(model, { state: 'running', endAt: before === 'paused' ? endAt : Math.max(endAt, model.endAt) });
    return { wanted: 'ok', got, told };
  });

const connectFails = command(
  'connect on an engine that neither thaws nor starts',
  async (model, { sandboxes, engine, id }) => {
    if (model.state !== 'paused') return { wanted: '', got: '' };
    const stuck = () => Promise.reject(new ServiceError('unavailable', 'stuck'));
    engine.beforeResume = engine.beforeBoot = stuck;
    const got = await codeOf(sandboxes.connect(TEAM, id, { timeoutSeconds: 60 }));
    engine.beforeResume = engine.beforeBoot = () => Promise.resolve();
    return { wanted: 'unavailable', got };
  },
);

const twoAtOnce = command('two connects and a pause at once', async (model, { sandboxes, id, clock }) => {
  const before = model.state;
  const told = resumedFrom(model);
  const connecting = [30, 40].map((timeoutSeconds) =>
    codeOf(sandboxes.connect(TEAM, id, { timeoutSeconds })),
  );
  const pausing = codeOf(sandboxes.pause(TEAM, id));
  const got = (await Promise.all([...connecting, pausing])).join();
  if (before === 'gone') return { wanted: 'not_found,not_found,not_found', got };
  if (before === 'paused') {
    // The pause came while the first one resumed; the second one found it running.
    became(model, { state: 'running', endAt: clock.now + 40_000 });
    return { wanted: 'ok,ok,failed_precondition', got, told };
  }
  // Both had found it running, and their deadlines went with the pause.
  became(model, { state: 'paused', keeps: 'full', endAt: clock.now });
  return { wanted: 'ok,ok,ok', got, told: ['paused'] };
});

const wake = command('traffic', async (model, { sandboxes, id, clock }) => {
  const before = model.state;
  if (before === 'running') return { wanted: '', got: '' };
  const told = resumedFrom(model);
  const got = await codeOf(sandboxes.wake(id));
  if (before === 'gone' || !model.autoResume) return { wanted: 'not_found', got };
  became(model, { state: 'running', endAt: clock.now + 300_000 });
  return { wanted: 'ok', got, told };
});

const setTimeoutTo = (seconds: number) =>
  command(`set the time-out to ${seconds} s`, async (model, { sandboxes, id, clock }) => {
    const got = await codeOf(sandboxes.setTimeout(TEAM, id, seconds));
    if (model.state !== 'running') return { wanted: 'not_found', got };
    became(model, { endAt: clock.now + seconds * 1000 });
    return { wanted: 'ok', got };
  });

const kill = command('kill', async (model, { sandboxes, id }) => {
  const before = model.state;
  const got = await codeOf(sandboxes.kill(TEAM, id));
  became(model, { state: 'gone' });
  return before === 'gone' ? { wanted: 'not_found', got } : { wanted: 'ok', got, told: ['ended'] };
});

const die = command('the machine dies', async (model, real) => {
  if (model.state === 'gone') return { wanted: '', got: '' };
  real.engine.kill(real.id);
  await until(() => real.told.includes('ended'));
  became(model, { state: 'gone' });
  return { wanted: '', got: '', told: ['ended'] };
});

const pass = (seconds: number) =>
  command(`${seconds} s pass`, async (model, { clock }) => {
    // Deadlines are the next command's: a real one would need real time.
    if (model.state === 'running' && clock.now + seconds * 1000 >= model.endAt)
      return { wanted: '', got: '' };
    clock.now += seconds * 1000;
    return Promise.resolve({ wanted: '', got: '' });
  });

const expire = command('the deadline passes', async (model, real) => {
  const { sandboxes, clock, id, told } = real;
  if (model.state !== 'running') return { wanted: '', got: '' };
  // In the past for its timer: it is due at once.
  await sandboxes.setTimeout(TEAM, id, 0);
  if (model.autoPause) {
    became(model, { state: 'paused', keeps: model.autoPauseMode, endAt: clock.now });
    const heard = model.autoPauseMode === 'full' ? ['paused'] : ['halted', 'halted'];
    await until(() => told.includes(heard[0] ?? '') && sandboxes.get(TEAM, id).state === 'paused');
    await sandboxes.close({ onStop: 'keep' }); // waits for the change to be through
    await reopen(real);
    return { wanted: '', got: '', told: heard };
  }
  became(model, { state: 'gone' });
  await until(() => told.includes('ended'));
  return { wanted: '', got: '', told: ['ended'] };
});

const restart = command('the service is started again', async (model, real) => {
  await real.sandboxes.close({ onStop: 'keep' });
  await reopen(real);
  if (model.state === 'running') return { wanted: '', got: '', told: ['resumed'] };
  return { wanted: '', got: '', told: model.keeps === 'filesystem' ? ['halted'] : [] };
});

async function reopen(real: Real): Promise<void> {
  real.sandboxes = make(real);
  await real.sandboxes.adopt();
}

async function until(condition: () => boolean): Promise<void> {
  for (const deadline = Date.now() + 5_000; !condition();) {
    if (Date.now() > deadline) throw new Error('it never came to be');
    await new Promise((resolve) => setImmediate(resolve));
  }
}

const COMMANDS = [
  fc.constantFrom(pause, pauseFails, connectFails, twoAtOnce, wake, kill, die, expire, restart, pause, wake),
  fc.constantFrom(halt, haltFails, reboot, setNetwork, halt, setNetwork),
  fc.integer({ min: 1, max: 900 }).map(connect),
  fc.integer({ min: 1, max: 900 }).map(setTimeoutTo),
  fc.integer({ min: 1, max: 600 }).map(pass),
];

it('are what the contract says of a sandbox, whatever is done to it in whatever order', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.commands(COMMANDS, { maxCommands: 25 }),
      fc.boolean(),
      fc.boolean(),
      fc.constantFrom('full' as const, 'filesystem' as const),
      async (commands, autoPause, autoResume, autoPauseMode) => {
        const engine = new FakeEngine();
        const store = await Store.open(':memory:');
        const base = { engine, store, clock: { now: START }, told: [] as string[] };
        const sandboxes = make(base);
        const { id, endAt } = await sandboxes.create(
          TEAM,
          createOptions({ autoPause, autoPauseMode, autoResume, timeoutSeconds: 300 }),
        );
        const real: Real = { ...base, sandboxes, id };
        const model: Model = {
          ...{ state: 'running', keeps: undefined },
          ...{ autoPause, autoPauseMode, autoResume, endAt },
        };
        try {
          await fc.asyncModelRun(() => ({ model, real }), commands);
        } finally {
          await real.sandboxes.close({ onStop: 'kill' });
          await store.close();
        }
      },
    ),
    { numRuns: 60 },
  );
}, 120_000);
