import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs/promises';
import http from 'node:http';
import os from 'node:os';
import path from 'node:path';
import { json } from 'node:stream/consumers';
import { endChild, freePort, untilAnswers } from './child';

/**
 * The least that files over HTTP can cost here: Node's own server and file system calls, in a directory of the host, with
 * nothing between.
 */
export interface BareFiles {
  /** Where they are; whoever wants other files there makes them. */
  readonly directory: string;
  upload(name: string, data: Uint8Array): Promise<void>;
  /** Gives the number of bytes that arrived. */
  download(name: string): Promise<number>;
  /** Of a directory in there. Gives the number of entries that arrived. */
  list(directory: string): Promise<number>;
  close(): Promise<void>;
}

const DEADLINE_MS = 60_000;

const SERVER = `
const fs = require('node:fs'), http = require('node:http'), path = require('node:path');
const { pipeline } = require('node:stream');
const [port, directory] = process.argv.slice(1);
http.createServer((request, response) => {
  if (request.url === '/') return response.end();
  if (request.url.startsWith('/list/')) {
    const listed = path.join(directory, path.basename(request.url));
    const entries = fs.readdirSync(listed).sort().map((name) => {
      const place = listed + '/' + name;
      const { mode, uid, gid, size, mtimeMs } = fs.lstatSync(place);
      return { name, path: place, mode, uid, gid, size, mtimeMs };
    });
    return response.end(JSON.stringify({ entries }));
  }
  const file = path.join(directory, path.basename(request.url));
  const done = (error) => { if (error) { response.destroy(); } else if (!response.writableEnded) response.end(); };
  if (request.method === 'PUT') return pipeline(request, fs.createWriteStream(file), done);
  response.setHeader('Content-Length', fs.statSync(file).size);
  pipeline(fs.createReadStream(file), response, done);
}).listen(Number(port), '127.0.0.1');
`;

export async function startBareFiles(): Promise<BareFiles> {
  const directory = await fs.mkdtemp(path.join(os.tmpdir(), 'cbx-bare-'));
  const port = await freePort();
  const child = spawn(process.execPath, ['-e', SERVER, String(port), directory], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const url = `http://127.0.0.1:${port}`;
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  const close = async (): Promise<void> => {
    agent.destroy();
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
    directory,
    upload: async (name, data) => {
      const response = await fetch(`${url}/${name}`, { method: 'PUT', body: data });
      await response.arrayBuffer();
    },
    download: async (name) => (await (await fetch(`${url}/${name}`)).arrayBuffer()).byteLength,
    // By the client of those requests that are compared with it, which needs less than `fetch`.
    list: async (name) => {
      const answer = http.get(`${url}/list/${name}`, { agent, signal: AbortSignal.timeout(DEADLINE_MS) });
      const [response] = (await once(answer, 'response')) as [http.IncomingMessage];
      const { entries } = (await json(response)) as { entries: unknown[] };
      return entries.length;
    },
    close,
  };
}
