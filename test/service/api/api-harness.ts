import fs from 'node:fs';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { createApi } from '../../../service/api/app';
import type { ApiOptions } from '../../../service/api/app';
import { createLogger } from '../../../service/log';
import { Sandboxes } from '../../../service/sandboxes/sandboxes';
import type { SandboxesOptions } from '../../../service/sandboxes/sandboxes';
import type { Templates } from '../../../service/sandboxes/templates';
import { Store } from '../../../service/sandboxes/store';
import { Secrets } from '../../../service/secrets';
import { Teams } from '../../../service/teams/teams';
import { FakeEngine, FakeRuntime } from '../../fakes/fake-runtime';

export const KEY = 'e2b_00112233445566778899aabbccddeeff00112233';

export const ADMIN_TOKEN = '0123456789abcdef0123';

export const CONFIG = {
  maxSandboxes: 5,
  maxTimeoutSeconds: 86_400,
  maxBodyBytes: 256 * 1024,
  cpuCount: 2,
  memoryMB: 2048,
  diskSizeMB: 10_240,
  pids: 1024,
  openFiles: 16_384,
};

export interface Answer {
  status: number;
  headers: http.IncomingHttpHeaders;
  text: string;
  /** Undefined where the body is not JSON. */
  body: unknown;
}

export interface Ask {
  headers?: Record<string, string>;
  /** Objects are sent as JSON; text and bytes as they are. Chunked, as the JS SDK sends. */
  body?: unknown;
  key?: string | null;
}

/** The control plane on a real server, with the in-memory runtime behind it. */
export class ApiHarness {
  private constructor(
    readonly engine: FakeEngine,
    readonly store: Store,
    readonly teams: Teams,
    readonly sandboxes: Sandboxes,
    readonly server: http.Server,
    readonly app: ReturnType<typeof createApi>,
    readonly url: string,
    private readonly logDirectory: string,
  ) {}

  static async open(
    overrides: Partial<ApiOptions> = {},
    pool?: SandboxesOptions['pool'],
    templates?: Templates,
  ): Promise<ApiHarness> {
    const engine = new FakeEngine();
    const runtime = new FakeRuntime(engine);
    const store = await Store.open(':memory:');
    const teams = new Teams({ records: store.teams, defaults: { ...CONFIG, createsPerMinute: 0 } });
    await teams.setServiceKey(KEY);
    const logger = createLogger('silent');
    const logDirectory = fs.mkdtempSync(path.join(os.tmpdir(), 'cbx-logs-'));
    const sandboxes = new Sandboxes({
      runtime,
      store,
      secrets: new Secrets(Buffer.alloc(32, 1)),
      logger,
      resources: CONFIG,
      maxSandboxes: CONFIG.maxSandboxes,
      limitsOf: (teamId) => teams.limitsOf(teamId),
      maxTimeoutSeconds: CONFIG.maxTimeoutSeconds,
      startTimeoutMs: 5_000,
      logDirectory,
      ...(pool !== undefined && { pool }),
      ...(templates !== undefined && { templates }),
    });
    const api = createApi({
      config: CONFIG,
      sandboxes,
      teams,
      adminToken: ADMIN_TOKEN,
      runtime,
      logger,
      domain: 'box.example:8443',
      version: '1.2.3',
      ...overrides,
    });
    const server = http.createServer(api);
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    return new ApiHarness(engine, store, teams, sandboxes, server, api, url, logDirectory);
  }

  async ask(method: string, path: string, { headers = {}, body, key = KEY }: Ask = {}): Promise<Answer> {
    const {
      status,
      headers: received,
      text,
    } = await new Promise<Omit<Answer, 'body'>>((resolve, reject) => {
      const req = http.request(
        this.url + path,
        { method, agent: false, headers: { ...(key !== null && { 'x-api-key': key }), ...headers } },
        (res) => {
          let text = '';
          res.setEncoding('utf8');
          res.on('data', (chunk: string) => (text += chunk));
          res.on('end', () => resolve({ status: res.statusCode ?? 0, headers: res.headers, text }));
          res.on('error', reject);
        },
      );
      req.on('error', reject);
      // Node leaves it out on methods that rarely have a body.
      if (body !== undefined && req.getHeader('content-length') === undefined) {
        req.setHeader('transfer-encoding', 'chunked');
      }
      if (body === undefined) req.end();
      else if (typeof body === 'string' || Buffer.isBuffer(body)) {
        req.write(body);
        req.end();
      } else {
        req.setHeader('content-type', 'application/json');
        req.write(JSON.stringify(body));
        req.end();
      }
    });
    let parsed: unknown;
    try {
      parsed = JSON.parse(text);
    } catch {
      parsed = undefined; // told as such
    }
    return { status, headers: received, text, body: parsed };
  }

  /** Creates a sandbox and gives its id. */
  async create(fields: Record<string, unknown> = {}): Promise<string> {
    const { status, body } = await this.ask('POST', '/v2/sandboxes', {
      body: { templateID: 'base', ...fields },
    });
    if (status !== 201) throw new Error(`create answered ${status}: ${JSON.stringify(body)}`);
    return (body as { sandboxID: string }).sandboxID;
  }

  async close(): Promise<void> {
    this.server.closeAllConnections();
    await new Promise((resolve) => this.server.close(resolve));
    await this.sandboxes.close({ onStop: 'kill' });
    await this.store.close();
    fs.rmSync(this.logDirectory, { recursive: true, force: true });
  }
}
