'use strict';

/**
 * A user's program over TLS: no URL is given, only a domain, a key and the authority to trust. Names under `localhost`
 * resolve to loopback on many systems and not on all, so the resolver is told here, as a DNS record would.
 */
const dns = require('node:dns');
const assert = require('node:assert/strict');

const { lookup } = dns;
dns.lookup = (name, options, callback) =>
  lookup(name.endsWith('.localhost') ? '127.0.0.1' : name, options, callback);

const { Sandbox } = require(process.argv[2]);

async function main() {
  const sandbox = await Sandbox.create({ timeoutMs: 120_000 });
  assert.equal((await sandbox.runCode('x = 20\nx + 1')).text, '21');
  await sandbox.files.write('greeting.txt', 'hello');
  assert.equal(await sandbox.files.read('greeting.txt'), 'hello');
  assert.equal(await sandbox.isRunning(), true);
  assert.ok((await Sandbox.list().nextItems()).some((each) => each.sandboxId === sandbox.sandboxId));

  const port = process.argv[3];
  await sandbox.runCode(`
import socket, subprocess, sys, time
server = subprocess.Popen([sys.executable, '-m', 'http.server', '${port}'])
while True:
    try:
        socket.create_connection(('127.0.0.1', ${port})).close()
        break
    except ConnectionRefusedError: # it does not listen yet
        time.sleep(0.02)
`);
  const host = sandbox.getHost(Number(port));
  assert.equal(host, `${port}-${sandbox.sandboxId}.${process.env.E2B_DOMAIN}`);
  const page = await fetch(`https://${host}/greeting.txt`);
  assert.deepEqual([page.status, await page.text()], [200, 'hello']);
  await sandbox.runCode('server.kill(); server.wait()');
  const closed = await fetch(`https://${host}/`);
  assert.deepEqual([closed.status, (await closed.json()).port], [502, Number(port)]);

  // One is interrupted by the other: the answer breaks in the middle.
  const broken = assert.rejects(
    sandbox.runCode("import time; print('going', flush=True); time.sleep(60)", {
      onStdout: () => void sandbox.kill(),
    }),
    /sandbox/i,
  );
  await broken;
  assert.equal(await sandbox.isRunning(), false);
  const gone = await fetch(`https://${host}/`);
  assert.deepEqual(
    [gone.status, await gone.json()],
    [502, { sandboxId: sandbox.sandboxId, message: 'The sandbox was not found', code: 502 }],
  );
  console.log('all well');
  process.exit(0); // the SDK keeps connections open for a while
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
