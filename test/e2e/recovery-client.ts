import type { ExecutionInfo } from '../../protocol/native';
import { decodeLines } from '../../protocol/ndjson';
import type { Client, OutputLine } from './client';

export type NumberedLine = OutputLine & { seq?: number };

/** The native API's executions of one sandbox. */
export class Executions {
  constructor(
    private readonly client: Client,
    private readonly sandboxId: string,
  ) {}

  async detach(code: string, more: object = {}): Promise<string> {
    const response = await this.client.api('POST', this.path(), { code, detached: true, ...more });
    if (response.status !== 202) throw new Error(`status ${response.status}: ${await response.text()}`);
    return ((await response.json()) as { execution_id: string }).execution_id;
  }

  async info(id: string): Promise<ExecutionInfo> {
    return (await (await this.client.api('GET', this.path(`/${id}`))).json()) as ExecutionInfo;
  }

  async list(): Promise<ExecutionInfo[]> {
    const response = await this.client.api('GET', this.path());
    return ((await response.json()) as { items: ExecutionInfo[] }).items;
  }

  async context(): Promise<string> {
    const body = JSON.stringify({ language: 'python' });
    const response = await this.client.port(this.sandboxId, 49999, '/contexts', { method: 'POST', body });
    return ((await response.json()) as { id: string }).id;
  }

  /** All events, once it has ended. */
  events(id: string, from = 0): Promise<NumberedLine[]> {
    return this.read(id, from, () => false);
  }

  /** Events until there are enough of them, or no more. */
  async read(id: string, from: number, enough: (events: NumberedLine[]) => boolean): Promise<NumberedLine[]> {
    const response = await this.client.api('GET', this.path(`/${id}/events?from=${from}`));
    const events: NumberedLine[] = [];
    if (response.body === null) return events;
    for await (const line of decodeLines(response.body)) {
      if ((line as OutputLine).type !== 'keepalive') events.push(line as NumberedLine);
      if (enough(events)) break;
    }
    return events;
  }

  async output(id: string, stream: 'stdout' | 'stderr'): Promise<string> {
    return (await this.client.api('GET', this.path(`/${id}/output/${stream}`))).text();
  }

  private path(rest = ''): string {
    return `/v1/sandboxes/${this.sandboxId}/executions${rest}`;
  }
}

/** What the agent asks of callers. */
export async function accessTokenOf(client: Client, sandboxId: string): Promise<string> {
  const response = await client.api('POST', `/sandboxes/${sandboxId}/connect`, { timeout: 600 });
  return ((await response.json()) as { envdAccessToken?: string }).envdAccessToken ?? '';
}

/** Makes a file of the user's, from outside. */
export async function putFile(
  client: Client,
  sandboxId: string,
  path: string,
  body = '',
  token?: string,
): Promise<Response> {
  const accessToken = token ?? (await accessTokenOf(client, sandboxId));
  return client.port(sandboxId, 49983, `/files?path=${path}`, {
    method: 'POST',
    headers: { 'content-type': 'application/octet-stream', 'x-access-token': accessToken },
    body,
  });
}

/** Resolves when a condition holds, which is looked at every few milliseconds. */
export async function until(holds: () => Promise<boolean>, deadlineMs = 30_000): Promise<void> {
  const deadline = Date.now() + deadlineMs;
  while (!(await holds())) {
    if (Date.now() > deadline) throw new Error(`it did not come to pass within ${deadlineMs} ms`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
