import { once } from 'node:events';
import http from 'node:http';
import type { IncomingMessage } from 'node:http';
import type { Socket } from 'node:net';
import { z } from 'zod';
import { GATEWAY_PORT } from '../../protocol/routing';
import { ServiceError } from '../errors';

/** How the interpreter reaches a machine; see `Instance.dial`. The caller owns the socket. */
export type Dial = (port: number, options?: { signal?: AbortSignal }) => Promise<Socket>;

/** No DNS name: every connection is dialled through the machine, whatever the URL says. */
export const GATEWAY_HOST = 'gateway';

const DIAL_DEADLINE_MS = 10_000;
/** Far above what the gateway needs for anything but starting a kernel on a busy machine. */
const REQUEST_DEADLINE_MS = 30_000;
const MAX_ERROR_TEXT = 4096;
/** What answers is inside the sandbox: it must not fill our memory. */
const MAX_ANSWER_BYTES = 16 * 1024 * 1024;

/** What we ask the gateway to remember of a kernel, so that a restarted service finds its contexts again. */
export const ContextRecord = z.object({
  id: z.string(),
  language: z.string(),
  cwd: z.string(),
  is_default: z.boolean(),
  /** Milliseconds since the epoch: lists are oldest first. */
  created_at: z.number(),
});
export type ContextRecord = z.infer<typeof ContextRecord>;

const KernelModel = z.object({
  id: z.string().regex(/^[\w-]{1,128}$/),
  name: z.string(),
  execution_state: z.string().optional(),
  metadata: z.object({ cellbox: ContextRecord }).optional().catch(undefined),
  /** How a process of it ended last, and when (milliseconds since the epoch); see `cellbox_kernel/endings.py`. */
  last_ending: z.looseObject({ at: z.number() }).optional().catch(undefined),
});
export type KernelModel = z.infer<typeof KernelModel>;

export interface KernelSpec {
  name: string;
  env: Record<string, string>;
  /** Absolute path; undefined is the user's home. */
  cwd: string | undefined;
  record: ContextRecord;
}

/** The gateway answered, but not with what was asked for. `text` is its body. */
export class GatewayRefusal extends Error {
  constructor(
    readonly status: number,
    readonly text: string,
  ) {
    super(`the kernel gateway answered ${status}: ${text.slice(0, 200)}`);
    this.name = 'GatewayRefusal';
  }
}

/**
 * The REST side of one machine's kernel gateway, and the connections to it. Every call has a deadline; it rejects with
 * `GatewayRefusal` when the gateway said no, and with ServiceError `unavailable` when it could not be asked.
 */
export class Gateway {
  private readonly closing = new AbortController();

  constructor(
    private readonly dial: Dial,
    private readonly token: string,
  ) {}

  get headers(): Record<string, string> {
    return { authorization: `token ${this.token}` };
  }

  async startKernel(spec: KernelSpec): Promise<string> {
    const { name, env, cwd, record } = spec;
    const body = { name, env, ...(cwd !== undefined && { cwd }), metadata: { cellbox: record } };
    return understood(KernelModel, await this.request('POST', '/api/kernels', body)).id;
  }

  async listKernels(signal?: AbortSignal): Promise<KernelModel[]> {
    return understood(z.array(KernelModel), await this.request('GET', '/api/kernels', undefined, signal));
  }

  async findKernel(kernelId: string): Promise<KernelModel> {
    return understood(KernelModel, await this.request('GET', `/api/kernels/${kernelId}`));
  }

  /** Resolves when the new process is started; whoever connects then waits for it to speak. `now`: the old one is killed. */
  async restartKernel(kernelId: string, now = false): Promise<void> {
    await this.request('POST', `/api/kernels/${kernelId}/restart${now ? '?now=true' : ''}`);
  }

  async interruptKernel(kernelId: string): Promise<void> {
    await this.request('POST', `/api/kernels/${kernelId}/interrupt`);
  }

  async shutdownKernel(kernelId: string): Promise<void> {
    await this.request('DELETE', `/api/kernels/${kernelId}`);
  }

  /** Breaks off what is under way. */
  close(): void {
    this.closing.abort(new ServiceError('unavailable', 'The sandbox has ended'));
  }

  /** A connection of the caller's own; the caller destroys it. */
  connect(): Promise<Socket> {
    const signal = AbortSignal.any([this.closing.signal, AbortSignal.timeout(DIAL_DEADLINE_MS)]);
    return this.dial(GATEWAY_PORT, { signal });
  }

  private async request(method: string, path: string, body?: object, signal?: AbortSignal): Promise<unknown> {
    const signals = [this.closing.signal, AbortSignal.timeout(REQUEST_DEADLINE_MS)];
    if (signal !== undefined) signals.push(signal);
    let status: number;
    let text: string;
    try {
      ({ status, text } = await this.ask(method, path, body, AbortSignal.any(signals)));
    } catch (error) {
      throw new ServiceError('unavailable', 'The kernel gateway of the sandbox can not be reached', {
        cause: error,
      });
    }
    if (status >= 300) throw new GatewayRefusal(status, text.slice(0, MAX_ERROR_TEXT));
    try {
      return text === '' ? undefined : JSON.parse(text);
    } catch (error) {
      throw notUnderstood(error);
    }
  }

  /** Over a connection of its own: requests are rare, and one on a connection that is just being closed fails for nothing. */
  private async ask(
    method: string,
    path: string,
    body: object | undefined,
    signal: AbortSignal,
  ): Promise<{ status: number; text: string }> {
    const socket = await this.connect();
    try {
      const request = http.request({
        method,
        path,
        headers: {
          ...this.headers,
          host: GATEWAY_HOST,
          'content-type': 'application/json',
          connection: 'close',
        },
        createConnection: () => socket,
        signal,
      });
      const answered = once(request, 'response') as Promise<[IncomingMessage]>;
      request.on('error', () => undefined); // told by `answered`, and later by the response
      request.end(body === undefined ? undefined : JSON.stringify(body));
      const [response] = await answered;
      return { status: response.statusCode ?? 0, text: await textOf(response) };
    } finally {
      socket.destroy();
    }
  }
}

async function textOf(response: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    size += chunk.length;
    if (size > MAX_ANSWER_BYTES) throw new Error(`the answer is larger than ${MAX_ANSWER_BYTES} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString();
}

function understood<Schema extends z.ZodType>(schema: Schema, answer: unknown): z.output<Schema> {
  const parsed = schema.safeParse(answer);
  if (!parsed.success) throw notUnderstood(parsed.error);
  return parsed.data;
}

function notUnderstood(cause: unknown): ServiceError {
  return new ServiceError(
    'unavailable',
    'The kernel gateway of the sandbox gave an answer that makes no sense',
    {
      cause,
    },
  );
}
