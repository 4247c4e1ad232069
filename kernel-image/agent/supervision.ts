import type { AgentState } from './state';

/**
 * Messages between supervisor and agent, over the channel that Node opens for a forked process. The supervisor keeps
 * what must survive the agent: anyone inside may kill it.
 */
/** A process that the supervisor ended because its agent was gone. */
export interface EndedProcess {
  pid: number;
  tag?: string | undefined;
}

export interface GatewayPlace {
  /** On loopback. */
  port: number;
  /** Where it takes connections that others have accepted. */
  connections: string | undefined;
}

export type ToAgent =
  /** First message to every agent: of the one before it, if there was one, what `/init` said and what died with it. */
  | { type: 'restore'; state: AgentState | undefined; ended: readonly EndedProcess[] }
  /** Where the gateway is reached; `undefined` while it isn't. */
  | { type: 'gateway'; gateway: GatewayPlace | undefined };

export type ToSupervisor =
  | { type: 'state'; state: AgentState }
  /** When the machine ends without a service (milliseconds since the epoch). */
  | { type: 'deadline'; at: number }
  /** Whether a service is in contact. */
  | { type: 'contact'; connected: boolean }
  /** The agent started a process; told before anybody else hears of it. `startTime` as /proc has it. */
  | { type: 'process'; pid: number; startTime?: string | undefined; tag?: string | undefined }
  | { type: 'process-ended'; pid: number }
  /** Somebody wants the gateway. */
  | { type: 'gateway-wanted' };
