import fs from 'node:fs';
import http from 'node:http';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { createApi } from './api/app';
import { describeSettings, loadConfig } from './config';
import type { Config } from './config';
import { loadAdminToken, loadApiKey, lockDataDir, openDataDir } from './data-dir';
import { Edge, machineOf, SERVER_OPTIONS, withoutUpgrade } from './edge/edge';
import { ServiceError } from './errors';
import { Interpreter } from './interpreter/interpreter';
import { describeDeath } from './interpreter/kernel-death';
import { createLogger } from './log';
import type { Logger } from './log';
import { openStore } from './open-store';
import { ServiceMetrics } from './observability/metrics';
import { serveMetrics } from './observability/metrics-endpoint';
import { observeRuntime } from './observability/observed-runtime';
import { RequestObserver } from './observability/request-observer';
import { openTracing } from './observability/tracing';
import { listen, openRuntime, ROOT } from './prepare';
import type { InboundHandler } from './runtime/runtime';
import { DiskWatch } from './sandboxes/disk-watch';
import { accessOf } from './sandboxes/network';
import { poolSizes } from './sandboxes/pools';
import { Sandboxes } from './sandboxes/sandboxes';
import { openTemplates } from './sandboxes/template-settings';
import { openSecrets } from './secrets';
import { selfCheck } from './self-check';
import { isTeamsCommand, runTeamsCli } from './teams/cli';
import { defaultDomain, openTls } from './tls/open';
import type { Tls } from './tls/open';

/** How long a shutdown may take before the process ends regardless. */
const SHUTDOWN_DEADLINE_MS = 30_000;
/** How long the self-check waits for kernels of an earlier process to be reached. */
const REACH_DEADLINE_MS = 10_000;

/**
 * The whole service in one process: settings → parts, built by hand in order → listen → serve until told to stop.
 * Sets the exit code itself; a failure at start is one message for the user.
 */
export async function main(argv: readonly string[]): Promise<void> {
  if (argv.includes('--help') || argv.includes('-h')) {
    process.stdout.write(`${describeSettings()}\n`);
    return;
  }
  try {
    if (isTeamsCommand(argv)) {
      await runTeamsCli(process.env, argv, (line) => process.stdout.write(`${line}\n`));
      return;
    }
    await run(loadConfig(process.env, argv));
  } catch (error) {
    const known = ServiceError.from(error);
    process.stderr.write(`cellbox: ${known.message}${known.remedy ? `\n  ${known.remedy}` : ''}\n`);
    if (known.code === 'internal') console.error(known.cause);
    process.exit(1); // whatever was begun is released by its own exit hooks or taken over by the next start
  }
}

async function run(config: Config): Promise<void> {
  const started = Date.now();
  const pools = poolSizes(config);
  const templates = openTemplates(config);
  openDataDir(config.dataDir);
  const unlock = lockDataDir(config.dataDir);
  process.once('exit', unlock);
  const logger = createLogger(config.logLevel);
  const { version } = JSON.parse(fs.readFileSync(path.join(ROOT, 'package.json'), 'utf8')) as {
    version: string;
  };

  // The port is taken first: a port in use must not be found out after minutes of building.
  const server = http.createServer(SERVER_OPTIONS);
  let front: Front = startingUp;
  server.on('request', (req, res) => front.request(req, res));
  server.on('upgrade', (req, socket: Socket, head) => front.upgrade(req, socket, head));
  server.on('connection', (socket) => socket.setNoDelay(true));
  const address = await listen(server, config);
  const domain = config.domain ?? defaultDomain(config, address.port);
  const tls = openTls({ server, config, domain, logger });

  const secrets = openSecrets(config.dataDir);
  const apiKey = loadApiKey(config.dataDir, config.apiKey);
  const metrics = new ServiceMetrics(version);
  const metricsServer =
    config.metricsAddress === undefined
      ? undefined
      : await serveMetrics(metrics.registry, config.metricsAddress);
  if (metricsServer !== undefined) logger.info({ address: metricsServer.address }, 'metrics are served');
  const tracing = await openTracing(process.env, { version, logger });
  const observer = new RequestObserver({ logger, metrics, tracer: tracing });
  const adminToken = loadAdminToken(config.dataDir, config.adminToken);
  const { store, teams } = await openStore(config, secrets, logger);
  await teams.setServiceKey(apiKey);

  let inbound: InboundHandler = (_id, _port, stream) => stream.destroy();
  const executionsDir = path.join(config.dataDir, 'executions');
  const interpreter = new Interpreter({
    logger,
    kernelTimeoutMs: config.kernelTimeoutMs,
    maxBodyBytes: config.maxBodyBytes,
    executions: {
      timeoutMs: config.executionTimeoutMs,
      interruptGraceMs: config.interruptGraceMs,
      keepMs: config.executionKeepMs,
      inlineBytes: config.outputInlineBytes,
      diskBytes: config.executionDiskMB * 1_048_576,
      directory: executionsDir,
    },
    remedyFor: (language): string | undefined => languages.remedyFor(language),
    onKernelDeath: (id, { contextId, language, death }) => {
      const level = death.oom === true ? 'error' : 'warn';
      sandboxes.note(id, level, describeDeath(death), { logger: 'kernel', language, contextId });
    },
  });
  interpreter.totals.onExecution = (...ended) => metrics.executionEnded(...ended);
  const opening = openRuntime({
    config,
    secrets,
    logger,
    onInbound: (id, port, stream) => inbound(id, port, stream),
    onProgress: (line) => process.stderr.write(`${line}\n`),
    maxOpenFiles: templates.maximum.openFiles,
    networks: new Map((await store.listSandboxes()).map((row) => [row.id, accessOf(row)])),
  });
  // Reading what ran costs processor time, opening the runtime mostly waits for the engine.
  const [{ runtime: engine, languages }] = await Promise.all([opening, interpreter.restore()]);
  const runtime = observeRuntime(engine, metrics);
  /** Machines whose kernels are being found again. */
  const reaching = new Set<Promise<void>>();
  const sandboxes = new Sandboxes({
    runtime,
    store,
    secrets,
    logger,
    resources: config,
    templates,
    maxSandboxes: config.maxSandboxes,
    limitsOf: (teamId) => teams.limitsOf(teamId),
    maxTimeoutSeconds: config.maxTimeoutSeconds,
    startTimeoutMs: config.startTimeoutMs,
    metricsIntervalMs: config.metricsIntervalMs,
    logDirectory: path.join(config.dataDir, 'logs'),
    pool: {
      sizes: pools,
      warmer: {
        warm: (machine) => interpreter.warm(machineOf(machine)),
        isWarm: (id) => interpreter.isWarm(id),
        drop: (id) => interpreter.drop(id),
        get underWay() {
          return interpreter.kernelsUnderWay;
        },
      },
    },
    events: {
      onCreate: (outcome) => metrics.createEnded(outcome),
      onReady: (sandbox) => {
        interpreter.prepare(machineOf(sandbox), sandbox.gatewayWaits);
        disks?.start(sandbox);
      },
      onAdopted: (sandbox, pausedAt) => {
        const reached = interpreter
          .adopt(machineOf(sandbox), pausedAt)
          .finally(() => reaching.delete(reached));
        reaching.add(reached);
        disks?.start(sandbox);
      },
      onPaused: (id, keeps) => {
        edge.drop(id);
        if (keeps === 'full') interpreter.suspend(id);
        else interpreter.halt(id);
        disks?.pause(id);
      },
      onResumed: (sandbox) => {
        void interpreter.resume(machineOf(sandbox));
        disks?.start(sandbox);
      },
      onBooted: (sandbox) => {
        interpreter.boot(machineOf(sandbox));
        disks?.start(sandbox);
      },
      onEnded: (id) => {
        edge.drop(id);
        interpreter.drop(id);
        disks?.forget(id);
      },
    },
  });
  const disks = runtime.limitsDisk
    ? undefined
    : new DiskWatch({
        runtime,
        logger,
        note: (...line) => sandboxes.note(...line),
        end: (id, detail) => sandboxes.end(id, { reason: 'disk_full', detail }),
      });
  metrics.watch({
    sandboxes: () => sandboxes.counts,
    pools: () =>
      (sandboxes.pools?.list() ?? []).map(({ template, ...pool }) => ({ ...pool, template: template.alias })),
  });
  const isDiskFull = (id: string): boolean => disks?.isFull(id) ?? false;
  const edge = new Edge({ domain, sandboxes, interpreter, isDiskFull, logger, observer });
  inbound = (id, port, stream) => {
    const sandbox = sandboxes.find(id);
    if (sandbox === undefined) stream.destroy();
    else edge.inbound(sandbox, port, stream);
  };
  const api = createApi({
    version,
    config,
    observer,
    metrics,
    domain,
    sandboxes,
    teams,
    adminToken,
    runtime,
    logger,
    health: async () => (await Promise.all([runtime.check(), store.check()])).flat(),
    languages: () => languages.list(),
    interpreter: {
      submit: (sandbox, request, detached) => interpreter.submit(machineOf(sandbox), request, detached),
      interruptContext: (sandbox, contextId) => interpreter.interruptContext(machineOf(sandbox), contextId),
      listExecutions: (sandboxId) => interpreter.listExecutions(sandboxId),
      findExecution: (sandboxId, executionId) => interpreter.findExecution(sandboxId, executionId),
      follow: (sandboxId, record, from, res) => interpreter.follow(sandboxId, record, from, res),
    },
  });

  const { adopted, removed } = await sandboxes.adopt();
  interpreter.retain((id) => sandboxes.has(id));
  if (adopted + removed > 0) logger.info({ adopted, removed }, 'took over what an earlier service left');
  front = {
    request: (req, res) => {
      if (!edge.handle(req, res)) api(req, res);
    },
    upgrade: (req, socket, head) => {
      if (!edge.upgrade(req, socket, head)) withoutUpgrade(server, req, socket, head);
    },
  };

  const close = async (onStop: 'keep' | 'kill'): Promise<void> => {
    const deadline = setTimeout(() => {
      logger.error('shutdown took too long');
      process.exit(1);
    }, SHUTDOWN_DEADLINE_MS);
    deadline.unref();
    server.close();
    await sandboxes.close({ onStop });
    disks?.close();
    await interpreter.close();
    edge.close();
    server.closeAllConnections();
    tls?.close();
    await runtime.close();
    await store.close();
    metricsServer?.close();
    metrics.close();
    await tracing?.close();
    clearTimeout(deadline);
  };
  stopOnSignals(config, logger, close);
  printBanner(config, address, apiKey, runtime.name, runtime.caveats, started, tls);
  // Who has sandboxes already comes before what needs as much of the processors as ten of them.
  await Promise.race([Promise.all([...reaching]), delay(REACH_DEADLINE_MS, undefined, { ref: false })]);
  void languages.read();
  await proveItself(config, address, apiKey, logger);
  // Last: the first user's sandbox and the check above have the processors for themselves.
  sandboxes.pools?.open();
}

/** Who answers requests: at first a stub that says so, then edge and control plane. */
interface Front {
  request(req: IncomingMessage, res: ServerResponse): void;
  upgrade(req: IncomingMessage, socket: Socket, head: Buffer): void;
}

const startingUp: Front = {
  request: (_req, res) => {
    const body = JSON.stringify({ code: 503, message: 'Cellbox is starting up; try again in a moment' });
    res.writeHead(503, { 'content-type': 'application/json', 'retry-after': '1' });
    res.end(body);
  },
  upgrade: (_req, socket) => socket.destroy(),
};

/** SIGTERM keeps sandboxes for the next start (a deploy), Ctrl-C ends them (somebody is done); a setting overrides both. */
function stopOnSignals(
  config: Config,
  logger: Logger,
  close: (onStop: 'keep' | 'kill') => Promise<void>,
): void {
  let stopping = false;
  const stop = (signal: 'SIGINT' | 'SIGTERM' | 'SIGHUP') => {
    if (stopping) {
      if (signal === 'SIGINT') process.exit(130); // the second Ctrl-C: somebody is in a hurry
      return;
    }
    stopping = true;
    const onStop = config.onStop ?? (signal === 'SIGINT' ? 'kill' : 'keep');
    logger.info({ signal, onStop }, 'stopping');
    close(onStop).then(
      () => process.exit(0),
      (error: unknown) => {
        logger.error({ err: error }, 'shutdown failed');
        process.exit(1);
      },
    );
  };
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => stop(signal));
}

/** Where clients on this machine reach the service: an unspecified address is not one to connect to. */
function urlOf(config: Config, address: AddressInfo): string {
  const host = ['0.0.0.0', '::'].includes(config.host) ? '127.0.0.1' : config.host;
  return `http://${host.includes(':') ? `[${host}]` : host}:${address.port}`;
}

function printBanner(
  config: Config,
  address: AddressInfo,
  apiKey: string,
  runtimeName: string,
  caveats: readonly string[],
  started: number,
  tls: Tls | undefined,
): void {
  const url = urlOf(config, address);
  const lines = [
    `Cellbox serves on ${url} (runtime: ${runtimeName}, ready in ${((Date.now() - started) / 1000).toFixed(1)} s)`,
    ...caveats.map((caveat) => `  NOT ISOLATED OR LIMITED: ${caveat}`),
    `API key: ${apiKey}`,
    '',
    `  export E2B_API_URL=${url}`,
    `  export E2B_SANDBOX_URL=${url}`,
    `  export E2B_API_KEY=${apiKey}`,
    ...(tls?.advice ?? []),
    '',
    "  const sandbox = await (await import('@e2b/code-interpreter')).Sandbox.create();",
    "  console.log((await sandbox.runCode('1 + 1')).text);",
    '',
  ];
  process.stdout.write(`${lines.join('\n')}\n`);
}

/** One real analysis through the front door; its failure is told and leaves the service up, for a look at `/health`. */
async function proveItself(
  config: Config,
  address: AddressInfo,
  apiKey: string,
  logger: Logger,
): Promise<void> {
  try {
    process.stdout.write(`Self-check: ${await selfCheck(urlOf(config, address), apiKey)}\n`);
  } catch (error) {
    logger.error({ err: error }, 'the self-check failed');
    process.stdout.write(`Self-check: FAILED: ${error instanceof Error ? error.message : String(error)}\n`);
  }
}
