import type { KernelMessage } from '@jupyterlab/services/lib/kernel';
import { deserialize } from '@jupyterlab/services/lib/kernel/serialize';
import type { Socket } from 'node:net';
import { WebSocket } from 'ws';
import type { RawData } from 'ws';

/** No single message of a sandbox may take more of our memory than this. */
const MAX_MESSAGE_BYTES = 256 * 1024 * 1024;

const V1_PROTOCOL = 'v1.kernel.websocket.jupyter.org';

export interface KernelSocketOptions {
  headers: Record<string, string>;
  connect: () => Promise<Socket>;
  /** From dialling to the end of the handshake, which the gateway completes only when the kernel has a process. */
  handshakeTimeoutMs: number;
  /** Called once, when the connection is gone or never came up; `status` when the gateway answered with one. */
  onDown: (status: number | undefined) => void;
  /** Called for each message, before anything is made of it. */
  onReceived: () => void;
  /** A message that was not understood and is therefore left out. */
  onBadMessage: (error: unknown) => void;
}

/**
 * What jupyterlab's KernelConnection wants of a WebSocket, over `ws` and a dialled stream.
 *
 * Differs from a browser's in two ways. Its `onclose` and `onerror` are never called: the connection's own reconnecting
 * waits up to half a minute between attempts, so `KernelClient` decides instead. And nothing that a sandbox sends makes
 * it throw: an exception from a socket's event would end the service.
 */
export class KernelSocket {
  onopen: ((event: object) => void) | null = null;
  onmessage: ((event: { data: unknown }) => void) | null = null;
  onclose: unknown = null;
  onerror: unknown = null;
  binaryType = 'arraybuffer';
  private readonly socket: WebSocket;
  private down = false;

  constructor(
    url: string,
    protocols: string[],
    private readonly options: KernelSocketOptions,
  ) {
    this.socket = new WebSocket(url, protocols, {
      headers: options.headers,
      perMessageDeflate: false,
      maxPayload: MAX_MESSAGE_BYTES,
      handshakeTimeout: options.handshakeTimeoutMs,
      // Node's http lets a connection arrive by callback; the types of `ws` know only net's signature.
      createConnection: ((_options: unknown, done: (error: unknown, socket?: Socket) => void) => {
        options.connect().then((socket) => done(null, socket), done);
      }) as never,
    });
    this.socket.on('open', () => this.onOpen());
    this.socket.on('message', (data, isBinary) => this.onData(data, isBinary));
    this.socket.on('unexpected-response', (request, response) => {
      request.destroy();
      this.goDown(response.statusCode);
    });
    this.socket.on('error', () => this.goDown(undefined)); // what went wrong makes no difference to what follows
    this.socket.on('close', () => this.goDown(undefined));
  }

  get protocol(): string {
    return this.socket.protocol;
  }

  send(data: string | ArrayBuffer): void {
    // A failed send is followed by `close`, which tells everyone concerned.
    this.socket.send(data, () => undefined);
  }

  /** Stops reading from the kernel; what was read already may still arrive, at most one chunk and one message. */
  pause(): void {
    this.socket.pause();
  }

  resume(): void {
    this.socket.resume();
  }

  close(): void {
    this.down = true;
    this.socket.terminate();
  }

  private onOpen(): void {
    if (this.down) return;
    try {
      this.onopen?.({});
    } catch {
      this.goDown(undefined); // the gateway chose a protocol that nobody asked for
    }
  }

  private onData(data: RawData, isBinary: boolean): void {
    if (this.down) return;
    this.options.onReceived();
    try {
      this.onmessage?.({ data: isBinary ? data : data.toString() });
    } catch (error) {
      this.options.onBadMessage(error);
    }
  }

  private goDown(status: number | undefined): void {
    if (this.down) return;
    this.down = true;
    this.socket.terminate();
    this.options.onDown(status);
  }
}

// A string literal, or one of the numbers that Python's json module writes and JSON does not have.
const STRING_OR_NON_FINITE = /"[^"\\]*(?:\\.[^"\\]*)*"|-?\bInfinity\b|\bNaN\b/g;

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    // Throws again, for the caller, when that was not the reason.
    return JSON.parse(
      text.replace(STRING_OR_NON_FINITE, (token) => (token.startsWith('"') ? token : 'null')),
    );
  }
}

/**
 * Reads one message as it came from a `KernelSocket`: text, or a Buffer. Does for the two usual framings what
 * jupyterlab's own function does, without copying each part, and takes NaN and infinities for null.
 *
 * @throws when the message does not follow the framing.
 */
export function deserializeMessage(data: unknown, protocol = ''): KernelMessage.IMessage {
  if (typeof data === 'string') {
    const message = { buffers: [], ...(parseJson(data) as KernelMessage.IMessage) };
    hideDisplayId(message);
    return message; // validated by the connection
  }
  const bytes = data as Buffer; // a KernelSocket delivers nothing else
  if (protocol !== V1_PROTOCOL) {
    return deserialize(new Uint8Array(bytes).buffer, protocol);
  }
  const parts = Number(bytes.readBigUInt64LE(0)) - 1;
  const offset = (part: number): number => Number(bytes.readBigUInt64LE(8 * (part + 1)));
  const text = (part: number): string => bytes.toString('utf8', offset(part), offset(part + 1));
  if (parts < 5) throw new Error('kernel message has too few parts');
  const message = {
    channel: text(0),
    header: parseJson(text(1)),
    parent_header: parseJson(text(2)),
    metadata: parseJson(text(3)),
    content: parseJson(text(4)),
    buffers: [], // used by widgets only, which have no place on our wire
  };
  hideDisplayId(message);
  return message as unknown as KernelMessage.IMessage; // validated by the connection
}

const DISPLAY_ID = Symbol('display id');

/**
 * Puts a display's id where jupyterlab's connection does not find it. That would keep every id for ever, and turn an
 * update over to the request that showed the display first, which has ended, and not to the one that runs.
 */
function hideDisplayId(message: { header?: unknown; content?: unknown }): void {
  // Nothing was validated yet.
  const type = (message.header as { msg_type?: unknown } | null | undefined)?.msg_type;
  if (type !== 'display_data' && type !== 'update_display_data') return;
  const content = message.content as
    { transient?: { display_id?: unknown } | null; [DISPLAY_ID]?: unknown } | null | undefined;
  const id = content?.transient?.display_id;
  if (!content || id === undefined || id === null) return;
  content[DISPLAY_ID] = id;
  content.transient = {};
}

/** The id of a display that can change, of a message that came through `deserializeMessage`. */
export function displayIdOf(content: object): string | undefined {
  const id = (content as { [DISPLAY_ID]?: unknown })[DISPLAY_ID];
  return typeof id === 'string' ? id : undefined;
}
