import { once } from 'node:events';
import net from 'node:net';
import type { StartedService } from '../started-service';

export interface OutputLine {
  type: string;
  text?: string;
  name?: string;
  value?: string;
  execution_count?: number;
  is_main_result?: boolean;
  [field: string]: unknown;
}

const RAW_DEADLINE_MS = 10_000;

/** A plain HTTP client of one service: for what the SDKs would not send. */
export class Client {
  readonly service: StartedService;

  constructor(service: StartedService) {
    this.service = service;
  }

  /** One control-plane request; the body is sent as it is when it is a string. */
  api(method: string, path: string, body?: unknown): Promise<Response> {
    return fetch(`${this.service.url}${path}`, {
      method,
      headers: { 'content-type': 'application/json', 'x-api-key': this.service.apiKey },
      ...(body === undefined ? {} : { body: typeof body === 'string' ? body : JSON.stringify(body) }),
    });
  }

  /** Sends bytes as they are and gives all that comes back until the connection ends. */
  async raw(text: string): Promise<string> {
    const { hostname, port } = new URL(this.service.url);
    const socket = net.connect({ host: hostname, port: Number(port) });
    const timer = setTimeout(() => socket.destroy(new Error('no end in time')), RAW_DEADLINE_MS);
    try {
      let answer = '';
      socket.setEncoding('latin1').on('data', (chunk: string) => (answer += chunk));
      const closed = once(socket, 'close').catch((error: NodeJS.ErrnoException) => {
        if (error.code !== 'ECONNRESET' && error.code !== 'EPIPE') throw error; // a refusal, too
      });
      socket.write(text.replace(/(?<!\r)\n/g, '\r\n'), 'latin1');
      await closed;
      return answer;
    } finally {
      clearTimeout(timer);
      socket.destroy();
    }
  }

  async create(extra: Record<string, unknown> = {}): Promise<string> {
    const response = await this.api('POST', '/v2/sandboxes', {
      templateID: 'code-interpreter-v1',
      timeout: 600,
      ...extra,
    });
    if (response.status !== 201)
      throw new Error(`create answered ${response.status}: ${await response.text()}`);
    return ((await response.json()) as { sandboxID: string }).sandboxID;
  }

  async kill(sandboxId: string): Promise<void> {
    await this.api('DELETE', `/sandboxes/${sandboxId}`);
  }

  /** A request for a port of a sandbox, by headers. */
  port(sandboxId: string, port: number, path: string, init: RequestInit = {}): Promise<Response> {
    return fetch(`${this.service.url}${path}`, {
      ...init,
      headers: {
        'content-type': 'application/json',
        'e2b-sandbox-id': sandboxId,
        'e2b-sandbox-port': String(port),
        ...(init.headers as Record<string, string> | undefined),
      },
    });
  }

  execute(sandboxId: string, body: unknown, init: RequestInit = {}): Promise<Response> {
    const text = typeof body === 'string' || body instanceof Uint8Array ? body : JSON.stringify(body);
    return this.port(sandboxId, 49999, '/execute', {
      method: 'POST',
      body: text as RequestInit['body'],
      ...init,
    });
  }

  /** Runs code to its end; every line, parsed. */
  async run(sandboxId: string, code: string, extra: Record<string, unknown> = {}): Promise<OutputLine[]> {
    const response = await this.execute(sandboxId, { code, ...extra });
    const text = await response.text();
    if (response.status !== 200) throw new Error(`execute answered ${response.status}: ${text}`);
    return text
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line) as OutputLine); // our own wire format
  }

  async stdout(sandboxId: string, code: string, extra: Record<string, unknown> = {}): Promise<string> {
    const lines = await this.run(sandboxId, code, extra);
    const error = lines.find((line) => line.type === 'error');
    if (error) throw new Error(`${error.name}: ${error.value}\n${String(error['traceback'])}`);
    return lines
      .filter((line) => line.type === 'stdout')
      .map((line) => line.text)
      .join('');
  }

  async text(
    sandboxId: string,
    code: string,
    extra: Record<string, unknown> = {},
  ): Promise<string | undefined> {
    const lines = await this.run(sandboxId, code, extra);
    return lines.find((line) => line.type === 'result')?.text;
  }
}
