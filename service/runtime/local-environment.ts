import fs from 'node:fs/promises';
import path from 'node:path';
import type { PythonFacts } from './local-python';

/** One file of every sandbox's own Python environment; a text that depends on where the sandbox sees it is a function. */
interface EnvironmentFile {
  /** Below the environment's directory. */
  at: string;
  content: Buffer | string | ((python: string) => string);
  mode?: number;
}

/**
 * What a sandbox's own Python environment consists of: an interpreter whose own packages come first and the shared ones
 * after them, so that `pip install` works without touching what others use.
 */
export class EnvironmentTemplate {
  private constructor(
    private readonly directories: readonly string[],
    private readonly links: readonly (readonly [target: string, at: string])[],
    private readonly files: readonly EnvironmentFile[],
  ) {}

  /** Reads the shared environment's part of it, once: it stays as it is while it has users. */
  static async read(facts: PythonFacts): Promise<EnvironmentTemplate> {
    const site = path.join('lib', `python${facts.version}`, 'site-packages');
    const kernels = await readKernelspecs(facts);
    const pip = (python: string) => `#!/bin/sh\nexec ${shellQuote(python)} -m pip "$@"\n`;
    const files: EnvironmentFile[] = [
      { at: path.join('bin', 'pip'), content: pip, mode: 0o755 },
      { at: path.join('bin', 'pip3'), content: pip, mode: 0o755 },
      {
        at: 'pyvenv.cfg',
        content: `home = ${path.dirname(facts.baseExecutable)}\ninclude-system-site-packages = false\nversion = ${facts.version}\n`,
      },
      // Run by site.py at every start; a file of paths alone would not read the shared environment's own .pth files.
      {
        at: path.join(site, 'shared.pth'),
        content: `import site; site.addsitedir(${JSON.stringify(facts.sitePackages)})\n`,
      },
      ...kernels,
    ];
    const links = [
      [facts.baseExecutable, path.join('bin', 'python')],
      ['python', path.join('bin', 'python3')],
      ['python', path.join('bin', `python${facts.version}`)],
    ] as const;
    const parents = [...files.map(({ at }) => at), ...links.map(([, at]) => at), KERNELS].map(path.dirname);
    return new EnvironmentTemplate(
      [...new Set([...parents, KERNELS].flatMap(withParents))].sort(),
      links,
      files,
    );
  }

  /** Writes it into `directory`, which the sandbox sees as `seenAs`; all of it belongs to `uid`, else to this process's. */
  async write(directory: string, seenAs: string, uid?: number): Promise<void> {
    const python = path.join(seenAs, 'bin', 'python');
    const own = uid === undefined ? () => undefined : (place: string) => fs.lchown(place, uid, uid);
    for (const name of this.directories) await fs.mkdir(path.join(directory, name)); // a parent comes before what is in it
    await Promise.all([
      ...this.directories.map((name) => own(path.join(directory, name))),
      ...this.links.map(async ([target, at]) => {
        await fs.symlink(target, path.join(directory, at));
        await own(path.join(directory, at));
      }),
      ...this.files.map(async ({ at, content, mode }) => {
        const text = typeof content === 'function' ? content(python) : content;
        await fs.writeFile(path.join(directory, at), text, { mode: mode ?? 0o644 });
        await own(path.join(directory, at));
      }),
    ]);
  }
}

const KERNELS = path.join('share', 'jupyter', 'kernels');

/** The shared kernelspecs, with the sandbox's interpreter wherever they name the shared one. */
async function readKernelspecs(facts: PythonFacts): Promise<EnvironmentFile[]> {
  const from = path.join(facts.prefix, KERNELS);
  const shared = new Set(
    ['python', 'python3', `python${facts.version}`].map((name) => path.join(facts.prefix, 'bin', name)),
  );
  const entries = await fs.readdir(from, { recursive: true, withFileTypes: true }).catch(() => []); // none: the gateway then offers its own python3
  const files = entries
    .filter((entry) => entry.isFile())
    .map((entry) => path.join(entry.parentPath, entry.name));
  return Promise.all(
    files.map(async (file) => {
      const content = await fs.readFile(file);
      const at = path.join(KERNELS, path.relative(from, file));
      const isSpec = path.basename(file) === 'kernel.json' && path.dirname(path.dirname(file)) === from;
      if (!isSpec) return { at, content }; // what lies beside it: the Java kernel's settings and classes
      const spec = JSON.parse(content.toString()) as { argv: string[] }; // Jupyter's format
      const inOurs = (python: string) => spec.argv.map((word) => (shared.has(word) ? python : word));
      return { at, content: (python) => JSON.stringify({ ...spec, argv: inOurs(python) }) };
    }),
  );
}

/** `a/b` → `.`, `a`, `a/b` */
function withParents(directory: string): string[] {
  const parent = path.dirname(directory);
  return parent === directory ? [directory] : [...withParents(parent), directory];
}

function shellQuote(word: string): string {
  return `'${word.replaceAll("'", `'\\''`)}'`;
}
