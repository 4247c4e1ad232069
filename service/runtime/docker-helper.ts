import type Dockerode from 'dockerode';
import { ServiceError } from '../errors';
import { LABELS } from './docker-container';
import { callEngine, engineDetail, engineStatus } from './docker-engine';

export interface HelperInput {
  image: string;
  serviceId: string;
  /** Program for /bin/sh, run as root with NET_ADMIN and NET_RAW in the host's network namespace. */
  script: string;
  env?: Record<string, string>;
  /** Its standard input; none when absent. */
  input?: string;
  /** Merged last; how limits are tried out without a sandbox. */
  hostConfig?: Dockerode.HostConfig;
  /** The engine maps container users away: only the unmapped may enter the host's network namespace. */
  userNamespaces?: boolean;
  timeoutMs?: number;
}

/**
 * Runs one short program of ours in a container of the kernel image and gives its output; for what needs rights that
 * the service itself does not have. The container is gone when this settles.
 *
 * @throws ServiceError `failed_precondition` with the last line of output when the program fails
 */
export async function runHelper(docker: Dockerode, input: HelperInput): Promise<string> {
  const timeoutMs = input.timeoutMs ?? 30_000;
  const created = docker.createContainer({
    Image: input.image,
    Entrypoint: ['/bin/sh', '-c', input.script],
    Cmd: [],
    ...(input.input === undefined ? {} : { OpenStdin: true, StdinOnce: true, AttachStdin: true }),
    User: '0:0',
    WorkingDir: '/',
    Env: Object.entries(input.env ?? {}).map(([name, value]) => `${name}=${value}`),
    Labels: { [LABELS.service]: input.serviceId, [LABELS.kind]: 'helper' },
    HostConfig: {
      NetworkMode: 'host',
      CapDrop: ['ALL'],
      CapAdd: ['NET_ADMIN', 'NET_RAW'],
      SecurityOpt: ['no-new-privileges'],
      LogConfig: { Type: 'json-file', Config: { 'max-size': '1m', 'max-file': '1' } },
      ...(input.userNamespaces === true ? { UsernsMode: 'host' } : {}),
      ...input.hostConfig,
    },
  });
  let container: Dockerode.Container;
  try {
    container = await callEngine('create helper container', created, timeoutMs);
  } catch (error) {
    // Made after all, past the deadline: then it must not stay.
    created.then((late) => late.remove({ force: true, v: true })).catch(() => undefined);
    throw error;
  }
  let stdin: NodeJS.ReadWriteStream | undefined;
  try {
    if (input.input !== undefined) {
      const attached = container.attach({ stream: true, stdin: true, hijack: true });
      stdin = await callEngine('attach to helper container', attached, timeoutMs);
      stdin.on('error', () => undefined); // a program that ended without reading all: its exit code says what matters
    }
    await callEngine('start helper container', container.start(), timeoutMs);
    stdin?.end(input.input ?? '');
    const { StatusCode } = (await callEngine('wait for helper container', container.wait(), timeoutMs)) as {
      StatusCode: number;
    };
    const logs: Buffer = await callEngine(
      'read helper output',
      container.logs({ stdout: true, stderr: true, follow: false }),
      timeoutMs,
    );
    const output = demultiplex(logs);
    if (StatusCode !== 0) {
      const lines = output.trim().split('\n');
      throw new ServiceError('failed_precondition', lines[lines.length - 1] || `exit code ${StatusCode}`, {
        cause: output,
      });
    }
    return output;
  } finally {
    (stdin as (NodeJS.ReadWriteStream & { destroy?: () => void }) | undefined)?.destroy?.();
    await removeContainer(docker, container.id);
  }
}

/** Joins the frames in which the engine sends stdout and stderr of a container without a terminal. */
export function demultiplex(frames: Buffer): string {
  const parts: Buffer[] = [];
  for (let at = 0; at + 8 <= frames.length;) {
    const size = frames.readUInt32BE(at + 4);
    parts.push(frames.subarray(at + 8, at + 8 + size));
    at += 8 + size;
  }
  return Buffer.concat(parts).toString('utf8');
}

/**
 * Kills and removes a container and its anonymous volumes; resolves when it is really gone, also when it already was
 * or when the engine is just removing it by itself.
 */
export async function removeContainer(docker: Dockerode, idOrName: string): Promise<void> {
  const container = docker.getContainer(idOrName);
  for (let attempt = 1; ; attempt++) {
    try {
      await callEngine('remove container', container.remove({ force: true, v: true }));
      return;
    } catch (error) {
      const status = engineStatus(error);
      if (status === 404) return;
      if (status === 409) {
        await removed(container);
        return;
      }
      // The engine itself failed half-way (a busy mount, say); it can finish when asked again.
      if (status === undefined || attempt === 3) {
        throw new ServiceError(
          'unavailable',
          'The container engine could not remove a sandbox; it is tried again later',
          { cause: engineDetail(error) },
        );
      }
    }
  }
}

/** Waits for a removal that is under way. */
async function removed(container: Dockerode.Container): Promise<void> {
  const deadline = AbortSignal.timeout(15_000);
  try {
    await callEngine(
      'wait for removal',
      container.wait({ condition: 'removed', abortSignal: deadline }),
      16_000,
    );
  } catch (error) {
    if (engineStatus(error) !== 404) throw error;
  }
}
