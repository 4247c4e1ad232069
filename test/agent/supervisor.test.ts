import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs/promises';
import path from 'node:path';
import { freePort } from '../../bench/child';
import { GATEWAY_PORT } from '../../protocol/routing';
import { Backoff } from '../../kernel-image/agent/backoff';
import { readGatewayCommand } from '../../kernel-image/agent/gateway-process';
import { eventually, Machine, quickest } from './agent-fixture';

/** Stands for the kernel gateway: tells about itself, has a child in its group, can be deaf to SIGTERM. */
const STUB_GATEWAY = `
  const { spawn } = require('node:child_process');
  if (process.env.STUB_DEAF === '1') process.on('SIGTERM', () => {});
  const child = spawn('sleep', ['1000'], { stdio: 'ignore' });
  const server = require('node:http').createServer((request, response) => {
    response.end(JSON.stringify({ pid: process.pid, child: child.pid, cwd: process.cwd(), env: process.env }));
  });
  server.listen(Number(process.env.CELLBOX_GATEWAY_PORT), '127.0.0.1', () => {
    console.log('cellbox gateway listening on 127.0.0.1:' + server.address().port);
  });
`;

interface Gateway {
  pid: number;
  child: number;
  cwd: string;
  env: Record<string, string>;
}

describe('the supervisor', () => {
  let machine: Machine;
  let gatewayEnv: Record<string, string>;

  beforeEach(async () => {
    machine = await Machine.make();
    gatewayEnv = {
      CELLBOX_GATEWAY_PORT: '0',
      CELLBOX_GATEWAY_COMMAND: JSON.stringify([process.execPath, '-e', STUB_GATEWAY]),
    };
  });

  afterEach(() => machine.close());

  const gateway = () =>
    eventually(async () => {
      const answer = await machine.request('GET', '/', { port: GATEWAY_PORT });
      return JSON.parse(answer.body.toString()) as Gateway;
    });

  /** Process id of the agent, as the one that has the bundle's name. */
  const agentPid = () =>
    eventually(async () => {
      const children = await fs.readFile(
        `/proc/${machine.process?.pid}/task/${machine.process?.pid}/children`,
        'utf8',
      );
      for (const pid of children.trim().split(' ')) {
        const command = await fs.readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
        if (command.includes('agent.js')) return Number(pid);
      }
      throw new Error('no agent');
    });

  const gone = (pid: number) =>
    eventually(async () => {
      const stat = await fs.readFile(`/proc/${pid}/stat`, 'utf8').catch(() => ') Z');
      // A zombie waits for whoever adopted it; it is dead.
      expect(stat.split(') ')[1]?.[0]).toBe('Z');
    });

  const exit = async (child: ChildProcess) => {
    const [code] = (await once(child, 'exit')) as [number | null];
    return code;
  };

  it('starts agent and gateway, the gateway with nothing secret but its own', async () => {
    await machine.start('supervisor', {
      ...gatewayEnv,
      _CELLBOX_INSTANCE: 'box1',
      CELLBOX_DEADLINE_AT: '9999999999999',
    });
    expect((await machine.request('GET', '/health')).status).toBe(204);
    const { env, cwd } = await gateway();
    expect(Object.keys(env).filter((name) => name.includes('CELLBOX'))).toEqual(
      expect.arrayContaining(['CELLBOX_GATEWAY_PORT', 'CELLBOX_GATEWAY_TOKEN', '_CELLBOX_INSTANCE']),
    );
    expect(JSON.stringify(env)).not.toContain('tunnel-token');
    expect({ cwd, home: env['HOME'], port: env['CELLBOX_GATEWAY_PORT'] }).toEqual({
      cwd: machine.home,
      home: machine.home,
      port: '0',
    });
    expect(env['PATH']?.startsWith('/opt/cellbox/venv/bin:')).toBe(true);
  });

  it.each([
    ['its own', () => Promise.resolve(0)],
    ['that is given', freePort],
  ])(
    'starts a gateway that is to wait when it is first wanted, and once, at a port %s',
    async (_whose, port) => {
      const waits = { CELLBOX_GATEWAY_PORT: String(await port()), CELLBOX_GATEWAY_WAITS: '1' };
      await machine.start('supervisor', { ...gatewayEnv, ...waits });
      expect((await machine.request('GET', '/health')).status).toBe(204);
      const children = `/proc/${machine.process?.pid}/task/${machine.process?.pid}/children`;
      expect((await fs.readFile(children, 'utf8')).trim()).toBe(String(await agentPid()));

      const { pid } = await gateway();
      expect((await gateway()).pid).toBe(pid);
      expect((await fs.readFile(children, 'utf8')).trim().split(' ')).toHaveLength(2);
    },
  );

  it('brings a killed agent back within a second, with its token, and leaves the gateway alone', async () => {
    await machine.start('supervisor', gatewayEnv);
    const before = await gateway();
    const body = JSON.stringify({ accessToken: 'secret', envVars: { KEPT: 'yes' }, defaultUser: 'user' });
    expect((await machine.request('POST', '/init', { body })).status).toBe(204);
    const killAgent = async () => {
      const pid = await agentPid();
      process.kill(pid, 'SIGKILL');
      const killedAt = performance.now();
      await gone(pid);
      expect((await machine.request('GET', '/health')).status).toBe(204);
      const tookMs = performance.now() - killedAt;
      expect((await machine.request('GET', '/envs')).status).toBe(401);
      const envs = await machine.request('GET', '/envs', { headers: { 'x-access-token': 'secret' } });
      expect(JSON.parse(envs.body.toString())).toMatchObject({ KEPT: 'yes' });
      return tookMs;
    };
    expect(await quickest(1_000, killAgent)).toBeLessThan(1_000);
    await killAgent();
    expect((await gateway()).pid).toBe(before.pid);
  });

  it('brings a killed gateway back at its new port, and ends what the dead one left', async () => {
    await machine.start('supervisor', gatewayEnv);
    const first = await gateway();
    process.kill(first.pid, 'SIGKILL');
    await gone(first.child);
    await gone(first.pid);
    const second = await gateway();
    expect(second.pid).not.toBe(first.pid);
    expect((await machine.request('GET', '/health')).status).toBe(204);
  });

  it('tells an agent that was restarted where the gateway is', async () => {
    await machine.start('supervisor', gatewayEnv);
    const before = await gateway();
    const pid = await agentPid();
    process.kill(pid, 'SIGKILL');
    await gone(pid);
    expect((await gateway()).pid).toBe(before.pid);
  });

  it('outlives a gateway that can not start, with pauses, and says so', async () => {
    const log = path.join(machine.directory, 'starts');
    const command = ['/bin/sh', '-c', `date +%s%N >> ${log}; exit 3`];
    await machine.start('supervisor', { ...gatewayEnv, CELLBOX_GATEWAY_COMMAND: JSON.stringify(command) });
    const starts = await eventually(async () => {
      const lines = (await fs.readFile(log, 'utf8')).trim().split('\n');
      expect(lines.length).toBeGreaterThanOrEqual(5);
      return lines.map((line) => Number(line) / 1e6);
    });
    // The first restart comes at once, the fourth after 50, 100 and 200 ms at the least.
    expect((starts[4] ?? 0) - (starts[0] ?? 0)).toBeGreaterThan(350);
    expect(machine.output).toContain('gateway ended (exit code 3)');
    expect((await machine.request('GET', '/health')).status).toBe(204);
  });

  it('outlives a gateway whose program does not exist', async () => {
    await machine.start('supervisor', { ...gatewayEnv, CELLBOX_GATEWAY_COMMAND: '["/no/such/python"]' });
    await eventually(() => expect(machine.output).toContain('ENOENT'));
    expect((await machine.request('GET', '/health')).status).toBe(204);
  });

  it('ends everything at SIGTERM, a deaf gateway by force', async () => {
    const child = await machine.start('supervisor', { ...gatewayEnv, STUB_DEAF: '1' });
    const { pid, child: grandchild } = await gateway();
    const agent = await agentPid();
    const ended = exit(child);
    child.kill('SIGTERM');
    const askedAt = performance.now();
    expect(await ended).toBe(0);
    expect(performance.now() - askedAt).toBeLessThan(4_000);
    await Promise.all([gone(pid), gone(grandchild), gone(agent)]);
  });

  it('does not leave the agent behind when it is killed itself', async () => {
    const child = await machine.start('supervisor', gatewayEnv);
    const { pid, child: grandchild } = await gateway();
    const agent = await agentPid();
    child.kill('SIGKILL');
    await gone(agent);
    // The real gateway watches its parent; the stub is ended here.
    process.kill(pid, 'SIGKILL');
    process.kill(grandchild, 'SIGKILL');
  });

  it('gives the agent what it was told at its start, and one that was restarted too', async () => {
    const told = { envVars: { TOLD: 'yes' }, accessToken: 'sesame', defaultUser: 'user' };
    await machine.start('supervisor', { ...gatewayEnv, CELLBOX_STATE: JSON.stringify(told) });
    const knows = async () => {
      expect((await machine.request('GET', '/envs')).status).toBe(401);
      const { status, body } = await machine.request('GET', '/envs', {
        headers: { 'x-access-token': 'sesame' },
      });
      expect([status, JSON.parse(body.toString())]).toEqual([200, expect.objectContaining({ TOLD: 'yes' })]);
    };
    await knows();
    const agent = await agentPid();
    process.kill(agent, 'SIGKILL');
    await gone(agent);
    await eventually(knows);
    // Told at the start or by a request, it is the same token that a later request must repeat.
    expect((await machine.request('POST', '/init', { body: '{"accessToken":"other"}' })).status).toBe(401);
  });

  it('ends by itself once the deadline has passed and no service is there, not before', async () => {
    const child = await machine.start('supervisor', { ...gatewayEnv, CELLBOX_DEADMAN_GRACE_MS: '200' });
    const ended = exit(child);
    const { pid } = await gateway();
    await machine.server.setDeadline(Date.now() - 60_000);
    // The deadline is long gone, but a service is in contact: several checks (each 50 ms) change nothing.
    for (let i = 0; i < 20; i++) {
      await new Promise((resolve) => setTimeout(resolve, 20));
      expect((await machine.request('GET', '/health')).status).toBe(204);
    }
    // Else it might end before it has found the new service.
    await machine.server.setDeadline(Date.now() + 60_000);
    await machine.restartService();
    await machine.server.firstConnection(AbortSignal.timeout(30_000));
    await machine.server.setDeadline(Date.now() - 60_000);
    await machine.server.close();
    expect(await ended).toBe(0);
    expect(machine.output).toContain('deadline has passed');
    await gone(pid);
  });

  it('lives on without a service as long as its deadline has not passed', async () => {
    const child = await machine.start('supervisor', {
      ...gatewayEnv,
      CELLBOX_DEADMAN_GRACE_MS: '50',
      CELLBOX_DEADLINE_AT: String(Date.now() + 60_000),
    });
    await machine.server.close();
    await new Promise((resolve) => setTimeout(resolve, 400));
    expect(child.exitCode).toBeNull();
    await machine.restartService();
    await machine.server.firstConnection(AbortSignal.timeout(30_000));
  });

  it.each([
    [
      { CELLBOX_TUNNEL: 'nonsense', CELLBOX_TUNNEL_TOKEN: '' },
      /CELLBOX_TUNNEL must.*; CELLBOX_TUNNEL_TOKEN is missing/,
    ],
    [{ CELLBOX_GATEWAY_TOKEN: '' }, /CELLBOX_GATEWAY_TOKEN is missing/],
    [{ CELLBOX_GATEWAY_PORT: '99999' }, /CELLBOX_GATEWAY_PORT/],
    [{ CELLBOX_DEADLINE_AT: 'tomorrow' }, /CELLBOX_DEADLINE_AT/],
    [{ CELLBOX_STATE: '{"envVars":{"":"x"}}' }, /CELLBOX_STATE: envVars: "" is not a usable name/],
    [{ CELLBOX_STATE: '{' }, /CELLBOX_STATE: /],
  ])('says what is wrong with its settings: %j', async (env, message) => {
    const child = machine.spawn('supervisor', { ...gatewayEnv, ...env });
    const [code] = (await once(child, 'close')) as [number];
    expect(code).toBe(1);
    expect(machine.output).toMatch(message);
  });
});

describe('readGatewayCommand', () => {
  const env = {
    CELLBOX_GATEWAY_TOKEN: 't',
    CELLBOX_SINGLE_USER: '1',
    PATH: '/venv/bin:/usr/bin',
    SECRET: 'kept',
  };

  it('runs our gateway with its environment first on the path', () => {
    expect(
      readGatewayCommand({ ...env, CELLBOX_PYTHON: '/venv/bin/python', CELLBOX_TUNNEL_TOKEN: 'x' }),
    ).toEqual({
      command: '/venv/bin/python',
      args: ['-m', 'cellbox_kernel.gateway'],
      cwd: '/home/user',
      identity: undefined,
      env: {
        SECRET: 'kept',
        HOME: '/home/user',
        PATH: '/venv/bin:/usr/bin',
        CELLBOX_GATEWAY_PORT: '8888',
        CELLBOX_GATEWAY_TOKEN: 't',
      },
    });
  });

  it.each(['{}', '[1]', '[]'])('refuses the command %s', (command) => {
    expect(() => readGatewayCommand({ ...env, CELLBOX_GATEWAY_COMMAND: command })).toThrow(
      'CELLBOX_GATEWAY_COMMAND',
    );
  });
});

describe('Backoff', () => {
  it('stays quick at first, doubles up to its cap, and starts over', () => {
    const backoff = new Backoff({ firstMs: 100, capMs: 1_000, quick: 2 });
    const take = (n: number) => Array.from({ length: n }, () => backoff.nextMs());
    const caps = [100, 100, 100, 200, 400, 800, 1_000, 1_000];
    for (const [i, ms] of take(8).entries()) {
      expect(ms).toBeLessThanOrEqual(caps[i] ?? 0);
      expect(ms).toBeGreaterThanOrEqual((caps[i] ?? 0) / 2);
    }
    backoff.reset();
    expect(backoff.nextMs()).toBeLessThanOrEqual(100);
  });
});
