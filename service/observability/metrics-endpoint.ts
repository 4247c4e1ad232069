import http from 'node:http';
import type { ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Registry } from 'prom-client';
import { ServiceError } from '../errors';

/** Answers with all metrics as Prometheus reads them. Never rejects. */
export async function sendMetrics(registry: Registry, res: ServerResponse): Promise<void> {
  try {
    const text = await registry.metrics();
    res.writeHead(200, { 'content-type': registry.contentType, 'cache-control': 'no-store' });
    res.end(text);
  } catch {
    // One broken source spoils the whole page, and there is nobody to tell but the reader.
    res.writeHead(500).end();
  }
}

export interface MetricsServer {
  /** `host:port` as it came to be. */
  readonly address: string;
  /** Idempotent. */
  close(): void;
}

/**
 * Serves `/metrics` on an address of its own, to whoever can connect to it: that is the operator's to restrict.
 *
 * @throws ServiceError `failed_precondition` when it can't listen there.
 */
export function serveMetrics(registry: Registry, where: string): Promise<MetricsServer> {
  const [, host = '', port = ''] = /^(.*):(\d+)$/.exec(where) ?? [];
  const server = http.createServer({ requestTimeout: 10_000, keepAliveTimeout: 75_000 }, (req, res) => {
    const path = (req.url ?? '/').replace(/\?.*$/s, '');
    if (path !== '/metrics') res.writeHead(404).end();
    else if (req.method !== 'GET' && req.method !== 'HEAD') res.writeHead(405, { allow: 'GET, HEAD' }).end();
    else void sendMetrics(registry, res);
  });
  return new Promise((resolve, reject) => {
    const onError = (cause: Error): void =>
      reject(
        new ServiceError('failed_precondition', `The metrics can't be served on ${where}: ${cause.message}`, {
          cause,
          remedy: 'Give another address with CELLBOX_METRICS_ADDRESS; port 0 takes a free one.',
        }),
      );
    server.once('error', onError);
    server.listen(Number(port), host.replace(/^\[|\]$/g, ''), () => {
      server.off('error', onError);
      server.unref(); // it serves as long as the service does, and keeps nothing alive
      const { port: actual } = server.address() as AddressInfo; // a TCP server's address is never a string
      resolve({
        address: `${host}:${actual}`,
        close: () => {
          server.close();
          server.closeAllConnections();
        },
      });
    });
  });
}
