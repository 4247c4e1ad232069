import { randomUUID } from 'node:crypto';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Duplex } from 'node:stream';
import type { Logger } from '../log';
import type { ServiceMetrics } from './metrics';
import { inScope } from './scope';
import type { Attributes, RequestInfo, Span } from './scope';

/** Who answers a request. `refused`: the edge itself, as it is for nothing that can be reached. */
export const REQUEST_KINDS = ['control_plane', 'interpreter', 'agent', 'port', 'refused'] as const;
export type RequestKind = (typeof REQUEST_KINDS)[number];

export const REQUEST_ID_HEADER = 'x-request-id';
const SANE_ID = /^[\w.:+=/-]{1,128}$/;

/** Begins the trace of a request, continuing its client's where it names one. */
export interface RequestTracer {
  begin(name: string, headers: IncomingMessage['headers'], attributes: Attributes): Span;
}

export interface ObservedRequest {
  kind: RequestKind;
  sandboxId?: string | undefined;
  req: IncomingMessage;
  res: ServerResponse;
  /** For a request to change protocols: the raw socket, which outlives the response. */
  socket?: Duplex | undefined;
  /** The path's pattern, told when the answer is through; only of the control plane. */
  route?: () => string | undefined;
}

export interface RequestObserverOptions {
  logger: Logger;
  metrics: ServiceMetrics;
  tracer?: RequestTracer | undefined;
}

/** The id that a client gave its request, when it is fit for logs and headers, else a new one. */
export function requestIdOf(headers: IncomingMessage['headers']): string {
  const given = headers[REQUEST_ID_HEADER];
  return typeof given === 'string' && SANE_ID.test(given) ? given : randomUUID();
}

/**
 * Gives every request its id, and counts, times, logs and traces it until its answer is through or broken off.
 *
 * The id is in the answers that are ours. What a program in a sandbox answers is passed on as it is.
 */
export class RequestObserver {
  constructor(private readonly options: RequestObserverOptions) {}

  /** Does the request's work in its scope. */
  run(observed: ObservedRequest, work: (request: RequestInfo) => void): void {
    const { kind, req, res, socket } = observed;
    const { metrics, tracer } = this.options;
    const request: RequestInfo = {
      id: requestIdOf(req.headers),
      sandboxId: observed.sandboxId,
      isOver: false,
    };
    if (kind !== 'port' && kind !== 'agent') res.setHeader(REQUEST_ID_HEADER, request.id);
    const span = tracer?.begin(`${methodOf(req)} ${kind}`, req.headers, {
      'http.request.method': methodOf(req),
      'cellbox.request.kind': kind,
      'cellbox.request.id': request.id,
    });
    const scope = { request, span };
    const startedAt = performance.now();
    const isCommand = kind === 'agent' && pathOf(req) === '/process.Process/Start';
    metrics.requestBegins(kind, isCommand);
    const finish = (): void => {
      if (request.isOver) return;
      const status = statusOf(res, socket);
      const seconds = (performance.now() - startedAt) / 1000;
      const method = methodOf(req);
      const route = observed.route?.();
      metrics.requestEnds({ kind, isCommand, status, method, route, seconds });
      span?.set({
        ...(typeof status === 'number' && { 'http.response.status_code': status }),
        ...(route !== undefined && { 'http.route': route }),
        ...(request.sandboxId !== undefined && { 'cellbox.sandbox.id': request.sandboxId }),
      });
      span?.end(typeof status === 'number' && status >= 500 ? new Error(`answered ${status}`) : undefined);
      // Not what was asked for in full: paths of users' ports are theirs, and queries carry signatures.
      const facts = { kind, method, ...(route !== undefined && { route }), status };
      inScope(scope, () =>
        this.options.logger.debug({ ...facts, ms: Math.round(seconds * 1e3) }, 'request ended'),
      );
      request.isOver = true;
    };
    res.once('close', finish);
    socket?.once('close', finish);
    inScope(scope, () => work(request));
  }
}

/** `aborted`: the client left, or the connection broke, before there was a status. */
function statusOf(res: ServerResponse, socket: Duplex | undefined): number | 'aborted' {
  if (res.headersSent) return res.statusCode;
  // Switching protocols is not answered through the response; a socket that never switched was not detached from it.
  return socket !== undefined && res.socket === null ? 101 : 'aborted';
}

const METHODS = new Set(['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS']);

/** Of those that are known: a label of a metric is no place for what clients make up. */
function methodOf(req: IncomingMessage): string {
  const { method = 'GET' } = req;
  return METHODS.has(method) ? method : 'other';
}

function pathOf(req: IncomingMessage): string {
  return (req.url ?? '/').replace(/[?#].*$/s, '');
}
