import { describeOnRuntimes } from '../describe-on-runtimes';

jest.setTimeout(120_000);

const TOKEN = 'E2B-Traffic-Access-Token';

/** Answers with every header that it got, in order, and prints its port. */
const SERVER = `
import http.server, json, threading
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        self.rfile.read(int(self.headers.get('content-length') or 0))
        body = json.dumps(self.headers.items()).encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_POST = do_GET
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_port)
`;

interface Box {
  id: string;
  traffic: string;
  port: number;
}

describeOnRuntimes('a masked host on $runtime', {}, ({ client }) => {
  let victim: Box;
  /** Of the same team; its mask is the victim's own address. */
  let attacker: Box;

  const create = async (maskRequestHost: unknown): Promise<Response> =>
    client.api('POST', '/v2/sandboxes', {
      templateID: 'code-interpreter-v1',
      timeout: 3000,
      network: { allowPublicTraffic: false, maskRequestHost },
    });

  const serve = async (maskRequestHost: string): Promise<Box> => {
    const answer = await create(maskRequestHost);
    expect(answer.status).toBe(201);
    const body = (await answer.json()) as Record<string, string>;
    const [id = '', traffic = ''] = [body['sandboxID'], body['trafficAccessToken']];
    const printed = await (
      await client.execute(id, { code: SERVER }, { headers: { [TOKEN]: traffic } })
    ).text();
    return { id, traffic, port: Number(/"text":"(\d+)/.exec(printed)?.[1]) };
  };

  const hostOf = (box: Box) => `${box.port}-${box.id}.localhost`;
  const to = (box: Box) => `E2b-Sandbox-Id: ${box.id}\nE2b-Sandbox-Port: ${box.port}\n`;
  const withToken = (box: Box) => `${TOKEN}: ${box.traffic}\n`;

  /** All that the program was told of where a request came from; rejects when it was not reached. */
  const told = async (request: string): Promise<Array<[string, string]>> => {
    const answer = await client.raw(request);
    const [head = '', body = ''] = answer.split('\r\n\r\n', 2);
    if (!head.startsWith('HTTP/1.1 200 ')) throw new Error(answer);
    const headers = JSON.parse(body) as Array<[string, string]>;
    return headers.filter(([name]) => /host|forwarded/i.test(name));
  };

  beforeAll(async () => {
    victim = await serve('app-${PORT}.example');
    attacker = await serve(`${victim.port}-${victim.id}.localhost`);
    expect([victim.port, attacker.port].every((port) => port > 1024)).toBe(true);
  });

  it('is refused where it could be anything but a host, and nothing is started for it', async () => {
    const masks: unknown[] = [
      'a\r\nX-Injected: 1',
      'a\nX-Injected: 1',
      'a\rb',
      'a\0',
      'a b',
      'a\u2028b',
      'a\u0085b',
      'ａ',
      'a/b',
      'a@b',
      'a, b',
      'a:b',
      'a:99999',
      '${PORT',
      '${ENV}',
      '$PORT',
      '%0d%0aX: 1',
      `${'a'.repeat(70_000)}`,
      `${'${PORT}'.repeat(1000)}`,
      ['a'],
      { toString: 'a' },
      7,
      true,
    ];
    const before = ((await (await client.api('GET', '/v2/sandboxes')).json()) as unknown[]).length;
    for (const mask of masks) {
      const answer = await create(mask);
      const { message } = (await answer.json()) as { message: string };
      expect([mask, answer.status, message]).toEqual([mask, 400, expect.stringContaining('maskRequestHost')]);
    }
    expect(((await (await client.api('GET', '/v2/sandboxes')).json()) as unknown[]).length).toBe(before);
  });

  it.each<[string, (box: Box) => string]>([
    ['by headers', (box) => `Host: gateway\n${to(box)}`],
    ['by host', (box) => `Host: ${hostOf(box)}\n`],
    [
      'with claims about its way',
      (box) => `Host: gateway\n${to(box)}X-Forwarded-Host: evil\nForwarded: host=evil\n`,
    ],
    [
      'with such claims twice',
      (box) => `Host: gateway\n${to(box)}X-Forwarded-Host: evil\nx-forwarded-host: evil\n`,
    ],
    ['with such claims spelt otherwise', (box) => `Host: gateway\n${to(box)}X_Forwarded_Host: evil\n`],
    [
      'that wants its host dropped',
      (box) => `Host: gateway\n${to(box)}Connection: Host, X-Forwarded-Host, close\n`,
    ],
    ['that names the mask itself', (box) => `Host: app-${box.port}.example\n${to(box)}`],
  ])('is all that the program sees of a request %s, with the host that was asked for', async (_, head) => {
    const host = /^Host: (.+)$/m.exec(head(victim))?.[1];
    const request = `GET / HTTP/1.1\n${head(victim)}${withToken(victim)}`;
    expect(await told(`${request}${request.includes('close') ? '' : 'Connection: close\n'}\n`)).toEqual([
      ['Host', `app-${victim.port}.example`],
      ['X-Forwarded-Host', host],
    ]);
  });

  it('is told to the second request of a connection as to the first', async () => {
    const first = `POST / HTTP/1.1\nHost: one\n${to(victim)}${withToken(victim)}Content-Length: 4\n\nbody`;
    const second = `GET / HTTP/1.1\nHost: two\n${to(victim)}${withToken(victim)}Connection: close\n\n`;
    const answer = await client.raw(first + second);
    const hosts = [...answer.matchAll(/\["(?:X-Forwarded-)?Host", "([^"]*)"\]/g)].map((match) => match[1]);
    expect(hosts).toEqual([`app-${victim.port}.example`, 'one', `app-${victim.port}.example`, 'two']);
  });

  it('leads nowhere: one that is the address of another sandbox stays in its own', async () => {
    const request = `GET / HTTP/1.1\nHost: gateway\n${to(attacker)}${withToken(attacker)}Connection: close\n\n`;
    expect(await told(request)).toEqual([
      ['Host', hostOf(victim)],
      ['X-Forwarded-Host', 'gateway'],
    ]);
  });

  it('is no token: who asks for it by name is refused like everybody else', async () => {
    for (const host of [`app-${victim.port}.example`, 'localhost', hostOf(victim), hostOf(attacker)]) {
      const answer = await client.raw(
        `GET / HTTP/1.1\nHost: ${host}\n${to(victim)}X-Forwarded-Host: ${hostOf(victim)}\nConnection: close\n\n`,
      );
      expect([host, answer.split(' ')[1]]).toEqual([host, '403']);
    }
  });

  it('is not changed by what may be changed while the sandbox runs', async () => {
    const body = {
      network: { maskRequestHost: 'evil' },
      maskRequestHost: 'evil',
      httpsPorts: [victim.port],
    };
    expect((await client.api('PUT', `/sandboxes/${victim.id}/network`, body)).status).toBe(204);
    expect(await (await client.api('GET', `/sandboxes/${victim.id}`)).json()).toMatchObject({
      network: { maskRequestHost: 'app-${PORT}.example' },
    });
    const request = `GET / HTTP/1.1\nHost: gateway\n${to(victim)}${withToken(victim)}Connection: close\n\n`;
    expect((await told(request))[0]).toEqual(['Host', `app-${victim.port}.example`]);
  });
});
