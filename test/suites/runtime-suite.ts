import http from 'node:http';
import type { Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { AGENT_PORT, GATEWAY_PORT, INTERPRETER_PORT } from '../../protocol/routing';
import { ServiceError } from '../../service/errors';
import type {
  InboundHandler,
  Instance,
  InstanceEnd,
  InstanceSpec,
  Runtime,
} from '../../service/runtime/runtime';

/** What the suite needs of one implementation, made fresh for each run of the suite. */
export interface RuntimeHarness {
  readonly runtime: Runtime;
  /** Closes the runtime and makes a new one on the same data, as a restart of the service does. */
  restart(): Promise<Runtime>;
  /** Every container, network, directory and process that belongs to a machine of this harness, one line each. */
  leftovers(): Promise<string[]>;
  /** Ends the machine behind the runtime's back, as the kernel's OOM killer or an operator would. */
  killFromOutside?(id: string): Promise<void>;
  /** Runs a program inside and gives its stdout; rejects when it fails. */
  run?(id: string, argv: string[]): Promise<string>;
  /** Stops every machine, closes the runtime, removes its data. */
  close(): Promise<void>;
}

/**
 * What an implementation may lack; its cases are then skipped by name.
 * `gateway`: a kernel gateway runs inside. `run`: `harness.run`. `kill`: `harness.killFromOutside`.
 * `loopback`: the agent listens on the machine's own loopback (49983, 49999). `deadman`: a machine without a
 * service ends after its deadline; the harness sets a grace of at most 2 s. `network-none`: no interface but loopback.
 * `tokens`: the agent answers `/envs` and asks for the access token.
 */
export type Feature =
  'gateway' | 'run' | 'kill' | 'loopback' | 'deadman' | 'network-none' | 'tokens' | 'adopt';

export interface SuiteOptions {
  /** Reason to skip the whole suite. */
  skip?: string;
  lacks?: Feature[];
}

/** Short and unique, as `InstanceSpec.id` asks. */
export function newInstanceId(): string {
  return `t${Date.now().toString(36)}${Math.random().toString(36).slice(2, 10)}`;
}

export function instanceSpec(overrides: Partial<InstanceSpec> = {}): InstanceSpec {
  return {
    id: newInstanceId(),
    env: {},
    resources: { cpuCount: 1, memoryMB: 1024, diskSizeMB: 1024, pids: 256, openFiles: 1024 },
    network: 'full',
    labels: {},
    deadlineAt: Date.now() + 600_000,
    ...overrides,
  };
}

/** One HTTP exchange over a freshly dialled stream. */
export async function request(
  instance: Instance,
  port: number,
  path: string,
  options: { method?: string; headers?: Record<string, string>; body?: string } = {},
): Promise<{ status: number; body: string }> {
  const socket = await instance.dial(port);
  return new Promise((resolve, reject) => {
    const req = http.request(
      {
        path,
        method: options.method ?? 'GET',
        headers: { host: 'machine', connection: 'close', ...options.headers },
        createConnection: () => socket,
        timeout: 10_000,
      },
      (res) => {
        let body = '';
        res.setEncoding('utf8');
        res.on('data', (chunk: string) => (body += chunk));
        res.on('error', reject);
        res.on('end', () => {
          socket.destroy();
          resolve({ status: res.statusCode ?? 0, body });
        });
      },
    );
    req.on('timeout', () => req.destroy(new Error(`no answer to ${path} in 10 s`)));
    req.on('error', reject);
    req.end(options.body);
  });
}

/** Tries again until the deadline, because what is waited for lives in another process and tells nobody. */
export async function eventually<T>(attempt: () => Promise<T>, timeoutMs: number): Promise<T> {
  const deadline = Date.now() + timeoutMs;
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      if (Date.now() > deadline) throw error;
      await delay(100);
    }
  }
}

/** `promise`, or a failure that names what was waited for. */
export async function within<T>(what: string, timeoutMs: number, promise: Promise<T>): Promise<T> {
  const timer = new AbortController();
  try {
    return await Promise.race([
      promise,
      delay(timeoutMs, undefined, { signal: timer.signal }).then(() => {
        throw new Error(`${what}: not in ${timeoutMs} ms`);
      }),
    ]);
  } finally {
    timer.abort();
  }
}

function closed(socket: Socket): Promise<void> {
  return new Promise((resolve) => {
    socket.on('error', () => undefined); // a reset is one of the ways to close
    socket.on('close', () => resolve());
    socket.resume();
  });
}

/** What can happen to a machine, or not, in every implementation: if this passes, the runtime is done. */
export function runRuntimeSuite(
  name: string,
  makeHarness: (hooks: { onInbound: InboundHandler }) => Promise<RuntimeHarness>,
  options: SuiteOptions = {},
): void {
  const lacks = new Set(options.lacks ?? []);
  const suite = options.skip === undefined ? describe : describe.skip;
  const title = options.skip === undefined ? `runtime ${name}` : `runtime ${name} (skipped: ${options.skip})`;

  function when(features: Feature[], claim: string, body: () => Promise<void>): void {
    const missing = features.filter((feature) => lacks.has(feature));
    if (missing.length === 0) it(claim, body, 120_000);
    else it.skip(`${claim} (${name} lacks ${missing.join(', ')})`, body);
  }

  suite(title, () => {
    let harness: RuntimeHarness;
    let runtime: Runtime;
    let inbound: InboundHandler = (_id, _port, stream) => stream.destroy();

    beforeAll(async () => {
      harness = await makeHarness({ onInbound: (id, port, stream) => inbound(id, port, stream) });
      runtime = harness.runtime;
    }, 600_000);

    afterEach(async () => {
      inbound = (_id, _port, stream) => stream.destroy();
      for (const { id } of await runtime.list()) await runtime.stop(id);
      expect(await harness.leftovers()).toEqual([]);
    }, 60_000);

    afterAll(async () => {
      await harness?.close();
    }, 60_000);

    it('proves itself ready by named checks, within 3 s', async () => {
      const checks = await within('check()', 3_000, runtime.check());
      expect(checks.length).toBeGreaterThan(0);
      expect(checks.filter((check) => !check.ok)).toEqual([]);
      expect(checks.every((check) => check.name.length > 0)).toBe(true);
    }, 10_000);

    when([], 'answers on the agent port once start has resolved', async () => {
      const instance = await runtime.start(instanceSpec());
      expect(await request(instance, AGENT_PORT, '/health')).toMatchObject({ status: 204 });
    });

    when(
      ['tokens'],
      'gives the environment to those who know the access token, and to nobody else',
      async () => {
        const env = { GREETING: 'Grüß "dich"\n$HOME', EMPTY: '' };
        const instance = await runtime.start(instanceSpec({ env, accessToken: 'sesame' }));
        expect((await request(instance, AGENT_PORT, '/envs')).status).toBe(401);
        expect(
          (await request(instance, AGENT_PORT, '/envs', { headers: { 'x-access-token': 'sesamf' } })).status,
        ).toBe(401);
        const answer = await request(instance, AGENT_PORT, '/envs', {
          headers: { 'x-access-token': 'sesame' },
        });
        expect(answer.status).toBe(200);
        expect(JSON.parse(answer.body)).toMatchObject(env);
      },
    );

    when(['tokens'], 'leaves the agent open when no access token was asked for', async () => {
      const instance = await runtime.start(instanceSpec({ env: { OPEN: 'yes' } }));
      const answer = await request(instance, AGENT_PORT, '/envs');
      expect(JSON.parse(answer.body)).toMatchObject({ OPEN: 'yes' });
    });

    when(['tokens'], 'takes more variables than a process could be started with', async () => {
      const env = Object.fromEntries(Array.from({ length: 40 }, (_, i) => [`V${i}`, 'é'.repeat(32 * 1024)]));
      const instance = await runtime.start(instanceSpec({ env, accessToken: 'sesame' }));
      expect((await request(instance, AGENT_PORT, '/envs')).status).toBe(401);
      const answer = await request(instance, AGENT_PORT, '/envs', {
        headers: { 'x-access-token': 'sesame' },
      });
      expect(JSON.parse(answer.body)).toMatchObject(env);
    });

    when([], 'tells a closed port as not_found', async () => {
      const instance = await runtime.start(instanceSpec());
      await expect(instance.dial(4)).rejects.toMatchObject({ code: 'not_found' });
    });

    when(['gateway'], 'reaches the kernel gateway, which asks for its token', async () => {
      const instance = await runtime.start(instanceSpec());
      const open = await eventually(
        () =>
          request(instance, GATEWAY_PORT, '/api', {
            headers: { authorization: `token ${instance.gatewayToken}` },
          }),
        60_000,
      );
      expect(open.status).toBe(200);
      expect(JSON.parse(open.body)).toHaveProperty('version');
      expect(
        (await request(instance, GATEWAY_PORT, '/api/kernels', { headers: { authorization: 'token x' } }))
          .status,
      ).toBeGreaterThanOrEqual(401);
    });

    when([], 'lists what runs, with its labels', async () => {
      const labels = { team: 't1', note: 'a "quoted" Ünicode\nvalue' };
      const before = Date.now();
      const spec = instanceSpec({ labels });
      await runtime.start(spec);
      const records = await runtime.list();
      expect(records).toEqual([{ id: spec.id, state: 'running', startedAt: expect.any(Number), labels }]);
      expect(records[0]?.startedAt).toBeGreaterThan(before - 2_000);
      expect(records[0]?.startedAt).toBeLessThan(Date.now() + 2_000);
    });

    when([], 'keeps two machines apart', async () => {
      const [one, two] = await Promise.all([
        runtime.start(instanceSpec({ env: { WHO: 'one' } })),
        runtime.start(instanceSpec({ env: { WHO: 'two' } })),
      ]);
      expect(one.gatewayToken).not.toBe(two.gatewayToken);
      await runtime.stop(one.id);
      expect(await request(two, AGENT_PORT, '/health')).toMatchObject({ status: 204 });
      expect((await runtime.list()).map((record) => record.id)).toEqual([two.id]);
    });

    when([], 'refuses a second machine of the same id and leaves the first alone', async () => {
      const first = await runtime.start(instanceSpec());
      await expect(runtime.start(instanceSpec({ id: first.id }))).rejects.toMatchObject({
        code: 'already_exists',
      });
      expect(await request(first, AGENT_PORT, '/health')).toMatchObject({ status: 204 });
    });

    when([], 'stops a machine: it leaves nothing, `ended` says stopped, streams are closed', async () => {
      const instance = await runtime.start(instanceSpec());
      const stream = await instance.dial(AGENT_PORT);
      const gone = closed(stream);
      await runtime.stop(instance.id);
      expect(await within('ended', 5_000, instance.ended)).toEqual({ reason: 'stopped' });
      await within('stream closed', 5_000, gone);
      expect(await harness.leftovers()).toEqual([]);
      expect(await runtime.list()).toEqual([]);
      await expect(instance.dial(AGENT_PORT)).rejects.toMatchObject({ code: 'unavailable' });
    });

    when([], 'stops twice, at the same time, and stops what never was', async () => {
      const instance = await runtime.start(instanceSpec());
      await Promise.all([runtime.stop(instance.id), runtime.stop(instance.id)]);
      await runtime.stop(instance.id);
      await runtime.stop(newInstanceId());
    });

    when(['kill'], 'tells a machine that was killed from outside', async () => {
      const instance = await runtime.start(instanceSpec());
      const stream = await instance.dial(AGENT_PORT);
      const gone = closed(stream);
      await harness.killFromOutside?.(instance.id);
      const end: InstanceEnd = await within('ended', 15_000, instance.ended);
      expect(end).toEqual({ reason: 'exited', detail: expect.any(String) });
      await within('stream closed', 5_000, gone);
      await expect(instance.dial(AGENT_PORT)).rejects.toMatchObject({ code: 'unavailable' });
      await runtime.stop(instance.id);
    });

    when(['adopt'], 'adopts a machine after a restart of the service, with the same tokens', async () => {
      const first = await runtime.start(instanceSpec({ labels: { kept: 'yes' }, env: { KEPT: '1' } }));
      runtime = await harness.restart();
      expect(await runtime.list()).toEqual([
        { id: first.id, state: 'running', startedAt: expect.any(Number), labels: { kept: 'yes' } },
      ]);
      const began = Date.now();
      const again = await runtime.adopt(first.id);
      expect(Date.now() - began).toBeLessThan(5_000);
      expect(again.gatewayToken).toBe(first.gatewayToken);
      expect(await request(again, AGENT_PORT, '/health')).toMatchObject({ status: 204 });
      await runtime.stop(first.id);
      expect(await within('ended', 5_000, again.ended)).toEqual({ reason: 'stopped' });
    });

    when(['adopt'], 'stops a machine that it did not start or adopt', async () => {
      const { id } = await runtime.start(instanceSpec());
      runtime = await harness.restart();
      await runtime.stop(id);
      expect(await runtime.list()).toEqual([]);
    });

    when([], 'tells unknown machines as not_found', async () => {
      const id = newInstanceId();
      await expect(runtime.adopt(id)).rejects.toMatchObject({ code: 'not_found' });
      await expect(runtime.pause(id)).rejects.toMatchObject({ code: 'not_found' });
      await expect(runtime.resume(id)).rejects.toMatchObject({ code: 'not_found' });
      await expect(runtime.halt(id)).rejects.toMatchObject({ code: 'not_found' });
      await expect(runtime.boot(instanceSpec({ id }))).rejects.toMatchObject({ code: 'not_found' });
      await expect(runtime.stats(id)).rejects.toMatchObject({ code: 'not_found' });
    });

    when([], 'freezes a machine and thaws it with its connections', async () => {
      const instance = await runtime.start(instanceSpec());
      const stream = await instance.dial(AGENT_PORT);
      await runtime.pause(instance.id);
      expect((await runtime.list()).map((record) => record.state)).toEqual(['paused']);
      await expect(runtime.pause(instance.id)).rejects.toMatchObject({ code: 'failed_precondition' });

      stream.write('GET /health HTTP/1.1\r\nhost: machine\r\nconnection: close\r\n\r\n');
      await runtime.resume(instance.id);
      const answer = await within(
        'answer on the old stream',
        10_000,
        new Promise<string>((resolve, reject) => {
          stream.once('data', (chunk: Buffer) => resolve(chunk.toString('latin1')));
          stream.once('error', reject);
          stream.once('close', () => reject(new Error('the stream was closed')));
        }),
      );
      stream.destroy();
      expect(answer).toMatch(/^HTTP\/1\.1 204/);
      expect((await runtime.list()).map((record) => record.state)).toEqual(['running']);
      await expect(runtime.resume(instance.id)).rejects.toMatchObject({ code: 'failed_precondition' });
    });

    when([], 'stops a paused machine', async () => {
      const instance = await runtime.start(instanceSpec());
      await runtime.pause(instance.id);
      await within('stop', 20_000, runtime.stop(instance.id));
      expect(await within('ended', 5_000, instance.ended)).toEqual({ reason: 'stopped' });
    });

    when(['adopt'], 'adopts a paused machine at once and reaches it after resume', async () => {
      const { id } = await runtime.start(instanceSpec());
      await runtime.pause(id);
      runtime = await harness.restart();
      const instance = await within('adopt', 5_000, runtime.adopt(id));
      await runtime.resume(id);
      const answer = await eventually(() => request(instance, AGENT_PORT, '/health'), 15_000);
      expect(answer.status).toBe(204);
    });

    when([], 'leaves nothing of a start that was aborted', async () => {
      const already = instanceSpec();
      await expect(runtime.start(already, AbortSignal.abort())).rejects.toBeInstanceOf(Error);
      const spec = instanceSpec();
      const controller = new AbortController();
      const start = runtime.start(spec, controller.signal);
      setImmediate(() => controller.abort());
      await expect(within('rejection', 30_000, start)).rejects.toBeInstanceOf(Error);
      expect(await runtime.list()).toEqual([]);
      expect(await harness.leftovers()).toEqual([]);
      await runtime.start(instanceSpec({ id: spec.id })); // the id is free again
    });

    when(['network-none'], 'reaches a machine without a network', async () => {
      const instance = await runtime.start(instanceSpec({ network: 'none' }));
      expect(await request(instance, AGENT_PORT, '/health')).toMatchObject({ status: 204 });
    });

    when(['network-none', 'run'], 'gives a machine without a network no interface but loopback', async () => {
      const instance = await runtime.start(instanceSpec({ network: 'none' }));
      const table = await harness.run?.(instance.id, ['cat', '/proc/net/dev']);
      const names = [...(table ?? '').matchAll(/^\s*([^\s:]+):/gm)].map((match) => match[1]);
      // Tunnel devices that some kernels put into every new network namespace are down and lead nowhere.
      expect(
        names.filter(
          (each) => !/^(tunl|gre|gretap|erspan|ip_vti|ip6_vti|sit|ip6tnl|ip6gre)0$/.test(each ?? ''),
        ),
      ).toEqual(['lo']);
      // gVisor's kernel has no such file.
      const listed = ['sh', '-c', 'cat /proc/net/fib_trie 2>/dev/null || hostname -I'];
      const addresses = await harness.run?.(instance.id, listed);
      expect(
        [...new Set((addresses ?? '').match(/\d+\.\d+\.\d+\.\d+/g) ?? [])].filter(
          (ip) => !/^(127\.|0\.)/.test(ip),
        ),
      ).toEqual([]);
    });

    when(['loopback', 'run'], 'brings a call from inside to the service', async () => {
      const instance = await runtime.start(instanceSpec());
      const calls: Array<{ id: string; port: number }> = [];
      inbound = (id, port, stream) => {
        calls.push({ id, port });
        stream.on('error', () => stream.destroy());
        stream.once('data', () =>
          stream.end('HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello'),
        );
      };
      const url = `http://localhost:${INTERPRETER_PORT}/health`;
      const body = await eventually(
        () => harness.run?.(instance.id, ['curl', '-sS', '--max-time', '5', url]) ?? Promise.resolve(''),
        10_000,
      );
      expect(body).toBe('hello');
      expect(calls[calls.length - 1]).toEqual({ id: instance.id, port: INTERPRETER_PORT });
    });

    when([], 'tells what a machine uses', async () => {
      const instance = await runtime.start(instanceSpec());
      const stats = await runtime.stats(instance.id);
      expect(stats.cpuMs).toBeGreaterThanOrEqual(0);
      expect(stats.memoryBytes).toBeGreaterThan(0);
      expect(stats.pids).toBeGreaterThan(0);
      if (stats.memoryLimitBytes !== undefined) expect(stats.memoryLimitBytes).toBe(1024 * 1024 * 1024);
    });

    when([], 'halts a machine, and boots it with its handle and what it is told then', async () => {
      const spec = instanceSpec({ env: { ROUND: '1' } });
      const instance = await runtime.start(spec);
      let isOver = false;
      void instance.ended.then(() => (isOver = true));
      const stream = await instance.dial(AGENT_PORT);
      const gone = closed(stream);
      await runtime.halt(spec.id);
      await within('stream closed', 5_000, gone);
      await runtime.halt(spec.id);
      expect((await runtime.list()).map((record) => record.state)).toEqual(['halted']);
      await expect(within('refusal', 2_000, instance.dial(AGENT_PORT))).rejects.toMatchObject({
        code: 'unavailable',
      });
      for (const round of ['2', '3']) {
        // The second time it runs when it is booted.
        await runtime.boot({ ...spec, env: { ROUND: round }, accessToken: `token-${round}` });
        expect((await runtime.list()).map((record) => record.state)).toEqual(['running']);
        expect(await request(instance, AGENT_PORT, '/health')).toMatchObject({ status: 204 });
        if (lacks.has('tokens')) continue;
        expect((await request(instance, AGENT_PORT, '/envs')).status).toBe(401);
        const headers = { 'x-access-token': `token-${round}` };
        const envs = await request(instance, AGENT_PORT, '/envs', { headers });
        expect(JSON.parse(envs.body)).toMatchObject({ ROUND: round });
      }
      expect(isOver).toBe(false);
    });

    when(['run'], 'keeps the files of a machine that it halts, and no process', async () => {
      const spec = instanceSpec();
      await runtime.start(spec);
      const word = `left-${spec.id}`;
      const run = async (command: string) => harness.run?.(spec.id, ['sh', '-c', command]);
      await run(
        `echo kept > "$HOME/kept"; (setsid sh -c 'while :; do sleep 1; done' ${word} >/dev/null 2>&1 &)`,
      );
      expect(await run('cat /proc/*/cmdline 2>/dev/null | tr "\\0" " "')).toContain(`sleep 1; done ${word}`);
      await runtime.halt(spec.id);
      await runtime.boot(spec);
      expect(await run('cat "$HOME/kept"')).toBe('kept\n');
      expect(await run('cat /proc/*/cmdline 2>/dev/null | tr "\\0" " "')).not.toContain(
        `sleep 1; done ${word}`,
      );
    });

    when(['gateway'], 'gives a machine that was halted its kernel gateway back', async () => {
      const spec = instanceSpec();
      const instance = await runtime.start(spec);
      const ask = () =>
        request(instance, GATEWAY_PORT, '/api', {
          headers: { authorization: `token ${instance.gatewayToken}` },
        });
      await eventually(ask, 60_000);
      await runtime.halt(spec.id);
      await runtime.boot(spec);
      expect((await eventually(ask, 60_000)).status).toBe(200);
    });

    when([], 'boots a machine that was frozen', async () => {
      const spec = instanceSpec();
      const instance = await runtime.start(spec);
      await runtime.pause(spec.id);
      await runtime.boot(spec);
      expect((await runtime.list()).map((record) => record.state)).toEqual(['running']);
      expect(await request(instance, AGENT_PORT, '/health')).toMatchObject({ status: 204 });
    });

    when(
      ['adopt'],
      'boots a machine that an earlier service has halted, or frozen and then halted',
      async () => {
        const [plain, frozen] = [instanceSpec(), instanceSpec()];
        await Promise.all([plain, frozen].map((spec) => runtime.start(spec)));
        await runtime.pause(frozen.id);
        for (const { id } of [plain, frozen]) await runtime.halt(id);
        runtime = await harness.restart();
        expect((await runtime.list()).map((record) => record.state)).toEqual(['halted', 'halted']);
        for (const spec of [plain, frozen]) {
          const instance = await within('adopt()', 5_000, runtime.adopt(spec.id));
          await expect(instance.dial(AGENT_PORT)).rejects.toMatchObject({ code: 'unavailable' });
          await runtime.boot(spec);
          expect(await request(instance, AGENT_PORT, '/health')).toMatchObject({ status: 204 });
        }
      },
    );

    when(['adopt'], 'halts a machine that it did not start or adopt', async () => {
      const { id } = await runtime.start(instanceSpec());
      runtime = await harness.restart();
      await runtime.halt(id);
      expect((await runtime.list()).map((record) => record.state)).toEqual(['halted']);
    });

    when([], 'stops a halted machine, which leaves nothing', async () => {
      const instance = await runtime.start(instanceSpec());
      await runtime.halt(instance.id);
      await runtime.stop(instance.id);
      expect(await within('ended', 5_000, instance.ended)).toEqual({ reason: 'stopped' });
      expect(await harness.leftovers()).toEqual([]);
    });

    when([], 'leaves a machine halted whose boot is given up, for the next boot', async () => {
      const spec = instanceSpec();
      const instance = await runtime.start(spec);
      await runtime.halt(spec.id);
      const controller = new AbortController();
      const boot = runtime.boot(spec, controller.signal);
      setImmediate(() => controller.abort());
      await expect(within('rejection', 30_000, boot)).rejects.toBeInstanceOf(Error);
      expect((await runtime.list()).map((record) => record.state)).toEqual(['halted']);
      await runtime.boot(spec);
      expect(await request(instance, AGENT_PORT, '/health')).toMatchObject({ status: 204 });
    });

    when(['kill'], 'tells a machine that was killed from outside after it was booted', async () => {
      const spec = instanceSpec();
      const instance = await runtime.start(spec);
      await runtime.halt(spec.id);
      await runtime.boot(spec);
      await harness.killFromOutside?.(spec.id);
      const end: InstanceEnd = await within('ended', 15_000, instance.ended);
      expect(end).toEqual({ reason: 'exited', detail: expect.any(String) });
      await runtime.stop(spec.id);
    });

    when(['run'], 'tells what the files take that it has written, also while it is paused', async () => {
      const { id } = await runtime.start(instanceSpec());
      const before = await runtime.diskUsage(id);
      await harness.run?.(id, ['sh', '-c', 'head -c 50000000 /dev/zero > "${HOME:-/tmp}/written"']);
      await runtime.pause(id);
      const after = await runtime.diskUsage(id);
      expect(after - before).toBeGreaterThan(49_000_000);
      expect(after - before).toBeLessThan(60_000_000);
      await runtime.resume(id);
      await runtime.stop(id);
      await expect(runtime.diskUsage(id)).rejects.toMatchObject({ code: 'not_found' });
    });

    when(['run'], 'lets no file grow beyond what its disk may hold', async () => {
      const { cpuCount, pids, openFiles } = instanceSpec().resources;
      const resources = { cpuCount, pids, openFiles, memoryMB: 512, diskSizeMB: 600 };
      const { id } = await runtime.start(instanceSpec({ resources }));
      const program = (bytes: number) => `
import os
file = open(os.path.expanduser('~/file'), 'wb')
try: print(file.truncate(${bytes}))
except OSError as error: print(error)`;
      const truncate = async (bytes: number) => harness.run?.(id, ['python3', '-c', program(bytes)]);
      const most = 600 * 1_048_576;
      expect(await truncate(most)).toBe(`${most}\n`);
      expect(await truncate(most + 1)).toBe('[Errno 27] File too large\n');
    });

    when(['gateway'], 'tells what its own programs said, also while it is paused', async () => {
      const startedAt = Date.now();
      const { id } = await runtime.start(instanceSpec());
      const line = await eventually(async () => {
        const found = (await runtime.output(id)).find(({ text }) =>
          /^cellbox \S+Z gateway listening/.test(text),
        );
        if (found === undefined) throw new Error('the gateway has said nothing');
        return found;
      }, 30_000);
      if (line.at !== undefined) expect(Math.abs(line.at - startedAt)).toBeLessThan(60_000);
      await runtime.pause(id);
      expect(await runtime.output(id)).toContainEqual(line);
      await runtime.resume(id);
      await runtime.stop(id);
      await expect(runtime.output(id)).rejects.toMatchObject({ code: 'not_found' });
    });

    when([], 'takes a new deadline', async () => {
      const instance = await runtime.start(instanceSpec());
      await within('setDeadline', 5_000, instance.setDeadline(Date.now() + 1_200_000));
    });

    when(
      ['deadman', 'adopt'],
      'ends by itself when its deadline passes and no service is there',
      async () => {
        const spec = instanceSpec({ deadlineAt: Date.now() + 600_000 });
        const instance = await runtime.start(spec);
        await instance.setDeadline(Date.now() + 200);
        await runtime.close();
        await eventually(async () => {
          const left = await harness.leftovers();
          // A directory or container without a process is cleared by the next service.
          if (left.some((line) => /^(container|process)/.test(line))) throw new Error(left.join('; '));
        }, 30_000);
        runtime = await harness.restart();
        await runtime.stop(spec.id);
        expect(await harness.leftovers()).toEqual([]);
      },
    );

    it('closes twice', async () => {
      const instance = await runtime.start(instanceSpec());
      await runtime.close();
      await runtime.close();
      await expect(instance.dial(AGENT_PORT)).rejects.toBeInstanceOf(ServiceError);
      runtime = await harness.restart();
      await runtime.stop(instance.id);
    }, 60_000);
  });
}
