import { spawn } from 'node:child_process';
import { once } from 'node:events';
import http from 'node:http';
import net from 'node:net';
import type { AddressInfo } from 'node:net';
import path from 'node:path';
import { cleanEnv, prepared, startService } from '../started-service';
import type { StartedService } from '../started-service';

const PROGRAMS = path.join(__dirname, 'tls');
const DEADLINE_MS = 90_000;

/** Runs a program to its end; its whole output, with its exit code when that is not 0. */
async function run(command: string, args: string[], env: Record<string, string>): Promise<string> {
  const child = spawn(command, args, {
    cwd: path.join(__dirname, '..', '..'),
    env: cleanEnv(env),
    timeout: DEADLINE_MS,
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (chunk: Buffer) => (output += chunk.toString()));
  const [code] = (await once(child, 'close')) as [number | null];
  return code === 0 ? output : `${output}\nexit code ${code}`;
}

/** What the official SDKs do when they are told a domain only: https on names under it, HTTP/2 where they can. */
describe('official SDKs over TLS, by domain alone', () => {
  let service: StartedService;
  let env: Record<string, string>;
  /** For programs whose resolver can't be told about `*.localhost`: everything they ask for is the service. */
  let proxy: http.Server;
  let proxied: string[];
  const userPort = 22_000 + (process.pid % 1000) * 10;

  beforeAll(async () => {
    service = await startService({ runtime: 'local', env: { CELLBOX_TLS: 'dev', CELLBOX_POOL_SIZE: '0' } });
    const { port } = new URL(service.url);
    const ca = path.join(service.dataDir, 'tls', 'ca.pem');
    env = {
      E2B_API_KEY: service.apiKey,
      E2B_DOMAIN: `cellbox.localhost:${port}`,
      NODE_EXTRA_CA_CERTS: ca,
      SSL_CERT_FILE: ca,
    };
    proxied = [];
    proxy = http.createServer();
    proxy.on('connect', (req, socket: net.Socket) => {
      proxied.push(req.url ?? '');
      const upstream = net.connect(Number(port), '127.0.0.1', () => {
        socket.write('HTTP/1.1 200 OK\r\n\r\n');
        upstream.pipe(socket).pipe(upstream);
      });
      for (const [one, other] of [
        [socket, upstream],
        [upstream, socket],
      ] as const) {
        one.on('error', () => {}); // followed by `close`
        one.on('close', () => other.destroy());
      }
    });
    proxy.listen(0, '127.0.0.1');
    await once(proxy, 'listening');
  }, 180_000);

  afterAll(async () => {
    proxy?.close();
    proxy?.closeAllConnections();
    await service?.stop();
  }, 60_000);

  it('tells how at start', () => {
    expect(service.output()).toContain(`export E2B_DOMAIN=${env['E2B_DOMAIN']}`);
    expect(service.output()).toContain(`export NODE_EXTRA_CA_CERTS=${env['NODE_EXTRA_CA_CERTS']}`);
  });

  it.each([
    ['newest', '@e2b/code-interpreter', 0],
    ['2.45 era', 'code-interpreter-a', 1],
  ])(
    'JavaScript, %s: a whole program, host names and a killed sandbox included',
    async (_, name, offset) => {
      const args = [path.join(PROGRAMS, 'program.js'), name, String(userPort + offset)];
      expect(await run(process.execPath, args, env)).toMatch(/all well\n$/);
    },
    DEADLINE_MS + 10_000,
  );

  it.each([
    ['newest', 'b', 2],
    ['2.45 era', 'a', 3],
  ] as const)(
    'Python, %s: a whole program, and a killed sandbox',
    async (_, generation, offset) => {
      const { port } = proxy.address() as AddressInfo;
      const args = [path.join(PROGRAMS, 'program.py'), String(userPort + offset)];
      const through = { HTTPS_PROXY: `http://127.0.0.1:${port}`, NO_PROXY: '', no_proxy: '' };
      expect(await run(prepared().sdkPython[generation], args, { ...env, ...through })).toMatch(
        /all well\n$/,
      );
      expect(proxied.map((host) => host.split(/[-.]/)[0])).toEqual(
        expect.arrayContaining(['api', '49983', '49999']),
      );
    },
    DEADLINE_MS + 10_000,
  );
});
