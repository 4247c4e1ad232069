import { timingSafeEqual, createHash } from 'node:crypto';
import { HttpError } from './http-error';

/** What `/init` set, kept by the supervisor so that an agent that was killed comes back the same. */
export interface AgentState {
  envVars: Record<string, string>;
  accessToken: string | undefined;
  defaultUser: string;
  defaultWorkdir: string;
  /** Newest `timestamp` seen, in milliseconds since the epoch. */
  newestInit: number | undefined;
}

export function initialState(defaultUser: string): AgentState {
  return { envVars: {}, accessToken: undefined, defaultUser, defaultWorkdir: '', newestInit: undefined };
}

/** Part of every environment that the agent gives; `/init` can't override it. */
const INTERNAL_ENV = { E2B_SANDBOX: 'true' };

/** All global variables: the sandbox's own and the agent's on top. */
export function globalEnv(state: AgentState): Record<string, string> {
  return { ...state.envVars, ...INTERNAL_ENV };
}

const UNSUPPORTED = ['hyperloopIP', 'caBundle'];

/**
 * Applies one `/init` body and gives the new state. The first call may set anything; once there is a token every
 * later call must repeat it (so it can't be cleared either). A call older than one already seen changes nothing.
 */
export function applyInit(state: AgentState, body: unknown): AgentState {
  if (typeof body !== 'object' || body === null || Array.isArray(body)) {
    throw new HttpError(400, 'the body must be a JSON object');
  }
  const request = body as Record<string, unknown>;
  const accessToken = optionalString(request, 'accessToken');
  if (accessToken !== undefined && (accessToken === '' || accessToken.includes('\\'))) {
    throw new HttpError(400, 'accessToken must be non-empty and without backslashes');
  }
  if (state.accessToken !== undefined && !sameSecret(accessToken ?? '', state.accessToken)) {
    throw new HttpError(401, 'accessToken is not the one that this sandbox has');
  }
  for (const name of UNSUPPORTED) {
    if (optionalString(request, name)) throw new HttpError(400, `${name} is not supported yet`);
  }
  const mounts = request['volumeMounts'];
  if (mounts != null && !(Array.isArray(mounts) && mounts.length === 0)) {
    throw new HttpError(400, 'volumeMounts is not supported yet');
  }
  const envVars = readEnvVars(request['envVars']);
  const defaultUser = optionalString(request, 'defaultUser');
  const defaultWorkdir = optionalString(request, 'defaultWorkdir');
  const timestamp = optionalString(request, 'timestamp');
  const at = timestamp === undefined ? undefined : Date.parse(timestamp);
  if (Number.isNaN(at)) throw new HttpError(400, 'timestamp must be an RFC 3339 date');
  if (at !== undefined && state.newestInit !== undefined && at < state.newestInit) return state;
  return {
    envVars: envVars ?? state.envVars,
    accessToken,
    defaultUser: defaultUser || state.defaultUser,
    defaultWorkdir: defaultWorkdir || state.defaultWorkdir,
    newestInit: at ?? state.newestInit,
  };
}

export function sameSecret(given: string, expected: string): boolean {
  return timingSafeEqual(digest(given), digest(expected));
}

function digest(text: string): Buffer {
  return createHash('sha256').update(text, 'utf8').digest();
}

function optionalString(body: Record<string, unknown>, name: string): string | undefined {
  const value = body[name];
  if (value == null) return undefined;
  if (typeof value !== 'string') throw new HttpError(400, `${name} must be a string`);
  return value;
}

function readEnvVars(value: unknown): Record<string, string> | undefined {
  if (value == null) return undefined;
  if (typeof value !== 'object' || Array.isArray(value))
    throw new HttpError(400, 'envVars must be an object');
  for (const [name, text] of Object.entries(value)) {
    const usable = name !== '' && !name.includes('=') && !name.includes('\0');
    if (!usable || typeof text !== 'string' || text.includes('\0')) {
      throw new HttpError(
        400,
        `envVars: ${JSON.stringify(name)} is not a usable name or its value not a usable string`,
      );
    }
  }
  return { ...value } as Record<string, string>;
}
