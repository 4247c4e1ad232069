import { fork } from 'node:child_process';
import path from 'node:path';
import { Child } from './child';
import { DeadMan } from './deadman';
import { readGatewayCommand, spawnGateway } from './gateway-process';
import { log, reason } from './log';
import { endOrphans } from './orphans';
import { readAgentSettings } from './settings';
import { applyInit, initialState } from './state';
import type { AgentState } from './state';
import type { EndedProcess, GatewayPlace, ToAgent, ToSupervisor } from './supervision';

/**
 * The supervisor: parent of agent and gateway for the life of a sandbox. Starts both at once (with
 * `CELLBOX_GATEWAY_WAITS=1` the gateway when it is first wanted), starts either again when it dies, remembers for the
 * agent what `CELLBOX_STATE` or `/init` said, and ends everything when asked (SIGTERM) or when the deadline has passed and no service is
 * left to see to it. It stays small: it is in every sandbox.
 */

const DEFAULT_GRACE_MS = 60_000;

function main(): void {
  const env = { ...process.env };
  const settings = readAgentSettings(env); // a mistake shows here, and not at each start of the agent
  const gatewayCommand = readGatewayCommand(env);
  const agentEnv = { ...env };
  delete agentEnv['CELLBOX_GATEWAY_TOKEN'];
  delete agentEnv['CELLBOX_STATE'];

  let state = stateAtStart(env, settings.defaultUser);
  let gatewayPlace: GatewayPlace | undefined;
  const deadMan = new DeadMan(
    readMs(env, 'CELLBOX_DEADMAN_GRACE_MS') ?? DEFAULT_GRACE_MS,
    readMs(env, 'CELLBOX_DEADLINE_AT'),
    () => {
      log('supervisor: the deadline has passed and no service is in contact');
      void stop();
    },
  );
  const tellAgent = (message: ToAgent) => {
    const child = agent.current;
    if (child?.connected === true) {
      child.send(message, (error) => {
        // The agent died just now; its successor is told everything when it starts.
        if (error !== null) log(`supervisor: agent not told: ${reason(error)}`);
      });
    }
  };
  /** What the running agent started, by process id. */
  const processes = new Map<number, { startTime?: string | undefined; tag?: string | undefined }>();
  let ended: EndedProcess[] = [];
  const onMessage = (message: ToSupervisor) => {
    switch (message.type) {
      case 'state':
        state = message.state;
        break;
      case 'deadline':
        deadMan.setDeadline(message.at);
        break;
      case 'contact':
        deadMan.setContact(message.connected);
        break;
      case 'process':
        processes.set(message.pid, message);
        break;
      case 'process-ended':
        processes.delete(message.pid);
        break;
      case 'gateway-wanted':
        startGateway();
    }
  };
  // Pid 1 adopts whatever loses its parent; the local runtime's init says that it does.
  const hasInit = process.ppid === 1 || env['CELLBOX_INIT'] === '1';
  /** Nobody is left who knows what the agent's processes were for: they end with it, and its successor says so. */
  const onAgentGone = () => {
    deadMan.setContact(false);
    const tracked = [...processes].map(([pid, { startTime }]) => ({ pid, startTime }));
    ended = [...processes].map(([pid, { tag }]) => ({ pid, tag }));
    processes.clear();
    endOrphans(tracked, gateway.current?.pid, hasInit);
  };

  const agent = new Child(
    'agent',
    () => {
      const child = fork(path.join(__dirname, 'agent.js'), [], {
        env: agentEnv,
        detached: true,
        execArgv: [],
        stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
        serialization: 'json',
      });
      child.on('message', onMessage);
      const first: ToAgent = { type: 'restore', state, ended };
      // Failures show as the agent's end, which starts the next one.
      child.send(first, () => {});
      child.send({ type: 'gateway', gateway: gatewayPlace } satisfies ToAgent, () => {});
      return child;
    },
    onAgentGone,
  );
  const gateway = new Child(
    'gateway',
    () =>
      spawnGateway(gatewayCommand, (place) => {
        gatewayPlace = place;
        tellAgent({ type: 'gateway', gateway: place });
      }),
    () => {
      gatewayPlace = undefined;
      tellAgent({ type: 'gateway', gateway: undefined });
    },
  );

  let isGatewayStarted = false;
  function startGateway(): void {
    if (!isGatewayStarted) gateway.start();
    isGatewayStarted = true;
  }

  async function stop(): Promise<void> {
    deadMan.close();
    await Promise.all([agent.stop(), gateway.stop()]);
    process.exit(0);
  }

  process.on('SIGTERM', () => void stop());
  process.on('SIGINT', () => void stop());
  // The runtime's end of the log may close; that must not end the sandbox.
  process.stdout.on('error', () => {});
  process.stderr.on('error', () => {});
  agent.start();
  if (env['CELLBOX_GATEWAY_WAITS'] !== '1') startGateway();
}

/** Of `CELLBOX_STATE`, the body of an `/init` that need not be asked for. */
function stateAtStart(env: NodeJS.ProcessEnv, defaultUser: string): AgentState | undefined {
  const text = env['CELLBOX_STATE'];
  if (!text) return undefined;
  try {
    return applyInit(initialState(defaultUser), JSON.parse(text));
  } catch (error) {
    throw new Error(`CELLBOX_STATE: ${reason(error)}`, { cause: error });
  }
}

function readMs(env: NodeJS.ProcessEnv, name: string): number | undefined {
  const text = env[name];
  if (!text) return undefined;
  if (!/^\d{1,16}$/.test(text)) throw new Error(`${name} must be a number of milliseconds`);
  return Number(text);
}

try {
  main();
} catch (error) {
  log(`supervisor: ${reason(error)}`);
  process.exit(1);
}
