import { spawn, spawnSync } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { Client } from 'pg';
import { freePort } from '../bench/child';

const INSTALLED = '/usr/lib/postgresql';
const START_DEADLINE_MS = 30_000;
/** The server refuses to run as root; its package makes this user. */
const UNPRIVILEGED = 'postgres';

/** Where the server's programs are, or why the cases on it are skipped. Demanded and absent is a failing test. */
export function postgresUnderTest(): { bin: string; skip?: undefined } | { bin?: undefined; skip: string } {
  const versions = fs.existsSync(INSTALLED) ? fs.readdirSync(INSTALLED) : [];
  const newest = versions.sort((a, b) => Number(b) - Number(a))[0];
  const bin = newest === undefined ? undefined : path.join(INSTALLED, newest, 'bin');
  if (bin !== undefined && fs.existsSync(path.join(bin, 'postgres'))) return { bin };
  if (process.env['CELLBOX_REQUIRE_POSTGRES'] === '1') {
    throw new Error(`CELLBOX_REQUIRE_POSTGRES=1, and there is no PostgreSQL in ${INSTALLED}`);
  }
  return { skip: 'PostgreSQL is not installed' };
}

/** A PostgreSQL server of the test's own, on loopback, in a directory that goes with it. Whoever started it stops it. */
export class TestPostgres {
  private server: ChildProcess | undefined;
  private databases = 0;

  private constructor(
    private readonly bin: string,
    private readonly dir: string,
    readonly port: number,
  ) {}

  static async start(): Promise<TestPostgres> {
    const { bin, skip } = postgresUnderTest();
    if (bin === undefined) throw new Error(skip);
    const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'cellbox-pg-'));
    const postgres = new TestPostgres(bin, dir, await freePort());
    try {
      if (isRoot()) spawnSync('chown', [UNPRIVILEGED, dir]);
      const options = ['--auth=trust', '--username=cellbox', '--encoding=UTF8', '--locale=C', '--no-sync'];
      const [program = '', ...args] = postgres.command('initdb', '-D', postgres.data, ...options);
      const made = spawnSync(program, args, { cwd: dir, encoding: 'utf8', timeout: START_DEADLINE_MS });
      if (made.status !== 0) throw new Error(`initdb failed: ${made.stderr}`);
      await postgres.resume();
      return postgres;
    } catch (error) {
      await postgres.stop();
      throw error;
    }
  }

  /** A fresh, empty database; its URL. */
  async createDatabase(): Promise<string> {
    const name = `test_${++this.databases}`;
    await this.query(this.url('postgres'), `CREATE DATABASE ${name}`);
    return this.url(name);
  }

  url(database: string): string {
    return `postgres://cellbox@127.0.0.1:${this.port}/${database}`;
  }

  /** Runs SQL on a connection of its own; its rows. */
  async query(url: string, sql: string): Promise<Array<Record<string, unknown>>> {
    const client = new Client({ connectionString: url, connectionTimeoutMillis: 5_000 });
    await client.connect();
    try {
      return (await client.query<Record<string, unknown>>(sql)).rows;
    } finally {
      await client.end();
    }
  }

  /** Starts it, again after `halt`; resolves when it takes connections. */
  async resume(): Promise<void> {
    const [program = '', ...args] = this.command('postgres', '-D', this.data, ...this.settings());
    let output = '';
    const server = spawn(program, args, { cwd: this.dir, stdio: ['ignore', 'ignore', 'pipe'] });
    server.stderr.on('data', (chunk: Buffer) => (output += chunk.toString()));
    this.server = server;
    const deadline = Date.now() + START_DEADLINE_MS;
    for (;;) {
      if (server.exitCode !== null) throw new Error(`PostgreSQL ended: ${output}`);
      const up = await this.query(this.url('postgres'), 'select 1').then(
        () => true,
        () => false, // not yet
      );
      if (up) return;
      if (Date.now() > deadline) throw new Error(`PostgreSQL did not start in time: ${output}`);
      await delay(50);
    }
  }

  /** Ends it at once with all its connections, as a crash would; its databases stay. */
  async halt(): Promise<void> {
    const { server } = this;
    this.server = undefined;
    if (server === undefined || server.exitCode !== null || server.signalCode !== null) return;
    const ended = once(server, 'exit');
    server.kill('SIGQUIT');
    await ended;
  }

  /** Ends it and removes its directory. Idempotent. */
  async stop(): Promise<void> {
    await this.halt();
    fs.rmSync(this.dir, { recursive: true, force: true });
  }

  private get data(): string {
    return path.join(this.dir, 'data');
  }

  private settings(): string[] {
    const settings = {
      listen_addresses: '127.0.0.1',
      port: this.port,
      unix_socket_directories: this.dir,
      fsync: 'off', // the machine itself doesn't crash in a test
      shared_buffers: '16MB',
    };
    return Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]);
  }

  /** The program as a user that the server accepts; it ends with this process, also when that is killed. */
  private command(program: string, ...args: string[]): string[] {
    const as = [`--reuid=${UNPRIVILEGED}`, `--regid=${UNPRIVILEGED}`, '--init-groups'];
    const file = path.join(this.bin, program);
    return ['setpriv', ...(isRoot() ? as : []), '--pdeathsig=INT', file, ...args];
  }
}

function isRoot(): boolean {
  return process.getuid?.() === 0;
}
