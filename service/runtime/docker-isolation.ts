import crypto from 'node:crypto';
import { once } from 'node:events';
import fs from 'node:fs/promises';
import net from 'node:net';
import path from 'node:path';
import type Dockerode from 'dockerode';
import { ServiceError } from '../errors';
import type { Logger } from '../log';
import { TUNNEL_DIR_INSIDE, readOnly } from './docker-container';
import { callEngine, engineDetail } from './docker-engine';
import { runHelper } from './docker-helper';
import { noSuchIsolation } from './instance-start';

/** The level of gVisor, whatever name its runtime was registered under. */
export const GVISOR = 'gvisor';

/** Names that gVisor is registered under, the better one first. */
const GVISOR_RUNTIMES = ['runsc', 'gvisor'];
/** Start processes of the host's kernel. All others may bring a kernel of their own, and with it a network stack. */
const PLAIN_RUNTIMES = /^(runc|crun|youki)$|^io\.containerd\.(runc|runtime)\./;
/** containerd's own names for `runc`: told by older engines beside it. */
const SHIMS = /^io\.containerd\./;
/** A first container at a level, with a cold cache on a busy host. */
const PROOF_TIMEOUT_MS = 60_000;

const REMEDY =
  'Register gVisor as a runtime of the engine by the name runsc, with the argument --host-uds=open, and reload the engine.';

const DOES_NOT_WORK = 'an isolation level does not work';
const OVERLAY_REMEDY =
  'Add --overlay2=none to the arguments of that runtime of the engine, and reload the engine.';

/**
 * Succeeds when a socket of the service can be reached from inside: without that no sandbox has a way to the service.
 * Tells how many interfaces there are besides loopback, and what kind of file system the root is.
 */
const PROOF = `exec /usr/bin/node -e '
const table = require("fs").readFileSync("/proc/net/dev", "latin1");
const mounts = require("fs").readFileSync("/proc/mounts", "latin1");
console.log("root=" + mounts.split("\\n").map((line) => line.split(" ")).findLast((words) => words[1] === "/")?.[2]);
console.log("interfaces=" + (table.match(/^ *[^ :|]+:/gm) ?? []).filter((name) => name.trim() !== "lo:").length);
const socket = require("net").connect(process.argv[1]);
socket.on("connect", () => process.exit(0));
socket.on("error", (error) => { console.error(error.message); process.exit(1); });
' "$SOCKET"`;

/** One kind of wall around a machine, as this engine has it. */
export interface IsolationLevel {
  /** What settings and templates call it. */
  readonly name: string;
  /** The engine's name for what starts it. */
  readonly ociRuntime: string;
  /** Whether the kernel inside, and with it the network stack, is the host's. */
  readonly isHostKernel: boolean;
}

/** The part of the engine's account of itself that counts here. */
export interface EngineRuntimes {
  Runtimes?: Record<string, unknown>;
  DefaultRuntime?: string;
}

/** The engine's levels, its default first. Pure. */
export function levelsOf({ Runtimes = {}, DefaultRuntime = 'runc' }: EngineRuntimes): IsolationLevel[] {
  const gvisor = GVISOR_RUNTIMES.find((name) => name in Runtimes);
  const others = Object.keys(Runtimes).filter((name) => name !== DefaultRuntime && !SHIMS.test(name));
  return [DefaultRuntime, ...others.sort()].map((ociRuntime) => ({
    name: ociRuntime === gvisor ? GVISOR : ociRuntime,
    ociRuntime,
    isHostKernel: isHostKernel(ociRuntime),
  }));
}

/** For a container that is there already: by the runtime that the engine started it with. */
export function isHostKernel(ociRuntime: string): boolean {
  return PLAIN_RUNTIMES.test(ociRuntime);
}

export interface DockerIsolationOptions {
  docker: Dockerode;
  image: string;
  serviceId: string;
  /** Where the directories of the tunnels are. */
  tunnels: string;
  /** The network that machines are on. */
  network: string;
  engine: EngineRuntimes;
  /** Level of machines that ask for none; the engine's default when undefined. */
  usual: string | undefined;
  logger: Logger;
}

/**
 * Which levels the engine has, and whether they work: before its first machine a level must have shown, in a container
 * that is gone again, that the tunnel reaches through it. What failed is tried anew the next time.
 */
export class DockerIsolation {
  private found: IsolationLevel[];
  private readonly proofs = new Map<string, Promise<void>>();
  /** What working levels lack, one sentence each. */
  readonly caveats: string[] = [];

  constructor(private readonly options: DockerIsolationOptions) {
    this.found = levelsOf(options.engine);
  }

  /** Their names, the usual one first. */
  get levels(): string[] {
    const usual = this.find(this.options.usual);
    const others = this.found.filter((level) => level !== usual);
    return [...(usual === undefined ? [] : [usual]), ...others].map(({ name }) => name);
  }

  /**
   * The level of this name, or the usual one, fit for a machine.
   *
   * @throws ServiceError `failed_precondition` when the engine lacks it or it does not work
   */
  async take(name: string | undefined): Promise<IsolationLevel> {
    const wanted = name ?? this.options.usual;
    let level = this.find(wanted);
    if (level === undefined) {
      // An engine takes new runtimes up while it runs.
      this.found = levelsOf(await callEngine('info', this.options.docker.info() as Promise<EngineRuntimes>));
      level = this.find(wanted);
    }
    if (level === undefined)
      throw noSuchIsolation(wanted ?? '', this.levels, wanted === GVISOR ? REMEDY : undefined);
    if (!level.isHostKernel) await this.proven(level);
    return level;
  }

  private find(name: string | undefined): IsolationLevel | undefined {
    if (name === undefined) return this.found[0];
    return (
      this.found.find((level) => level.name === name) ?? this.found.find((level) => level.ociRuntime === name)
    );
  }

  /** Callers at the same time share one proof. */
  private proven(level: IsolationLevel): Promise<void> {
    let proof = this.proofs.get(level.ociRuntime);
    if (proof === undefined) {
      proof = this.prove(level);
      this.proofs.set(level.ociRuntime, proof);
      proof.catch(() => this.proofs.delete(level.ociRuntime));
    }
    return proof;
  }

  private async prove(level: IsolationLevel): Promise<void> {
    const { logger } = this.options;
    const { name, ociRuntime } = level;
    const output = await this.lookFromInside(level);
    if (/^root=overlay$/m.test(output)) {
      logger.error({ isolation: name, ociRuntime, detail: output }, DOES_NOT_WORK);
      throw new ServiceError(
        'failed_precondition',
        `Isolation ${name} does not work here: it keeps what a sandbox writes apart from its container, so that a pause without memory would lose it and no limit would see it`,
        { remedy: OVERLAY_REMEDY },
      );
    }
    if (/^interfaces=0$/m.test(output)) {
      const caveat = `Sandboxes at isolation ${name} have no network, whatever they ask for: its runtime gives them none.`;
      this.caveats.push(caveat);
      logger.warn({ isolation: name, ociRuntime }, caveat);
    }
  }

  /** What `PROOF` tells. @throws ServiceError `failed_precondition` when it does not succeed */
  private async lookFromInside({ name, ociRuntime }: IsolationLevel): Promise<string> {
    const { docker, image, serviceId, tunnels, network, logger } = this.options;
    const directory = path.join(tunnels, `proof-${crypto.randomBytes(6).toString('hex')}`);
    const server = net.createServer((socket) => socket.on('error', () => undefined).destroy());
    try {
      await fs.mkdir(directory);
      await fs.chmod(directory, 0o755);
      server.listen(path.join(directory, 'p.sock'));
      await once(server, 'listening');
      await fs.chmod(path.join(directory, 'p.sock'), 0o666);
      return await runHelper(docker, {
        image,
        serviceId,
        script: PROOF,
        env: { SOCKET: `${TUNNEL_DIR_INSIDE}/p.sock` },
        timeoutMs: PROOF_TIMEOUT_MS,
        hostConfig: {
          Runtime: ociRuntime,
          NetworkMode: network,
          CapAdd: [],
          Mounts: [readOnly(directory, TUNNEL_DIR_INSIDE)],
        },
      });
    } catch (error) {
      const detail = engineDetail(error);
      logger.error({ isolation: name, ociRuntime, detail }, DOES_NOT_WORK);
      const isCutOff = error instanceof ServiceError && error.code === 'failed_precondition';
      throw new ServiceError(
        'failed_precondition',
        isCutOff
          ? `Isolation ${name} does not work here: from inside, the service's socket can't be reached`
          : `Isolation ${name} does not work here: the engine can't start a container with it; the log of the service says more`,
        { cause: error, remedy: isCutOff ? REMEDY : 'Try docker run with that runtime on the host.' },
      );
    } finally {
      server.close();
      await fs.rm(directory, { recursive: true, force: true });
    }
  }
}
