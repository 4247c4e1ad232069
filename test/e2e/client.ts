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
