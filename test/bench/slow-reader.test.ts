import { once } from 'node:events';
import http from 'node:http';
import type { IncomingMessage } from 'node:http';
import type { AddressInfo } from 'node:net';
import { readSlowly } from '../../bench/slow-reader';

const TOTAL = 20_000_000;

/** A server that sends as much as is taken. */
async function serve(): Promise<{ url: string; sent(): number; close(): void }> {
  const piece = Buffer.alloc(100_000, 'x');
  let sent = 0;
  const server = http.createServer((_req, res) => {
    const go = (): void => {
      while (sent < TOTAL) {
        sent += piece.length;
        if (!res.write(piece)) {
          res.once('drain', go);
          return;
        }
      }
      res.end();
    };
    go();
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  return {
    url: `http://127.0.0.1:${port}/`,
    sent: () => sent,
    close: () => {
      server.close();
      server.closeAllConnections();
    },
  };
}

describe('readSlowly()', () => {
  it('holds back who sends, and then takes all of it', async () => {
    const server = await serve();
    try {
      const request = http.get(server.url, { agent: false });
      const [response] = (await once(request, 'response')) as [IncomingMessage];
      const reader = readSlowly(response, 64 * 1024);
      await reader.hasBegun;
      expect(reader.isOver).toBe(false);
      expect(reader.takenBytes).toBeGreaterThan(0);
      expect(reader.takenBytes).toBeLessThan(64 * 1024);
      expect(server.sent()).toBeLessThan(TOTAL);
      expect(await reader.takeAll()).toBe(TOTAL);
      expect(reader.isOver).toBe(true);
      reader.close();
      reader.close();
    } finally {
      server.close();
    }
  });

  it('tells of a stream that breaks off', async () => {
    const server = await serve();
    const request = http.get(server.url, { agent: false });
    const [response] = (await once(request, 'response')) as [IncomingMessage];
    const reader = readSlowly(response, 64 * 1024);
    await reader.hasBegun;
    server.close();
    await expect(reader.takeAll()).rejects.toThrow();
    reader.close();
  });
});
