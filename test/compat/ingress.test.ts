import fs from 'node:fs';
import http from 'node:http';
import type { IncomingMessage } from 'node:http';
import { once } from 'node:events';
import os from 'node:os';
import path from 'node:path';
import { LocalCa } from '../../service/tls/local-ca';
import { describeWithJsSdks } from './js-sdks';
import type { Sandbox } from './js-sdks';

/** Tells what it is told of the host. Port 0 is any; with a certificate beside it, it speaks TLS. */
const server = (port: number, cert?: string) => `
import http.server, json, ssl, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps([self.headers['Host'], self.headers['X-Forwarded-Host']]).encode())
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', ${port}), Handler)
if ${cert === undefined ? 'False' : 'True'}:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain('${cert ?? ''}')
    server.socket = context.wrap_socket(server.socket, server_side=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_port)
`;

describeWithJsSdks('the way in', ({ sdk, generation, service }) => {
  const start = async (sandbox: Sandbox, code: string): Promise<number> => {
    const { logs, error } = await sandbox.runCode(code);
    if (error !== undefined) throw new Error(error.traceback);
    return Number(logs.stdout.join(''));
  };

  /** What the program was told, asked at the address that the SDK gives for it. */
  const told = async (sandbox: Sandbox, port: number): Promise<unknown> => {
    const headers = { host: sandbox.getHost(port) };
    const [answer] = (await once(http.get(service.url, { headers, agent: false }), 'response')) as [
      IncomingMessage,
    ];
    let text = '';
    for await (const chunk of answer) text += String(chunk);
    return answer.statusCode === 200 ? JSON.parse(text) : text;
  };

  it('is masked as asked for, told by getInfo, and stays so over a pause', async () => {
    const network = { maskRequestHost: 'localhost:${PORT}' };
    const sandbox = await sdk.Sandbox.create({ network });
    const port = await start(sandbox, server(0));
    const expected = [`localhost:${port}`, sandbox.getHost(port)];
    expect(await told(sandbox, port)).toEqual(expected);
    expect((await sandbox.getInfo()).network).toEqual({ allowPublicTraffic: true, ...network });
    await sandbox.pause();
    const again = await sdk.Sandbox.connect(sandbox.sandboxId);
    expect(await told(again, port)).toEqual(expected);
    expect((await again.runCode('1 + 1')).text).toBe('2'); // the interpreter and the agent take no notice
    expect((await again.commands.run('echo hi')).stdout).toBe('hi\n');
    await sandbox.kill();
  }, 120_000);

  it('with a mask that is no host is refused', async () => {
    for (const maskRequestHost of ['a b', 'a\r\nX-Evil: 1', 'http://a', 'a:99999']) {
      const created = sdk.Sandbox.create({ network: { maskRequestHost } });
      await expect(created).rejects.toThrow(/^400: network\.maskRequestHost: /);
    }
  }, 60_000);

  // The older generation has no such option.
  (generation === 'newest' ? it : it.skip)(
    'to ports that speak TLS is as to any other',
    async () => {
      const port = 23_000 + (process.pid % 1000); // a local sandbox shares the host's; unlikely to be taken
      const network = { httpsPorts: [port] };
      const sandbox = await sdk.Sandbox.create({ network });
      const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'cbx-inner-'));
      const { cert, key } = new LocalCa(dir, 'inner.localhost').read();
      fs.rmSync(dir, { recursive: true });
      await sandbox.files.write('/home/user/cert.pem', cert + key);
      await start(sandbox, server(port, '/home/user/cert.pem'));
      expect(await told(sandbox, port)).toEqual([sandbox.getHost(port), null]);
      expect((await sandbox.getInfo()).network).toEqual({ allowPublicTraffic: true, ...network });
      const refused = sdk.Sandbox.create({ network: { httpsPorts: [49_983] } });
      await expect(refused).rejects.toThrow(/^400: network\.httpsPorts: 49983/);
      await sandbox.kill();
    },
    120_000,
  );
});
