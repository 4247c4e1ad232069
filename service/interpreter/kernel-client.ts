import { randomUUID } from 'node:crypto';
import { KernelConnection } from '@jupyterlab/services/lib/kernel';
import type { KernelMessage } from '@jupyterlab/services/lib/kernel';
import { serialize } from '@jupyterlab/services/lib/kernel/serialize';
import { ServerConnection } from '@jupyterlab/services/lib/serverconnection';
import { ServiceError } from '../errors';
import type { Logger } from '../log';
import type { KernelDeath } from './endings';
import { GATEWAY_HOST } from './gateway';
import type { Gateway } from './gateway';
import { deserializeMessage, KernelSocket } from './kernel-socket';
import { readDeath } from './kernel-death';
import type { KernelError } from './languages';
import { toErrorEvent } from './outputs';

/** A lost channel is taken up again within this time, or given up. The gateway keeps what is said meanwhile. */
const RECONNECT_GRACE_MS = 6_000;
const FIRST_RETRY_MS = 50;
const MAX_RETRY_MS = 1_000;
/** A kernel_info_request can fall between two chairs while a kernel starts. */
const ASK_AGAIN_MS = 3_000;
/** One that is busy answers when it is through, every one of them. */
const ASK_BUSY_AGAIN_MS = 60_000;

/**
 * Why a client is of no more use. `restarting`: the gateway starts the kernel anew after it died; `dead`: the kernel
 * is gone for good; `forgotten`: with its gateway, and the new one knows nothing of it; `lost`: it can't be reached;
 * `closed`: we did it.
 */
export type KernelEnd = 'restarting' | 'dead' | 'forgotten' | 'lost' | 'closed';

/** For how many requests of the past a client knows whom their late messages are for. */
const MAX_PAST_REQUESTS = 256;

/** Whoever uses the kernel now. Called at most once each. */
export interface KernelUser {
  /** `death`: what the gateway said of the end of the process, when it said something. */
  onKernelEnd(end: KernelEnd, death: KernelDeath): void;
  /** The channel was lost and is back, and the kernel has answered everything asked before. */
  onRecovered(): void;
}

export interface KernelRequest {
  /** Forgets the request: nothing of it is delivered any more. It may still run in the kernel. */
  dispose(): void;
}

export interface RequestHandlers {
  onMessage(message: KernelMessage.IIOPubMessage): void;
  onReply(reply: KernelMessage.IExecuteReplyMsg): void;
  /** IOPub messages of the request that come after `dispose`; such of background threads, most of the time. */
  onLate?: (message: KernelMessage.IIOPubMessage) => void;
}

export interface KernelClientOptions {
  gateway: Gateway;
  kernelId: string;
  kernelName: string;
  /** From now until the kernel has answered for the first time; for one that is busy, until there is a channel. */
  readyTimeoutMs: number;
  /** The kernel may be at work on what an earlier service sent, and answer when it is through. */
  isBusy?: boolean;
  /** Of an earlier service's client, when there is something in it to be waited for. */
  sessionId?: string;
  logger: Logger;
  onEnd: (end: KernelEnd, death: KernelDeath) => void;
}

type Serializer = ServerConnection.ISettings['serializer'];

/** jupyterlab's connection without its own ideas about reconnecting, and without promises that reject unheard. */
class Connection extends KernelConnection {
  /** Told the id of the next request, before it is sent. */
  onSend: ((messageId: string) => void) | undefined;
  private onInfo: (() => void) | undefined;

  constructor(options: ConstructorParameters<typeof KernelConnection>[0], onInfo: () => void) {
    super(options);
    this.onInfo = onInfo;
    this.info.catch(() => undefined); // a kernel that answers kernel_info with an error can run code all the same
  }

  override sendShellMessage<Type extends KernelMessage.ShellMessageType>(
    message: KernelMessage.IShellMessage<Type>,
    expectReply?: boolean,
    disposeOnDone?: boolean,
  ): ReturnType<typeof KernelConnection.prototype.sendShellMessage<Type>> {
    const { onSend } = this;
    this.onSend = undefined;
    onSend?.(message.header.msg_id);
    return super.sendShellMessage(message, expectReply, disposeOnDone);
  }

  /** Asked for by the connection itself when the gateway restarts a kernel; we make a new connection then. */
  override async reconnect(): Promise<void> {}

  /** Opens a new socket for the same session; requests stay what they are. */
  redial(): void {
    super.reconnect().catch(() => undefined); // it rejects when disposed meanwhile
  }

  override async requestKernelInfo(): Promise<KernelMessage.IInfoReplyMsg | undefined> {
    try {
      const reply = await super.requestKernelInfo();
      if (reply !== undefined) this.onInfo?.();
      return reply;
    } catch {
      return undefined; // not connected just now, or disposed: asked again when it matters
    }
  }
}

/**
 * One session with one kernel process, over one WebSocket at a time. Ends exactly once; a restarted kernel gets a new
 * client. Holds a connection and timers until then: the owner calls `close`, which is idempotent.
 */
export class KernelClient {
  readonly kernelId: string;
  /** Requests of our own so far; some kernels number them like the user's. */
  silentRequests = 0;
  /** Set by whoever has the kernel's turn; undefined between turns. */
  user: KernelUser | undefined;
  private readonly connection: Connection;
  private socket: KernelSocket | undefined;
  private state: KernelEnd | 'connecting' | 'ready' = 'connecting';
  private everReady: boolean;
  /** It was up, is down, and the grace is running. */
  private lost: boolean;
  /** A request of an earlier service. */
  private inherited: { messageId: string; handlers: RequestHandlers } | undefined;
  /** Those who wait for the kernel to answer. */
  private waiting: Array<() => void> = [];
  /** Those who want to know when it never will. */
  private readonly failing = new Set<(error: Error) => void>();
  private giveUp: NodeJS.Timeout | undefined;
  private retry: NodeJS.Timeout | undefined;
  private readonly askAgain: NodeJS.Timeout;
  private retryMs = FIRST_RETRY_MS;
  /** Another than that of any client before, also of the same session: what those got is not known here. */
  private readonly name = randomUUID();
  /** Messages so far, over all connections. */
  private received = 0;
  private death: KernelDeath = {};
  /** By message id, oldest first. */
  private readonly past = new Map<string, NonNullable<RequestHandlers['onLate']>>();
  /** The last message that a request was given: jupyterlab tells of it once more. */
  private delivered: KernelMessage.IIOPubMessage | undefined;

  constructor(private readonly options: KernelClientOptions) {
    const { gateway, kernelId, kernelName, isBusy = false, sessionId } = options;
    this.kernelId = kernelId;
    // As one that had a channel before, and has lost it.
    this.everReady = this.lost = isBusy;
    this.connection = new Connection(
      {
        model: { id: kernelId, name: kernelName },
        serverSettings: this.serverSettings(gateway),
        username: 'cellbox',
        ...(sessionId !== undefined && { clientId: sessionId }),
        handleComms: false,
        kernelInfoTimeout: options.readyTimeoutMs,
      },
      () => this.onInfo(),
    );
    this.connection.statusChanged.connect((_connection, status) => {
      if (status === 'restarting' || status === 'autorestarting') this.finish('restarting');
      else if (status === 'dead') this.finish('dead');
    });
    this.connection.connectionStatusChanged.connect((_connection, status) => {
      // Back within the grace. A busy kernel answers later; until then its output flows again.
      if (status !== 'connected' || !this.everReady) return;
      clearTimeout(this.giveUp);
      this.lost = false;
    });
    this.connection.iopubMessage.connect((_connection, message) => {
      if (message === this.delivered || (this.past.size === 0 && this.inherited === undefined)) return;
      const { msg_id: parent } = message.parent_header as { msg_id?: string };
      if (parent === undefined) return;
      if (parent === this.inherited?.messageId) this.inherited.handlers.onMessage(message);
      else this.past.get(parent)?.(message);
    });
    // Replies to what this connection has not sent.
    this.connection.unhandledMessage.connect((_connection, message) => {
      const { msg_id: parent } = message.parent_header as { msg_id?: string };
      if (message.header.msg_type !== 'execute_reply' || parent !== this.inherited?.messageId) return;
      this.inherited?.handlers.onReply(message as KernelMessage.IExecuteReplyMsg);
    });
    this.giveUp = setTimeout(() => this.finish('lost'), options.readyTimeoutMs);
    this.askAgain = setInterval(
      () => {
        void this.connection.requestKernelInfo();
      },
      isBusy ? ASK_BUSY_AGAIN_MS : ASK_AGAIN_MS,
    );
  }

  /** Names this client to the gateway, which keeps what is said to it for a while when it is gone. */
  get sessionId(): string {
    return this.connection.clientId;
  }

  get isReady(): boolean {
    return this.state === 'ready';
  }

  /** Why it ended; undefined while it may be used. */
  get end(): KernelEnd | undefined {
    return this.state === 'connecting' || this.state === 'ready' ? undefined : this.state;
  }

  /** Resolves when the kernel answers, rejects with `unavailable` when it never will on this client. */
  whenReady(): Promise<void> {
    if (this.state === 'ready') return Promise.resolve();
    if (this.end !== undefined) return Promise.reject(this.endError());
    return new Promise((resolve, reject) => {
      this.failing.add(reject);
      this.waiting.push(() => {
        this.failing.delete(reject);
        resolve();
      });
    });
  }

  /** Sends code; `onSend` is told its id before. @throws Error when the kernel is gone; the user hears of that too. */
  execute(
    code: string,
    options: {
      silent: boolean;
      metadata?: Record<string, string | object>;
      onSend?: (messageId: string) => void;
    },
    handlers: RequestHandlers,
  ): KernelRequest {
    if (options.silent) this.silentRequests++;
    this.connection.onSend = options.onSend;
    const future = this.connection.requestExecute(
      {
        code,
        silent: options.silent,
        store_history: !options.silent,
        allow_stdin: false,
        // We never send a second request before the first has ended, so there is nothing to abort. With `true` a
        // kernel that is still busy aborting would refuse the next cell of a quick client.
        stop_on_error: false,
      },
      false,
      options.metadata as Parameters<KernelConnection['requestExecute']>[2],
    );
    const messageId = future.msg.header.msg_id;
    const { onLate } = handlers;
    future.onIOPub = (message) => {
      this.delivered = message;
      handlers.onMessage(message);
    };
    future.onReply = (reply) => handlers.onReply(reply);
    return {
      dispose: () => {
        future.dispose();
        // Only that: the rest, and the code, need not be kept.
        if (onLate !== undefined) this.rememberPast(messageId, onLate);
      },
    };
  }

  /** Waits for the answer to what an earlier client of this session sent; one at a time, before anything is sent. */
  inherit(messageId: string, handlers: RequestHandlers): KernelRequest {
    this.inherited = { messageId, handlers };
    return {
      dispose: () => {
        this.inherited = undefined;
        if (handlers.onLate !== undefined) this.rememberPast(messageId, handlers.onLate);
      },
    };
  }

  /**
   * Runs code of our own and resolves when the kernel has replied, with the error when the code failed. Rejects with
   * `deadline_exceeded` or, when the kernel ends, `unavailable`; then it may still run later.
   */
  async runSilently(code: string, deadlineMs: number): Promise<KernelError | undefined> {
    const { promise, resolve, reject } = withResolvers<KernelError | undefined>();
    const timer = setTimeout(
      () => reject(new ServiceError('deadline_exceeded', 'The kernel did not answer in time')),
      deadlineMs,
    );
    this.failing.add(reject);
    const onReply: RequestHandlers['onReply'] = ({ content }) => {
      const { name, value, traceback } = toErrorEvent(content as object);
      resolve(content.status === 'error' ? { name, value, traceback } : undefined);
    };
    let request: KernelRequest | undefined;
    try {
      request = this.execute(code, { silent: true }, { onMessage: () => undefined, onReply });
      return await promise;
    } finally {
      clearTimeout(timer);
      this.failing.delete(reject);
      request?.dispose();
    }
  }

  private rememberPast(messageId: string, onLate: NonNullable<RequestHandlers['onLate']>): void {
    this.past.set(messageId, onLate);
    if (this.past.size <= MAX_PAST_REQUESTS) return;
    const [oldest] = this.past.keys();
    if (oldest !== undefined) this.past.delete(oldest);
  }

  pause(): void {
    this.socket?.pause();
  }

  resume(): void {
    this.socket?.resume();
  }

  close(): void {
    this.finish('closed');
  }

  private serverSettings(gateway: Gateway): ServerConnection.ISettings {
    const { logger, kernelId, readyTimeoutMs } = this.options;
    const connect = (url: string, protocols: string[]): KernelSocket => {
      // The gateway sends again what was on its way when the last connection was lost.
      const next = `${url}&client=${this.name}&received=${this.received}`;
      const socket = new KernelSocket(next, protocols, {
        headers: gateway.headers,
        connect: () => gateway.connect(),
        handshakeTimeoutMs: readyTimeoutMs,
        onDown: (status) => {
          if (this.socket === socket) this.onDown(status);
        },
        onReceived: () => this.received++,
        onBadMessage: (error) => logger.warn({ err: error, kernelId }, 'left out a malformed kernel message'),
      });
      this.socket = socket;
      return socket;
    };
    const deserialize = (data: unknown, protocol?: string): KernelMessage.IMessage => {
      const message = deserializeMessage(data, protocol);
      if (message.header.msg_type === 'status') this.death = readDeath(message) ?? this.death;
      return message;
    };
    return ServerConnection.makeSettings({
      baseUrl: `http://${GATEWAY_HOST}/`,
      wsUrl: `ws://${GATEWAY_HOST}/`,
      appendToken: false,
      // A constructor may return another object; the connection uses only what KernelSocket has.
      WebSocket: function (url: string, protocols: string[]) {
        return connect(url, protocols);
      } as never,
      serializer: { serialize, deserialize: deserialize as Serializer['deserialize'] },
    });
  }

  private onInfo(): void {
    if (this.state !== 'connecting') return;
    clearTimeout(this.giveUp);
    clearInterval(this.askAgain);
    const recovered = this.everReady;
    this.everReady = true;
    this.state = 'ready';
    this.retryMs = FIRST_RETRY_MS;
    const waiting = this.waiting;
    this.waiting = [];
    for (const resolve of waiting) resolve();
    if (recovered) this.user?.onRecovered();
  }

  private onDown(status: number | undefined): void {
    if (this.end !== undefined) return;
    if (status === 404) {
      this.finish('forgotten');
      return;
    }
    this.state = 'connecting';
    if (this.everReady && !this.lost) {
      this.lost = true;
      this.giveUp = setTimeout(() => this.finish('lost'), RECONNECT_GRACE_MS);
    }
    this.retry = setTimeout(() => this.connection.redial(), this.retryMs);
    this.retryMs = Math.min(2 * this.retryMs, MAX_RETRY_MS);
  }

  private finish(end: KernelEnd): void {
    if (this.end !== undefined) return;
    if (end !== 'closed') {
      const { kernelId, death } = this;
      this.options.logger.info({ kernelId, end, ...death }, 'a kernel ended, or its channel did');
    }
    this.state = end;
    clearTimeout(this.giveUp);
    clearTimeout(this.retry);
    clearInterval(this.askAgain);
    this.waiting = [];
    for (const reject of this.failing) reject(this.endError());
    this.failing.clear();
    const user = this.user;
    this.user = undefined;
    this.connection.dispose();
    this.socket?.close();
    this.past.clear();
    user?.onKernelEnd(end, this.death);
    this.options.onEnd(end, this.death);
  }

  private endError(): ServiceError {
    const messages: Record<KernelEnd, string> = {
      restarting: 'The kernel died and is being restarted',
      dead: 'The kernel died',
      forgotten: 'The kernel died with its gateway',
      lost: 'The kernel did not answer in time',
      closed: 'The context was closed',
    };
    return new ServiceError('unavailable', messages[this.end ?? 'lost']);
  }
}

function withResolvers<Value>(): {
  promise: Promise<Value>;
  resolve: (value: Value) => void;
  reject: (error: Error) => void;
} {
  let resolve!: (value: Value) => void;
  let reject!: (error: Error) => void;
  const promise = new Promise<Value>((onResolve, onReject) => {
    resolve = onResolve;
    reject = onReject;
  });
  return { promise, resolve, reject };
}
