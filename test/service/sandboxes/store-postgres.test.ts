import { once } from 'node:events';
import net from 'node:net';
import type { AddressInfo } from 'node:net';
import { Client } from 'pg';
import { DEFAULT_TEAM_ID } from '../../../service/sandboxes/store-teams';
import { Store } from '../../../service/sandboxes/store';
import type { StoredSandbox } from '../../../service/sandboxes/store';
import { eventually } from '../../agent/agent-fixture';
import { postgresUnderTest, TestPostgres } from '../../postgres';

/** For a server that is to be waited for in vain. */
const DEADLINES = { connectTimeoutMs: 300, statementTimeoutMs: 200 };
/** For one that answers, on a crowded machine too. */
const PATIENCE = { connectTimeoutMs: 20_000, statementTimeoutMs: 20_000 };
const LOST = { code: 'unavailable', message: 'The database of the service does not answer' };

function sandbox(id: string): StoredSandbox {
  return {
    id,
    teamId: DEFAULT_TEAM_ID,
    templateId: 'cellboxbase0template',
    templateAlias: 'base',
    state: 'running',
    startedAt: 1,
    runStartedAt: 1,
    endAt: 2,
    autoPause: false,
    autoPauseMode: 'full',
    autoResume: false,
    timeoutSeconds: 300,
    metadata: {},
    env: {},
    resources: { cpuCount: 2, memoryMB: 2048, diskSizeMB: 10_240, pids: 1024, openFiles: 16_384 },
    allowInternetAccess: true,
    allowOut: [],
    denyOut: [],
    allowPublicTraffic: true,
    secure: true,
  };
}

const ids = async (store: Store): Promise<string[]> => (await store.listSandboxes()).map((each) => each.id);

/** A way to a server that can be cut in silence: connections stay, and nothing passes. */
class Wire {
  private readonly sockets = new Set<net.Socket>();
  private readonly server = net.createServer((inner) => this.join(inner));
  private isCut = false;

  constructor(private readonly port: number) {}

  async open(): Promise<number> {
    this.server.listen(0, '127.0.0.1');
    await once(this.server, 'listening');
    return (this.server.address() as AddressInfo).port;
  }

  cut(): void {
    this.isCut = true;
  }

  mend(): void {
    this.isCut = false;
  }

  async close(): Promise<void> {
    for (const socket of this.sockets) socket.destroy();
    this.server.close();
    await once(this.server, 'close');
  }

  private join(inner: net.Socket): void {
    const outer = net.connect(this.port, '127.0.0.1');
    for (const [from, to] of [
      [inner, outer],
      [outer, inner],
    ] as const) {
      this.sockets.add(from);
      from.on('data', (chunk) => this.isCut || to.write(chunk));
      from.on('error', () => {}); // `close` follows
      from.on('close', () => to.destroy());
    }
  }
}

const { skip } = postgresUnderTest();
const onPostgres = skip === undefined ? describe : describe.skip;

onPostgres(`store in PostgreSQL${skip === undefined ? '' : ` (${skip})`}`, () => {
  let postgres: TestPostgres;
  let url: string;
  const stores: Store[] = [];

  const open = async (location = url, options = {}): Promise<Store> => {
    const store = await Store.open(location, { ...PATIENCE, ...options });
    stores.push(store);
    return store;
  };

  beforeAll(async () => {
    postgres = await TestPostgres.start();
  }, 60_000);
  beforeEach(async () => {
    url = await postgres.createDatabase();
  });
  afterEach(async () => {
    await Promise.all(stores.splice(0).map((store) => store.close()));
  });
  afterAll(() => postgres.stop());

  it('is made by two services that start at the same moment, and shared but for the sandboxes', async () => {
    const [one, other] = await Promise.all([open(url, { serviceId: 'a' }), open(url, { serviceId: 'b' })]);
    await one.addSandbox(sandbox('i1'));
    await other.addSandbox(sandbox('i2'));
    expect([await ids(one), await ids(other)]).toEqual([['i1'], ['i2']]);
    await one.teams.add({ id: 't', slug: 'acme', createdAt: 1, maxSandboxes: null, createsPerMinute: null });
    expect(await other.teams.find('acme')).toMatchObject({ id: 't' });
  });

  it('gives a service back what it wrote before it was killed', async () => {
    await (await open()).addSandbox(sandbox('i1'));
    expect(await ids(await open())).toEqual(['i1']);
  });

  describe('that can not be used is told in one line with a remedy, and without its password', () => {
    const open = async (location: string, deadlines = PATIENCE) =>
      Store.open(location.replace('cellbox@', 'cellbox:hush@'), deadlines);
    const told = (why: string) => ({
      code: 'failed_precondition',
      message: expect.stringMatching(new RegExp(`^PostgreSQL at \\S+ can't be used: ${why}$`)),
      remedy: expect.stringContaining('CELLBOX_DATABASE_URL'),
    });

    it('when nothing listens', async () => {
      const wire = new Wire(1);
      const port = await wire.open();
      await wire.close();
      const failure = open(`postgres://cellbox@127.0.0.1:${port}/x`);
      await expect(failure).rejects.toMatchObject(told('nothing answers there'));
      await expect(failure).rejects.not.toMatchObject({ message: expect.stringContaining('hush') });
    });

    it('when there is no such database, user, socket or host', async () => {
      await expect(open(postgres.url('nope'))).rejects.toMatchObject(told('there is no such database; .*'));
      const stranger = postgres.url('postgres').replace('cellbox@', 'stranger@');
      await expect(open(stranger)).rejects.toMatchObject(told('it refuses the user'));
      const socket = 'postgres://cellbox@/x?host=/nonexistent';
      await expect(open(socket)).rejects.toMatchObject(told('there is no such socket'));
      const host = 'postgres://cellbox@nowhere.invalid/x';
      await expect(open(host)).rejects.toMatchObject(told(".*host name can't be resolved"));
    });

    it('when it takes the connection and says nothing', async () => {
      const silent = net.createServer(() => {}).listen(0, '127.0.0.1');
      await once(silent, 'listening');
      const { port } = silent.address() as AddressInfo;
      await expect(open(`postgres://cellbox@127.0.0.1:${port}/x`, DEADLINES)).rejects.toMatchObject(
        told('it did not answer within 0.3 s'),
      );
      silent.close();
    });

    it('when its user may not make tables', async () => {
      await postgres.query(url, 'CREATE ROLE reader LOGIN; REVOKE CREATE ON SCHEMA public FROM PUBLIC');
      await expect(open(url.replace('cellbox@', 'reader@'))).rejects.toMatchObject({
        code: 'failed_precondition',
        remedy: expect.stringContaining('grant it CREATE'),
      });
    });

    it('when it comes from a newer release', async () => {
      await open(url).then((store) => store.close());
      await postgres.query(url, "UPDATE kysely_migration SET name = '9999-later' WHERE name = '0002-teams'");
      await expect(open(url)).rejects.toMatchObject({
        code: 'failed_precondition',
        remedy: expect.stringContaining('newer release'),
      });
    });
  });

  it('refuses while the server is down, and goes on by itself once it is back', async () => {
    const lost: unknown[] = [];
    const store = await open(url, { logger: { warn: (context: unknown) => lost.push(context) } });
    await store.addSandbox(sandbox('i1'));
    await postgres.halt();
    try {
      await eventually(() => expect(lost.length).toBeGreaterThan(0)); // told by connections that are not in use
      await expect(store.listSandboxes()).rejects.toMatchObject(LOST);
      await expect(store.addSandbox(sandbox('i2'))).rejects.toMatchObject(LOST);
      expect(await store.check()).toEqual([{ name: 'store', ok: false, detail: LOST.message }]);
    } finally {
      await postgres.resume();
    }
    expect(await ids(store)).toEqual(['i1']);
  });

  it('refuses within the deadline while the server does not get to a statement', async () => {
    const patient = await open(); // makes the tables, which takes its time
    const store = await open(url, { statementTimeoutMs: 1_000 });
    const other = new Client({ connectionString: url });
    await other.connect();
    await other.query('BEGIN; LOCK TABLE sandboxes IN ACCESS EXCLUSIVE MODE');
    const began = performance.now();
    await expect(store.listSandboxes()).rejects.toMatchObject(LOST);
    expect(performance.now() - began).toBeLessThan(10_000);
    await other.end();
    expect(await ids(patient)).toEqual([]);
  });

  it('refuses within the deadline when answers stop coming, and takes no late one for another statement', async () => {
    const wire = new Wire(postgres.port);
    const port = await wire.open();
    try {
      const store = await open(url.replace(`:${postgres.port}/`, `:${port}/`), { statementTimeoutMs: 1_000 });
      await store.addSandbox(sandbox('i1'));
      wire.cut();
      await expect(store.removeSandbox('i2')).rejects.toMatchObject(LOST);
      await expect(store.listSandboxes()).rejects.toMatchObject(LOST);
      wire.mend();
      expect(await ids(store)).toEqual(['i1']);
    } finally {
      await wire.close();
    }
  });

  it('tells a defect of ours as such, and not as a database that is away', async () => {
    const store = await open();
    await store.addSandbox(sandbox('i1'));
    await expect(store.addSandbox(sandbox('i1'))).rejects.toMatchObject({ code: '23505' });
    expect(await ids(store)).toEqual(['i1']);
  });
});
