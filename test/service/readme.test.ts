import fs from 'node:fs';
import path from 'node:path';
import * as newest from '@e2b/code-interpreter';
import * as older from 'code-interpreter-a';
import { settingsTable } from '../../service/config';

const ROOT = path.join(__dirname, '..', '..');
const README = fs.readFileSync(path.join(ROOT, 'README.md'), 'utf8');
const MARKED = /<!-- settings:begin -->\n([\s\S]*?)<!-- settings:end -->/;

/** Rows of a Markdown table as lists of cells: how wide the columns are drawn is the formatter's matter. */
function cellsOf(table: string): string[][] {
  return table
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line.startsWith('|'))
    .map((line) =>
      line
        .slice(1, -1)
        .split(/(?<!\\)\|/)
        .map((cell) => cell.trim().replace(/^-+$/, '---')),
    );
}

/** Names of the methods of a class, or of an instance, inherited ones included. */
function methodsOf(subject: object): string[] {
  const names: string[] = [];
  for (let at: object | null = subject; at !== null; at = Object.getPrototypeOf(at) as object | null) {
    if (at === Object.prototype || at === Function.prototype) break;
    for (const [name, { value }] of Object.entries(Object.getOwnPropertyDescriptors(at))) {
      if (typeof value === 'function') names.push(name);
    }
  }
  return names;
}

/** In the SDKs' classes, but not for users. */
const INTERNAL =
  /^(constructor|createSandbox|forkSandbox|connectSandbox|resolveOpts|resolveApiOpts|fileUrl|handleRequestError|getJupyterRequestUrl|checkHealth|start)$/;

describe('README', () => {
  it('shows every setting as the service has it', () => {
    const marked = MARKED.exec(README)?.[1];
    expect(cellsOf(marked ?? '')).toEqual(cellsOf(settingsTable()));
  });

  it('shows a table that is the same on every machine', () => {
    expect(settingsTable()).toContain('`~/.cellbox`');
    expect(new Set(cellsOf(settingsTable()).map((row) => row.length))).toEqual(new Set([4]));
  });

  it('links to pages and pictures that are there', () => {
    const targets = [...README.matchAll(/\]\(([^)#:]+)(?:#[^)]*)?\)/g)].map((match) => match[1] ?? '');
    expect(targets).toContain('docs/COMPATIBILITY.md');
    expect(targets.filter((target) => !fs.existsSync(path.join(ROOT, target)))).toEqual([]);
  });
});

describe('docs/COMPATIBILITY.md', () => {
  /** Every test's source, to look titles up in. */
  const sources = fs
    .readdirSync(path.join(ROOT, 'test'), { recursive: true, encoding: 'utf8' })
    .filter((file) => /\.(ts|py)$/.test(file) && !file.endsWith('readme.test.ts'))
    .map((file) => fs.readFileSync(path.join(ROOT, 'test', file), 'utf8'))
    .join('\n');
  const page = fs.readFileSync(path.join(ROOT, 'docs', 'COMPATIBILITY.md'), 'utf8');

  it('cites tests that are there', () => {
    const titles = [...page.matchAll(/“([^”]+)”/g)].map((match) => match[1] ?? '');
    const functions = [...page.matchAll(/`(test_\w+)`/g)].map((match) => `def ${match[1]}(`);
    const files = [...page.matchAll(/`(test\/[^`]+)`/g)].map((match) => match[1] ?? '');
    expect(titles.length).toBeGreaterThan(20);
    expect([...titles, ...functions].filter((cited) => !sources.includes(cited))).toEqual([]);
    expect(files.filter((file) => !fs.existsSync(path.join(ROOT, file)))).toEqual([]);
  });

  it.each<[string, typeof newest]>([
    ['newest', newest],
    // The older package's classes have the same methods; only private members make the types differ.
    ['2.45 era', older as unknown as typeof newest],
  ])('has every method of the JavaScript SDK, %s', (_generation, { Sandbox, Secret, Template, Volume }) => {
    // Protected, as users go by `create`; no request is made.
    const construct = Sandbox as unknown as new (options: object) => newest.Sandbox;
    const sandbox = new construct({ sandboxId: 'isb', envdVersion: '0.6.13', apiKey: 'e2b_00' });
    const classes: object[] = [Sandbox, Secret, Template, Volume, Volume.prototype];
    const names = [...classes, sandbox, sandbox.files, sandbox.commands, sandbox.pty].flatMap(methodsOf);
    expect(names.length).toBeGreaterThan(60);
    const missing = names.filter((name) => !INTERNAL.test(name) && !page.includes(`${name}(`));
    expect(missing).toEqual([]);
  });

  it('names the versions of the SDKs that the tests use', () => {
    const { devDependencies } = JSON.parse(fs.readFileSync(path.join(ROOT, 'package.json'), 'utf8')) as {
      devDependencies: Record<string, string>;
    };
    const npm = ['e2b', 'e2b-a', '@e2b/code-interpreter', 'code-interpreter-a'].map((name) =>
      (devDependencies[name] ?? 'absent').replace(/^npm:.*@/, ''),
    );
    const pypi = ['a', 'b'].flatMap((generation) => {
      const file = path.join(ROOT, 'test', 'compat', 'python', `requirements-${generation}.txt`);
      const pins = fs.readFileSync(file, 'utf8').matchAll(/^e2b\S*==(\S+)$/gm);
      return [...pins].map((match) => match[1] ?? '');
    });
    const prepare = fs.readFileSync(path.join(ROOT, 'test', 'prepare.js'), 'utf8');
    const cli = /CLI = \{\s+version: '([^']+)'/.exec(prepare)?.[1] ?? 'absent';
    expect([...npm, ...pypi, cli].filter((version) => !page.includes(` ${version}`))).toEqual([]);
  });
});
