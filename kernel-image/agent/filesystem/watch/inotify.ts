import net from 'node:net';
import type { SocketConstructorOpts } from 'node:net';
import { lastError, libcFunction } from '../../libc';

/** Bits of inotify's masks, by the kernel's names. */
export const IN = {
  MODIFY: 0x2,
  ATTRIB: 0x4,
  MOVED_FROM: 0x40,
  MOVED_TO: 0x80,
  CREATE: 0x100,
  DELETE: 0x200,
  DELETE_SELF: 0x400,
  MOVE_SELF: 0x800,
  UNMOUNT: 0x2000,
  Q_OVERFLOW: 0x4000,
  IGNORED: 0x8000,
  ONLYDIR: 0x0100_0000,
  DONT_FOLLOW: 0x0200_0000,
  ISDIR: 0x4000_0000,
} as const;

/** What is asked of every directory: no opening, reading and closing. */
const CHANGES =
  IN.MODIFY | IN.ATTRIB | IN.MOVED_FROM | IN.MOVED_TO | IN.CREATE | IN.DELETE | IN.DELETE_SELF | IN.MOVE_SELF;

export interface RawEvent {
  /** Position in the order of all events. */
  seq: number;
  /** Watch descriptor: which directory; -1 for all of them. */
  wd: number;
  mask: number;
  /** Same for the two events of one rename, else 0. */
  cookie: number;
  /** Bytes of the name in that directory, one per character (latin1); empty for the directory itself. */
  name: string;
}

const HEAD_BYTES = 16;
const BUFFER_BYTES = 64 * 1024;
const O_NONBLOCK = 0o4000;
const O_CLOEXEC = 0o2000000;
const FIONREAD = 0x541b;

/** Loaded with the first watcher. */
let calls: ReturnType<typeof loadCalls> | undefined;

function loadCalls() {
  return {
    init: libcFunction('int inotify_init1(int flags)'),
    add: libcFunction('int inotify_add_watch(int fd, const void *path, uint32_t mask)'),
    remove: libcFunction('int inotify_rm_watch(int fd, int wd)'),
    pipe: libcFunction('int pipe2(_Out_ int *fds, int flags)'),
    replace: libcFunction('int dup3(int from, int to, int flags)'),
    close: libcFunction('int close(int fd)'),
    read: libcFunction('intptr_t read(int fd, void *buffer, size_t length)'),
    ioctl: libcFunction('int ioctl(int fd, unsigned long request, _Out_ int *value)'),
  };
}

/**
 * One inotify instance of the kernel. Events come by themselves, in their order, and `read` fetches at once what is
 * queued. The owner closes it.
 *
 * Node waits for no descriptor but those of its own kinds. So Node is given a pipe, and inotify takes the place of the
 * pipe under the same number: the event loop then reads inotify as it would have read the pipe. No thread, no
 * polling, and no descriptor more. (Reads through the thread pool would hold one of its four threads for good.)
 */
export class Inotify {
  private readonly onEvents: (events: RawEvent[]) => void;
  private readonly call: NonNullable<typeof calls>;
  private readonly buffer = Buffer.alloc(BUFFER_BYTES);
  private readonly fd: number;
  private readonly socket: net.Socket;
  private closed = false;
  private lastSeq = 0;

  /** `onEvents` must not call `read`. Throws where there is no inotify, or no instance left. */
  constructor(onEvents: (events: RawEvent[]) => void, onError: (error: Error) => void) {
    this.onEvents = onEvents;
    this.call = calls ??= loadCalls();
    const inotify = this.call.init(O_NONBLOCK | O_CLOEXEC) as number;
    if (inotify < 0) throw lastError('inotify_init1');
    const pipe: [number, number] = [-1, -1];
    try {
      if ((this.call.pipe(pipe, O_NONBLOCK | O_CLOEXEC) as number) < 0) throw lastError('pipe2');
      this.fd = pipe[0];
      // Called at once with what was read, so that no event waits in a stream while `read` takes later ones.
      const onread = { buffer: this.buffer, callback: (length: number) => this.take(length) };
      // Documented for `connect`; a new socket takes it as well, which its type doesn't say.
      const options: SocketConstructorOpts & { onread: typeof onread } = {
        fd: this.fd,
        readable: true,
        writable: false,
        onread,
      };
      this.socket = new net.Socket(options);
      this.socket.on('error', onError);
      // The event loop asks the kernel about the number when it waits next, which is after this.
      if ((this.call.replace(inotify, this.fd, O_CLOEXEC) as number) < 0) throw lastError('dup3');
    } finally {
      this.call.close(inotify);
      if (pipe[1] >= 0) this.call.close(pipe[1]);
    }
  }

  /** `seq` of the newest event that was read. */
  get seq(): number {
    return this.lastSeq;
  }

  /** Watches a directory; one that is watched already keeps its number. `path` in latin1. Throws Node-like errors. */
  add(path: string, flags: number): number {
    const wd = this.call.add(
      this.fd,
      Buffer.from(`${path}\0`, 'latin1'),
      CHANGES | IN.ONLYDIR | flags,
    ) as number;
    if (wd < 0) throw lastError('inotify_add_watch');
    return wd;
  }

  remove(wd: number): void {
    // Fails when the directory is gone, and then the watch is, too.
    if (!this.closed) this.call.remove(this.fd, wd);
  }

  /** Fetches everything that is queued now. What comes meanwhile may stay: a busy program can't hold us here. */
  read(): void {
    if (this.closed) return;
    const queued: [number] = [0];
    if ((this.call.ioctl(this.fd, FIONREAD, queued) as number) < 0) throw lastError('ioctl');
    for (let left = queued[0]; left > 0;) {
      const length = Number(this.call.read(this.fd, this.buffer, BUFFER_BYTES));
      if (length < 0) throw lastError('read');
      this.take(length);
      left -= length;
    }
  }

  close(): void {
    if (this.closed) return;
    this.closed = true;
    this.socket.destroy();
  }

  /** Gives true: go on reading. */
  private take(length: number): boolean {
    const events: RawEvent[] = [];
    for (let at = 0; at + HEAD_BYTES <= length;) {
      const nameBytes = this.buffer.readUInt32LE(at + 12);
      const start = at + HEAD_BYTES;
      // Padded with zeros.
      const end = this.buffer.indexOf(0, start);
      events.push({
        seq: ++this.lastSeq,
        wd: this.buffer.readInt32LE(at),
        mask: this.buffer.readUInt32LE(at + 4),
        cookie: this.buffer.readUInt32LE(at + 8),
        name: nameBytes === 0 ? '' : this.buffer.toString('latin1', start, end),
      });
      at = start + nameBytes;
    }
    if (!this.closed) this.onEvents(events);
    return true;
  }
}
