import fc from 'fast-check';
import { describeOnRuntimes } from '../describe-on-runtimes';
import type { Client } from './client';
import { until } from './recovery-client';

/** What a client knows of its sandbox: whether it is there, a variable that it counts up, and a file that grows. */
interface Model {
  state: 'running' | 'paused' | 'gone';
  count: number;
  runs: number;
  readonly autoPause: boolean;
  readonly autoPauseMemory: boolean;
  readonly autoResume: boolean;
}

/** One sandbox of a service that may be another process from command to command. */
interface Real {
  readonly id: string;
  client: Client;
  restart(): Promise<void>;
}

/** Variables go with a pause that keeps files alone, and files never do. */
const COUNT = `
x = globals().get('x', 0) + 1
with open('runs', 'a') as runs: _ = runs.write('.')
(x, __import__('os').path.getsize('runs'))
`;

type Command = fc.AsyncCommand<Model, Real>;

async function stateOf({ client, id }: Real): Promise<Model['state']> {
  const response = await client.api('GET', `/sandboxes/${id}`);
  if (response.status === 404) return 'gone';
  return ((await response.json()) as { state: 'running' | 'paused' }).state;
}

function command(name: string, act: (model: Model, real: Real) => Promise<void>): Command {
  return {
    check: () => true,
    toString: () => name,
    run: async (model, real) => {
      await act(model, real);
      expect(await stateOf(real)).toBe(model.state);
    },
  };
}

async function status({ client, id }: Real, method: string, path: string, body?: object): Promise<number> {
  const response = await client.api(method, `/sandboxes/${id}${path}`, body);
  await response.text();
  return response.status;
}

const run = command('run', async (model, { client, id }) => {
  const response = await client.execute(id, { code: COUNT });
  const text = await response.text();
  if (model.state === 'gone' || (model.state === 'paused' && !model.autoResume)) {
    expect(response.status).toBe(502);
    return;
  }
  model.state = 'running';
  const told = `"text":"(${++model.count}, ${++model.runs})"`;
  expect([response.status, text]).toEqual([200, expect.stringContaining(told)]);
});

const pause = command('pause', async (model, real) => {
  const wanted = { running: 204, paused: 409, gone: 404 }[model.state];
  expect(await status(real, 'POST', '/pause')).toBe(wanted);
  if (model.state === 'running') model.state = 'paused';
});

const halt = command('pause with files alone', async (model, real) => {
  const wanted = { running: 204, paused: 409, gone: 404 }[model.state];
  expect(await status(real, 'POST', '/pause', { memory: false })).toBe(wanted);
  if (model.state !== 'running') return;
  model.state = 'paused';
  model.count = 0;
});

const reboot = command('connect without the memory', async (model, real) => {
  const wanted = { running: 200, paused: 201, gone: 404 }[model.state];
  expect(await status(real, 'POST', '/connect', { timeout: 600, memory: false })).toBe(wanted);
  if (model.state !== 'paused') return;
  model.state = 'running';
  model.count = 0;
});

const connect = command('connect', async (model, real) => {
  const wanted = { running: 200, paused: 201, gone: 404 }[model.state];
  expect(await status(real, 'POST', '/connect', { timeout: 600 })).toBe(wanted);
  if (model.state === 'paused') model.state = 'running';
});

const together = command('connect three times and run at once', async (model, real) => {
  const before = model.state;
  const connecting = [1, 2, 3].map(() => status(real, 'POST', '/connect', { timeout: 600 }));
  const all = (await Promise.all(connecting)).sort().join();
  expect(all).toBe({ running: '200,200,200', paused: '200,200,201', gone: '404,404,404' }[before]);
  if (before === 'paused') model.state = 'running';
  if (model.state === 'running') await run.run(model, real);
});

const expire = command('the deadline passes', async (model, real) => {
  const wanted = model.state === 'running' ? 204 : 404;
  let answer = 409; // while a pause that an earlier deadline has begun is under way
  await until(async () => (answer = await status(real, 'POST', '/timeout', { timeout: 0 })) !== 409);
  expect(answer).toBe(wanted);
  if (model.state !== 'running') return;
  model.state = model.autoPause ? 'paused' : 'gone';
  if (!model.autoPauseMemory) model.count = 0;
  await until(async () => (await stateOf(real)) === model.state);
});

const kill = command('kill', async (model, real) => {
  expect(await status(real, 'DELETE', '')).toBe(model.state === 'gone' ? 404 : 204);
  model.state = 'gone';
});

const restart = command('the service is killed and started again', (_model, real) => real.restart());

/** Weighted by how often each stands here. */
const COMMANDS = [
  run,
  run,
  run,
  run,
  pause,
  pause,
  halt,
  halt,
  reboot,
  connect,
  connect,
  together,
  expire,
  restart,
  kill,
];

describeOnRuntimes(
  'a sandbox on the $runtime runtime',
  { env: { CELLBOX_POOL_SIZE: '0' } },
  ({ service, client, startAgain }) => {
    it('is what it is told to be, with its variables, through any order of pauses, resumes, deadlines and crashes', async () => {
      await fc.assert(
        fc.asyncProperty(
          fc.commands([fc.constantFrom(...COMMANDS)], { maxCommands: 14, size: 'max' }),
          fc.constantFrom('kill', 'pause', 'halt'),
          fc.boolean(),
          async (commands, onTimeout, isWoken) => {
            const autoPause = onTimeout !== 'kill';
            const autoPauseMemory = onTimeout !== 'halt';
            const autoResume = isWoken && autoPauseMemory; // one can't ask for both
            const id = await client.create({
              autoPause,
              ...(!autoPauseMemory && { autoPauseMemory }),
              autoResume: { enabled: autoResume },
            });
            const model: Model = {
              ...{ state: 'running', count: 0, runs: 0 },
              ...{ autoPause, autoPauseMemory, autoResume },
            };
            const real: Real = {
              id,
              client,
              restart: async () => {
                await service.signal('SIGKILL');
                await startAgain();
              },
            };
            try {
              await fc.asyncModelRun(() => ({ model, real }), commands);
            } finally {
              await client.kill(id);
            }
          },
        ),
        // A counterexample is told as it is: each attempt to shorten it would take seconds.
        { numRuns: 5, endOnFailure: true },
      );
    }, 600_000);
  },
);
