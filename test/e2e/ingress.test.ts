import type { PoolInfo } from '../../protocol/native';
import { runtimesUnderTest, startService } from '../started-service';
import type { StartedService } from '../started-service';
import { Client } from './client';

const DEADLINE_MS = 120_000;

/** In a process of its own, which outlives kernels; prints its port. */
const SERVER = `
import subprocess, sys
code = '''
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{self.headers['Host']} {self.headers['X-Forwarded-Host']}".encode())
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
'''
print(subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE).stdout.readline().decode())
`;

describe.each(runtimesUnderTest())('the way into a $runtime sandbox', ({ runtime, skip }) => {
  const test = skip === undefined ? it : it.skip;
  let service: StartedService | undefined;

  afterEach(() => service?.stop(), 60_000);

  async function claimedTotal(client: Client, atLeastReady: number): Promise<number> {
    for (const deadline = Date.now() + DEADLINE_MS; ;) {
      const { items } = (await (await client.api('GET', '/v1/pools')).json()) as { items: PoolInfo[] };
      const pool = items.find(({ template }) => template === 'code-interpreter-v1');
      if (pool !== undefined && pool.ready >= atLeastReady) return pool.claimed_total;
      if (Date.now() > deadline) throw new Error(`no machine was ready in time: ${JSON.stringify(items)}`);
      await new Promise((resolve) => setTimeout(resolve, 100)); // polled, as an operator would
    }
  }

  test(
    'is masked in sandboxes that were kept ready, too, and stays so over a restart of the service',
    async () => {
      service = await startService({ runtime, env: { CELLBOX_POOL_SIZE: '1', CELLBOX_POOL_MAX: '1' } });
      const client = new Client(service);
      const before = await claimedTotal(client, 1);
      const id = await client.create({ network: { maskRequestHost: 'localhost:${PORT}' } });
      expect(await claimedTotal(client, 0)).toBe(before + 1);
      const port = Number(await client.stdout(id, SERVER));
      const seen = async (from: Client) => (await from.port(id, port, '/')).text();
      expect(await seen(client)).toBe(`localhost:${port} ${new URL(service.url).host}`);

      await service.signal('SIGTERM');
      service = await startService({ runtime, dataDir: service.dataDir, env: { CELLBOX_POOL_SIZE: '0' } });
      const next = new Client(service);
      expect(await (await next.api('GET', `/sandboxes/${id}`)).json()).toMatchObject({
        network: { maskRequestHost: 'localhost:${PORT}' },
      });
      expect(await seen(next)).toBe(`localhost:${port} ${new URL(service.url).host}`);
    },
    2 * DEADLINE_MS,
  );
});
