import type { Socket } from 'node:net';

/** Limits of one instance. A runtime that can't enforce one says so in `Runtime.limits`, never in silence. */
export interface Resources {
  cpuCount: number;
  memoryMB: number;
  diskSizeMB: number;
  pids: number;
  openFiles: number;
}

/** Addresses beyond the host that a machine may reach: IPv4 CIDR blocks. Allow beats deny; what neither names is reachable. */
export interface NetworkRules {
  allowOut: readonly string[];
  denyOut: readonly string[];
  /**
   * Names that are reachable beside these, on ports 80 and 443, by HTTP and TLS: lower case, without the last dot; `*.` and
   * a name stands for all below it. Only with a `denyOut` of everything.
   */
  allowDomains?: readonly string[];
}

/** `full`: the internet; `none`: nothing at all, name servers included. Hosts and other machines are never reachable. */
export type NetworkAccess = 'full' | 'none' | NetworkRules;

/** What a level of isolation can be called. */
export const ISOLATION_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;

/** What is needed to start one isolated machine. Plain data: it holds no secret and no callback. */
export interface InstanceSpec {
  /** `^[a-z0-9]+$`, unique for ever; names the engine's objects. A sandbox has its instance's id. */
  id: string;
  /** Environment that every process inside sees, and `/envs` of the agent tells. */
  env: Record<string, string>;
  resources: Resources;
  /** `none`: no interface but loopback, and no name resolution. Rules hold before anything runs inside. */
  network: NetworkAccess;
  /** One of `Runtime.isolationLevels`; undefined takes the first of them. */
  isolation?: string;
  /** Kept by the engine and told again by `list()`, so that a service that lost its store still knows whose it is. */
  labels: Record<string, string>;
  /** Secret that the agent asks of callers (`X-Access-Token`); undefined leaves the agent open. */
  accessToken?: string;
  /** The kernel gateway starts when it is first dialled, and not at once: others are starting that come first. */
  gatewayWaits?: boolean;
  /** When the instance ends by itself if no service has been in contact since (milliseconds since the epoch). */
  deadlineAt: number;
}

/** Why an instance is gone. `stopped`: we asked; `exited`: it ended by itself or was killed from outside. */
export type InstanceEnd = { reason: 'stopped' } | { reason: 'exited'; detail: string };

export interface DialOptions {
  /** Gives up the attempt; the attempt also has a deadline of its own. */
  signal?: AbortSignal;
}

/**
 * A handle to one started machine. Obtained from `start` or `list`+`adopt`; valid until `ended` settles.
 *
 * Of a machine that is halted it stays valid, too: `boot` makes it usable again.
 *
 * `dial(port)` gives a connected, half-close-keeping byte stream to that port on the machine's loopback;
 * the caller owns it and destroys it. `AGENT_PORT` and `GATEWAY_PORT` (protocol/routing.ts) are the agent
 * and the kernel gateway wherever they really listen. It rejects with `not_found` when nothing listens on
 * the port, and with `unavailable` when the machine can't be reached within the deadline or is gone.
 */
export interface Instance {
  readonly id: string;
  /** What the kernel gateway asks of its clients (`Authorization: token …`). */
  readonly gatewayToken: string;
  /** Settles once, never rejects. All dialled streams are destroyed by then. */
  readonly ended: Promise<InstanceEnd>;
  dial(port: number, options?: DialOptions): Promise<Socket>;
  /** Tells the machine its new deadline (milliseconds since the epoch), for the dead-man timer inside. */
  setDeadline(deadlineAt: number): Promise<void>;
}

/** One machine as the engine tells it, whether or not this process started it. */
export interface InstanceRecord {
  id: string;
  /** `halted`: nothing runs in it, whoever ended that, and its files are there; `dead`: neither. */
  state: 'running' | 'paused' | 'halted' | 'starting' | 'dead';
  startedAt: number;
  labels: Record<string, string>;
}

export interface InstanceStats {
  /** CPU time used since the start, in milliseconds. */
  cpuMs: number;
  memoryBytes: number;
  memoryLimitBytes: number | undefined;
  pids: number;
}

/** One line that a program of the machine's own wrote: supervisor, agent, gateway. */
export interface OutputLine {
  /** Milliseconds since the epoch, where the engine notes it. */
  at?: number;
  text: string;
}

/** The most that `output` gives. */
export const MAX_OUTPUT_LINES = 1_000;

/** One named precondition for creating sandboxes, as `/health` reports it. */
export interface Check {
  name: string;
  ok: boolean;
  /** When not ok: what is wrong and the remedy, one line. */
  detail?: string;
}

/** A program inside asked for a port that the service answers (49999). The receiver owns the stream. */
export type InboundHandler = (instanceId: string, port: number, stream: Socket) => void;

/**
 * Starts, finds and ends isolated machines. The only interface of the service with several implementations;
 * nothing outside this folder knows how a machine is reached.
 *
 * Lifecycle: `start` resolves once the agent inside is connected (kernel gateway and kernels come up behind
 * it) and rejects, leaving nothing behind, when that fails or `signal` aborts. `stop` is idempotent and resolves when
 * no container, network, directory or process of the instance is left. `pause` freezes memory and CPU with
 * connections kept, `resume` undoes it. `halt` ends everything inside and keeps the files, `boot` starts it again. After a crash of the service `list` is the truth about what runs, and `adopt`
 * gives a handle to a machine of an earlier process. `close` releases what this process holds and leaves the
 * machines running. `list` gives only machines of this data directory's service.
 */
export interface Runtime {
  readonly name: 'docker' | 'local' | 'fake';
  /** What is not isolated or not enforced here, one sentence each; empty when everything is. */
  readonly caveats: readonly string[];
  /** False: nothing keeps all files of a machine together below its disk limit, so that `diskUsage` has to be watched. */
  readonly limitsDisk: boolean;
  /** Why no machine can have network rules of its own, with the remedy; undefined where they can. */
  readonly whyNoNetworkRules: string | undefined;
  /**
   * Kinds of walls that machines can have here, by name; the first is the usual one. `start` rejects with
   * `failed_precondition` for any other, and for one that turns out not to work.
   */
  readonly isolationLevels: readonly string[];
  /** Proves that `start` can succeed now. Answers within 3 s. */
  check(): Promise<Check[]>;
  start(spec: InstanceSpec, signal?: AbortSignal): Promise<Instance>;
  list(): Promise<InstanceRecord[]>;
  /**
   * Rejects with `not_found` when the machine is gone, `unavailable` when its agent does not come back in time. The agent
   * of one that is paused or halted is not waited for.
   */
  adopt(id: string, signal?: AbortSignal): Promise<Instance>;
  pause(id: string): Promise<void>;
  resume(id: string): Promise<void>;
  /**
   * Ends everything that runs in a machine, frozen or not, and keeps its files and its handle; dialled streams are
   * destroyed. Nothing happens to one that is halted already. Rejects with `not_found` when the machine is gone.
   */
  halt(id: string): Promise<void>;
  /**
   * Starts a machine anew over its files, as `start` does: by the same resources and user, and with what `spec` says of
   * environment, access token, deadline and network. What still runs in it is ended first. Needs its handle, by `start`
   * or `adopt`. Leaves it halted when that fails or `signal` aborts; rejects with `not_found` when the machine is gone.
   */
  boot(spec: InstanceSpec, signal?: AbortSignal): Promise<void>;
  stop(id: string): Promise<void>;
  /**
   * Changes what a machine may reach, all at once, connections that stand included; resolves when it holds. Rejects with
   * `failed_precondition` when the machine can't have that. A halted machine gets it from its `boot`.
   */
  setNetwork(id: string, access: NetworkAccess): Promise<void>;
  /**
   * Makes what machines with such access need beside them, where it isn't there; before `start` and `setNetwork`, which do
   * not wait long for it. Rejects with `unavailable` while it takes longer, and `failed_precondition` when it can't be had.
   */
  prepareNetwork(access: NetworkAccess): Promise<void>;
  stats(id: string): Promise<InstanceStats>;
  /**
   * Bytes of the files that the machine has written, beyond what all of them begin with. Takes the longer the more files
   * there are, a minute at most. Works on a paused machine; rejects with `not_found` when it is gone.
   */
  diskUsage(id: string): Promise<number>;
  /**
   * The newest lines that the machine's own programs wrote, oldest first, as far as the engine keeps them. Anyone who is
   * root inside can write there, too. Works on a paused or halted machine; rejects with `not_found` when it is gone.
   */
  output(id: string): Promise<OutputLine[]>;
  close(): Promise<void>;
}
