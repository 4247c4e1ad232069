import fs from 'node:fs';
import net from 'node:net';
import { lastError, libcFunction } from '../libc';

/** Largest piece of output in one message. */
const CHUNK_BYTES = 32_768;
const O_CLOEXEC = 0o2000000;

/**
 * A real pipe. Node would give a child a pair of sockets, and then `echo x > /dev/stdout` fails in there: a socket
 * can't be opened by its path.
 */
export function openPipe(): { readFd: number; writeFd: number } {
  const fds: [number, number] = [-1, -1];
  // Elsewhere Node closes everything that it isn't told to pass on.
  const [call, ...flags] =
    process.platform === 'linux' ? (['pipe2', O_CLOEXEC] as const) : (['pipe'] as const);
  pipeCall ??= libcFunction(`int ${call}(_Out_ int *fds${flags.length === 0 ? '' : ', int flags'})`);
  if (pipeCall(fds, ...flags) !== 0) throw lastError(call);
  return { readFd: fds[0], writeFd: fds[1] };
}

let pipeCall: ReturnType<typeof libcFunction> | undefined;

/** All readers share it: each read is copied out before the next one begins. */
const readBuffer = Buffer.allocUnsafeSlow(CHUNK_BYTES);

/** Options of `net.Socket` that Node has and its types forgot. */
type ReadingOptions = net.SocketConstructorOpts & { onread: net.OnReadOpts };

/** Options for a stream that hands over copies of what it reads, and stops reading at once when it is paused. */
export function reading(
  options: net.SocketConstructorOpts,
  buffer: Buffer,
  onBytes: (bytes: Buffer) => void,
): ReadingOptions {
  const callback = (length: number, filled: Uint8Array) => {
    onBytes(Buffer.from(filled.subarray(0, length)));
    return true;
  };
  return { ...options, onread: { buffer, callback } };
}

/** Reads a pipe's end; `ended` resolves when its last writer has gone or the stream was destroyed. */
export function readPipe(
  fd: number,
  onBytes: (bytes: Buffer) => void,
): { stream: net.Socket; ended: Promise<void> } {
  const stream = new net.Socket(reading({ fd, readable: true, writable: false }, readBuffer, onBytes));
  const ended = new Promise<void>((resolve) => stream.once('close', () => resolve()));
  stream.on('error', () => {}); // followed by `close`
  return { stream, ended };
}

/** The writing end of a pipe as a stream. */
export function writePipe(fd: number): net.Socket {
  const stream = new net.Socket({ fd, readable: false, writable: true });
  stream.on('error', () => {}); // whoever writes is told by the callback
  return stream;
}

/** Resolves when the bytes have left this process; rejects when they can't. */
export function writeAll(stream: net.Socket, bytes: Uint8Array): Promise<void> {
  return new Promise((resolve, reject) => {
    const onClose = () => reject(new Error('the process no longer reads its input'));
    stream.once('close', onClose);
    stream.write(bytes, (error) => {
      stream.off('close', onClose);
      if (error == null) resolve();
      else reject(error);
    });
  });
}

/** Closes descriptors of which some may be closed already. */
export function closeAll(fds: readonly number[]): void {
  for (const fd of fds) {
    try {
      fs.closeSync(fd);
    } catch {
      // closed already
    }
  }
}
