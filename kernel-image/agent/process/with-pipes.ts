import fs from 'node:fs';
import type net from 'node:net';
import type { Exit } from './end-event';
import { whenExited } from './exits';
import { marked } from './launch';
import type { Launch } from './launch';
import { closeAll, openPipe, readPipe, writeAll, writePipe } from './pipe';
import { posixSpawn } from './posix-spawn';
import type { OnOutput, Started } from './started';

/**
 * Starts a process with pipes for output and, when asked for, for input; else its input is empty.
 *
 * It leads a session of its own: `kill 0` in a script must not end the agent or the commands of others.
 *
 * @throws the system's error, with its `code`, when nothing could be started
 */
export function startWithPipes(launch: Launch, options: { stdin: boolean; onOutput: OnOutput }): Started {
  const childFds: number[] = [];
  const ownFds: number[] = [];
  const pipe = (childReads: boolean) => {
    const { readFd, writeFd } = openPipe();
    const [childFd, ownFd] = childReads ? [readFd, writeFd] : [writeFd, readFd];
    childFds.push(childFd);
    ownFds.push(ownFd);
    // Opening /dev/stdout is opening this pipe, which only its owner may.
    if (launch.owner !== undefined) fs.fchownSync(childFd, launch.owner.uid, launch.owner.gid);
    return { childFd, ownFd };
  };
  try {
    const input = options.stdin ? pipe(true) : undefined;
    const output = pipe(false);
    const errors = pipe(false);
    const stdio = [input?.childFd, output.childFd, errors.childFd];
    const pid = marked(() => posixSpawn({ ...launch, stdio }));
    const exit = whenExited(pid);
    const readers = [
      readPipe(output.ownFd, (bytes) => options.onOutput('stdout', bytes)),
      readPipe(errors.ownFd, (bytes) => options.onOutput('stderr', bytes)),
    ];
    return withPipes(pid, exit, readers, input && writePipe(input.ownFd));
  } catch (error) {
    closeAll(ownFds);
    throw error;
  } finally {
    closeAll(childFds);
  }
}

function withPipes(
  pid: number,
  exit: Promise<Exit>,
  readers: ReadonlyArray<ReturnType<typeof readPipe>>,
  stdin: net.Socket | undefined,
): Started {
  let hasEnded = false;
  void exit.then(() => (hasEnded = true));
  return {
    pid,
    isTerminal: false,
    exit,
    outputEnd: Promise.all(readers.map(({ ended }) => ended)).then(() => {}),
    pauseOutput: () => readers.forEach(({ stream }) => stream.pause()),
    resumeOutput: () => readers.forEach(({ stream }) => stream.resume()),
    closeOutput: () => readers.forEach(({ stream }) => stream.destroy()),
    get hasInput() {
      return stdin !== undefined && !stdin.destroyed && stdin.writable;
    },
    write: (bytes) => writeAll(requireInput(stdin), bytes),
    closeInput: () => stdin?.destroy(),
    signal: (signal) => {
      // Its number may belong to somebody else by now.
      if (!hasEnded) process.kill(pid, signal);
    },
    resize: () => {
      throw new Error(`process ${pid} has no terminal`);
    },
  };
}

function requireInput(stdin: net.Socket | undefined): net.Socket {
  if (stdin === undefined) throw new Error('the process was started without stdin');
  return stdin;
}
