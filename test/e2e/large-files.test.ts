import { createHash } from 'node:crypto';
import fs from 'node:fs/promises';
import { Readable } from 'node:stream';
import { request } from 'undici';
import { describeOnRuntimes } from '../describe-on-runtimes';

const TOTAL_BYTES = 2 * 1024 ** 3;
const BLOCK_BYTES = 256 * 1024;
const MAX_MB = 150;
/** For both ways on a machine that does other things, too. A quiet one needs 20 s. */
const DEADLINE_MS = 240_000;

/** Bytes without end that are the same each time and don't compress: one block, numbered. */
function* blocks(): Generator<Buffer> {
  const block = Buffer.alloc(BLOCK_BYTES);
  for (let i = 0, x = 1; i < BLOCK_BYTES; i++) {
    x = (x * 1_103_515_245 + 12_345) % 2 ** 31;
    block[i] = x >>> 16;
  }
  for (let number = 0; number < TOTAL_BYTES / BLOCK_BYTES; number++) {
    const next = Buffer.from(block);
    next.writeUInt32BE(number);
    yield next;
  }
}

/** The one process below this one whose command line holds the word. */
async function descendant(word: string): Promise<number> {
  const parents = new Map<number, number>();
  const commands = new Map<number, string>();
  for (const name of (await fs.readdir('/proc')).filter((entry) => /^\d+$/.test(entry))) {
    // Processes end while they are looked at.
    const stat = await fs.readFile(`/proc/${name}/stat`, 'utf8').catch(() => '');
    parents.set(Number(name), Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]));
    commands.set(Number(name), await fs.readFile(`/proc/${name}/cmdline`, 'utf8').catch(() => ''));
  }
  const isOurs = (pid: number): boolean => pid === process.pid || (pid > 1 && isOurs(parents.get(pid) ?? 0));
  const found = [...commands].filter(([pid, command]) => command.includes(word) && isOurs(pid));
  if (found.length !== 1) throw new Error(`${found.length} processes run ${word}`);
  return found[0]?.[0] ?? 0;
}

const peakMb = (status: string) => Number(/VmHWM:\s+(\d+)/.exec(status)?.[1]) / 1024;

/** Highest resident memory of agents, as a program in the sandbox sees it. */
const AGENT_PEAKS = `
import glob
peaks = []
for name in glob.glob('/proc/[0-9]*'):
    try:
        if b'agent.js' in open(name + '/cmdline', 'rb').read():
            peaks += [line for line in open(name + '/status') if line.startswith('VmHWM')]
    except OSError:
        pass
print(''.join(peaks))
`;

describeOnRuntimes('files of 2 GB on $runtime', {}, ({ runtime, service, client }) => {
  let sandboxId: string;
  let token: string;

  beforeAll(async () => {
    const created = await client.api('POST', '/v2/sandboxes', { templateID: 'base', timeout: 600 });
    const sandbox = (await created.json()) as { sandboxID: string; envdAccessToken: string };
    sandboxId = sandbox.sandboxID;
    token = sandbox.envdAccessToken;
    // The kernel's start would count as the transfer's.
    expect(await client.text(sandboxId, '1 + 1')).toBe('2');
  }, 180_000);

  const send = (method: 'GET' | 'POST', name: string, body?: Readable) =>
    request(`${service.url}/files?path=${name}`, {
      method,
      headers: {
        'content-type': 'application/octet-stream',
        'e2b-sandbox-id': sandboxId,
        'e2b-sandbox-port': '49983',
        'x-access-token': token,
      },
      ...(body === undefined ? {} : { body }),
    });

  it(
    `come up and go down unchanged, agent and service below ${MAX_MB} MB each`,
    async () => {
      const pid = await descendant('start.js');
      await fs.writeFile(`/proc/${pid}/clear_refs`, '5'); // the peak counts from here
      const startedAt = performance.now();

      const sent = createHash('sha256');
      const source = function* () {
        for (const block of blocks()) {
          sent.update(block);
          yield block;
        }
      };
      const uploaded = await send('POST', 'large', Readable.from(source(), { highWaterMark: 4 }));
      expect([uploaded.statusCode, await uploaded.body.json()]).toEqual([
        200,
        [{ path: '/home/user/large', name: 'large', type: 'file' }],
      ]);
      const upSeconds = (performance.now() - startedAt) / 1000;

      const received = createHash('sha256');
      const downloaded = await send('GET', 'large');
      expect(downloaded.headers['content-length']).toBe(String(TOTAL_BYTES));
      for await (const chunk of downloaded.body) received.update(chunk as Buffer);
      expect(received.digest('hex')).toBe(sent.digest('hex'));
      const downSeconds = (performance.now() - startedAt) / 1000 - upSeconds;

      const servicePeak = peakMb(await fs.readFile(`/proc/${pid}/status`, 'utf8'));
      const agentPeaks = (await client.stdout(sandboxId, AGENT_PEAKS)).trim().split('\n').map(peakMb);
      const mbPerSecond = (seconds: number) => Math.round(TOTAL_BYTES / 1_000_000 / seconds);
      console.log(
        `${runtime}: up ${mbPerSecond(upSeconds)} MB/s, down ${mbPerSecond(downSeconds)} MB/s, ` +
          `service ${Math.round(servicePeak)} MB, agent ${agentPeaks.map(Math.round).join(' ')} MB`,
      );
      expect(agentPeaks.length).toBe(1);
      expect(agentPeaks[0]).toBeLessThan(MAX_MB);
      expect(servicePeak).toBeLessThan(MAX_MB);

      await client.stdout(sandboxId, "import os; os.remove('/home/user/large')").catch(() => {});
    },
    DEADLINE_MS,
  );
});
