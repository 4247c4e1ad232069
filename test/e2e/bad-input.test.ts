import { once } from 'node:events';
import http from 'node:http';
import net from 'node:net';
import { startService } from '../started-service';
import type { StartedService } from '../started-service';
import { Client } from './client';

let service: StartedService;
let client: Client;
let sandboxId: string;

beforeAll(async () => {
  service = await startService({ runtime: 'local' });
  client = new Client(service);
  sandboxId = await client.create();
}, 180_000);

afterAll(() => service?.stop(), 60_000);

/** Whatever was done before: the service must still serve. */
afterEach(async () => {
  expect(await client.text(sandboxId, '1 + 1')).toBe('2');
});

/** Sends bytes as they are; everything that comes back until the other side ends. */
async function raw(bytes: string | Buffer): Promise<string> {
  const socket = net.connect(Number(new URL(service.url).port), '127.0.0.1');
  const chunks: Buffer[] = [];
  socket.on('data', (chunk) => chunks.push(chunk));
  socket.on('error', () => undefined); // a reset is one of the allowed ends
  socket.end(bytes);
  await once(socket, 'close');
  return Buffer.concat(chunks).toString();
}

describe('bad input to the control plane', () => {
  it.each([
    ['malformed JSON', '{"templateID":', 400],
    ['a wrong type', '{"templateID": 7}', 400],
    ['a missing field', '{}', 400],
    ['an unknown template', '{"templateID": "nope"}', 404],
    ['a zero time-out', '{"templateID": "base", "timeout": 0}', 400],
    ['a feature that comes later', '{"templateID": "base", "mcp": {}}', 501],
    [
      'a network setting that comes later',
      '{"templateID": "base", "network": {"egressProxy": {"address": "a:1"}}}',
      501,
    ],
    ['no host', '{"templateID": "base", "network": {"maskRequestHost": "a\\r\\nb: c"}}', 400],
    ['no address', '{"templateID": "base", "network": {"denyOut": ["1.1.1"]}}', 400],
    [
      'rules that local processes can not have',
      '{"templateID": "base", "network": {"denyOut": ["1.1.1.1"]}}',
      409,
    ],
  ])('answers %s with a status and a body that says so', async (_name, body, status) => {
    const response = await client.api('POST', '/v2/sandboxes', body);
    expect(response.status).toBe(status);
    expect(await response.json()).toEqual(
      expect.objectContaining({ code: status, message: expect.stringMatching(/\S/) as string }),
    );
  });

  it('refuses a wrong or missing key', async () => {
    for (const key of ['', 'e2b_00', 'x'.repeat(5000)]) {
      const response = await fetch(`${service.url}/v2/sandboxes`, { headers: { 'x-api-key': key } });
      expect(response.status).toBe(401);
      expect(await response.json()).toMatchObject({ code: 401 });
    }
  });

  it('ignores unknown fields', async () => {
    const id = await client.create({ surprise: { a: [1] } });
    await client.kill(id);
  });

  it('survives half requests, nonsense and invalid UTF-8', async () => {
    await raw('GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhalf');
    expect(await raw('nonsense\r\n\r\n')).toContain('400');
    const body = Buffer.concat([
      Buffer.from('{"templateID":"'),
      Buffer.from([0xff, 0xfe]),
      Buffer.from('"}'),
    ]);
    const head = `POST /v2/sandboxes HTTP/1.1\r\nHost: localhost\r\nX-API-Key: ${service.apiKey}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n`;
    expect(await raw(Buffer.concat([Buffer.from(head), body]))).toMatch(/^HTTP\/1\.1 400/);
  });
});

describe('bad input to a sandbox', () => {
  it.each([
    ['malformed JSON', '{"code":', 422],
    ['code that is no string', '{"code": {"language": "python"}}', 422],
    ['no code', '{}', 422],
    ['an environment value that is no string', '{"code": "1", "env_vars": {"A": 1}}', 422],
    ['context and language together', '{"code": "1", "context_id": "a", "language": "python"}', 400],
    ['an unknown context', '{"code": "1", "context_id": "nope"}', 404],
    ['an unknown language', '{"code": "1", "language": "cobol"}', 500],
  ])('answers %s', async (_name, body, status) => {
    const response = await client.execute(sandboxId, body);
    expect(response.status).toBe(status);
    expect(await response.text()).toMatch(/\S/);
  });

  it('names the language that is not there', async () => {
    const response = await client.execute(sandboxId, { code: '1', language: 'cobol' });
    expect(await response.text()).toMatch(/^Failed to create context: .*cobol/s);
  });

  it('answers a missing directory for a context with a text that names it', async () => {
    const response = await client.port(sandboxId, 49999, '/contexts', {
      method: 'POST',
      body: JSON.stringify({ cwd: '/no/such' }),
    });
    expect(response.status).toBe(400);
    expect(await response.text()).toContain('/no/such');
  });

  it('runs ten megabytes of code', async () => {
    const code = `x = """${'a'.repeat(10_000_000)}"""\nlen(x)`;
    expect(await client.text(sandboxId, code)).toBe('10000000');
  });

  it('tells of NUL and lone surrogates in code without harm', async () => {
    for (const code of ['print("a\u0000b")', 'print("\ud800")', '\u0000']) {
      const response = await client.execute(sandboxId, { code });
      const text = await response.text();
      if (response.status === 200)
        expect(text.trimEnd().split('\n').at(-1)).toBe('{"type":"end_of_execution"}');
      else expect(response.status).toBeGreaterThanOrEqual(400);
    }
  });

  it('refuses an invalid UTF-8 body', async () => {
    const response = await client.execute(sandboxId, new Uint8Array([0x7b, 0x22, 0xff, 0x22, 0x7d]));
    expect([400, 422]).toContain(response.status);
  });

  it.each([
    ['nobodyknows', '49999', 502, 'The sandbox was not found'],
    ['NOT/AN ID', '49999', 400, 'Invalid sandbox ID'],
    ['a', 'x', 400, 'Invalid sandbox port'],
  ])('answers for sandbox %j and port %j with %d', async (id, port, status, text) => {
    const response = await fetch(`${service.url}/health`, {
      headers: { 'e2b-sandbox-id': id, 'e2b-sandbox-port': port },
    });
    expect(response.status).toBe(status);
    expect(await response.text()).toContain(text);
  });

  it('answers a closed port exactly as documented', async () => {
    const response = await client.port(sandboxId, 45678, '/');
    expect(response.status).toBe(502);
    expect(await response.json()).toEqual({
      sandboxId,
      message: 'The sandbox is running but port is not open',
      port: 45678,
      code: 502,
    });
  });

  it('never shows the kernel gateway', async () => {
    const response = await client.port(sandboxId, 8888, '/api/kernels');
    expect(response.status).toBe(502);
  });

  it('interrupts what runs when its client goes, and keeps variables', async () => {
    await client.run(sandboxId, 'kept = 7');
    const gone = new AbortController();
    const response = await client.execute(
      sandboxId,
      { code: 'print("go", flush=True)\nimport time; time.sleep(600)' },
      { signal: gone.signal },
    );
    const reader = response.body!.getReader();
    let seen = '';
    while (!seen.includes('go')) seen += Buffer.from((await reader.read()).value ?? []).toString();
    gone.abort();
    expect(await client.text(sandboxId, 'kept')).toBe('7');
  });

  it('loses nothing when a client stops reading for a while', async () => {
    const lines = 400_000;
    const url = new URL(service.url);
    const body = JSON.stringify({ code: `for i in range(${lines}): print(i, "${'x'.repeat(40)}")` });
    const request = http.request({
      host: url.hostname,
      port: url.port,
      path: '/execute',
      method: 'POST',
      headers: {
        'content-type': 'application/json',
        'e2b-sandbox-id': sandboxId,
        'e2b-sandbox-port': '49999',
        'content-length': Buffer.byteLength(body),
      },
    });
    request.end(body);
    const [response] = (await once(request, 'response')) as [http.IncomingMessage];
    response.pause();
    const idle = await client.create(); // meanwhile somebody else is served
    expect(await client.text(idle, '2 + 2')).toBe('4');
    await client.kill(idle);
    let text = '';
    let rest = '';
    response.setEncoding('utf8');
    for await (const chunk of response) {
      const parts = (rest + String(chunk)).split('\n');
      rest = parts.pop() ?? '';
      for (const part of parts) {
        const event = JSON.parse(part) as { type: string; text?: string };
        if (event.type === 'stdout') text += event.text;
        if (event.type === 'end_of_execution') rest = '';
      }
    }
    const printed = text.trimEnd().split('\n');
    expect(printed).toHaveLength(lines);
    expect(printed[0]).toMatch(/^0 /);
    expect(printed.at(-1)).toMatch(new RegExp(`^${lines - 1} `));
  }, 90_000);

  it('tells when the kernel is killed mid-cell and goes on', async () => {
    const lines = await client.run(sandboxId, 'import os, signal; os.kill(os.getpid(), signal.SIGKILL)');
    expect(lines.find((line) => line.type === 'error')).toMatchObject({ name: 'ContextRestarting' });
    expect(lines.at(-1)).toMatchObject({
      type: 'end_of_execution',
      termination: 'crashed',
      signal: 'SIGKILL',
    });
  }, 60_000);
});
