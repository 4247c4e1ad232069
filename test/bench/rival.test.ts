import { once } from 'node:events';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { text } from 'node:stream/consumers';
import { connectRival } from '../../bench/rival';

interface Seen {
  method: string | undefined;
  url: string | undefined;
  body: Record<string, unknown>;
  sandbox: string | string[] | undefined;
}

/** The NDJSON API, as little of it as a rival needs. */
async function serveRival(): Promise<{ host: string; seen: Seen[]; close(): void }> {
  const seen: Seen[] = [];
  const server = http.createServer((req, res) => {
    void text(req).then((received) => {
      const body = received === '' ? {} : (JSON.parse(received) as Record<string, unknown>);
      seen.push({ method: req.method, url: req.url, body, sandbox: req.headers['e2b-sandbox-id'] });
      res.setHeader('content-type', 'application/json');
      if (req.url === '/contexts') res.end('{"id":"ctx","language":"python","cwd":"/home/user"}');
      else if (req.method === 'DELETE') res.end('null');
      else if (body['code'] === 'fail')
        res.end(
          '{"type":"error","name":"ValueError","value":"no","traceback":""}\n{"type":"end_of_execution"}\n',
        );
      else
        res.end(
          '{"type":"stdout","text":"hello\\n","timestamp":"2026-01-01T00:00:00+00:00"}\n' +
            '{"type":"result","text":"2","html":"<b>2</b>","extra":{},"is_main_result":true}\n{"type":"end_of_execution"}\n',
        );
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  return {
    host: `127.0.0.1:${port}`,
    seen,
    close: () => {
      server.close();
      server.closeAllConnections();
    },
  };
}

describe('connectRival()', () => {
  let server: Awaited<ReturnType<typeof serveRival>>;
  beforeEach(async () => (server = await serveRival()));
  afterEach(() => server.close());

  it('runs code there, with its outputs as every other column has them', async () => {
    const rival = await connectRival(`http://${server.host}`);
    expect(rival.description).toContain(server.host);
    const sample = await rival.run('1+1');
    expect(sample).toEqual({ ms: expect.any(Number) as number, stdout: 'hello\n', types: ['text', 'html'] });
    expect(server.seen.at(-1)).toMatchObject({ method: 'POST', url: '/execute', body: { code: '1+1' } });
  });

  it('makes a context for its code and removes it', async () => {
    const rival = await connectRival(`http://${server.host}`);
    await rival.newContext('1+1');
    expect(server.seen.slice(1).map(({ method, url, body }) => [method, url, body['context_id']])).toEqual([
      ['POST', '/contexts', undefined],
      ['POST', '/execute', 'ctx'],
      ['DELETE', '/contexts/ctx', undefined],
    ]);
  });

  it('names a sandbox to an edge in front, by the address', async () => {
    await connectRival(`http://i123@${server.host}`);
    expect(server.seen.map(({ sandbox }) => sandbox)).toEqual(['i123']);
  });

  it('does not take an error for a fast answer', async () => {
    const rival = await connectRival(`http://${server.host}`);
    await expect(rival.run('fail')).rejects.toThrow('rival: ValueError: no');
  });

  it('refuses what is no address', async () => {
    await expect(connectRival('localhost:49999')).rejects.toThrow('must be an address as http://host:49999');
  });
});
