import { chownSync, readSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import tty from 'node:tty';
import { lastError, libcFunction } from '../libc';
import { log, reason } from '../log';
import { signalName } from './end-event';
import type { Exit } from './end-event';
import { marked } from './launch';
import type { Launch } from './launch';
import { closeAll, reading, writeAll } from './pipe';
import type { OnOutput, Started } from './started';

/** Largest piece of a terminal's output in one message. */
const CHUNK_BYTES = 16_384;
/** Shared: each read is copied out before the next one begins. */
const readBuffer = Buffer.allocUnsafeSlow(CHUNK_BYTES);
const F_SETFD = 2;
const FD_CLOEXEC = 1;

/**
 * The functions of node-pty's binary. Its own class is not used: it drops what a slow reader has not read 200 ms after
 * the exit, adds variables to the environment, and lets later children inherit the terminal.
 */
interface PtyBinding {
  fork(
    file: string,
    args: string[],
    env: string[],
    cwd: string,
    cols: number,
    rows: number,
    uid: number,
    gid: number,
    utf8: boolean,
    helper: string,
    onExit: (code: number, signal: number) => void,
  ): { fd: number; pid: number; pty: string };
  resize(fd: number, cols: number, rows: number): void;
}

let binding: PtyBinding | undefined;
let helper = '';
let fcntl: ReturnType<typeof libcFunction> | undefined;

/** Loaded at first use: most sandboxes never open a terminal. */
function loadBinding(): PtyBinding {
  if (binding !== undefined) return binding;
  const load = createRequire(__filename);
  const name = `@lydell/node-pty-${process.platform}-${process.arch}/pty.node`;
  // macOS only; elsewhere the argument is ignored.
  helper = path.join(path.dirname(load.resolve(name)), 'spawn-helper');
  binding = load(name) as PtyBinding;
  return binding;
}

/**
 * Starts a process as the leader of a session with a terminal of its own.
 *
 * @throws when no terminal or no process could be made
 */
export function startWithTerminal(
  launch: Launch,
  options: { cols: number; rows: number; onOutput: OnOutput },
): Started {
  const pty = loadBinding();
  const [file, ...args] = launch.argv;
  const env = Object.entries(launch.env).map(([name, value]) => `${name}=${value}`);
  let onExit: (exit: Exit) => void = () => {};
  const exit = new Promise<Exit>((resolve) => (onExit = resolve));
  const {
    fd,
    pid,
    pty: device,
  } = marked(() =>
    pty.fork(file, args, env, launch.cwd, options.cols, options.rows, -1, -1, true, helper, (code, signal) =>
      onExit(signal === 0 ? { code } : { signal: signalName(signal) }),
    ),
  );
  try {
    fcntl ??= libcFunction('int fcntl(int fd, int command, ...)');
    // Or every later process would hold this terminal open.
    if (fcntl(fd, F_SETFD, 'int', FD_CLOEXEC) !== 0) throw lastError('fcntl');
    // As a login does it, so that the user may open the terminal by its name.
    if (launch.owner !== undefined) chownSync(device, launch.owner.uid, launch.owner.gid);
  } catch (error) {
    log(`agent: terminal: ${reason(error)}`);
  }
  let stream: tty.ReadStream;
  try {
    stream = new tty.ReadStream(
      fd,
      reading({}, readBuffer, (bytes) => options.onOutput('pty', bytes)),
    );
  } catch (error) {
    process.kill(pid, 'SIGKILL');
    closeAll([fd]);
    throw error;
  }
  stream.on('error', () => {}); // EIO is how a terminal ends; `close` follows
  const outputEnd = new Promise<void>((resolve) => stream.once('close', () => resolve()));
  // The event loop takes a short read at a hang-up for the end, but terminals give 4 KiB at a time.
  stream.once('end', () => readRest(fd, (bytes) => options.onOutput('pty', bytes)));
  stream.resume();
  let hasEnded = false;
  void exit.then(() => (hasEnded = true));
  return {
    pid,
    isTerminal: true,
    exit,
    outputEnd,
    pauseOutput: () => void stream.pause(),
    resumeOutput: () => void stream.resume(),
    closeOutput: () => void stream.destroy(),
    get hasInput() {
      return !stream.destroyed;
    },
    write: (bytes) => writeAll(stream, bytes),
    closeInput: () => {},
    signal: (signal) => {
      // Its number may belong to somebody else by now.
      if (!hasEnded) process.kill(pid, signal);
    },
    resize: (cols, rows) => {
      // Its descriptor may be another file's by now.
      if (stream.destroyed) throw new Error(`the terminal of process ${pid} is closed`);
      pty.resize(fd, cols, rows);
    },
  };
}

/** What the system still holds of a terminal that nobody can write to any more: some ten KiB at most. */
function readRest(fd: number, onBytes: (bytes: Buffer) => void): void {
  try {
    for (;;) {
      const length = readSync(fd, readBuffer);
      if (length === 0) return;
      onBytes(Buffer.from(readBuffer.subarray(0, length)));
    }
  } catch {
    // EIO: that was all. EAGAIN: somebody opened it again, and is not waited for.
  }
}
