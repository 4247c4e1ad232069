import type net from 'node:net';
import koffi from 'koffi';
import { lastError, libcFunction } from './libc';
import { log, reason } from './log';

/**
 * Gives a connection to another process, which goes on with it as if it had accepted it itself: nobody copies its bytes
 * from here on, and it outlives this process.
 *
 * The other process listens on a Unix socket for sequenced packets; each packet is one byte and one descriptor.
 */

const AF_UNIX = 1;
const SOCK_SEQPACKET_NONBLOCK_CLOEXEC = 0o2004005;
const SOL_SOCKET = 1;
const SCM_RIGHTS = 1;
/** Bytes of `struct cmsghdr` before its data, and with one descriptor behind it and padding. */
const CMSG_HEAD_BYTES = 16;
const CMSG_SPACE = 24;
/** Of `struct sockaddr_un`: the family, then the path and a NUL. */
const MAX_PATH_BYTES = 107;
const MSG_NOSIGNAL = 0x4000;

type Call = ReturnType<typeof libcFunction>;
let calls: Record<'socket' | 'connect' | 'sendmsg' | 'close', Call> | undefined;

function libc(): NonNullable<typeof calls> {
  if (calls !== undefined) return calls;
  const iovec = koffi.struct({ base: 'void *', length: 'size_t' });
  koffi.struct('msghdr', {
    name: 'void *',
    nameLength: 'uint32_t',
    iov: koffi.pointer(iovec),
    iovCount: 'size_t',
    control: 'void *',
    controlLength: 'size_t',
    flags: 'int',
  });
  calls = {
    socket: libcFunction('int socket(int family, int type, int protocol)'),
    connect: libcFunction('int connect(int fd, const uint8_t *address, uint32_t size)'),
    sendmsg: libcFunction('int64_t sendmsg(int fd, const msghdr *message, int flags)'),
    close: libcFunction('int close(int fd)'),
  };
  return calls;
}

/** The parts of a socket that Node has and its types don't tell. */
interface Handle {
  fd?: number;
  readStop?(): number;
  readStart?(): number;
}

/**
 * Whether the process behind the socket has the connection now. Then the caller destroys its own side, which closes
 * nothing; otherwise the connection is as it was. Nobody may have sent anything on it that was not read yet.
 */
export function handOver(connection: net.Socket, socketPath: string): boolean {
  const { _handle: handle } = connection as unknown as { _handle?: Handle | null };
  const fd = handle?.fd;
  if (process.platform !== 'linux' || fd === undefined || fd < 0) return false;
  if (handle?.readStop?.() !== 0) return false;
  try {
    if (connection.readableLength > 0) throw new Error('bytes have arrived already');
    sendDescriptor(fd, socketPath);
    return true;
  } catch (error) {
    log(`agent: a connection was not handed over: ${reason(error)}`);
    handle.readStart?.();
    return false;
  }
}

/** @throws the system's error, with its `code` */
function sendDescriptor(fd: number, socketPath: string): void {
  const call = libc();
  const channel = call.socket(AF_UNIX, SOCK_SEQPACKET_NONBLOCK_CLOEXEC, 0) as number;
  if (channel < 0) throw lastError('socket');
  try {
    const address = addressOf(socketPath);
    if (call.connect(channel, address, address.length) !== 0) throw lastError('connect');
    const control = Buffer.alloc(CMSG_SPACE);
    control.writeBigUInt64LE(BigInt(CMSG_HEAD_BYTES + 4), 0);
    control.writeInt32LE(SOL_SOCKET, 8);
    control.writeInt32LE(SCM_RIGHTS, 12);
    control.writeInt32LE(fd, CMSG_HEAD_BYTES);
    const message = {
      name: null,
      nameLength: 0,
      iov: { base: Buffer.alloc(1), length: 1 },
      iovCount: 1,
      control,
      controlLength: CMSG_SPACE,
      flags: 0,
    };
    if (Number(call.sendmsg(channel, message, MSG_NOSIGNAL)) !== 1) throw lastError('sendmsg');
  } finally {
    call.close(channel);
  }
}

function addressOf(socketPath: string): Buffer {
  const path = Buffer.from(`${socketPath}\0`);
  if (path.length > MAX_PATH_BYTES + 1) throw new Error(`the path of a socket is too long: ${socketPath}`);
  const family = Buffer.alloc(2);
  family.writeUInt16LE(AF_UNIX);
  return Buffer.concat([family, path]);
}
