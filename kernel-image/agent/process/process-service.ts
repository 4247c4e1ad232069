import { Code, ConnectError } from '@connectrpc/connect';
import type { HandlerContext, ServiceImpl } from '@connectrpc/connect';
import type { MessageInitShape } from '@bufbuild/protobuf';
import { Signal } from '../../../protocol/envd/gen/process_pb';
import type {
  Process,
  ProcessEventSchema,
  ProcessInput,
  StartRequest,
  StreamInputRequest,
} from '../../../protocol/envd/gen/process_pb';
import type { AgentContext } from '../app';
import { reason } from '../log';
import { callerOf, streamEvents, untilAborted } from '../rpc';
import type { EventSource } from '../rpc';
import { globalEnv } from '../state';
import type { SandboxUser } from '../users';
import { checkStrings, makeEnvironment } from './environment';
import type { End } from './end-event';
import { chain } from './launch';
import type { Launch } from './launch';
import type { Entry } from './process-table';
import { RunningProcess } from './running-process';
import type { Happening } from './running-process';
import type { Started } from './started';
import { startWithPipes } from './with-pipes';
import { startWithTerminal } from './with-terminal';
import { workingDirectory } from './working-directory';

type Event = MessageInitShape<typeof ProcessEventSchema>;
type Response = { event: Event };

const SIGNALS: Partial<Record<Signal, NodeJS.Signals>> = {
  [Signal.SIGTERM]: 'SIGTERM',
  [Signal.SIGKILL]: 'SIGKILL',
};
/** A killed process may be stuck in the kernel; whoever killed it does not wait for ever. */
const REAPED_MS = 2_000;
const DEFAULT_SIZE = { cols: 80, rows: 24 };

/** `process.Process`: commands and terminals. */
export function createProcessService(context: AgentContext): ServiceImpl<typeof Process> {
  const table = context.processes;

  return {
    list: () => ({
      processes: table.list().map(({ process, config, tag }) => ({
        pid: process.pid,
        ...(config === undefined ? {} : { config }),
        ...(tag === undefined ? {} : { tag }),
      })),
    }),

    async *start(request, call) {
      call.signal.throwIfAborted();
      const process = await startProcess(context, request, callerOf(call));
      const remainingMs = call.timeoutMs();
      if (remainingMs !== undefined) process.endAfter(remainingMs);
      for await (const response of follow(process, call)) {
        if (response.event.event?.case === 'end' && process.timedOut) {
          // In the library's words: its own timer is due at the same moment.
          throw new ConnectError('the operation timed out', Code.DeadlineExceeded);
        }
        yield response;
      }
    },

    async *connect(request, call) {
      const found = table.findRecent(request.process);
      if ('process' in found) {
        yield* follow(found.process, call);
      } else {
        yield started(found.pid);
        yield ended(found.end);
      }
    },

    update: (request) => {
      const { process } = table.find(request.process);
      if (request.pty === undefined) return {};
      const { cols, rows } = size(request.pty.size);
      orInternal(() => process.resize(cols, rows));
      return {};
    },

    sendInput: async (request, call) => {
      const { process } = table.find(request.process);
      await writeInput(process, request.input, call);
      return {};
    },

    streamInput: async (requests: AsyncIterable<StreamInputRequest>, call) => {
      let target: RunningProcess | undefined;
      for await (const { event } of requests) {
        switch (event.case) {
          case 'start':
            target = table.find(event.value.process).process;
            break;
          case 'data':
            if (target === undefined) {
              throw new ConnectError('the first message must select a process', Code.InvalidArgument);
            }
            await writeInput(target, event.value.input, call);
            break;
          case 'keepalive':
            break;
          case undefined:
            throw new ConnectError('a message without a known event', Code.Unimplemented);
        }
      }
      return {};
    },

    sendSignal: async (request, call) => {
      const signal = SIGNALS[request.signal];
      if (signal === undefined) {
        throw new ConnectError('only SIGNAL_SIGKILL and SIGNAL_SIGTERM can be sent', Code.Unimplemented);
      }
      const { process } = table.find(request.process);
      orInternal(() => process.signal(signal));
      // A caller who then asks for the process must find it gone, not dying.
      if (signal === 'SIGKILL') await untilAborted(call.signal, within(process.exited, REAPED_MS));
      return {};
    },

    closeStdin: (request) => {
      const { process } = table.find(request.process);
      if (process.isTerminal) {
        throw new ConnectError('a terminal has no stdin to close: send 0x04 instead', Code.Unknown);
      }
      process.closeInput();
      return {};
    },
  };
}

/** Starts what was asked for and enters it in the table, so that it can be found before anybody hears of it. */
async function startProcess(
  context: AgentContext,
  request: StartRequest,
  user: SandboxUser,
): Promise<RunningProcess> {
  const { users, state } = context;
  const config = request.process;
  const command: [string, ...string[]] = [config?.cmd ?? '', ...(config?.args ?? [])];
  const env = makeEnvironment({
    own: process.env,
    user: user.name,
    home: users.toDisk(user.home),
    global: globalEnv(state),
    requested: config?.envs ?? {},
  });
  checkStrings(command, env);
  if (!users.canChown && user.uid !== process.getuid?.()) {
    throw new ConnectError(`nothing can be started as user '${user.name}' here`, Code.PermissionDenied);
  }
  const groups = users.groups(user);
  const launch: Launch = {
    argv: chain(users, user, groups, command),
    env,
    cwd: workingDirectory(users, user, groups, {
      requested: config?.cwd ?? '',
      defaultWorkdir: state.defaultWorkdir,
    }),
    owner: users.canChown ? { uid: user.uid, gid: user.gid } : undefined,
  };
  const running = await RunningProcess.start(context.memory, async (onOutput): Promise<Started> => {
    try {
      if (request.pty === undefined)
        return await startWithPipes(launch, { stdin: request.stdin ?? true, onOutput });
      return startWithTerminal(launch, { ...size(request.pty.size), onOutput });
    } catch (error) {
      throw startFailure(error, request.pty !== undefined);
    }
  });
  const entry: Entry = { process: running, config, tag: request.tag };
  context.processes.add(entry);
  return running;
}

/** What the system is short of is not the caller's mistake. */
const SHORTAGES = new Set(['EAGAIN', 'EMFILE', 'ENFILE', 'ENOMEM']);

function startFailure(error: unknown, isTerminal: boolean): ConnectError {
  const code = (error as NodeJS.ErrnoException).code ?? '';
  const message = `the process could not be started: ${reason(error)}`;
  if (SHORTAGES.has(code)) return new ConnectError(message, Code.ResourceExhausted);
  const isMistake = isTerminal || ['E2BIG', 'EACCES', 'ENOENT', 'ENOTDIR'].includes(code);
  return new ConnectError(message, isMistake ? Code.InvalidArgument : Code.Internal);
}

/** `start`, all output from now on, `end`. The process lives on when this is given up. */
async function* follow(process: RunningProcess, call: HandlerContext): AsyncGenerator<Response> {
  const subscription = process.follow();
  const source: EventSource<Response> = {
    next: async () => {
      const happening = await subscription.next();
      return happening && happened(happening);
    },
  };
  // A client that leaves while it is being written to leaves this generator where it is, and `finally` never runs.
  const leave = () => subscription.close();
  call.signal.addEventListener('abort', leave, { once: true });
  try {
    yield started(process.pid);
    for await (const response of streamEvents(source, call, keepalive)) {
      yield response;
      if (response.event.event?.case === 'end') return;
    }
  } finally {
    call.signal.removeEventListener('abort', leave);
    subscription.close();
  }
}

function started(pid: number): Response {
  return { event: { event: { case: 'start', value: { pid } } } };
}

function ended(end: End): Response {
  return { event: { event: { case: 'end', value: end } } };
}

function keepalive(): Response {
  return { event: { event: { case: 'keepalive', value: {} } } };
}

function happened(happening: Happening): Response {
  if (happening.type === 'end') return ended(happening.end);
  const output = { case: happening.channel, value: happening.bytes };
  return { event: { event: { case: 'data', value: { output } } } };
}

async function writeInput(
  process: RunningProcess,
  input: ProcessInput | undefined,
  call: HandlerContext,
): Promise<void> {
  const given = input?.input;
  if (given?.case === undefined) throw new ConnectError('an input without a known form', Code.Unimplemented);
  const isForTerminal = given.case === 'pty';
  if (isForTerminal !== process.isTerminal) {
    const text = process.isTerminal ? 'has a terminal: it takes pty input' : 'has no terminal';
    throw new ConnectError(`process ${process.pid} ${text}`, Code.Internal);
  }
  if (!process.hasInput) throw new ConnectError(`process ${process.pid} has no open stdin`, Code.Internal);
  try {
    await untilAborted(call.signal, process.write(given.value, call.signal));
  } catch (error) {
    if (call.signal.aborted) throw error;
    throw new ConnectError(`input to process ${process.pid}: ${reason(error)}`, Code.Internal);
  }
}

/** Sizes are 16 bits wide in the system; a terminal without a size would confuse every program. */
function size(wanted: { cols: number; rows: number } | undefined): { cols: number; rows: number } {
  const cols = (wanted?.cols ?? 0) & 0xffff;
  const rows = (wanted?.rows ?? 0) & 0xffff;
  return { cols: cols || DEFAULT_SIZE.cols, rows: rows || DEFAULT_SIZE.rows };
}

function orInternal(act: () => void): void {
  try {
    act();
  } catch (error) {
    throw new ConnectError(reason(error), Code.Internal);
  }
}

async function within(promise: Promise<void>, ms: number): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const elapsed = new Promise<void>((resolve) => (timer = setTimeout(resolve, ms)));
  await Promise.race([promise, elapsed]).finally(() => clearTimeout(timer));
}
