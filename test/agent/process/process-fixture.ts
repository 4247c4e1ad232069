import { once } from 'node:events';
import fs from 'node:fs/promises';
import net from 'node:net';
import type { AddressInfo } from 'node:net';
import { toJsonString } from '@bufbuild/protobuf';
import { ConnectError, createClient } from '@connectrpc/connect';
import type { CallOptions, Client, Code, Interceptor } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-node';
import { createAsyncIterable } from '@connectrpc/connect/protocol';
import { AGENT_PORT } from '../../../protocol/routing';
import { Process } from '../../../protocol/envd/gen/process_pb';
import type { ProcessEvent } from '../../../protocol/envd/gen/process_pb';
import { Machine } from '../agent-fixture';
import { ENVELOPE_BYTES } from '../connect-frames';

/** A `StartRequest` as a caller writes it. */
export interface StartInit {
  process?: { cmd?: string; args?: string[]; envs?: Record<string, string>; cwd?: string };
  pty?: { size?: { cols: number; rows: number } };
  tag?: string;
  stdin?: boolean;
}

export type Codec = 'json' | 'binary';

/** Streams are asked for with a length, as the SDKs do it; the library would send chunks, which the agent leaves to it. */
const ofKnownLength: Interceptor = (next) => async (request) => {
  if (!request.stream || request.method.methodKind !== 'server_streaming') return next(request);
  for await (const message of request.message) {
    const length = ENVELOPE_BYTES + Buffer.byteLength(toJsonString(request.method.input, message));
    request.header.set('Content-Length', String(length));
    return next({ ...request, message: createAsyncIterable([message]) });
  }
  throw new Error('a stream without a request');
};

/** A machine whose agent's RPCs are reached as any Connect server is. */
export class ProcessMachine {
  readonly machine: Machine;
  readonly url: string;
  /** In JSON it calls as the SDKs do, in binary as only the library can answer. */
  readonly client: Client<typeof Process>;
  readonly binaryClient: Client<typeof Process>;
  private readonly bridge: net.Server;
  private readonly sockets = new Set<net.Socket>();

  private constructor(machine: Machine, bridge: net.Server, codec: Codec) {
    this.machine = machine;
    this.bridge = bridge;
    this.url = `http://127.0.0.1:${(bridge.address() as AddressInfo).port}`;
    const client = (useBinaryFormat: boolean) =>
      createClient(
        Process,
        createConnectTransport({
          baseUrl: this.url,
          httpVersion: '1.1',
          useBinaryFormat,
          interceptors: useBinaryFormat ? [] : [ofKnownLength],
        }),
      );
    this.binaryClient = client(true);
    this.client = codec === 'json' ? client(false) : this.binaryClient;
    bridge.on('connection', (socket: net.Socket) => {
      this.sockets.add(socket);
      socket.on('close', () => this.sockets.delete(socket));
    });
  }

  static async make(codec: Codec = 'json'): Promise<ProcessMachine> {
    const machine = await Machine.make();
    const bridge = net.createServer({ allowHalfOpen: true }, (socket) => {
      socket.on('error', () => {});
      machine.server.dial(AGENT_PORT).then(
        (stream) => {
          stream.on('error', () => {});
          stream.on('close', () => socket.destroy());
          socket.on('close', () => stream.destroy());
          socket.pipe(stream).pipe(socket);
        },
        () => socket.destroy(),
      );
    });
    bridge.listen(0, '127.0.0.1');
    await once(bridge, 'listening');
    return new ProcessMachine(machine, bridge, codec);
  }

  /** What a shell says to a line, from `start` to the end. */
  async sh(line: string, more: StartInit = {}, options: CallOptions = {}): Promise<Told> {
    return this.run({ ...more, process: { cmd: '/bin/sh', args: ['-c', line], ...more.process } }, options);
  }

  async run(request: StartInit, options: CallOptions = {}): Promise<Told> {
    const following = new Following(this.client.start(request, options));
    await following.toEnd();
    return following.told;
  }

  /** Starts without waiting for more than the `start` event. */
  async start(line: string, more: StartInit = {}, options: CallOptions = {}): Promise<Following> {
    const request = {
      stdin: false,
      ...more,
      process: { cmd: '/bin/sh', args: ['-c', line], ...more.process },
    };
    const following = new Following(this.client.start(request, options));
    await following.started();
    return following;
  }

  async close(): Promise<void> {
    for (const socket of this.sockets) socket.destroy();
    this.bridge.close();
    await this.machine.close();
  }
}

export interface Told {
  pid: number;
  stdout: string;
  stderr: string;
  pty: string;
  end: { exitCode: number; exited: boolean; status: string; error?: string } | undefined;
}

/** Reads the events of one stream as far as it is asked to. */
export class Following {
  readonly told: Told = { pid: 0, stdout: '', stderr: '', pty: '', end: undefined };
  readonly kinds: Array<string | undefined> = [];
  readonly sizes: number[] = [];
  private readonly events: AsyncIterator<{ event?: ProcessEvent }>;

  constructor(events: AsyncIterable<{ event?: ProcessEvent }>) {
    this.events = events[Symbol.asyncIterator]();
  }

  get pid(): number {
    return this.told.pid;
  }

  get selector(): { selector: { case: 'pid'; value: number } } {
    return { selector: { case: 'pid', value: this.told.pid } };
  }

  async started(): Promise<void> {
    await this.until(() => this.told.pid !== 0);
  }

  async toEnd(): Promise<Told> {
    await this.until(() => false);
    return this.told;
  }

  /** Reads on until this holds, or the stream ends. */
  async until(holds: (told: Told) => boolean): Promise<void> {
    while (!holds(this.told)) {
      const { done, value } = await this.events.next();
      if (done === true) return;
      this.note(value.event?.event);
    }
  }

  private note(event: ProcessEvent['event'] | undefined): void {
    this.kinds.push(event?.case);
    if (event?.case === 'start') this.told.pid = event.value.pid;
    else if (event?.case === 'data') {
      const { output } = event.value;
      if (output.case === undefined) return;
      this.sizes.push(output.value.length);
      this.told[output.case] += Buffer.from(output.value).toString('latin1');
    } else if (event?.case === 'end') {
      const { exitCode, exited, status, error } = event.value;
      this.told.end = { exitCode, exited, status, ...(error === undefined ? {} : { error }) };
    }
  }
}

/** Whether a process of this number exists and is not just waiting to be reaped. */
export async function isAlive(pid: number): Promise<boolean> {
  const stat = await fs.readFile(`/proc/${pid}/stat`, 'utf8').catch(() => ') Z');
  return stat.split(') ')[1]?.[0] !== 'Z';
}

export const bySignal = (name: string) => ({
  exitCode: -1,
  exited: false,
  status: `signal: ${name}`,
  error: `signal: ${name}`,
});

/** How a call fails. One that doesn't fails the test. */
export async function failing(promise: Promise<unknown>): Promise<{ code: Code; message: string }> {
  const error = await promise.then(
    () => new Error('it succeeded'),
    (reason: unknown) => reason,
  );
  if (!(error instanceof ConnectError)) throw error;
  return { code: error.code, message: error.rawMessage };
}
