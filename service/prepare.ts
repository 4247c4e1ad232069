import type net from 'node:net';
import path from 'node:path';
import type { Config } from './config';
import { ServiceError } from './errors';
import type { Logger } from './log';
import { askImage, askLocally, LanguageReport } from './language-report';
import { createDockerRuntime, engineServiceId } from './runtime/docker';
import { connectEngine, pingEngine } from './runtime/docker-engine';
import { ensureImage } from './runtime/docker-image';
import { createLocalRuntime } from './runtime/local';
import { preparePython } from './runtime/local-python';
import type { InboundHandler, NetworkAccess, Runtime } from './runtime/runtime';
import { resourcesOf } from './sandboxes/sandbox';
import type { Secrets } from './secrets';

/** Where this program's own files are: the folder above `dist/`. */
export const ROOT = path.join(__dirname, '..');
export const AGENT_DIR = path.join(ROOT, 'dist', 'agent');
export const KERNEL_IMAGE_DIR = path.join(ROOT, 'kernel-image');

/** Tells the user about a step that takes long; one line each, on stderr. */
export type Progress = (line: string) => void;

/** Rejects with one line and its remedy when somebody else listens there, before anything slow has begun. */
export function listen(server: net.Server, config: Config): Promise<net.AddressInfo> {
  return new Promise((resolve, reject) => {
    const onError = (cause: NodeJS.ErrnoException) => {
      const where = `${config.host}:${config.port}`;
      const texts: Record<string, string> = {
        EADDRINUSE: `Port ${config.port} is in use on ${config.host}. Stop what listens there, or give another with CELLBOX_PORT (0 takes a free one).`,
        EACCES: `Listening on ${where} is not allowed. Take a port from 1024 on with CELLBOX_PORT.`,
        EADDRNOTAVAIL: `${config.host} is not an address of this machine. Give another with CELLBOX_HOST.`,
        ENOTFOUND: `${config.host} can't be resolved. Give another with CELLBOX_HOST.`,
      };
      const text = texts[cause.code ?? ''] ?? `Listening on ${where} failed: ${cause.message}`;
      reject(new ServiceError('failed_precondition', text, { cause }));
    };
    server.once('error', onError);
    server.listen(config.port, config.host, () => {
      server.off('error', onError);
      resolve(server.address() as net.AddressInfo); // a TCP server's address is never a string
    });
  });
}

export interface OpenRuntimeOptions {
  config: Config;
  secrets: Secrets;
  logger: Logger;
  onInbound: InboundHandler;
  onProgress: Progress;
  /** The most that one sandbox may ask for. */
  maxOpenFiles: number;
  /** What sandboxes of an earlier process may reach, by id. */
  networks: ReadonlyMap<string, NetworkAccess>;
}

/**
 * Chooses the runtime, makes what it lacks (kernel image, Python environment), and opens it.
 *
 * `auto` takes docker when an engine answers, else local. An engine that answers without an image that can be had
 * is an error with its remedy, never a silent step down.
 */
export async function openRuntime(
  options: OpenRuntimeOptions,
): Promise<{ runtime: Runtime; languages: LanguageReport }> {
  const { config, secrets, logger, onInbound, onProgress } = options;
  const name = await chooseRuntime(config, onProgress);
  refuseRemoteLocal(config, name);
  const common = {
    dataDir: config.dataDir,
    deriveSecret: (purpose: 'tunnel' | 'gateway', id: string) => secrets.derive(purpose, id),
    startTimeoutMs: config.startTimeoutMs,
    onInbound,
    logger,
  };
  if (name === 'docker') {
    const image = await prepareImage(config, onProgress);
    const runtime = await createDockerRuntime({
      ...common,
      image,
      // What the engine can't do of the most that a sandbox may ask for is found out now, not by its create.
      resources: { ...resourcesOf(config), openFiles: options.maxOpenFiles },
      networks: options.networks,
      nameServers: config.nameServers,
      proxyImage: () => prepareProxyImage(config, onProgress),
      isolation: config.isolation,
    });
    const ask = askImage(image, engineServiceId(common.deriveSecret));
    const home = { runtime: 'docker', flavor: config.imageFlavor } as const;
    return { runtime, languages: new LanguageReport(home, ask, logger) };
  }
  const python = await prepareLocalPython(config, onProgress);
  const runtime = await createLocalRuntime({
    ...common,
    python,
    agentDir: AGENT_DIR,
    bubblewrap: config.bubblewrap,
    isolation: config.isolation,
  });
  return { runtime, languages: new LanguageReport({ runtime: 'local' }, askLocally(python), logger) };
}

/** The kernel image that the settings ask for, built when it is not there; its name. */
export function prepareImage(
  config: Pick<Config, 'imageFlavor' | 'baseImage' | 'extraCa' | 'buildNetwork' | 'image'>,
  onProgress: Progress,
): Promise<string> {
  return ensureImage({
    docker: connectEngine(),
    root: ROOT,
    flavor: config.imageFlavor,
    baseImage: config.baseImage,
    extraCa: config.extraCa,
    buildNetwork: config.buildNetwork,
    image: config.image,
    onProgress,
  });
}

/** The image of the proxy for domain rules, built when it is not there; its name. */
export function prepareProxyImage(
  config: Pick<Config, 'baseImage' | 'extraCa' | 'buildNetwork' | 'proxyImage'>,
  onProgress: Progress,
): Promise<string> {
  return ensureImage({
    docker: connectEngine(),
    root: ROOT,
    flavor: 'proxy',
    baseImage: config.baseImage,
    extraCa: config.extraCa,
    buildNetwork: config.buildNetwork,
    image: config.proxyImage,
    onProgress,
  });
}

/** The local runtime's Python environment, made when it is not there; its interpreter. */
export async function prepareLocalPython(
  config: Pick<Config, 'pythonDir' | 'dataDir'>,
  onProgress: Progress,
): Promise<string> {
  const { python } = await preparePython({
    dataDir: config.pythonDir ?? config.dataDir,
    kernelImageDir: KERNEL_IMAGE_DIR,
    onProgress,
  });
  return python;
}

async function chooseRuntime(config: Config, onProgress: Progress): Promise<'docker' | 'local'> {
  if (config.runtime === 'local') return 'local';
  const engine = await pingEngine(connectEngine());
  if (engine.ok) return 'docker';
  if (config.runtime === 'docker') {
    throw new ServiceError(
      'failed_precondition',
      `No container engine answers (${engine.detail}). Start Docker, or use CELLBOX_RUNTIME=local.`,
    );
  }
  onProgress(`No container engine answers (${engine.detail}): sandboxes are local processes of this host.`);
  return 'local';
}

const LOOPBACK = /^(localhost|127\.\d+\.\d+\.\d+|::1)$/;

/** The local runtime runs code of clients on this host: other machines are let in only when told twice. */
export function refuseRemoteLocal(config: Config, runtime: 'docker' | 'local'): void {
  if (runtime !== 'local' || LOOPBACK.test(config.host) || config.exposeLocal === 'yes') return;
  throw new ServiceError(
    'failed_precondition',
    `The local runtime runs code on this host, so it listens on loopback only, not on ${config.host}. Use the docker runtime, or say it twice with CELLBOX_LOCAL_ALLOW_REMOTE=yes.`,
  );
}

// For programs that set up without serving (the test suites).
export { loadConfig } from './config';
export { connectEngine, pingEngine };
