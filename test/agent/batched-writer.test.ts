import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import fc from 'fast-check';
import { BatchedWriter } from '../../kernel-image/agent/batched-writer';

describe('BatchedWriter', () => {
  let directory: string;

  beforeEach(async () => {
    directory = await fs.mkdtemp(path.join(os.tmpdir(), 'writer-'));
  });

  afterEach(() => fs.rm(directory, { recursive: true }));

  it('writes whatever it is given, in order', async () => {
    const name = path.join(directory, 'file');
    const chunks = fc.array(
      fc.oneof(
        fc.uint8Array({ maxLength: 50 }),
        fc.nat(300_000).map((size) => new Uint8Array(size).fill(size)),
      ),
      { maxLength: 12 },
    );
    await fc.assert(
      fc.asyncProperty(chunks, async (given) => {
        const buffers = given.map((bytes) => Buffer.from(bytes));
        const file = await fs.open(name, 'w');
        try {
          const writer = new BatchedWriter(file);
          for (const chunk of buffers) await writer.add(chunk);
          await writer.end();
        } finally {
          await file.close();
        }
        expect((await fs.readFile(name)).equals(Buffer.concat(buffers))).toBe(true);
      }),
      { numRuns: 30 },
    );
  });

  it('tells a failed write, and goes on telling it', async () => {
    await fs.writeFile(path.join(directory, 'file'), '');
    const file = await fs.open(path.join(directory, 'file'), 'r');
    try {
      const writer = new BatchedWriter(file);
      await expect(async () => {
        for (let i = 0; i < 100; i++) await writer.add(Buffer.alloc(100_000));
      }).rejects.toMatchObject({ code: 'EBADF' });
      await expect(writer.end()).rejects.toMatchObject({ code: 'EBADF' });
    } finally {
      await file.close();
    }
  });
});
