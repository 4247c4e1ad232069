import net from 'node:net';
import { once } from 'node:events';
import { AGENT_PORT, GATEWAY_PORT, INTERPRETER_PORT } from '../../protocol/routing';
import { createApp } from './app';
import type { AgentContext } from './app';
import { handOver } from './hand-over';
import { log, reason } from './log';
import { createMeter } from './metrics';
import { ProcessTable } from './process/process-table';
import { createSandboxMemory } from './sandbox-memory';
import { readAgentSettings } from './settings';
import { initialState } from './state';
import type { GatewayPlace, ToAgent, ToSupervisor } from './supervision';
import { TunnelClient } from './tunnel';
import type { DialTarget } from './tunnel';
import { createUsers } from './users';

/**
 * The agent: answers the service over the tunnel (and programs inside over loopback), and passes streams to ports in
 * here. One per sandbox, child of the supervisor, which restarts it whenever it ends.
 */

/** The supervisor sends its first message at once; without it we would serve without the access token. */
const RESTORE_TIMEOUT_MS = 5_000;
const LISTEN_RETRY_MS = 1_000;

async function main(): Promise<void> {
  const settings = readAgentSettings(process.env);
  // Nothing that this process may start ever inherits them.
  for (const name of Object.keys(process.env)) if (name.startsWith('CELLBOX_')) delete process.env[name];
  process.umask(0o022);

  // Until the supervisor has told, and where there is none.
  const fixedPort = settings.gatewayPort === 0 ? undefined : settings.gatewayPort;
  let gateway: GatewayPlace | undefined;
  const context: AgentContext = {
    state: initialState(settings.defaultUser),
    users: createUsers(settings),
    processes: new ProcessTable(tell),
    memory: createSandboxMemory(settings),
    meter: createMeter({ ...settings, isSupervised: supervised() }),
    onState: (state) => tell({ type: 'state', state }),
  };
  const restored = supervised()
    ? once(process, 'message', { signal: AbortSignal.timeout(RESTORE_TIMEOUT_MS) })
    : undefined;
  process.on('message', (message: ToAgent) => {
    if (message.type === 'gateway') {
      gateway = message.gateway;
      return;
    }
    context.state = message.state ?? context.state;
    context.processes.addEnded(message.ended);
  });
  const end = () => {
    context.processes.close();
    process.exit(0);
  };
  // Without a supervisor nobody would restart us or end us.
  process.on('disconnect', end);
  process.on('SIGTERM', end);
  await restored;

  const app = createApp(context);
  const target = (port: number): DialTarget => {
    if (port === AGENT_PORT) return { accept: (stream) => app.emit('connection', stream) };
    if (port !== GATEWAY_PORT) return { port };
    if (gateway === undefined) tell({ type: 'gateway-wanted' });
    const { port: real = fixedPort, connections } = gateway ?? {};
    if (real === undefined) return undefined;
    if (connections === undefined) return { port: real };
    return { port: real, handOver: (stream) => handOver(stream, connections) };
  };
  const tunnel = new TunnelClient({
    endpoint: settings.tunnel,
    token: settings.tunnelToken,
    target,
    onDeadline: (at) => tell({ type: 'deadline', at }),
    onContact: (connected) => tell({ type: 'contact', connected }),
  });
  tunnel.start();
  if (settings.listenLoopback) listenLoopback(app, tunnel);
}

function listenLoopback(app: net.Server, tunnel: TunnelClient): void {
  for (const host of ['127.0.0.1', '::1']) {
    keepListening(host, AGENT_PORT, (stream) => app.emit('connection', stream));
    keepListening(host, INTERPRETER_PORT, (stream) => void tunnel.call(INTERPRETER_PORT, stream));
  }
}

/** Listens, and tries again while another program inside holds the port. */
function keepListening(host: string, port: number, onStream: (stream: net.Socket) => void): void {
  const server = net.createServer({ allowHalfOpen: true, noDelay: true }, onStream);
  server.on('error', (error: NodeJS.ErrnoException) => {
    // A machine without IPv6 has no such address; the IPv4 listener serves it.
    if (host === '::1' && (error.code === 'EADDRNOTAVAIL' || error.code === 'EAFNOSUPPORT')) return;
    log(`agent: can't listen on ${host} port ${port}: ${reason(error)}`);
    setTimeout(() => server.listen(port, host), LISTEN_RETRY_MS);
  });
  server.listen(port, host);
}

function supervised(): boolean {
  return process.send !== undefined;
}

function tell(message: ToSupervisor): void {
  if (!supervised() || !process.connected) return;
  process.send?.(message, undefined, undefined, (error) => {
    // Only when the supervisor is gone, and then `disconnect` ends us.
    if (error !== null) log(`agent: ${reason(error)}`);
  });
}

main().catch((error: unknown) => {
  log(`agent: ${reason(error)}`);
  process.exit(1);
});
