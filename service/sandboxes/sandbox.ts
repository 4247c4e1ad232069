import crypto from 'node:crypto';
import type { Instance, InstanceSpec, Resources } from '../runtime/runtime';
import type { Secrets } from '../secrets';
import type { Ingress } from './ingress';
import type { PauseMode } from './lifecycle';
import { accessOf } from './network';
import type { Egress } from './network';
import type { ResourceRequest } from './sizes';
import type { StoredSandbox } from './store';
import type { Template } from './templates';

/** What a caller asked for when creating a sandbox, after validation and defaults. */
export interface CreateOptions extends Egress, Ingress {
  /** Template id, name or alias as the caller spelt it, with a size behind it or not. */
  template: string;
  /** Seconds until the deadline, counted from the moment the machine is up. */
  timeoutSeconds: number;
  metadata: Record<string, string>;
  env: Record<string, string>;
  /** Demand `X-Access-Token` on the agent's port. */
  secure: boolean;
  /** When false, every port but the agent's demands the traffic token. */
  allowPublicTraffic: boolean;
  /** Pause at the deadline instead of ending. */
  autoPause: boolean;
  /** What such a pause keeps. */
  autoPauseMode: PauseMode;
  /** Traffic resumes it when it is paused. */
  autoResume: boolean;
  /** Limits other than the template's. */
  resources?: ResourceRequest;
  /** Replaying a create with the same key and team gives the same sandbox. */
  idempotencyKey?: string;
}

/** One sandbox as the store and the API know it. Times are milliseconds since the epoch. */
export interface Sandbox extends Egress, Ingress {
  readonly id: string;
  readonly teamId: string;
  readonly templateId: string;
  readonly templateAlias: string;
  state: 'running' | 'paused';
  /** What the pause that it is in has kept; undefined while it runs. */
  pauseMode?: PauseMode | undefined;
  readonly startedAt: number;
  /** Start of the current run: creation or the last resume. The longest time-out counts from here. */
  runStartedAt: number;
  /** The deadline; of a paused sandbox, when it was paused. */
  endAt: number;
  autoPause: boolean;
  readonly autoPauseMode: PauseMode;
  readonly autoResume: boolean;
  /** What it was created with; traffic resumes it for as long. */
  readonly timeoutSeconds: number;
  readonly metadata: Record<string, string>;
  readonly env: Record<string, string>;
  readonly resources: Resources;
  readonly allowPublicTraffic: boolean;
  /** `X-Access-Token` of the agent's port; undefined on an unsecured sandbox. Derived from the service's secret, so it survives restarts. */
  readonly accessToken: string | undefined;
  /** Demanded on every port but the agent's when public traffic is off. */
  readonly trafficToken: string | undefined;
}

/** Only the resources of what also holds other settings. */
export function resourcesOf({ cpuCount, memoryMB, diskSizeMB, pids, openFiles }: Resources): Resources {
  return { cpuCount, memoryMB, diskSizeMB, pids, openFiles };
}

/** A sandbox together with the live machine behind it: all that the edge and the interpreter need. */
export interface RunningSandbox extends Sandbox {
  readonly instance: Instance;
  /** See `InstanceSpec.gatewayWaits`. Of a sandbox that has just been started. */
  readonly gatewayWaits?: boolean;
}

const ID_ALPHABET = 'abcdefghijklmnopqrstuvwxyz0123456789';

/** Unguessable: the id alone opens the ports of a sandbox that is not secured. */
export function newSandboxId(): string {
  let id = 'i';
  for (let index = 0; index < 20; index++) id += ID_ALPHABET[crypto.randomInt(ID_ALPHABET.length)];
  return id;
}

/** What every program in a sandbox finds in its environment, whatever the caller gave. */
export function ownEnv(id: string, templateId: string): Record<string, string> {
  return { E2B_SANDBOX: 'true', E2B_SANDBOX_ID: id, E2B_TEMPLATE_ID: templateId };
}

/** The machine of a sandbox, as it is started. */
export function specOf(sandbox: Sandbox, { isolation }: Pick<Template, 'isolation'> = {}): InstanceSpec {
  return {
    id: sandbox.id,
    env: sandbox.env,
    resources: sandbox.resources,
    network: accessOf(sandbox),
    ...(isolation !== undefined && { isolation }),
    labels: { team: sandbox.teamId, template: sandbox.templateId },
    ...(sandbox.accessToken !== undefined && { accessToken: sandbox.accessToken }),
    deadlineAt: sandbox.endAt,
  };
}

/** A stored sandbox with its tokens, which the store doesn't keep. */
export function withTokens(row: StoredSandbox, secrets: Secrets): Omit<Sandbox, 'state'> {
  const { secure, state: _state, ...rest } = row;
  return {
    ...rest,
    accessToken: secure ? secrets.derive('agent', row.id) : undefined,
    trafficToken: row.allowPublicTraffic ? undefined : secrets.derive('traffic', row.id),
  };
}
