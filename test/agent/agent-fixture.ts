import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs/promises';
import http from 'node:http';
import type net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { buildAgent } from '../../build.js';
import { AGENT_PORT } from '../../protocol/routing';
import { createLogger } from '../../service/log';
import type { InboundHandler } from '../../service/runtime/runtime';
import { TunnelServer } from '../../service/runtime/tunnel';

export const TUNNEL_TOKEN = 'tunnel-token';

/** One answer, read to its end. */
export interface Answer {
  status: number;
  headers: http.IncomingHttpHeaders;
  body: Buffer;
}

/**
 * A sandbox without a runtime: the bundled agent (alone, or under its supervisor) as a real process, and the service's
 * end of its tunnel. `close` ends everything and removes the directory.
 */
export class Machine {
  readonly directory: string;
  readonly home: string;
  readonly socketPath: string;
  server: TunnelServer;
  onInbound: InboundHandler = (_id, _port, stream) => stream.destroy();
  /** What the process wrote to stderr and stdout so far. */
  output = '';
  process: ChildProcess | undefined;

  private constructor(directory: string) {
    this.directory = directory;
    this.home = path.join(directory, 'home');
    this.socketPath = path.join(directory, 'tunnel', 'service.sock');
    this.server = this.newServer();
  }

  static async make(): Promise<Machine> {
    const directory = await fs.mkdtemp(path.join(os.tmpdir(), 'agent-'));
    await buildAgent(path.join(directory, 'bundle'));
    const machine = new Machine(directory);
    await fs.mkdir(machine.home);
    await machine.server.listen();
    return machine;
  }

  /** Starts `agent.js` or `supervisor.js` and waits until its tunnel stands. */
  async start(
    program: 'agent' | 'supervisor',
    env: Record<string, string> = {},
    wrapper: readonly string[] = [],
  ): Promise<ChildProcess> {
    const child = this.spawn(program, env, wrapper);
    await this.server.firstConnection(AbortSignal.timeout(30_000));
    return child;
  }

  /** `wrapper` is the command that runs the program, where that isn't to be our own child. */
  spawn(
    program: 'agent' | 'supervisor',
    env: Record<string, string> = {},
    wrapper: readonly string[] = [],
  ): ChildProcess {
    const script = path.join(this.directory, 'bundle', `${program}.js`);
    const [file = process.execPath, ...args] = [...wrapper, process.execPath, script];
    const child = spawn(file, args, {
      env: {
        PATH: process.env['PATH'],
        CELLBOX_TUNNEL: `unix:${this.socketPath}`,
        CELLBOX_TUNNEL_TOKEN: TUNNEL_TOKEN,
        CELLBOX_GATEWAY_TOKEN: 'gateway-token',
        CELLBOX_SINGLE_USER: '1',
        CELLBOX_HOME: this.home,
        ...env,
      },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    this.process = child;
    for (const stream of [child.stdout, child.stderr]) {
      stream?.on('data', (chunk: Buffer) => (this.output += chunk.toString()));
    }
    return child;
  }

  /** What a restart of the service is to the sandbox: every connection breaks, and later there is a new listener. */
  async restartService(): Promise<void> {
    await this.server.close();
    this.server = this.newServer();
    await this.server.listen();
  }

  async request(
    method: string,
    target: string,
    options: { headers?: http.OutgoingHttpHeaders; body?: Buffer | string; port?: number } = {},
  ): Promise<Answer> {
    const socket = await this.server.dial(options.port ?? AGENT_PORT);
    const request = http.request({
      method,
      path: target,
      headers: { host: 'sandbox', ...options.headers },
      createConnection: () => socket,
    });
    request.end(options.body);
    const [response] = (await once(request, 'response')) as [http.IncomingMessage];
    const chunks: Buffer[] = [];
    for await (const chunk of response) chunks.push(chunk as Buffer);
    socket.destroy();
    return { status: response.statusCode ?? 0, headers: response.headers, body: Buffer.concat(chunks) };
  }

  async close(): Promise<void> {
    if (this.process !== undefined && this.process.exitCode === null && this.process.signalCode === null) {
      const exited = once(this.process, 'exit');
      this.process.kill('SIGTERM');
      const hard = setTimeout(() => this.process?.kill('SIGKILL'), 5_000);
      await exited;
      clearTimeout(hard);
    }
    await this.server.close();
    await fs.rm(this.directory, { recursive: true, force: true });
  }

  private newServer(): TunnelServer {
    return new TunnelServer({
      socketPath: this.socketPath,
      token: TUNNEL_TOKEN,
      instanceId: 'box1',
      onInbound: (id, port, stream) => this.onInbound(id, port, stream),
      logger: createLogger('silent'),
    });
  }
}

/** Reads a stream to its end. */
export async function readAll(stream: net.Socket): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of stream) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

/**
 * The least of up to three times in milliseconds, the first where that is within the limit: a stall of the machine may hold
 * up one or two attempts.
 */
export async function quickest(limitMs: number, attempt: () => Promise<number>): Promise<number> {
  let tookMs = Infinity;
  for (let count = 0; count < 3 && tookMs >= limitMs; count++) tookMs = Math.min(tookMs, await attempt());
  return tookMs;
}

/** Retries until it succeeds; for states that another process reaches in its own time. */
export async function eventually<T>(attempt: () => T | Promise<T>, deadlineMs = 30_000): Promise<T> {
  const giveUpAt = Date.now() + deadlineMs;
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      if (Date.now() > giveUpAt) throw error;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }
}
