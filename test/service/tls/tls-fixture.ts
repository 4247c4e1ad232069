import fs from 'node:fs';
import http2 from 'node:http2';
import type { ClientHttp2Session, ClientHttp2Stream, IncomingHttpHeaders } from 'node:http2';
import { once } from 'node:events';
import os from 'node:os';
import path from 'node:path';
import tls from 'node:tls';
import { createLogger } from '../../../service/log';
import { TlsFront } from '../../../service/tls/front';
import type { TlsFrontOptions } from '../../../service/tls/front';
import { LocalCa } from '../../../service/tls/local-ca';
import { EdgeFixture } from '../edge/edge-fixture';

export const DOMAIN = 'box.localhost';

/** An edge whose port also speaks TLS, with a CA of its own, and everything a test opens, closed together. */
export class TlsFixture extends EdgeFixture {
  readonly dir = fs.mkdtempSync(path.join(os.tmpdir(), 'cellbox-tls-'));
  readonly authority = new LocalCa(this.dir, DOMAIN);
  readonly front: TlsFront;
  readonly ca: string;
  private readonly clients: { destroy(): void }[] = [];

  constructor(options: Partial<TlsFrontOptions> = {}) {
    super();
    const credentials = this.authority.read();
    this.ca = fs.readFileSync(this.authority.caFile, 'utf8');
    this.front = new TlsFront({
      server: this.server,
      credentials,
      logger: createLogger('silent'),
      ...options,
    });
  }

  /** A TLS connection to the service under one of its names. */
  async connectTls(options: tls.ConnectionOptions = {}): Promise<tls.TLSSocket> {
    const socket = tls.connect({
      host: '127.0.0.1',
      port: this.port,
      servername: `api.${DOMAIN}`,
      ca: this.ca,
      ...options,
    });
    socket.on('error', () => {}); // tests watch for it themselves
    this.clients.push(socket);
    await once(socket, 'secureConnect');
    return socket;
  }

  async connectHttp2(): Promise<ClientHttp2Session> {
    const socket = await this.connectTls({ ALPNProtocols: ['h2'] });
    const session = http2.connect(`https://api.${DOMAIN}`, { createConnection: () => socket });
    session.on('error', () => {}); // as above
    this.clients.push(session);
    await once(session, 'remoteSettings');
    return session;
  }

  override async close(): Promise<void> {
    for (const client of this.clients) client.destroy();
    this.front.close();
    this.server.closeAllConnections();
    await super.close();
    fs.rmSync(this.dir, { recursive: true, force: true });
  }
}

export interface Http2Answer {
  status: number;
  headers: IncomingHttpHeaders;
  trailers: IncomingHttpHeaders;
  body: Buffer;
}

/** Waits for the whole answer; rejects when the stream is reset before its end. */
export async function http2Answer(stream: ClientHttp2Stream): Promise<Http2Answer> {
  let trailers: IncomingHttpHeaders = {};
  stream.on('trailers', (headers) => (trailers = headers));
  const [headers] = (await once(stream, 'response')) as [IncomingHttpHeaders];
  const chunks: Buffer[] = [];
  for await (const chunk of stream) chunks.push(chunk as Buffer);
  return { status: Number(headers[':status']), headers, trailers, body: Buffer.concat(chunks) };
}
