import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { endChild, freePort, untilAnswers } from './child';

/** The least that a transfer can cost here: Node's own HTTP server, a file, and nothing between. */
export interface RawCopy {
  upload(name: string, data: Uint8Array): Promise<void>;
  /** Gives the number of bytes that arrived. */
  download(name: string): Promise<number>;
  close(): Promise<void>;
}

const SERVER = `
const fs = require('node:fs'), http = require('node:http'), path = require('node:path');
const { pipeline } = require('node:stream');
const [port, directory] = process.argv.slice(1);
http.createServer((request, response) => {
  if (request.url === '/') return response.end();
  const file = path.join(directory, path.basename(request.url));
  const done = (error) => { if (error) { response.destroy(); } else if (!response.writableEnded) response.end(); };
  if (request.method === 'PUT') return pipeline(request, fs.createWriteStream(file), done);
  response.setHeader('Content-Length', fs.statSync(file).size);
  pipeline(fs.createReadStream(file), response, done);
}).listen(Number(port), '127.0.0.1');
`;

export async function startRawCopy(): Promise<RawCopy> {
  const directory = await fs.mkdtemp(path.join(os.tmpdir(), 'cbx-copy-'));
  const port = await freePort();
  const child = spawn(process.execPath, ['-e', SERVER, String(port), directory], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const url = `http://127.0.0.1:${port}`;
  const close = async (): Promise<void> => {
    await endChild(child);
    await fs.rm(directory, { recursive: true, force: true });
  };
  try {
    await once(child, 'spawn');
    await untilAnswers(child, `${url}/`, {}, 10);
  } catch (error) {
    await close();
    throw error;
  }
  return {
    upload: async (name, data) => {
      const response = await fetch(`${url}/${name}`, { method: 'PUT', body: data });
      await response.arrayBuffer();
    },
    download: async (name) => (await (await fetch(`${url}/${name}`)).arrayBuffer()).byteLength,
    close,
  };
}
