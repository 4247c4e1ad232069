import { mkdtempSync, rmSync } from 'node:fs';
import http from 'node:http';
import os from 'node:os';
import path from 'node:path';
import type { OutputEvent } from '../../../protocol/interpreter';
import type { ExecutionInfo } from '../../../protocol/native';
import { decodeLines } from '../../../protocol/ndjson';
import type { ExecutionSettings, Machine } from '../../../service/interpreter/interpreter';
import type { Interpreter } from '../../../service/interpreter/interpreter';
import { FakeGateway } from '../../fakes/fake-gateway';
import type { ApiOptions } from '../../../service/api/app';
import type { SandboxesOptions } from '../../../service/sandboxes/sandboxes';
import { newInterpreter } from '../interpreter/interpreter-fixture';
import { ApiHarness, KEY } from './api-harness';

export type NativeEvent = OutputEvent & { seq?: number };

/** A native stream as its reader sees it. */
export interface NativeStream {
  status: number;
  headers: http.IncomingHttpHeaders;
  /** The next event that is not a keepalive. */
  next(): Promise<NativeEvent | undefined>;
  rest(): Promise<NativeEvent[]>;
  /** Takes nothing more until told. */
  response: http.IncomingMessage;
  leave(): void;
}

/** The control plane with an interpreter whose kernels are all on one fake gateway. */
export class ExecutionsHarness {
  private constructor(
    readonly api: ApiHarness,
    readonly gateway: FakeGateway,
    readonly interpreter: Interpreter,
    readonly directory: string,
    readonly sandboxId: string,
    /** Serves port 49999 of the sandbox. */
    private readonly plain: http.Server,
  ) {}

  static async open(
    settings: Partial<ExecutionSettings> = {},
    overrides: Partial<ApiOptions> = {},
    pool?: SandboxesOptions['pool'],
  ): Promise<ExecutionsHarness> {
    const gateway = await FakeGateway.start();
    const directory = mkdtempSync(path.join(os.tmpdir(), 'cbx-executions-'));
    const interpreter = newInterpreter({ keepaliveMs: 5_000, executions: { directory, ...settings } });
    const machine = (id: string): Machine => gateway.machine({}, id);
    const withInterpreter: Partial<ApiOptions> = {
      interpreter: {
        submit: ({ id }, request, detached) => interpreter.submit(machine(id), request, detached),
        interruptContext: ({ id }, contextId) => interpreter.interruptContext(machine(id), contextId),
        listExecutions: (id) => interpreter.listExecutions(id),
        findExecution: (id, executionId) => interpreter.findExecution(id, executionId),
        follow: (id, record, from, res) => interpreter.follow(id, record, from, res),
      },
      ...overrides,
    };
    const api = await ApiHarness.open(withInterpreter, pool);
    const sandboxId = await api.create();
    const plain = http.createServer((req, res) => interpreter.handle(machine(sandboxId), req, res));
    await new Promise<void>((resolve) => plain.listen(0, '127.0.0.1', resolve));
    return new ExecutionsHarness(api, gateway, interpreter, directory, sandboxId, plain);
  }

  get path(): string {
    return `/v1/sandboxes/${this.sandboxId}/executions`;
  }

  /** As the interpreter is told of the sandbox. */
  get machine(): Machine {
    return this.gateway.machine({}, this.sandboxId);
  }

  async stream(method: string, path: string, body?: object): Promise<NativeStream> {
    return this.request(this.api.url, method, path, body);
  }

  /** Runs code attached, to its end. */
  async run(body: object): Promise<NativeEvent[]> {
    return (await this.stream('POST', this.path, body)).rest();
  }

  /** Runs code as a client of E2B does. */
  plainly(body: object): Promise<NativeStream> {
    return this.plainRequest('POST', '/execute', body);
  }

  /** A request for the sandbox's port 49999. */
  plainRequest(method: string, path: string, body?: object): Promise<NativeStream> {
    const { port } = this.plain.address() as { port: number };
    return this.request(`http://127.0.0.1:${port}`, method, path, body);
  }

  async detach(body: object): Promise<string> {
    const answer = await this.api.ask('POST', this.path, { body: { ...body, detached: true } });
    if (answer.status !== 202) throw new Error(`status ${answer.status}: ${answer.text}`);
    return (answer.body as { execution_id: string }).execution_id;
  }

  async info(id: string): Promise<ExecutionInfo> {
    return (await this.api.ask('GET', `${this.path}/${id}`)).body as ExecutionInfo;
  }

  /** All events of an execution once it has ended. */
  async events(id: string, from = 0): Promise<NativeEvent[]> {
    return (await this.stream('GET', `${this.path}/${id}/events?from=${from}`)).rest();
  }

  async close(): Promise<void> {
    await this.interpreter.close();
    this.plain.closeAllConnections();
    await new Promise((resolve) => this.plain.close(resolve));
    await this.api.close();
    await this.gateway.close();
    rmSync(this.directory, { recursive: true, force: true });
  }

  private async request(url: string, method: string, path: string, body?: object): Promise<NativeStream> {
    const response = await new Promise<http.IncomingMessage>((resolve, reject) => {
      const headers = { 'x-api-key': KEY, 'content-type': 'application/json' };
      const req = http.request(url + path, { method, agent: false, headers }, resolve);
      req.on('error', reject);
      req.end(body === undefined ? undefined : JSON.stringify(body));
    });
    response.on('error', () => undefined); // also told to whoever reads
    const lines = decodeLines(response) as AsyncGenerator<NativeEvent>;
    const next = async (): Promise<NativeEvent | undefined> => {
      for (;;) {
        const { value, done } = await lines.next();
        if (done) return undefined;
        if (value.type !== 'keepalive') return value;
      }
    };
    const rest = async (): Promise<NativeEvent[]> => {
      const events: NativeEvent[] = [];
      for (let event = await next(); event !== undefined; event = await next()) events.push(event);
      return events;
    };
    return {
      status: response.statusCode ?? 0,
      headers: response.headers,
      next,
      rest,
      response,
      leave: () => response.destroy(),
    };
  }
}
