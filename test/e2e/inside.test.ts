import { once } from 'node:events';
import WebSocket from 'ws';
import { describeOnRuntimes } from '../describe-on-runtimes';

/** How long the parts of a sandbox may take to be back after being killed (E2B's tests allow the same). */
const RECOVERY_MS = 30_000;

describeOnRuntimes('inside a docker sandbox', { only: 'docker' }, ({ service, client }) => {
  let sandboxId: string;

  beforeEach(async () => {
    sandboxId = await client.create();
  }, 60_000);

  afterEach(() => client.kill(sandboxId));

  /** Runs a shell command in the sandbox as `user`, through the Python kernel. */
  const shell = (command: string): Promise<string> =>
    client.stdout(
      sandboxId,
      `import subprocess; print(subprocess.run(${JSON.stringify(command)}, shell=True, capture_output=True, text=True).stdout)`,
    );

  /** Waits until the interpreter of the sandbox is healthy again. */
  async function recovered(): Promise<void> {
    const deadline = Date.now() + RECOVERY_MS;
    for (;;) {
      const response = await client.port(sandboxId, 49999, '/health').catch(() => undefined);
      if (response?.status === 200) return;
      if (Date.now() > deadline) throw new Error(`not healthy after ${RECOVERY_MS} ms: ${response?.status}`);
      await new Promise((resolve) => setTimeout(resolve, 200)); // polled, as the SDK's users do
    }
  }

  it('reaches the interpreter at localhost:49999 and the agent at localhost:49983', async () => {
    expect(await shell('curl -s http://localhost:49999/health')).toContain('"OK"');
    const nested = `curl -s http://localhost:49999/contexts -X POST -H 'content-type: application/json' -d '{}'`;
    const context = JSON.parse(await shell(nested)) as { id: string };
    const cell = `curl -s http://localhost:49999/execute -H 'content-type: application/json' -d '{"code":"6*7","context_id":"${context.id}"}'`;
    expect(await shell(cell)).toContain('"text":"42"');
    expect(await shell('curl -s -o /dev/null -w "%{http_code}" http://localhost:49983/health')).toContain(
      '204',
    );
  }, 60_000);

  it('runs kernels as user, with sudo, python, git, tput and extended attributes', async () => {
    expect((await shell('id -un; pwd; sudo id -un')).trim().split('\n')).toEqual([
      'user',
      '/home/user',
      'root',
    ]);
    const tools =
      'python --version; python3 --version; git --version; curl --version | head -1; TERM=xterm tput cols';
    expect((await shell(tools)).trim().split('\n')).toHaveLength(5);
    expect(
      await shell('touch f && setfattr -n user.k -v v f && getfattr --only-values -n user.k f'),
    ).toContain('v');
  }, 60_000);

  it('gives user code none of the tokens of agent, gateway and tunnel', async () => {
    expect(await shell('env')).not.toMatch(/CELLBOX_/);
    const secrets = 'cat /proc/*/environ 2>/dev/null | tr "\\0" "\\n" | grep -a "^CELLBOX_.*TOKEN" | head';
    expect((await shell(secrets)).trim()).toBe('');
  }, 60_000);

  it('has no network and no names when the internet is closed, and still runs code', async () => {
    const closed = await client.create({ allow_internet_access: false });
    const look = `import socket
try:
    socket.create_connection(('1.1.1.1', 53), 3); print('connected')
except OSError as error:
    print('refused', error.errno)
try:
    socket.getaddrinfo('example.com', 80); print('resolved')
except OSError:
    print('no name')
print(sorted(name for _, name in socket.if_nameindex()))`;
    expect((await client.stdout(closed, look)).trim().split('\n')).toEqual([
      expect.stringMatching(/^refused/),
      'no name',
      "['lo']",
    ]);
    await client.kill(closed);
  }, 60_000);

  it('recovers when the kernel gateway is killed', async () => {
    expect(await client.text(sandboxId, '1 + 1')).toBe('2');
    const killed = client.run(
      sandboxId,
      `import os; os.system("pkill -9 -f cellbox_kernel.gateway"); import time; time.sleep(60)`,
    );
    const lines = await killed;
    expect(lines.at(-1)).toMatchObject({ type: 'end_of_execution' });
    expect(lines.filter((line) => line.type === 'error').length).toBeGreaterThan(0);
    await recovered();
    expect(await client.text(sandboxId, 'x = 1; x')).toBe('1');
  }, 90_000);

  it('keeps kernels and variables when the agent is killed', async () => {
    await client.run(sandboxId, 'kept = 41');
    const lines = await client.run(sandboxId, 'import os; os.system("sudo pkill -9 -f agent/agent.js")');
    expect(lines.at(-1)).toMatchObject({ type: 'end_of_execution' });
    await recovered();
    expect(await client.text(sandboxId, 'kept + 1')).toBe('42');
    const files = await client.port(sandboxId, 49983, '/health');
    expect(files.status).toBe(204);
  }, 90_000);

  it('passes bytes to a server of the user, web sockets included, and says when the port is closed', async () => {
    const server = `import subprocess, sys
subprocess.Popen([sys.executable, '-c', '''
import tornado.ioloop, tornado.web, tornado.websocket
class Echo(tornado.websocket.WebSocketHandler):
    def on_message(self, message): self.write_message(message[::-1])
class Hello(tornado.web.RequestHandler):
    def get(self): self.write("hello")
tornado.web.Application([("/", Hello), ("/echo", Echo)]).listen(8000, "127.0.0.1")
tornado.ioloop.IOLoop.current().start()
'''], start_new_session=True)`;
    await client.run(sandboxId, server);
    const deadline = Date.now() + 15_000;
    let response = await client.port(sandboxId, 8000, '/');
    while (response.status === 502 && Date.now() < deadline)
      response = await client.port(sandboxId, 8000, '/');
    expect(await response.text()).toBe('hello');
    const headers = { 'e2b-sandbox-id': sandboxId, 'e2b-sandbox-port': '8000' };
    const socket = new WebSocket(`${service.url.replace('http', 'ws')}/echo`, { headers });
    await once(socket, 'open');
    socket.send('abc');
    const [message] = (await once(socket, 'message')) as [Buffer];
    expect(message.toString()).toBe('cba');
    const reset = once(socket, 'close');
    await client.kill(sandboxId);
    await reset; // killing the sandbox breaks its open connections
    sandboxId = await client.create();
    const closed = await client.port(sandboxId, 8001, '/');
    expect(await closed.json()).toEqual({
      sandboxId,
      message: 'The sandbox is running but port is not open',
      port: 8001,
      code: 502,
    });
  }, 60_000);
});
