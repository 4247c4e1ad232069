import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { endChild, freePort, untilAnswers } from './child';
import { connectRival } from './rival';
import type { Subject } from './subject';

/**
 * Two answers from memory, as lines of the NDJSON API; anything else gets none of its output. A create gets a sandbox
 * that there is not.
 */
const SERVER = `
const http = require('node:http');
const sandbox = JSON.stringify({
  templateID: 'none', sandboxID: 'none', clientID: 'none', envdVersion: '0.6.13', domain: null,
});
const line = (event) => JSON.stringify(event) + '\\n';
const stamp = '2026-01-01T00:00:00.000000000Z';
const outputs = {
  '1+1': { type: 'result', text: '2', is_main_result: true },
  'print("hello")': { type: 'stdout', text: 'hello\\n', timestamp: stamp },
};
http.createServer((request, response) => {
  let body = '';
  request.on('data', (part) => (body += part)).on('end', () => {
    if (request.url.endsWith('/sandboxes')) {
      response.writeHead(201, { 'Content-Type': 'application/json' }).end(sandbox);
      return;
    }
    const output = outputs[body === '' ? '' : JSON.parse(body).code];
    response.setHeader('Content-Type', 'application/json');
    response.write(line({ type: 'number_of_executions', execution_count: 1 }));
    if (output !== undefined) response.write(line(output));
    response.end(line({ type: 'end_of_execution' }));
  });
}).listen(Number(process.argv[1]), '127.0.0.1');
`;

/** The floor of what any service can give to a user of the SDK: HTTP both ways and its parsing, no code is run. */
export async function startSdkAlone(): Promise<Subject> {
  const { url, close } = await startServerFromMemory();
  try {
    const subject = await connectRival(url);
    return {
      ...subject,
      name: 'SDK alone',
      description: 'official JavaScript SDK, a server that answers from memory and runs nothing',
      scenarios: ['1+1', 'print'],
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
}

/** That server, a process of its own as every service is. */
export async function startServerFromMemory(): Promise<{ url: string; close: () => Promise<void> }> {
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const child = spawn(process.execPath, ['-e', SERVER, String(port)], { stdio: ['ignore', 'pipe', 'pipe'] });
  const close = (): Promise<void> => endChild(child);
  try {
    await once(child, 'spawn');
    await untilAnswers(child, `${url}/`, {}, 10);
    return { url, close };
  } catch (error) {
    await close();
    throw error;
  }
}
