import http from 'node:http';
import type { AddressInfo } from 'node:net';

/** A span as the receiver understood it. */
export interface ReceivedSpan {
  traceId: string;
  spanId: string;
  parentSpanId: string | undefined;
  name: string;
  attributes: Record<string, unknown>;
  isError: boolean;
  /** Nanoseconds since the epoch. */
  start: bigint;
  end: bigint;
}

interface OtlpAttribute {
  key: string;
  value: Record<string, unknown>;
}
interface OtlpSpan {
  traceId: string;
  spanId: string;
  parentSpanId?: string;
  name: string;
  startTimeUnixNano: string;
  endTimeUnixNano: string;
  attributes: OtlpAttribute[];
  status: { code?: number };
}
interface OtlpBody {
  resourceSpans: Array<{
    resource: { attributes: OtlpAttribute[] };
    scopeSpans: Array<{ spans: OtlpSpan[] }>;
  }>;
}

/** A collector of traces: takes OTLP JSON over HTTP, or never answers. */
export class OtlpReceiver {
  readonly spans: ReceivedSpan[] = [];
  readonly resources: Array<Record<string, unknown>> = [];
  readonly paths = new Set<string>();
  /** Takes what comes and answers nothing. */
  isStuck = false;
  private readonly server = http.createServer((req, res) => {
    void this.take(req, res);
  });

  static async open(): Promise<OtlpReceiver> {
    const receiver = new OtlpReceiver();
    await new Promise<void>((resolve) => receiver.server.listen(0, '127.0.0.1', resolve));
    return receiver;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }

  named(name: string): ReceivedSpan {
    const found = this.spans.find((span) => span.name === name);
    if (found === undefined)
      throw new Error(`no span ${name} in ${this.spans.map((span) => span.name).join(', ')}`);
    return found;
  }

  /** Names from the span itself up to the first one. */
  lineage(span: ReceivedSpan): string[] {
    const parent = this.spans.find((each) => each.spanId === span.parentSpanId);
    return [span.name, ...(parent === undefined ? [] : this.lineage(parent))];
  }

  async close(): Promise<void> {
    this.server.closeAllConnections();
    await new Promise((resolve) => this.server.close(resolve));
  }

  private async take(req: http.IncomingMessage, res: http.ServerResponse): Promise<void> {
    const chunks: Buffer[] = [];
    for await (const chunk of req as AsyncIterable<Buffer>) chunks.push(chunk);
    if (this.isStuck) return;
    this.paths.add(`${req.method} ${req.url} ${req.headers['content-type']}`);
    const body = JSON.parse(Buffer.concat(chunks).toString()) as OtlpBody;
    for (const { resource, scopeSpans } of body.resourceSpans) {
      this.resources.push(read(resource.attributes));
      for (const span of scopeSpans.flatMap((each) => each.spans)) {
        this.spans.push({
          traceId: span.traceId,
          spanId: span.spanId,
          parentSpanId: span.parentSpanId || undefined,
          name: span.name,
          attributes: read(span.attributes),
          isError: span.status.code === 2,
          start: BigInt(span.startTimeUnixNano),
          end: BigInt(span.endTimeUnixNano),
        });
      }
    }
    res.writeHead(200, { 'content-type': 'application/json' }).end('{}');
  }
}

function read(attributes: OtlpAttribute[]): Record<string, unknown> {
  return Object.fromEntries(attributes.map(({ key, value }) => [key, Object.values(value)[0]]));
}
