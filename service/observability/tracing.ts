import type { IncomingMessage } from 'node:http';
import { setTimeout as delay } from 'node:timers/promises';
import type { Context, Span as OtelSpan, SpanContext } from '@opentelemetry/api';
import type { Logger } from '../log';
import type { RequestTracer } from './request-observer';
import type { Attributes, Span } from './scope';

/** How long the end of the service waits for the last spans to be taken. */
const FLUSH_DEADLINE_MS = 3_000;
const EXPORT_DEADLINE_MS = 10_000;
/** A collector that is away fails every few seconds; once in a while is enough to say so. */
const COMPLAIN_EVERY_MS = 60_000;

export interface Tracing extends RequestTracer {
  /** Sends what is left, with a deadline. Idempotent, never rejects. */
  close(): Promise<void>;
}

/**
 * Traces to where `OTEL_EXPORTER_OTLP_ENDPOINT` (or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`) says, as OTLP JSON over HTTP;
 * the other variables of OpenTelemetry hold, too. Undefined without it: then not even the packages are loaded.
 */
export async function openTracing(
  env: NodeJS.ProcessEnv,
  options: { version: string; logger: Logger },
): Promise<Tracing | undefined> {
  const endpoint = env['OTEL_EXPORTER_OTLP_TRACES_ENDPOINT'] || env['OTEL_EXPORTER_OTLP_ENDPOINT'];
  if (!endpoint || env['OTEL_SDK_DISABLED'] === 'true') return undefined;
  const [api, { resourceFromAttributes }, sdk, { OTLPTraceExporter }] = await Promise.all([
    import('@opentelemetry/api'),
    import('@opentelemetry/resources'),
    import('@opentelemetry/sdk-trace-base'),
    import('@opentelemetry/exporter-trace-otlp-http'),
  ]);
  let complainedAt = 0;
  const complain = (message: string): void => {
    if (Date.now() - complainedAt < COMPLAIN_EVERY_MS) return;
    complainedAt = Date.now();
    options.logger.warn({ from: 'opentelemetry' }, message);
  };
  const ignore = (): void => undefined;
  api.diag.setLogger(
    { error: complain, warn: complain, info: ignore, debug: ignore, verbose: ignore },
    { logLevel: api.DiagLogLevel.WARN, suppressOverrideMessage: true },
  );
  const provider = new sdk.BasicTracerProvider({
    resource: resourceFromAttributes({
      'service.name': env['OTEL_SERVICE_NAME'] || 'cellbox',
      'service.version': options.version,
    }),
    spanProcessors: [
      new sdk.BatchSpanProcessor(new OTLPTraceExporter({ timeoutMillis: EXPORT_DEADLINE_MS })),
    ],
  });
  const tracer = provider.getTracer('cellbox', options.version);

  class TracedSpan implements Span {
    private isOver = false;
    private readonly context: Context;

    constructor(
      private readonly span: OtelSpan,
      parent: Context,
    ) {
      this.context = api.trace.setSpan(parent, span);
    }

    get traceId(): string {
      return this.span.spanContext().traceId;
    }

    get spanId(): string {
      return this.span.spanContext().spanId;
    }

    child(name: string, attributes: Attributes = {}): Span {
      return new TracedSpan(tracer.startSpan(name, { attributes }, this.context), this.context);
    }

    set(attributes: Attributes): void {
      this.span.setAttributes(attributes);
    }

    end(error?: unknown): void {
      if (this.isOver) return;
      this.isOver = true;
      if (error !== undefined) {
        const message = error instanceof Error ? error.message : 'failed';
        this.span.setStatus({ code: api.SpanStatusCode.ERROR, message });
      }
      this.span.end();
    }
  }

  let closing: Promise<void> | undefined;
  return {
    begin(name, headers, attributes) {
      const remote = parseTraceparent(headers);
      const state = headers['tracestate'];
      const parent =
        remote === undefined
          ? api.ROOT_CONTEXT
          : api.trace.setSpanContext(api.ROOT_CONTEXT, {
              ...remote,
              ...(typeof state === 'string' && { traceState: api.createTraceState(state) }),
            });
      return new TracedSpan(
        tracer.startSpan(name, { kind: api.SpanKind.SERVER, attributes }, parent),
        parent,
      );
    },
    close() {
      closing ??= flush(provider, complain);
      return closing;
    },
  };
}

async function flush(
  provider: { shutdown(): Promise<void> },
  complain: (message: string) => void,
): Promise<void> {
  const timer = new AbortController();
  try {
    const late = delay(FLUSH_DEADLINE_MS, 'late', { signal: timer.signal });
    late.catch(() => undefined); // aborted below
    if ((await Promise.race([provider.shutdown(), late])) === 'late') {
      complain('the last spans were not taken in time');
    }
  } catch (error) {
    complain(`the last spans could not be sent: ${String(error)}`);
  } finally {
    timer.abort();
  }
}

const TRACEPARENT = /^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$/;

/** W3C's `traceparent`; undefined where it is not one. */
export function parseTraceparent(headers: IncomingMessage['headers']): SpanContext | undefined {
  const text = headers['traceparent'];
  if (typeof text !== 'string') return undefined;
  const [, version = '', traceId = '', spanId = '', flags = '', more] = TRACEPARENT.exec(text) ?? [];
  if (traceId === '' || /^0+$/.test(traceId) || /^0+$/.test(spanId)) return undefined;
  // Later versions may say more; this one may not, and `ff` is none.
  if (version === 'ff' || (version === '00' && more !== undefined)) return undefined;
  return { traceId, spanId, traceFlags: parseInt(flags, 16) & 1, isRemote: true };
}
