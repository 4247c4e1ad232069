import { execFile, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import fs from 'node:fs/promises';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import { ServiceError } from '../errors';
import { identify, isAlive } from './local-process';
import type { ProcessIdentity } from './local-process';

/**
 * The Python environment of the local runtime: one per data directory, complete, that sandboxes share read-only. Above it
 * each has a thin one of its own (`EnvironmentTemplate`).
 */

/** Raised when the way an environment is made changes, so that old ones are not taken for complete. */
const RECIPE = 1;
const PYTHONS = ['python3.13', 'python3.12', 'python3.11', 'python3'];
const OLDEST = 11;
/** The pinned packages have wheels up to this; with a later one pip would compile for an hour, and fail. */
const NEWEST = 13;
const INSTALL_DEADLINE_MS = 30 * 60_000;
const QUESTION_DEADLINE_MS = 20_000;
const PROGRESS_EVERY_MS = 5_000;
const run = promisify(execFile);

interface BasePython {
  executable: string;
  version: string;
  hasVenv: boolean;
}

/** What a sandbox's thin environment must know of the shared one. */
export interface PythonFacts {
  /** The shared environment's interpreter and directory. */
  python: string;
  prefix: string;
  /** What the interpreter really is and needs: a distribution's, or one below somebody's home. */
  baseExecutable: string;
  basePrefix: string;
  /** `3.13` */
  version: string;
  sitePackages: string;
}

/** Asks Python for JSON. */
async function ask<T>(python: string, program: string): Promise<T> {
  const { stdout } = await run(python, ['-I', '-c', program], {
    timeout: QUESTION_DEADLINE_MS,
    killSignal: 'SIGKILL',
    cwd: '/',
  });
  return JSON.parse(stdout) as T; // our own program printed it
}

const WHO_ARE_YOU = `
import importlib.util as u, json, os, sys
print(json.dumps({
  "executable": os.path.realpath(sys.executable),
  "version": "%d.%d" % sys.version_info[:2],
  "hasVenv": bool(u.find_spec("venv") and u.find_spec("ensurepip")),
}))`;

const FACTS = `
import json, os, sys, sysconfig
print(json.dumps({
  "python": sys.executable,
  "prefix": sys.prefix,
  "baseExecutable": os.path.realpath(sys.executable),
  "basePrefix": sys.base_prefix,
  "version": "%d.%d" % sys.version_info[:2],
  "sitePackages": sysconfig.get_path("purelib"),
}))`;

/** Reads what an environment above it needs; `python` is what `preparePython` gave. */
export async function readPythonFacts(python: string): Promise<PythonFacts> {
  try {
    return await ask<PythonFacts>(python, FACTS);
  } catch (error) {
    throw new ServiceError(
      'failed_precondition',
      `The Python environment of the local runtime does not run: ${python}`,
      {
        cause: error,
        remedy: 'remove its directory and start again; it will be made anew',
      },
    );
  }
}

/** Picks among what was found; `found` is in order of preference. Pure. */
export function choosePython(found: readonly BasePython[], uv: boolean): BasePython | undefined {
  const minor = (each: BasePython) => Number(each.version.split('.')[1]);
  const fitting = found.filter(
    (each) => each.version.startsWith('3.') && minor(each) >= OLDEST && minor(each) <= NEWEST,
  );
  const chosen = fitting.find((each) => uv || each.hasVenv);
  if (chosen !== undefined || (uv && fitting.length === 0)) return chosen; // uv fetches one itself
  const [first] = fitting;
  if (first !== undefined) {
    throw new ServiceError(
      'failed_precondition',
      `${first.executable} lacks the modules venv and ensurepip: install them (Debian, Ubuntu: apt-get install python3-venv), or install uv`,
    );
  }
  const seen = found.map((each) => each.version).join(', ') || 'none';
  throw new ServiceError(
    'failed_precondition',
    `The local runtime needs Python 3.${OLDEST} to 3.${NEWEST} on PATH (found: ${seen}): install one (Debian, Ubuntu: apt-get install python3 python3-venv), or install uv`,
  );
}

async function findPythons(): Promise<BasePython[]> {
  const answers = await Promise.all(
    // A name that is not there, or a version switcher's stub for one that isn't, is no find.
    PYTHONS.map((name) => ask<BasePython>(name, WHO_ARE_YOU).catch(() => undefined)),
  );
  return answers.filter((answer) => answer !== undefined);
}

async function hashOf(directory: string): Promise<string> {
  const names = await fs.readdir(directory, { recursive: true, withFileTypes: true });
  const files = names
    .filter((entry) => entry.isFile() && /\.(py|toml)$|matplotlibrc$/.test(entry.name))
    .map((entry) => path.join(entry.parentPath, entry.name))
    .filter((file) => !/[/\\](tests|build|[^/\\]*\.egg-info)[/\\]/.test(path.relative(directory, file)))
    .sort();
  const hash = createHash('sha256');
  for (const file of files)
    hash.update(`${path.relative(directory, file)}\0`).update(await fs.readFile(file));
  return hash.digest('hex').slice(0, 16);
}

/**
 * Makes the shared Python environment, or finds it made: `<dataDir>/python-<hash of requirements and version>` with
 * the pinned packages, the `cellbox_kernel` package and the kernelspecs. By uv where present, else venv and pip.
 *
 * A second call costs the reading of a few files. Calls at the same time, of several processes too, wait for the one
 * that works. An environment that was left half-made is made again. When only the package has changed, only it is
 * installed again.
 *
 * @throws ServiceError `failed_precondition` with one line that names the remedy.
 */
export async function preparePython(options: {
  dataDir: string;
  /** The folder of that name in the source tree: requirements and the Python package. */
  kernelImageDir: string;
  /** One line of text for a step that takes long. */
  onProgress: (line: string) => void;
  /** Gives up and leaves a half-made environment for the next call. */
  signal?: AbortSignal;
}): Promise<{ python: string }> {
  const { dataDir, kernelImageDir, onProgress, signal } = options;
  const requirements = path.join(kernelImageDir, 'requirements-slim.txt');
  const packageDir = path.join(kernelImageDir, 'python');
  const [pinned, packageHash] = await Promise.all([fs.readFile(requirements), hashOf(packageDir)]);
  await fs.mkdir(dataDir, { recursive: true, mode: 0o700 });

  // The quick way: what the last call noted is still what is wanted and still there.
  const wanted = createHash('sha256').update(`${RECIPE}\0`).update(pinned).digest('hex').slice(0, 16);
  const note = await readNote(dataDir);
  if (note?.wanted === wanted && (await isComplete(note.directory, packageHash))) {
    return { python: pythonOf(note.directory) };
  }

  const uv = await run('uv', ['--version'], { timeout: QUESTION_DEADLINE_MS }).then(() => true, () => false); // prettier-ignore
  const base = choosePython(await findPythons(), uv);
  const version = base?.version ?? `3.${NEWEST}`;
  const identity = createHash('sha256').update(`${wanted}\0${version}\0${base?.executable ?? 'uv'}`);
  const directory = path.join(dataDir, `python-${identity.digest('hex').slice(0, 12)}`);
  const python = pythonOf(directory);
  await withLock(`${directory}.lock`, onProgress, signal, async () => {
    const step = (name: string, command: string, args: string[]) =>
      runStep({ name, command, args, onProgress, signal });
    // The second: its base was removed from the host, by an upgrade for example.
    if (!existsSync(path.join(directory, '.complete')) || !existsSync(python)) {
      await fs.rm(directory, { recursive: true, force: true });
      onProgress(
        `Making the Python environment of local sandboxes (Python ${version}, ${uv ? 'uv' : 'venv and pip'}; about a minute)`,
      );
      if (uv) {
        await step('Python environment', 'uv', [
          'venv',
          '--seed',
          '--python',
          base?.executable ?? version,
          directory,
        ]);
        await step('Python packages', 'uv', ['pip', 'install', '--python', python, '-r', requirements]);
      } else {
        await step('Python environment', base?.executable ?? 'python3', ['-m', 'venv', directory]);
        await step('Python packages', python, [...PIP_INSTALL, '-r', requirements]);
      }
      await fs.writeFile(path.join(directory, '.complete'), `${version}\n`);
    }
    if (!(await isComplete(directory, packageHash))) {
      onProgress('Installing the kernel package');
      const install = ['--no-deps', '--force-reinstall', await copyOf(packageDir, directory)];
      if (uv) await step('kernel package', 'uv', ['pip', 'install', '--python', python, ...install]);
      else await step('kernel package', python, [...PIP_INSTALL, ...install]);
      await step('kernelspecs', python, [
        '-m',
        'cellbox_kernel.kernelspecs',
        path.join(directory, 'share', 'jupyter', 'kernels'),
      ]);
      await fs.writeFile(path.join(directory, '.package'), packageHash);
    }
  });
  await writeFileWhole(path.join(dataDir, 'python.json'), JSON.stringify({ wanted, directory }));
  return { python };
}

const PIP_INSTALL = [
  '-m',
  'pip',
  'install',
  '--disable-pip-version-check',
  '--no-input',
  '--progress-bar',
  'off',
];

function pythonOf(directory: string): string {
  return path.join(directory, 'bin', 'python');
}

async function isComplete(directory: string, packageHash: string): Promise<boolean> {
  if (!existsSync(path.join(directory, '.complete')) || !existsSync(pythonOf(directory))) return false;
  return (await fs.readFile(path.join(directory, '.package'), 'utf8').catch(() => '')) === packageHash; // absent: not yet
}

async function readNote(dataDir: string): Promise<{ wanted: string; directory: string } | undefined> {
  try {
    const note: unknown = JSON.parse(await fs.readFile(path.join(dataDir, 'python.json'), 'utf8'));
    if (typeof note !== 'object' || note === null || !('wanted' in note) || !('directory' in note))
      return undefined;
    return { wanted: String(note.wanted), directory: String(note.directory) };
  } catch {
    return undefined; // absent or torn: everything is looked at again
  }
}

/** Building in the source tree would litter it, and can't where it is read-only. */
async function copyOf(packageDir: string, directory: string): Promise<string> {
  const copy = path.join(directory, '.package-source');
  await fs.rm(copy, { recursive: true, force: true });
  await fs.cp(packageDir, copy, {
    recursive: true,
    filter: (file) => !/[/\\](tests|build|__pycache__|[^/\\]*\.egg-info)$/.test(file),
  });
  return copy;
}

async function writeFileWhole(file: string, text: string): Promise<void> {
  const temporary = `${file}.${process.pid}.tmp`;
  await fs.writeFile(temporary, text, { mode: 0o600 });
  await fs.rename(temporary, file);
}

/** Runs one long step, tells from time to time how it goes, and turns a failure into one clear line. */
async function runStep(options: {
  name: string;
  command: string;
  args: string[];
  onProgress: (line: string) => void;
  signal: AbortSignal | undefined;
}): Promise<void> {
  const { name, command, args, onProgress, signal } = options;
  const env: NodeJS.ProcessEnv = {
    ...process.env,
    PYTHONDONTWRITEBYTECODE: undefined,
    PYTHONPATH: undefined,
  };
  delete env['PYTHONHOME'];
  // Readable for everybody, whatever the umask: sandboxes of a service that is root have uids of their own.
  const child = spawn('/bin/sh', ['-c', 'umask 022 && exec "$@"', 'sh', command, ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env,
    cwd: '/',
    signal,
    killSignal: 'SIGKILL',
    timeout: INSTALL_DEADLINE_MS,
  });
  const last: string[] = [];
  for (const stream of [child.stdout, child.stderr]) {
    createInterface({ input: stream }).on('line', (line) => {
      if (line.trim() === '') return;
      last.push(line.trim());
      if (last.length > 20) last.shift();
    });
  }
  const startedAt = Date.now();
  const ticker = setInterval(() => {
    const seconds = Math.round((Date.now() - startedAt) / 1000);
    onProgress(`  ${name}: ${seconds} s, ${(last.at(-1) ?? 'working').slice(0, 120)}`);
  }, PROGRESS_EVERY_MS);
  const outcome = await new Promise<number | string | Error>((resolve) => {
    child.on('error', resolve);
    child.on('close', (code, killedBy) => resolve(code ?? killedBy ?? 'unknown'));
  });
  clearInterval(ticker);
  if (outcome === 0) return;
  signal?.throwIfAborted();
  const why =
    outcome instanceof Error
      ? outcome.message
      : (last.findLast((line) => /error/i.test(line)) ?? last.at(-1) ?? `exit ${outcome}`);
  throw new ServiceError(
    'failed_precondition',
    `Making the Python environment failed at "${name}": ${why.slice(0, 400)}`,
    {
      cause: new Error(last.join('\n')),
      remedy: 'check the network and the package index (pip config list), then start again',
    },
  );
}

/**
 * Holds `file` while `work` runs; waits while another live process holds it. A lock whose holder is gone is taken over.
 */
export async function withLock(
  file: string,
  onProgress: (line: string) => void,
  signal: AbortSignal | undefined,
  work: () => Promise<void>,
): Promise<void> {
  const me = JSON.stringify(await identify(process.pid));
  let told = false;
  for (const deadline = Date.now() + INSTALL_DEADLINE_MS; ;) {
    signal?.throwIfAborted();
    // Written aside and linked, so that a lock is never seen without its holder's name.
    const mine = `${file}.${process.pid}.${lockCount++}`;
    await fs.writeFile(mine, me);
    const held = await fs.link(mine, file).then(() => true, () => false); // prettier-ignore
    await fs.rm(mine, { force: true });
    if (held) break;
    if (Date.now() > deadline)
      throw new ServiceError('failed_precondition', `Another start holds ${file} for too long: remove it`);
    if (!(await isHeld(file))) {
      const stale = `${file}.${process.pid}.stale`;
      await fs.rename(file, stale).catch(() => {}); // another waiter was quicker
      // It was taken by somebody alive between the look and the rename: give it back.
      if (await isHeld(stale)) await fs.link(stale, file).catch(() => {}); // taken again already: it has a holder
      await fs.rm(stale, { force: true });
      continue;
    }
    if (!told) onProgress('Waiting for another start that makes the Python environment');
    told = true;
    await delay(100, undefined, { signal });
  }
  try {
    await work();
  } finally {
    await fs.rm(file, { force: true });
  }
}

let lockCount = 0;

async function isHeld(file: string): Promise<boolean> {
  try {
    return await isAlive(JSON.parse(await fs.readFile(file, 'utf8')) as ProcessIdentity); // written by withLock
  } catch {
    return false; // released meanwhile, or not ours: either way to be taken
  }
}
