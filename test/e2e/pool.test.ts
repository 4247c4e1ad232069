import fs from 'node:fs';
import path from 'node:path';
import type { PoolInfo } from '../../protocol/native';
import { describeOnRuntimes } from '../describe-on-runtimes';
import { until } from './recovery-client';

const TEMPLATE = 'code-interpreter-v1';
const FILL_DEADLINE_MS = 120_000;

/** Everything about a sandbox that programs in it can see and that has no reason to differ from another's. */
const LOOK_AROUND = `
import json, os, pwd, socket, sys, time
mine = {name: value for name, value in os.environ.items() if name not in ('E2B_SANDBOX_ID', 'JPY_PARENT_PID')}
print(json.dumps({
    'environment': {name: value.replace(os.environ['E2B_SANDBOX_ID'], 'ID') for name, value in sorted(mine.items())},
    'same id': os.environ['E2B_SANDBOX_ID'],
    'directory': os.getcwd().replace(os.environ['E2B_SANDBOX_ID'], 'ID'),
    'home': sorted(os.listdir(os.path.expanduser('~'))),
    'host': socket.gethostname(),
    'user': os.getuid() == os.geteuid(),
    'names': sorted(name for name in globals() if not name.startswith('_')),
    'count': len(In),
    'path': [each.replace(os.environ['E2B_SANDBOX_ID'], 'ID') for each in sys.path],
    'zone': time.tzname,
}))
`;

const env = { CELLBOX_POOL_SIZE: '1', CELLBOX_POOL_MAX: '1' };

describeOnRuntimes('a pool of $runtime sandboxes', { env }, ({ runtime, service, client, startAgain }) => {
  beforeEach(full, FILL_DEADLINE_MS);

  async function pool(): Promise<PoolInfo> {
    const { items } = (await (await client.api('GET', '/v1/pools')).json()) as { items: PoolInfo[] };
    const found = items.find(({ template }) => template === TEMPLATE);
    if (found === undefined) throw new Error('no such pool');
    return found;
  }

  async function full(): Promise<void> {
    const deadline = Date.now() + FILL_DEADLINE_MS;
    for (;;) {
      const { ready, starting, target, last_error } = await pool();
      if (ready === target && starting === 0) return;
      if (Date.now() > deadline) throw new Error(`not full in time: ${last_error ?? 'no error'}`);
      await new Promise((resolve) => setTimeout(resolve, 100)); // polled, as an operator would
    }
  }

  /** Of each machine there is a directory. */
  function machines(): string[] {
    return fs.readdirSync(path.join(service.dataDir, runtime === 'local' ? 'local' : 'tunnels'));
  }

  /** Those of sandboxes that were killed end behind the answer. */
  function twoMachines(): Promise<void> {
    return until(() => Promise.resolve(machines().length === 2));
  }

  async function claimed(extra: Record<string, unknown> = {}): Promise<string> {
    const before = (await pool()).claimed_total;
    const id = await client.create(extra);
    expect((await pool()).claimed_total).toBe(before + 1);
    return id;
  }

  async function lookAround(id: string): Promise<Record<string, unknown>> {
    const seen = JSON.parse(await client.stdout(id, LOOK_AROUND)) as Record<string, unknown>;
    expect(seen['same id']).toBe(id);
    return { ...seen, 'same id': true };
  }

  it(
    'gives sandboxes that programs inside can not tell from others',
    async () => {
      const envs = { GREETING: 'it\'s "quoted" \\ é 😀\n', PATH_LIKE: '/a:/b' };
      const id = await claimed({ envVars: envs });
      // Without one there is nothing in the pool that fits.
      await (await client.api('PUT', `/v1/pools/${TEMPLATE}`, { target: 0 })).text();
      const cold = await client.create({ envVars: envs });
      try {
        const [seen, expected] = [await lookAround(id), await lookAround(cold)];
        expect(seen).toEqual(expected);
        expect(seen['environment']).toMatchObject(envs);
        for (const each of [id, cold]) {
          const listed = (await (await client.port(each, 49999, '/contexts')).json()) as unknown[];
          expect(listed).toMatchObject([
            { language: 'python', cwd: '/home/user' },
            { language: 'javascript', cwd: '/home/user' },
          ]);
        }
      } finally {
        await client.api('PUT', `/v1/pools/${TEMPLATE}`, { target: 1 });
        await Promise.all([client.kill(id), client.kill(cold)]);
      }
    },
    FILL_DEADLINE_MS,
  );

  it(
    'counts the life of a sandbox from its claim',
    async () => {
      const before = Date.now();
      const id = await claimed({ timeout: 100 });
      const { startedAt, endAt } = (await (await client.api('GET', `/sandboxes/${id}`)).json()) as {
        startedAt: string;
        endAt: string;
      };
      expect(Date.parse(startedAt)).toBeGreaterThanOrEqual(before);
      expect(Date.parse(endAt) - Date.parse(startedAt)).toBe(100_000);
      await client.kill(id);
    },
    FILL_DEADLINE_MS,
  );

  it(
    'gives each sandbox random numbers of its own',
    async () => {
      const code = 'import random; print(random.random(), random.getstate()[1][:3])';
      const one = await claimed();
      await full();
      const two = await claimed();
      expect(await client.stdout(one, code)).not.toBe(await client.stdout(two, code));
      await Promise.all([client.kill(one), client.kill(two)]);
    },
    FILL_DEADLINE_MS,
  );

  it(
    'keeps the environment over restarts of the kernel, and gives it to other contexts',
    async () => {
      const id = await claimed({ envVars: { A: 'given' } });
      const read = 'import os; print(os.environ["A"])';
      expect(await client.stdout(id, read)).toBe('given\n');
      const [context] = (await (await client.port(id, 49999, '/contexts')).json()) as Array<{ id: string }>;
      await client.port(id, 49999, `/contexts/${context?.id ?? ''}/restart`, { method: 'POST' });
      expect(await client.stdout(id, read)).toBe('given\n');
      await client.run(id, 'import os; os._exit(1)');
      expect(await client.stdout(id, read)).toBe('given\n');
      const made = await client.port(id, 49999, '/contexts', { method: 'POST', body: '{}' });
      const other = (await made.json()) as { id: string };
      expect(await client.stdout(id, read, { context_id: other.id })).toBe('given\n');
      await client.kill(id);
    },
    FILL_DEADLINE_MS,
  );

  it(
    'starts the kernel anew for variables that only a new process can have',
    async () => {
      const id = await claimed({ envVars: { PYTHONPATH: '/somewhere', TZ: 'Asia/Tokyo' } });
      const code = 'import sys, time; print("/somewhere" in sys.path, time.tzname[0])';
      expect(await client.stdout(id, code)).toBe('True JST\n');
      await client.kill(id);
    },
    FILL_DEADLINE_MS,
  );

  it(
    'demands the access token of a secured sandbox from its claim on',
    async () => {
      const { sandboxID, envdAccessToken } = (await (
        await client.api('POST', '/v2/sandboxes', { templateID: TEMPLATE, envVars: { A: '1' } })
      ).json()) as { sandboxID: string; envdAccessToken: string };
      const envs = (headers: Record<string, string>) => client.port(sandboxID, 49983, '/envs', { headers });
      expect((await envs({})).status).toBe(401);
      const answer = await envs({ 'x-access-token': envdAccessToken });
      expect(await answer.json()).toMatchObject({ A: '1', E2B_SANDBOX_ID: sandboxID });
      await client.kill(sandboxID);
    },
    FILL_DEADLINE_MS,
  );

  it(
    'keeps claimed sandboxes over a crash of the service, and ends those that nobody had claimed',
    async () => {
      const id = await claimed({ envVars: { A: 'kept' } });
      await client.run(id, 'x = 42');
      await full();
      await twoMachines();
      const unclaimed = machines().filter((each) => each !== id);
      expect(unclaimed).toHaveLength(1);
      await service.signal('SIGKILL');
      await startAgain();
      expect(await client.stdout(id, 'import os; print(x, os.environ["A"])')).toBe('42 kept\n');
      const listed = (await (await client.api('GET', '/sandboxes')).json()) as Array<{ sandboxID: string }>;
      expect(listed.map(({ sandboxID }) => sandboxID)).toEqual([id]);
      await full();
      await twoMachines();
      expect(machines()).toContain(id);
      expect(machines()).not.toContain(unclaimed[0]);
      await client.kill(id);
    },
    2 * FILL_DEADLINE_MS,
  );
});
