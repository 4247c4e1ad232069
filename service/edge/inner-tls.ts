import { once } from 'node:events';
import type net from 'node:net';
import tls from 'node:tls';

/** How long a program may take to agree on TLS. */
const HANDSHAKE_MS = 30_000;
const DNS_NAME = /^(?=.{1,253}$)[a-z\d_](?:[a-z\d_.-]*[a-z\d_])?$/i;

/** The program on the port would not agree on TLS. */
export class NoTlsError extends Error {}

/**
 * Speaks TLS with the program behind a socket. Its certificate is not looked at: the tunnel has led to the right sandbox,
 * and programs sign their own. `host` is what the program is told in `Host`; a name in it is the one that it is asked for.
 * Owns the socket; rejects with the signal's reason or `NoTlsError`.
 */
export async function speakTls(
  socket: net.Socket,
  host: string | undefined,
  signal: AbortSignal,
): Promise<tls.TLSSocket> {
  const name = host?.replace(/:\d*$/, '') ?? '';
  const isName = DNS_NAME.test(name) && !/^[\d.]+$/.test(name); // addresses are not for asking
  const secure = tls.connect({
    socket,
    rejectUnauthorized: false,
    ALPNProtocols: ['http/1.1'],
    ...(isName && { servername: name }),
  });
  secure.on('error', () => {}); // followed by `close`, which whoever uses it watches
  try {
    await once(secure, 'secureConnect', {
      signal: AbortSignal.any([signal, AbortSignal.timeout(HANDSHAKE_MS)]),
    });
    return secure;
  } catch (cause) {
    secure.destroy();
    socket.destroy();
    signal.throwIfAborted();
    throw new NoTlsError('the program did not agree on TLS', { cause });
  }
}
