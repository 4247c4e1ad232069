import http from 'node:http';
import type { Sandbox } from '@e2b/code-interpreter';
import { AGENT_PORT, HEADERS } from '../protocol/routing';

/** What the SDK asks of a sandbox's agent, asked without the SDK: requests as they stand on the wire, one connection. */
export interface AgentHttp {
  /** Standard output of a command in a login shell. */
  run(command: string): Promise<string>;
  upload(name: string, data: Buffer): Promise<void>;
  /** How many bytes there were. */
  download(name: string): Promise<number>;
  /** How many entries there were. */
  list(directory: string): Promise<number>;
  close(): void;
}

/** Of Connect's streaming protocol: a byte of flags and the length of the message. */
const ENVELOPE_HEAD_BYTES = 5;
const END_OF_STREAM = 0b10;
const DEADLINE_MS = 60_000;

export function agentHttp(url: string, sandbox: Sandbox): AgentHttp {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  const token = sandbox['envdAccessToken'];
  const routing = {
    [HEADERS.sandboxId]: sandbox.sandboxId,
    [HEADERS.sandboxPort]: String(AGENT_PORT),
    ...(token !== undefined && { [HEADERS.accessToken]: token }),
  };

  const ask = (method: string, path: string, type: string, body?: Buffer): Promise<Buffer[]> =>
    new Promise((resolve, reject) => {
      const headers = body && { 'content-type': type, 'content-length': body.length };
      const signal = AbortSignal.timeout(DEADLINE_MS);
      const request = http.request(url + path, {
        method,
        agent,
        signal,
        headers: { ...routing, authorization: `Basic ${btoa('user:')}`, ...headers },
      });
      request.once('error', reject);
      request.once('response', (response) => {
        const chunks: Buffer[] = [];
        response.on('data', (chunk: Buffer) => chunks.push(chunk));
        response.once('error', reject);
        response.once('end', () => {
          if (response.statusCode === 200) resolve(chunks);
          else
            reject(
              new Error(`${method} ${path}: ${response.statusCode} ${Buffer.concat(chunks).toString()}`),
            );
        });
      });
      request.end(body);
    });

  const file = (name: string): string => `/files?path=${encodeURIComponent(name)}&username=user`;

  return {
    run: async (command) => {
      const start = { process: { cmd: '/bin/bash', args: ['-l', '-c', command] } };
      const answer = await ask('POST', '/process.Process/Start', 'application/connect+json', envelope(start));
      return stdoutOf(Buffer.concat(answer));
    },
    upload: async (name, data) => void (await ask('POST', file(name), 'application/octet-stream', data)),
    download: async (name) => {
      const chunks = await ask('GET', file(name), '');
      return chunks.reduce((bytes, chunk) => bytes + chunk.length, 0);
    },
    list: async (directory) => {
      const request = Buffer.from(JSON.stringify({ path: directory, depth: 1 }));
      const answer = await ask('POST', '/filesystem.Filesystem/ListDir', 'application/json', request);
      const { entries } = JSON.parse(Buffer.concat(answer).toString()) as { entries: unknown[] };
      return entries.length;
    },
    close: () => agent.destroy(),
  };
}

function envelope(message: object): Buffer {
  const json = Buffer.from(JSON.stringify(message));
  const head = Buffer.alloc(ENVELOPE_HEAD_BYTES);
  head.writeUInt32BE(json.length, 1);
  return Buffer.concat([head, json]);
}

/** @throws when the stream tells an error, or ends without an end. */
function stdoutOf(stream: Buffer): string {
  let stdout = '';
  for (let at = 0; at < stream.length;) {
    const end = at + ENVELOPE_HEAD_BYTES + stream.readUInt32BE(at + 1);
    const text = stream.toString('utf8', at + ENVELOPE_HEAD_BYTES, end);
    const message = JSON.parse(text) as { event?: { data?: { stdout?: string } }; error?: unknown };
    if (message.error !== undefined) throw new Error(`the command failed: ${text}`);
    if (((stream[at] ?? 0) & END_OF_STREAM) !== 0) return stdout;
    stdout += Buffer.from(message.event?.data?.stdout ?? '', 'base64').toString();
    at = end;
  }
  throw new Error('the command has no end');
}
