import crypto from 'node:crypto';
import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import type { Readable } from 'node:stream';
import type Dockerode from 'dockerode';
import { ServiceError } from '../errors';
import { callEngine, engineDetail, engineStatus } from './docker-engine';

export interface EnsureImageOptions {
  docker: Dockerode;
  /** Root of this project: the Dockerfiles, `kernel-image/` and the built `dist/agent/` are below it. */
  root: string;
  /** Of the kernel image; `proxy` is the image of the proxy for domain rules. */
  flavor: 'slim' | 'full' | 'proxy';
  baseImage: string;
  /** PEM file of certificates that the build and every sandbox trust. */
  extraCa?: string;
  /** The engine's network for the steps of the build; `host` reaches mirrors on this machine. */
  buildNetwork: string;
  /** Given by the operator: used as it is, never built. */
  image?: string;
  /** Values for the ARGs of Dockerfile.kernel (`PIP_INDEX_URL`, …); empty ones are left out. */
  buildArgs?: Record<string, string | undefined>;
  /** One line of progress for people, more than once a minute while something is under way. */
  onProgress?: (line: string) => void;
  /** Gives the build up. */
  signal?: AbortSignal;
}

/** An image and what its Dockerfile copies. Tests, sources of the agent and Python's leftovers change nothing inside. */
interface Recipe {
  /** In texts. */
  name: string;
  dockerfile: string;
  context: readonly string[];
  repository: string;
  /** The setting that names a ready one. */
  setting: string;
  time: string;
}

const KERNEL: Recipe = {
  name: 'kernel image',
  dockerfile: 'Dockerfile.kernel',
  context: ['Dockerfile.kernel', 'kernel-image', 'dist/agent'],
  repository: 'cellbox/kernel',
  setting: 'CELLBOX_IMAGE',
  time: 'the first time takes some minutes',
};
const PROXY: Recipe = {
  name: 'image of the proxy for domain rules',
  dockerfile: 'Dockerfile.proxy',
  context: ['Dockerfile.proxy', 'kernel-image/extra-ca.md'],
  repository: 'cellbox/proxy',
  setting: 'CELLBOX_PROXY_IMAGE',
  time: 'it takes about a minute',
};
const LEFT_OUT =
  /(^|\/)(__pycache__|\.pytest_cache|\.venv|[^/]*\.egg-info)(\/|$)|^kernel-image\/(agent|python\/tests)(\/|$)/;
const QUIET_MS = 15_000;
/** A step that says nothing for this long is stuck: the longest known ones download a gigabyte. */
const STUCK_MS = 15 * 60_000;
const KEPT_LINES = 20;

function recipeOf({ flavor }: Pick<EnsureImageOptions, 'flavor'>): Recipe {
  return flavor === 'proxy' ? PROXY : KERNEL;
}

/**
 * Gives the name of an image that the engine has: the operator's, one built earlier from the same files, or a
 * new one. The tag carries a hash of all that goes in, so that a change of ours never runs on a stale image.
 *
 * @throws ServiceError `failed_precondition` with the remedy, or the failing step and its last lines
 */
export async function ensureImage(options: EnsureImageOptions): Promise<string> {
  const { docker, flavor, onProgress } = options;
  const recipe = recipeOf(options);
  if (options.image !== undefined) {
    if (await hasImage(docker, options.image)) return options.image;
    throw new ServiceError(
      'failed_precondition',
      `The engine has no image ${options.image} (${recipe.setting})`,
      {
        remedy: `docker pull ${options.image}, or unset ${recipe.setting} to build one.`,
      },
    );
  }
  const files = await contextFiles(options.root, recipe);
  const extraCa = options.extraCa === undefined ? undefined : await readCertificates(options.extraCa);
  const prefix = flavor === 'proxy' ? '' : `${flavor}-`;
  const tag = `${recipe.repository}:${prefix}${contextHash(files, [options.baseImage, extraCa ?? ''])}`;
  if (await hasImage(docker, tag)) return tag;

  onProgress?.(`Building the ${recipe.name} ${tag}; ${recipe.time}`);
  const stage = await fs.mkdtemp(path.join(os.tmpdir(), 'cellbox-image-'));
  try {
    const names = await stageContext(stage, files, extraCa);
    const began = Date.now();
    await build(options, stage, names, tag);
    onProgress?.(`Built ${tag} in ${Math.round((Date.now() - began) / 1000)} s`);
  } finally {
    await fs.rm(stage, { recursive: true, force: true });
  }
  return tag;
}

interface ContextFile {
  /** Relative, with slashes. */
  name: string;
  content: Buffer;
  isExecutable: boolean;
}

/** All files that go into the image, sorted by name. Rejects when the agent has not been built. */
export async function contextFiles(root: string, recipe: Recipe = KERNEL): Promise<ContextFile[]> {
  const files: ContextFile[] = [];
  const visit = async (name: string): Promise<void> => {
    if (LEFT_OUT.test(name)) return;
    const full = path.join(root, name);
    const stat = await fs.stat(full);
    if (stat.isDirectory()) {
      for (const child of await fs.readdir(full)) await visit(`${name}/${child}`);
    } else if (stat.isFile()) {
      files.push({ name, content: await fs.readFile(full), isExecutable: (stat.mode & 0o100) !== 0 });
    }
  };
  for (const name of recipe.context) {
    try {
      await visit(name);
    } catch (cause) {
      throw new ServiceError('failed_precondition', `The ${recipe.name} can't be built: ${name} is missing`, {
        cause,
        remedy: 'Run `npm run build` in a complete checkout.',
      });
    }
  }
  return files.sort((one, other) => (one.name < other.name ? -1 : 1));
}

/** Twelve hex digits that change with every byte of the files, their names, and the other inputs. Pure. */
export function contextHash(files: readonly ContextFile[], inputs: readonly string[]): string {
  const hash = crypto.createHash('sha256');
  // Lengths go in, too: else a byte could move from one file to the next unnoticed.
  const add = (part: string | Buffer) => hash.update(`${Buffer.byteLength(part)}:`).update(part);
  for (const input of inputs) add(input);
  for (const { name, content, isExecutable } of files) {
    add(`${name}${isExecutable ? '*' : ''}`);
    add(content);
  }
  return hash.digest('hex').slice(0, 12);
}

async function readCertificates(file: string): Promise<string> {
  try {
    const text = await fs.readFile(file, 'utf8');
    if (text.includes('-----BEGIN CERTIFICATE-----')) return text;
  } catch (cause) {
    throw new ServiceError('failed_precondition', `The extra certificates in ${file} can't be read`, {
      cause,
      remedy: 'Correct or unset CELLBOX_EXTRA_CA (or NODE_EXTRA_CA_CERTS).',
    });
  }
  throw new ServiceError('failed_precondition', `${file} holds no PEM certificate`, {
    remedy: 'Correct or unset CELLBOX_EXTRA_CA (or NODE_EXTRA_CA_CERTS).',
  });
}

/** Writes the context with the same modes everywhere: the builder's cache goes by them. */
async function stageContext(
  stage: string,
  files: readonly ContextFile[],
  extraCa: string | undefined,
): Promise<string[]> {
  const all = [...files];
  if (extraCa !== undefined)
    all.push({ name: 'extra-ca.crt', content: Buffer.from(extraCa), isExecutable: false });
  for (const { name, content, isExecutable } of all) {
    const full = path.join(stage, name);
    await fs.mkdir(path.dirname(full), { recursive: true });
    await fs.writeFile(full, content);
    await fs.chmod(full, isExecutable ? 0o755 : 0o644);
  }
  return all.map(({ name }) => name);
}

interface BuildLine {
  stream?: string;
  status?: string;
  error?: string;
  errorDetail?: { message?: string };
}

async function build(
  options: EnsureImageOptions,
  stage: string,
  names: string[],
  tag: string,
): Promise<void> {
  const { docker, onProgress, signal } = options;
  const given = Object.entries({ ...proxySettings(process.env), ...options.buildArgs });
  const log = new BuildLog();
  let stream: Readable;
  try {
    stream = (await docker.buildImage(
      { context: stage, src: names },
      {
        t: tag,
        dockerfile: recipeOf(options).dockerfile,
        target: options.flavor,
        buildargs: Object.fromEntries([
          ['BASE_IMAGE', options.baseImage],
          ...given.filter((entry): entry is [string, string] => (entry[1] ?? '') !== ''),
        ]) as Record<string, string>,
        networkmode: options.buildNetwork,
        rm: true,
        forcerm: true,
        abortSignal: signal,
      },
    )) as Readable;
  } catch (error) {
    signal?.throwIfAborted();
    throw new ServiceError('unavailable', `The engine refuses to build: ${engineDetail(error)}`, {
      cause: error,
    });
  }
  let failure: string | undefined;
  const heartbeat = setInterval(() => {
    if (log.quietMs() > STUCK_MS) stream.destroy(new Error('no output for too long'));
    else if (log.quietMs() >= QUIET_MS || log.unreportedMs() >= QUIET_MS) onProgress?.(log.heartbeat());
  }, QUIET_MS);
  try {
    let rest = '';
    for await (const chunk of stream.setEncoding('utf8')) {
      const lines = (rest + String(chunk)).split('\n');
      rest = lines.pop() ?? '';
      for (const line of lines) {
        const step = log.add(parseBuildLine(line));
        if (step !== undefined) onProgress?.(step);
        failure ??= log.failure;
      }
    }
    failure ??= log.add(parseBuildLine(rest)) === undefined ? log.failure : undefined;
  } catch (error) {
    signal?.throwIfAborted();
    throw new ServiceError('unavailable', `The image build broke off (${engineDetail(error)})`, {
      cause: error,
    });
  } finally {
    clearInterval(heartbeat);
  }
  if (failure !== undefined) {
    throw new ServiceError(
      'failed_precondition',
      `The ${recipeOf(options).name} can't be built.\n${log.explain()}`,
      {
        remedy: remedyFor(failure, options),
      },
    );
  }
  if (!(await hasImage(docker, tag)))
    throw new ServiceError('unavailable', `The engine ended the build without an image.\n${log.explain()}`);
}

/** What the engine said while building: the current step, the last lines, the failure. */
export class BuildLog {
  failure: string | undefined;
  private step = '';
  private lines: string[] = [];
  private heardAt = Date.now();
  private reportedAt = Date.now();
  private stepBegan = Date.now();

  /** Takes one message; returns a line of progress when it begins a step. */
  add(message: BuildLine): string | undefined {
    this.heardAt = Date.now();
    const failure = message.errorDetail?.message ?? message.error;
    if (failure !== undefined) this.failure = failure.trim();
    for (const raw of (message.stream ?? '').split(/[\r\n]+/)) {
      const line = raw.trimEnd();
      if (line === '') continue;
      this.lines.push(line);
      if (this.lines.length > KEPT_LINES) this.lines.shift();
      if (!/^Step \d+\/\d+ : /.test(line)) continue;
      this.step = line.length > 120 ? `${line.slice(0, 117)}...` : line;
      this.lines = [];
      this.stepBegan = this.reportedAt = Date.now();
      return this.step;
    }
    return undefined;
  }

  quietMs(): number {
    return Date.now() - this.heardAt;
  }

  unreportedMs(): number {
    return Date.now() - this.reportedAt;
  }

  heartbeat(): string {
    this.reportedAt = Date.now();
    const [name = 'Preparing'] = this.step.split(' : ');
    const seconds = Math.round((Date.now() - this.stepBegan) / 1000);
    return `${name || 'Preparing'}, ${seconds} s: ${(this.lines[this.lines.length - 1] ?? 'waiting').slice(0, 100)}`;
  }

  explain(): string {
    return [this.step, ...this.lines, this.failure ?? ''].filter((line) => line !== '').join('\n');
  }
}

function parseBuildLine(line: string): BuildLine {
  if (line.trim() === '') return {};
  try {
    return JSON.parse(line) as BuildLine; // every field is optional and looked at before use
  } catch {
    return { stream: line }; // not a message of the builder: shown as it came
  }
}

function remedyFor(failure: string, options: EnsureImageOptions): string {
  const { baseImage } = options;
  if (/pull access denied|manifest|not found: manifest|registry|Get "https?:/i.test(failure)) {
    return `Make ${baseImage} available to the engine (docker pull or docker import), or name another with CELLBOX_BASE_IMAGE.`;
  }
  return `Network and certificates of builds: CELLBOX_BUILD_NETWORK, CELLBOX_EXTRA_CA; or use a ready image with ${recipeOf(options).setting}.`;
}

/** The proxies of this process; builders know these names without an ARG and keep them out of the image. */
function proxySettings(env: NodeJS.ProcessEnv): Record<string, string | undefined> {
  const names = ['HTTP_PROXY', 'HTTPS_PROXY', 'NO_PROXY', 'http_proxy', 'https_proxy', 'no_proxy'];
  return Object.fromEntries(names.map((name) => [name, env[name]]));
}

async function hasImage(docker: Dockerode, name: string): Promise<boolean> {
  try {
    await callEngine('inspect image', docker.getImage(name).inspect());
    return true;
  } catch (error) {
    if (engineStatus(error) === 404) return false;
    throw error;
  }
}
