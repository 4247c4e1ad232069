import { EventEmitter, once } from 'node:events';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import type { OutputEvent, Termination } from '../../../protocol/interpreter';
import { decodeLines } from '../../../protocol/ndjson';
import { Interpreter } from '../../../service/interpreter/interpreter';
import type { InterpreterOptions, Machine } from '../../../service/interpreter/interpreter';
import { createLogger } from '../../../service/log';
import { FakeGateway } from '../../fakes/fake-gateway';

export interface Answer {
  status: number;
  headers: http.IncomingHttpHeaders;
  text: string;
}

/** An execution as its client sees it, read as it comes. */
export interface Stream {
  readonly response: http.IncomingMessage;
  readonly events: OutputEvent[];
  /** The next event that is not a keepalive. */
  next(): Promise<OutputEvent | undefined>;
  /** All events, keepalives left out, once the body has ended; rejects when the connection broke. */
  rest(): Promise<OutputEvent[]>;
  /** Goes away. */
  leave(): void;
}

/** One fake gateway, one sandbox, one interpreter behind a real HTTP server. */
export class Fixture {
  readonly machine: Machine;
  readonly interpreter: Interpreter;
  /** `closed` for each answer that ended or whose client went away, when the service has noticed. */
  readonly answers = new EventEmitter();
  private readonly server: http.Server;

  private constructor(
    readonly gateway: FakeGateway,
    options: Partial<InterpreterOptions>,
    env: Record<string, string>,
  ) {
    this.machine = gateway.machine(env);
    this.interpreter = newInterpreter(options);
    this.server = http.createServer((req, res) => {
      res.once('close', () => this.answers.emit('closed'));
      this.interpreter.handle(this.machine, req, res);
    });
  }

  static async start(
    options: Partial<InterpreterOptions> = {},
    env: Record<string, string> = {},
  ): Promise<Fixture> {
    const fixture = new Fixture(await FakeGateway.start(), options, env);
    fixture.server.listen(0, '127.0.0.1');
    await once(fixture.server, 'listening');
    return fixture;
  }

  async request(
    method: string,
    path: string,
    body?: unknown,
    headers: Record<string, string> = {},
  ): Promise<Answer> {
    const response = await this.send(method, path, body, headers);
    const chunks: Buffer[] = [];
    for await (const chunk of response as AsyncIterable<Buffer>) chunks.push(chunk);
    return {
      status: response.statusCode ?? 0,
      headers: response.headers,
      text: Buffer.concat(chunks).toString(),
    };
  }

  async json(method: string, path: string, body?: unknown): Promise<unknown> {
    return JSON.parse((await this.request(method, path, body)).text);
  }

  /** Resolves when the headers have arrived. */
  async open(body: object): Promise<Stream> {
    const response = await this.send('POST', '/execute', body, {});
    if (response.statusCode !== 200) throw new Error(`status ${response.statusCode}`);
    response.on('error', () => undefined); // also told to whoever reads
    const events: OutputEvent[] = [];
    const lines = decodeLines(response) as AsyncGenerator<OutputEvent>;
    const next = async (): Promise<OutputEvent | undefined> => {
      for (;;) {
        const { value, done } = await lines.next();
        if (done) return undefined;
        events.push(value);
        if (value.type !== 'keepalive') return value;
      }
    };
    const rest = async (): Promise<OutputEvent[]> => {
      while ((await next()) !== undefined);
      return events.filter((event) => event.type !== 'keepalive');
    };
    return { response, events, next, rest, leave: () => response.destroy() };
  }

  async run(body: object): Promise<OutputEvent[]> {
    return (await this.open(body)).rest();
  }

  /** Every client goes away. */
  breakOff(): void {
    this.server.closeAllConnections();
  }

  async close(): Promise<void> {
    await this.interpreter.close();
    this.server.closeAllConnections();
    await new Promise((resolve) => this.server.close(resolve));
    await this.gateway.close();
  }

  private async send(
    method: string,
    path: string,
    body: unknown,
    headers: Record<string, string>,
  ): Promise<http.IncomingMessage> {
    const { port } = this.server.address() as AddressInfo;
    const req = http.request({
      port,
      method,
      path,
      agent: false,
      headers: { 'content-type': 'application/json', ...headers },
    });
    req.end(
      body === undefined || typeof body === 'string' || Buffer.isBuffer(body) ? body : JSON.stringify(body),
    );
    const answered = once(req, 'response');
    req.on('error', () => undefined); // before the answer it rejects `once`, later it is the response's
    const [response] = (await answered) as [http.IncomingMessage];
    return response;
  }
}

export function newInterpreter(options: Partial<InterpreterOptions> = {}): Interpreter {
  return new Interpreter({
    logger: createLogger('silent'),
    kernelTimeoutMs: 10_000,
    maxBodyBytes: 64 * 1024 * 1024,
    ...options,
  });
}

export const END: OutputEvent = { type: 'end_of_execution' };
/** The last line of an execution that ended otherwise than `ok` or `error`, which say nothing more. */
export function ended(termination: Termination, fields: object = {}): OutputEvent {
  return expect.objectContaining({ type: 'end_of_execution', termination, ...fields }) as OutputEvent;
}

export const RESTARTED: OutputEvent[] = [
  { type: 'error', name: 'ContextRestarting', value: 'Context was restarted', traceback: '' },
  ended('crashed', { state_survived: false }),
];
const LOST_ERRORS: OutputEvent[] = [
  {
    type: 'error',
    name: 'WebSocketError',
    value: 'The connections was lost, rerun the code to get the results',
    traceback: '',
  },
  {
    type: 'error',
    name: 'UnexpectedEndOfExecution',
    value: 'Connection to the execution was closed before the execution was finished',
    traceback: '',
  },
];
export const LOST = [...LOST_ERRORS, ended('transport_lost', { state_survived: null })];
/** The context was restarted or removed through the API. */
export const RENEWED = [...LOST_ERRORS, ended('restarted', { state_survived: false })];

export function count(executionCount: number): OutputEvent {
  return { type: 'number_of_executions', execution_count: executionCount };
}

export function main(text: string): OutputEvent {
  return { type: 'result', text, extra: {}, is_main_result: true };
}
