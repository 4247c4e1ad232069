import fs from 'node:fs';
import net from 'node:net';
import type { AddressInfo } from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { AGENT_PORT } from '../../protocol/routing';
import { makeLocalHarness, whyNoBubblewrap } from '../runtime/local-harness';
import type { LocalHarness } from '../runtime/local-harness';
import { instanceSpec, request } from '../suites/runtime-suite';

jest.setTimeout(120_000);
const reason = whyNoBubblewrap();
const suite = reason === undefined ? describe : describe.skip;

/** Tries each expression inside and tells what came of it: a value, or the name of the error. */
function attempts(expressions: Record<string, string>): string {
  return `
import ctypes, glob, json, os, signal, socket, stat, subprocess
def reach(host, port):
    with socket.create_connection((host, port), timeout=3): return "connected"
def sh(*argv):
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    return "done" if done.returncode == 0 else "failed"
def attempt(work):
    try: return work()
    except Exception as error: return type(error).__name__
print(json.dumps({${Object.entries(expressions)
    .map(([name, expression]) => `${JSON.stringify(name)}: attempt(lambda: ${expression})`)
    .join(', ')}}))`;
}

suite(
  `a program in a local sandbox with bubblewrap${reason === undefined ? '' : ` (skipped: ${reason})`}`,
  () => {
    let harness: LocalHarness;
    let id: string;
    const look = async (expressions: Record<string, string>) =>
      JSON.parse(await harness.python(id, attempts(expressions))) as Record<string, unknown>;

    beforeAll(async () => {
      harness = await makeLocalHarness(
        { onInbound: (_id, _port, stream) => stream.destroy() },
        { bubblewrap: 'require' },
      );
    }, 600_000);

    beforeEach(async () => {
      id = (await harness.runtime.start(instanceSpec())).id;
    });

    afterEach(async () => {
      for (const each of await harness.runtime.list()) await harness.runtime.stop(each.id);
      expect(await harness.leftovers()).toEqual([]);
    });

    afterAll(() => harness?.close());

    it('sees neither the data directory, other sandboxes, the home of the service nor secrets of the host', async () => {
      const other = await harness.runtime.start(instanceSpec());
      await harness.python(other.id, 'open("canary", "w").write("secret")');
      fs.writeFileSync(path.join(harness.dataDir, 'canary'), 'secret');
      const theirs = path.join(harness.dataDir, 'local', other.id, 'workspace', 'canary');
      expect(fs.existsSync(theirs)).toBe(true);
      const hostHome = fs
        .readdirSync(os.homedir())
        .filter((name) => fs.statSync(path.join(os.homedir(), name)).isFile());
      const seen = await look({
        other: `open(${JSON.stringify(theirs)}).read()`,
        dataDir: `open(${JSON.stringify(path.join(harness.dataDir, 'canary'))}).read()`,
        home: `[name for name in ${JSON.stringify(hostHome)} if os.path.exists(os.path.join(${JSON.stringify(os.homedir())}, name))]`,
        shadow: 'open("/etc/shadow").read()',
        keys: 'os.listdir("/etc/ssh")',
        privateKeys: 'os.listdir("/etc/ssl/private")',
        engine: 'os.path.exists("/var/run/docker.sock") or os.path.exists("/run/docker.sock")',
        own: 'os.getcwd()',
        tmp: 'sorted(name for name in os.listdir("/tmp") if name.startswith("cbx"))',
      });
      expect(seen).toEqual({
        other: 'FileNotFoundError',
        dataDir: 'FileNotFoundError',
        home: [],
        shadow: 'FileNotFoundError',
        keys: 'FileNotFoundError',
        privateKeys: 'FileNotFoundError',
        engine: false,
        own: '/home/user',
        tmp: [],
      });
    });

    it('sees only its own processes and can signal no other', async () => {
      const seen = await look({
        processes: '[open(f"/proc/{p}/cmdline").read() for p in os.listdir("/proc") if p.isdigit()]',
        init: 'open("/proc/1/comm").read().strip()',
        sessions: 'os.getpgid(1) >= 0',
      });
      expect((seen['processes'] as string[]).filter((line) => line.includes('jest'))).toEqual([]);
      expect((seen['processes'] as string[]).length).toBeLessThan(20);
      expect(seen['init']).toBe('bwrap');
      const other = await harness.runtime.start(instanceSpec());
      await harness.python(id, 'import os; os.fork() or os.kill(-1, 9)').catch(() => {}); // it ends itself with it
      expect((await request(other, AGENT_PORT, '/health')).status).toBe(204);
    });

    it('changes nothing of the host: neither system, shared packages, agent, tunnel nor kernel settings', async () => {
      const agent = path.join(__dirname, '..', '..', 'dist', 'agent', 'agent.js');
      const seen = await look({
        usr: 'open("/usr/canary", "w")',
        etc: 'open("/etc/canary", "w")',
        root: 'open("/canary", "w")',
        passwd: 'open("/etc/passwd", "a")',
        agent: `open(${JSON.stringify(agent)}, "a")`,
        packages: 'open(__import__("pandas").__file__, "a")',
        socket: 'os.unlink("/run/cellbox/service.sock")',
        tunnel: 'open("/run/cellbox/canary", "w")',
        // Opened, never written: a success would be the host's harm.
        corePattern: 'os.close(os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY))',
        modprobe: 'os.close(os.open("/proc/sys/kernel/modprobe", os.O_WRONLY))',
        sysrq: 'os.close(os.open("/proc/sysrq-trigger", os.O_WRONLY))',
        memory: 'os.close(os.open("/proc/1/mem", os.O_RDWR))',
        disks: '[name for name in os.listdir("/dev") if stat.S_ISBLK(os.lstat("/dev/" + name).st_mode)]',
        device: 'os.mknod("/tmp/disk", stat.S_IFBLK | 0o666, os.makedev(254, 0))',
        home: 'open("/home/user/mine", "w").write("x")',
        tmp: 'open("/tmp/mine", "w").write("x")',
        shm: 'open("/dev/shm/mine", "w").write("x")',
      });
      const denied = expect.stringMatching(/^(PermissionError|OSError|FileNotFoundError)$/);
      expect(seen).toEqual({
        ...Object.fromEntries(Object.keys(seen).map((name) => [name, denied])),
        disks: [],
        home: 1,
        tmp: 1,
        shm: 1,
      });
    });

    it('gains no rights: no capabilities, no set-uid programs, no mounts, not root of the host', async () => {
      const seen = await look({
        capabilities:
          '[line.split()[1] for line in open("/proc/self/status") if line.startswith(("CapPrm", "CapEff", "CapBnd", "CapAmb", "CapInh"))]',
        noNewPrivileges:
          '[line.split()[1] for line in open("/proc/self/status") if line.startswith("NoNewPrivs")]',
        becomeRoot: 'os.setuid(0)',
        chroot: 'os.chroot("/tmp")',
        mount: 'sh("mount", "-t", "tmpfs", "none", "/tmp")',
        remount: 'sh("unshare", "-Urm", "mount", "-o", "remount,rw,bind", "/usr")',
        uncover: 'sh("unshare", "-Urm", "sh", "-c", "umount /proc/sys || umount /etc/passwd")',
      });
      expect(seen).toMatchObject({
        noNewPrivileges: ['1'],
        becomeRoot: 'PermissionError',
        chroot: 'PermissionError',
        mount: 'failed',
        remount: 'failed',
        uncover: 'failed',
      });
      const [inheritable, permitted, effective, , ambient] = seen['capabilities'] as string[];
      for (const set of [inheritable, permitted, effective, ambient])
        expect(Number.parseInt(set ?? '1', 16)).toBe(0);
      // As the host sees it: only bubblewrap itself, which reads nothing from inside, may have the uid of the service.
      const uids = (await harness.processes())
        .map((pid) => fs.readFileSync(`/proc/${pid}/status`, 'utf8'))
        .filter((status) => !/^Name:\tbwrap$/m.test(status))
        .map((status) => /^Uid:\t(\d+)/m.exec(status)?.[1]);
      expect(uids.length).toBeGreaterThan(2);
      expect(uids).not.toContain('0');
    });

    it('reaches no network when it has none, the loopback of the host included', async () => {
      const server = net.createServer((socket) => socket.destroy());
      await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
      const { port } = server.address() as AddressInfo; // a TCP server's address is never a string
      const name = `cbx-${process.pid}-${Date.now()}`;
      const abstract = net.createServer((socket) => socket.destroy());
      await new Promise<void>((resolve) => abstract.listen(`\0${name}`, resolve));
      try {
        const expressions = {
          loopback: `reach("127.0.0.1", ${port})`,
          metadata: 'reach("169.254.169.254", 80)',
          abstract: `socket.socket(socket.AF_UNIX).connect("\\0${name}")`,
          names: 'socket.getaddrinfo("example.com", 80)',
        };
        // The same attempt from a sandbox that has the host's network succeeds: the test can fail.
        expect(await look({ loopback: expressions.loopback })).toEqual({ loopback: 'connected' });
        id = (await harness.runtime.start(instanceSpec({ network: 'none' }))).id;
        expect(await look(expressions)).toEqual({
          loopback: 'ConnectionRefusedError',
          metadata: 'OSError',
          abstract: 'ConnectionRefusedError',
          names: 'gaierror',
        });
      } finally {
        server.close();
        abstract.close();
      }
    });

    it('leads the service nowhere by links in its own directories', async () => {
      const target = fs.mkdtempSync(path.join(os.tmpdir(), 'cbx-target-'));
      const kept = path.join(target, 'kept');
      fs.writeFileSync(kept, 'kept');
      try {
        await harness.python(
          id,
          `
import os
for name in ("a", "b/c"):
    os.makedirs(os.path.dirname("/home/user/" + name), exist_ok=True)
    os.symlink(${JSON.stringify(target)}, "/home/user/" + name)
    os.symlink(${JSON.stringify(target)}, "/opt/cellbox/venv/" + name.replace("/", "-"))
os.chmod("/home/user/b", 0)`,
        );
        await harness.runtime.stop(id);
        expect(fs.readFileSync(kept, 'utf8')).toBe('kept');
      } finally {
        fs.rmSync(target, { recursive: true });
      }
    });

    it('can start no more processes than it was given', async () => {
      const limited = await harness.runtime.start(
        instanceSpec({
          resources: { cpuCount: 1, memoryMB: 512, diskSizeMB: 1024, pids: 96, openFiles: 1024 },
        }),
      );
      const { memoryLimitBytes } = await harness.runtime.stats(limited.id);
      if (memoryLimitBytes === undefined) return; // no control group here: `caveats` says so
      id = limited.id;
      expect(
        await look({
          processes: '[subprocess.Popen(["sleep", "60"]) for _ in range(200)] and "all"',
        }),
      ).toEqual({ processes: 'BlockingIOError' });
      await harness.runtime.stop(id);
    });
  },
);
