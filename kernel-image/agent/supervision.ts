import type { AgentState } from './state';

/**
 * Messages between supervisor and agent, over the channel that Node opens for a forked process. The supervisor keeps
 * what must survive the agent: anyone inside may kill it.
 */
export type ToAgent =
  /** First message to every agent: what the one before it was told by `/init`, if there was one. */
  | { type: 'restore'; state: AgentState | undefined }
  /** Where the gateway listens; `undefined` while it doesn't. */
  | { type: 'gateway'; port: number | undefined };

export type ToSupervisor =
  | { type: 'state'; state: AgentState }
  /** When the machine ends without a service (milliseconds since the epoch). */
  | { type: 'deadline'; at: number }
  /** Whether a service is in contact. */
  | { type: 'contact'; connected: boolean };
