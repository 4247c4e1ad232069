'use strict';

/*
 * The least that a service can be which has a gateway beside its kernel: `POST /execute` of the NDJSON API becomes one
 * request on the only connection to `bare_gateway.py`, and what the kernel sends becomes lines. Anything else that is
 * asked is answered with nothing. Arguments: port, path of the gateway's socket. Ends with the gateway, and with stdin.
 */
const { randomUUID } = require('node:crypto');
const http = require('node:http');
const net = require('node:net');

const [port, gatewayPath] = process.argv.slice(2);
const SESSION = randomUUID();
const DELIMITER = Buffer.from('<IDS|MSG>');
const EMPTY = Buffer.from('{}');

/** By the id of their request. */
const executions = new Map();
const gateway = net.connect(gatewayPath);
let unread = Buffer.alloc(0);
let count = 0;

gateway.once('connect', () => server.listen(Number(port), '127.0.0.1'));
gateway.on('error', (error) => console.error(error.message)); // `close` follows
gateway.once('close', () => process.exit(1));
process.stdin.once('end', () => process.exit(0)).resume(); // whoever started it is gone

const server = http.createServer((request, response) => {
  const parts = [];
  request
    .on('data', (part) => parts.push(part))
    .on('end', () => {
      if (request.url === '/execute') execute(JSON.parse(Buffer.concat(parts).toString()).code, response);
      else response.end();
    });
});

function execute(code, response) {
  const id = `${SESSION}_${count++}`;
  executions.set(id, { response, begun: '', replied: false, idle: false });
  response.once('close', () => executions.delete(id)); // at its end, or when the client has left
  response.setHeader('Content-Type', 'application/json');
  const header = {
    msg_id: id,
    msg_type: 'execute_request',
    username: '',
    session: SESSION,
    date: new Date().toISOString(),
    version: '5.3',
  };
  const content = {
    code,
    silent: false,
    store_history: true,
    user_expressions: {},
    allow_stdin: false,
    stop_on_error: true,
  };
  gateway.write(
    encode([Buffer.from(JSON.stringify(header)), EMPTY, EMPTY, Buffer.from(JSON.stringify(content))]),
  );
}

function encode(frames) {
  const message = Buffer.allocUnsafe(frames.reduce((size, frame) => size + 4 + frame.length, 4));
  let at = message.writeUInt32BE(message.length - 4, 0);
  for (const frame of frames) {
    at = message.writeUInt32BE(frame.length, at);
    at += frame.copy(message, at);
  }
  return message;
}

gateway.on('data', (part) => {
  unread = unread.length === 0 ? part : Buffer.concat([unread, part]);
  while (unread.length >= 4) {
    const end = 4 + unread.readUInt32BE(0);
    if (unread.length < end) return;
    take(framesOf(unread.subarray(4, end)));
    unread = unread.subarray(end);
  }
});

function framesOf(message) {
  const frames = [];
  for (let at = 0; at < message.length;) {
    const end = at + 4 + message.readUInt32BE(at);
    frames.push(message.subarray(at + 4, end));
    at = end;
  }
  return frames;
}

/** One message of the kernel: what is in front of the delimiter, and the signature behind it, are of no use here. */
function take(frames) {
  const at = frames.findIndex((frame) => frame.equals(DELIMITER));
  const [header, parent, , content] = frames.slice(at + 2).map((frame) => JSON.parse(frame.toString()));
  const execution = executions.get(parent.msg_id);
  if (execution === undefined) return;
  switch (header.msg_type) {
    case 'execute_input':
      // Nobody acts upon it: it leaves with the first line that says more.
      execution.begun = line({ type: 'number_of_executions', execution_count: content.execution_count });
      break;
    case 'stream':
      write(execution, { type: content.name, text: content.text, timestamp: new Date().toISOString() });
      break;
    case 'execute_result':
    case 'display_data': {
      const isMain = header.msg_type === 'execute_result';
      write(execution, { type: 'result', text: content.data['text/plain'], is_main_result: isMain });
      break;
    }
    case 'error':
      write(execution, {
        type: 'error',
        name: content.ename,
        value: content.evalue,
        traceback: content.traceback.join('\n'),
      });
      break;
    case 'execute_reply':
      execution.replied = true;
      endIfDone(execution);
      break;
    case 'status':
      execution.idle = content.execution_state === 'idle';
      endIfDone(execution);
  }
}

function line(event) {
  return `${JSON.stringify(event)}\n`;
}

function write(execution, event) {
  execution.response.write(execution.begun + line(event));
  execution.begun = '';
}

function endIfDone({ response, begun, replied, idle }) {
  if (replied && idle) response.end(begun + line({ type: 'end_of_execution' }));
}
