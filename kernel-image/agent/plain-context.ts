import type { IncomingMessage, ServerResponse } from 'node:http';
import type { DescMethod, DescService } from '@bufbuild/protobuf';
import { Code, ConnectError } from '@connectrpc/connect';
import type { ContextValues, HandlerContext } from '@connectrpc/connect';
import { parseTimeout } from '@connectrpc/connect/protocol-connect';

/** What a method is told about its call. Everything is made when it is asked for, as most methods need little of it. */
export class PlainContext implements HandlerContext {
  readonly requestMethod = 'POST';
  readonly protocolName = 'connect';
  /** What was set of `responseHeader`. */
  sentHeader: Headers | undefined;
  private readonly timeout: ReturnType<typeof parseTimeout>;
  private readonly startedAt = Date.now();
  private ending: AbortController | undefined;
  private timer: NodeJS.Timeout | undefined;

  constructor(
    readonly method: DescMethod,
    private readonly request: IncomingMessage,
    private readonly response: ServerResponse,
    readonly values: ContextValues,
  ) {
    const timeout = request.headers['connect-timeout-ms'];
    this.timeout = parseTimeout(typeof timeout === 'string' ? timeout : null, Number.MAX_SAFE_INTEGER);
  }

  /** @throws ConnectError `invalid_argument` when the time limit makes no sense */
  requireTimeout(): void {
    if (this.timeout.error !== undefined) throw this.timeout.error;
  }

  readonly timeoutMs = (): number | undefined => {
    const { timeoutMs } = this.timeout;
    return timeoutMs === undefined ? undefined : this.startedAt + timeoutMs - Date.now();
  };

  get service(): DescService {
    return this.method.parent;
  }

  get url(): string {
    return `http://${this.request.headers.host ?? ''}${this.request.url ?? ''}`;
  }

  get requestHeader(): Headers {
    const header = new Headers();
    for (const [name, value] of Object.entries(this.request.headersDistinct)) {
      for (const one of value ?? []) header.append(name, one);
    }
    return header;
  }

  get responseHeader(): Headers {
    return (this.sentHeader ??= new Headers());
  }

  get responseTrailer(): Headers {
    throw new Error('plain calls have no trailers');
  }

  /** Aborted when the client leaves or its time is over. */
  get signal(): AbortSignal {
    if (this.ending === undefined) {
      const ending = (this.ending = new AbortController());
      const leave = () => ending.abort(new ConnectError('the client left', Code.Canceled));
      if (this.response.destroyed) leave();
      else this.response.once('close', leave);
      const left = this.timeoutMs();
      if (left !== undefined) {
        const expire = () => ending.abort(new ConnectError('the operation timed out', Code.DeadlineExceeded));
        if (left <= 0) expire();
        else this.timer = setTimeout(expire, left);
      }
    }
    return this.ending.signal;
  }

  close(): void {
    clearTimeout(this.timer);
  }
}
