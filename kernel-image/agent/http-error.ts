import type { ServerResponse } from 'node:http';
import { log, reason } from './log';

/** An answer other than success; `message` is for the caller. */
export class HttpError extends Error {
  readonly status: number;
  /** The body's `code`: the status, unless the answer is an RPC's. */
  readonly code: number | string;

  constructor(status: number, message: string, options: { code?: string; cause?: unknown } = {}) {
    super(message, { cause: options.cause });
    this.status = status;
    this.code = options.code ?? status;
  }

  /** Anything thrown becomes an answer; what nobody foresaw is a 500 that says what happened in one line. */
  static from(error: unknown): HttpError {
    if (error instanceof HttpError) return error;
    const code = (error as NodeJS.ErrnoException | undefined)?.code;
    if (code === 'ENOSPC' || code === 'EDQUOT' || code === 'EFBIG')
      return new HttpError(507, 'not enough disk space available');
    if (code === 'EACCES' || code === 'EPERM') return new HttpError(403, reason(error), { cause: error });
    return new HttpError(500, reason(error), { cause: error });
  }
}

export function sendJson(response: ServerResponse, status: number, body: unknown): void {
  const bytes = Buffer.from(JSON.stringify(body));
  response.writeHead(status, { 'Content-Type': 'application/json', 'Content-Length': bytes.length });
  response.end(bytes);
}

/** Set for a file that then could not be sent. */
const FILE_HEADERS = ['Accept-Ranges', 'Content-Disposition', 'Content-Range', 'Last-Modified', 'Vary'];

/** Answers with the error, or breaks the stream where the answer had begun: a clean end would be a lie. */
export function sendError(response: ServerResponse, error: unknown): void {
  const failure = HttpError.from(error);
  if (response.destroyed || response.writableEnded) return; // the client left; nobody to tell
  if (failure.status >= 500) log(`agent: ${failure.status}: ${failure.message}`);
  if (response.headersSent) {
    response.destroy();
    return;
  }
  for (const name of FILE_HEADERS) response.removeHeader(name);
  sendJson(response, failure.status, { code: failure.code, message: failure.message });
}
