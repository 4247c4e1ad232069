import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { AGENT_PORT, INTERPRETER_PORT } from '../../protocol/routing';
import { instanceSpec, request, runRuntimeSuite } from '../suites/runtime-suite';
import { makeLocalHarness, processesWith, whyNoBubblewrap } from './local-harness';
import type { LocalHarness } from './local-harness';

jest.setTimeout(120_000);
const noBubblewrap = whyNoBubblewrap();
const onLinux = process.platform === 'linux' ? undefined : 'processes are found through /proc';

runRuntimeSuite('local', (hooks) => makeLocalHarness(hooks, { bubblewrap: 'off' }), {
  skip: onLinux,
  lacks: ['network-none', 'loopback'],
});

// Programs inside reach the service at localhost:49999 only where that port is their own: without a network.
runRuntimeSuite('local with bubblewrap', (hooks) => makeLocalHarness(hooks, { bubblewrap: 'require' }), {
  skip: noBubblewrap,
  lacks: ['loopback'],
});

/** Leaves daemons behind in every way that leads out of a process tree, and waits until they run. */
function daemons(word: string): string {
  return `
import os, subprocess, sys, time
sleeper = [sys.executable, "-S", "-c", "import signal, time\\nfor n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\\ntime.sleep(900)", ${JSON.stringify(word)}]
subprocess.Popen(sleeper, start_new_session=True, env={})
subprocess.Popen(["nohup"] + sleeper, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 256)
        os.chdir("/")
        os.execve(sys.executable, sleeper, {})
    os._exit(0)
os.wait()
def line(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file: return file.read()
    except OSError: return b""  # it has ended meanwhile
while True:
    lines = [line(pid) for pid in os.listdir("/proc") if pid.isdigit()]
    if sum(${JSON.stringify(word)}.encode() in line and b"time.sleep(900)" in line for line in lines) >= 3: break
    time.sleep(0.01)
print("ready")
`;
}

/** A directory for another agent, readable for the user that sandboxes run as. */
function makeAgentDir(): string {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'cbx-agent-'));
  fs.chmodSync(directory, 0o755);
  return directory;
}

describe.each([
  ['without bubblewrap', 'off' as const, onLinux],
  ['with bubblewrap', 'require' as const, noBubblewrap],
])('a local sandbox %s', (_name, bubblewrap, skip) => {
  const suite = skip === undefined ? describe : describe.skip;
  suite(skip === undefined ? 'here' : `(skipped: ${skip})`, () => {
    let harness: LocalHarness;

    beforeAll(async () => {
      harness = await makeLocalHarness(
        { onInbound: (_id, _port, stream) => stream.destroy() },
        { bubblewrap },
      );
    }, 600_000);

    afterAll(() => harness?.close());

    afterEach(async () => {
      for (const { id } of await harness.runtime.list()) await harness.runtime.stop(id);
      expect(await harness.leftovers()).toEqual([]);
    });

    it('takes daemons with it that forked twice, opened sessions and ignore signals', async () => {
      const word = `daemon-${Date.now()}-${bubblewrap}`;
      const { id } = await harness.runtime.start(instanceSpec());
      expect(await harness.python(id, daemons(word))).toBe('ready\n');
      expect((await processesWith(word)).length).toBeGreaterThanOrEqual(3);
      await harness.runtime.stop(id);
      expect(await processesWith(word)).toEqual([]);
    });

    it('takes them with it when the supervisor is killed from outside', async () => {
      const word = `orphan-${Date.now()}-${bubblewrap}`;
      const instance = await harness.runtime.start(instanceSpec());
      await harness.python(instance.id, daemons(word));
      await harness.killFromOutside(instance.id);
      expect(await instance.ended).toMatchObject({ reason: 'exited' });
      expect(await processesWith(word)).toEqual([]);
      expect(await harness.runtime.list()).toEqual([expect.objectContaining({ state: 'halted' })]);
    });

    it('keeps variables, files and processes when the service goes and comes back', async () => {
      const { id } = await harness.runtime.start(instanceSpec());
      await harness.python(id, 'open("kept.txt", "w").write("kept")');
      const before = await harness.processes();
      await harness.restart();
      const again = await harness.runtime.adopt(id);
      expect((await request(again, AGENT_PORT, '/health')).status).toBe(204);
      expect(await harness.python(id, 'print(open("kept.txt").read())')).toBe('kept\n');
      expect(await harness.processes()).toEqual(expect.arrayContaining(before));
    });

    it('installs packages for this sandbox alone', async () => {
      const [one, two] = await Promise.all([
        harness.runtime.start(instanceSpec()),
        harness.runtime.start(instanceSpec()),
      ]);
      // A package made on the spot: the test needs no index.
      const install = `
import os, subprocess, sys
os.makedirs("src/only_here", exist_ok=True)
open("src/only_here/__init__.py", "w").write("")
open("src/setup.py", "w").write("from setuptools import setup; setup(name='only-here', version='1', packages=['only_here'])")
import sysconfig, shutil
site = sysconfig.get_path("purelib")
shutil.copytree("src/only_here", site + "/only_here")
done = subprocess.run([sys.executable, "-c", "import only_here, pandas; print(only_here.__file__ != pandas.__file__)"], capture_output=True, text=True, check=True)
print(done.stdout, subprocess.run(["pip", "--version"], capture_output=True, text=True, check=True).stdout.startswith("pip"))`;
      expect(await harness.python(one.id, install)).toBe('True\n True\n');
      await expect(harness.python(two.id, 'import only_here')).rejects.toThrow(/ModuleNotFoundError/);
    });

    it('gives programs nothing of the environment of the service, and no token', async () => {
      process.env['CELLBOX_TEST_SECRET_OF_SERVICE'] = 'secret-of-service';
      try {
        const instance = await harness.runtime.start(instanceSpec({ env: { MINE: '1' } }));
        const environment = await harness.python(instance.id, 'import os; print(dict(os.environ))');
        expect(environment).not.toContain('secret-of-service');
        expect(environment).not.toContain('CELLBOX_TUNNEL');
        expect(environment).not.toContain(instance.gatewayToken);
      } finally {
        delete process.env['CELLBOX_TEST_SECRET_OF_SERVICE'];
      }
    });

    it('tells a start that fails why, and leaves nothing of it', async () => {
      const agentDir = makeAgentDir();
      fs.writeFileSync(path.join(agentDir, 'agent.js'), '');
      fs.writeFileSync(
        path.join(agentDir, 'supervisor.js'),
        'console.error("no luck today"); process.exit(3);',
      );
      const broken = await makeLocalHarness(
        { onInbound: (_id, _port, stream) => stream.destroy() },
        { bubblewrap, agentDir },
      );
      try {
        await expect(broken.runtime.start(instanceSpec())).rejects.toMatchObject({
          code: 'unavailable',
          message: expect.stringContaining('no luck today'),
        });
        expect(await broken.leftovers()).toEqual([]);
      } finally {
        await broken.close();
        fs.rmSync(agentDir, { recursive: true });
      }
    });

    it('gives up on an agent that never connects, and leaves nothing of it', async () => {
      const agentDir = makeAgentDir();
      fs.writeFileSync(path.join(agentDir, 'agent.js'), '');
      fs.writeFileSync(path.join(agentDir, 'supervisor.js'), 'setInterval(() => {}, 1000);');
      const silent = await makeLocalHarness(
        { onInbound: (_id, _port, stream) => stream.destroy() },
        { bubblewrap, agentDir, startTimeoutMs: 1_000 },
      );
      try {
        await expect(silent.runtime.start(instanceSpec())).rejects.toMatchObject({
          code: 'deadline_exceeded',
        });
        expect(await silent.leftovers()).toEqual([]);
      } finally {
        await silent.close();
        fs.rmSync(agentDir, { recursive: true });
      }
    });

    it('finds room for its socket when the data directory has a long name', async () => {
      const dataDir = path.join(harness.dataDir, 'x'.repeat(90));
      fs.mkdirSync(dataDir);
      const far = await makeLocalHarness(
        { onInbound: (_id, _port, stream) => stream.destroy() },
        { bubblewrap, dataDir },
      );
      try {
        const instance = await far.runtime.start(instanceSpec());
        expect((await request(instance, AGENT_PORT, '/health')).status).toBe(204);
        // A service that is started from elsewhere still finds it.
        const elsewhere = fs.mkdtempSync(path.join(os.tmpdir(), 'cbx-run-'));
        const before = process.env['XDG_RUNTIME_DIR'];
        process.env['XDG_RUNTIME_DIR'] = elsewhere;
        try {
          await far.restart();
          const again = await far.runtime.adopt(instance.id);
          expect((await request(again, AGENT_PORT, '/health')).status).toBe(204);
        } finally {
          if (before === undefined) delete process.env['XDG_RUNTIME_DIR'];
          else process.env['XDG_RUNTIME_DIR'] = before;
          fs.rmSync(elsewhere, { recursive: true });
        }
        await far.runtime.stop(instance.id);
        expect(await far.leftovers()).toEqual([]);
      } finally {
        await far.close();
        fs.rmSync(dataDir, { recursive: true });
      }
    });

    it('removes a workspace in which programs took their own permissions away', async () => {
      const { id } = await harness.runtime.start(instanceSpec());
      await harness.python(
        id,
        'import os; os.makedirs("a/b"); open("a/b/c", "w"); os.chmod("a/b", 0); os.chmod("a", 0)',
      );
      await harness.runtime.stop(id);
      expect(await harness.leftovers()).toEqual([]);
    });
  });
});

const withBubblewrap = noBubblewrap === undefined ? describe : describe.skip;

withBubblewrap(
  `a local sandbox without a network${noBubblewrap ? ` (skipped: ${noBubblewrap})` : ''}`,
  () => {
    it('reaches the interpreter of the service at its own localhost', async () => {
      const calls: string[] = [];
      const harness = await makeLocalHarness(
        {
          onInbound: (id, port, stream) => {
            calls.push(`${id}:${port}`);
            stream.on('error', () => stream.destroy());
            stream.once('data', () =>
              stream.end('HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello'),
            );
          },
        },
        { bubblewrap: 'require' },
      );
      try {
        const { id } = await harness.runtime.start(instanceSpec({ network: 'none' }));
        const url = `http://localhost:${INTERPRETER_PORT}/health`;
        const code = `import urllib.request; print(urllib.request.urlopen("${url}", timeout=10).read().decode())`;
        expect(await harness.python(id, code)).toBe('hello\n');
        expect(calls).toEqual([`${id}:${INTERPRETER_PORT}`]);
      } finally {
        await harness.close();
      }
    });
  },
);

describe('createLocalRuntime()', () => {
  it('refuses to start when namespaces are demanded and something needed would show the data directory', async () => {
    const dataDir = fs.mkdtempSync(path.join(os.tmpdir(), 'cbx-within-'));
    const agentDir = dataDir; // the sandbox needs to see it, and must not
    for (const file of ['agent.js', 'supervisor.js']) fs.writeFileSync(path.join(agentDir, file), '');
    const hooks = { onInbound: () => {} };
    try {
      await expect(
        makeLocalHarness(hooks, { bubblewrap: 'require', agentDir, dataDir }),
      ).rejects.toMatchObject({
        code: 'failed_precondition',
        message: expect.stringMatching(/^CELLBOX_BUBBLEWRAP=require, but /),
      });
    } finally {
      fs.rmSync(dataDir, { recursive: true });
    }
  });

  it('says loudly that nothing is isolated when bubblewrap is off', async () => {
    const harness = await makeLocalHarness({ onInbound: () => {} }, { bubblewrap: 'off' });
    try {
      expect(harness.runtime.caveats[0]).toMatch(/^NO ISOLATION: /);
      // Asked for and not to be had: refused, never given with a network all the same.
      await expect(harness.runtime.start(instanceSpec({ network: 'none' }))).rejects.toMatchObject({
        code: 'failed_precondition',
        message: expect.stringContaining('bubblewrap'),
      });
      await expect(harness.runtime.start(instanceSpec({ isolation: 'gvisor' }))).rejects.toMatchObject({
        code: 'failed_precondition',
        message: 'There is no isolation level gvisor here, only none',
        remedy: expect.stringContaining('docker runtime'),
      });
      expect(await harness.leftovers()).toEqual([]);
    } finally {
      await harness.close();
    }
  });
});
