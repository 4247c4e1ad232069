'use strict';

/**
 * Bundles the service and the agent into dist/ (a quarter of a second): Node 20 runs no TypeScript.
 * Types are checked by `npm run types`, not here.
 */
const fs = require('node:fs');
const path = require('node:path');

const root = __dirname;

/**
 * Output file → entry. The service is one file with its dependencies, because looking for and reading 1,300 makes every start
 * slow; the agent, because it is shipped into sandboxes. What developers run finds its own in node_modules.
 */
const SERVICE = { main: 'service/main.ts' };
const TOOLS = {
  prepare: 'service/prepare.ts',
  bench: 'bench/main.ts',
  chaos: 'test/chaos/main.ts',
};
const AGENT = {
  agent: 'kernel-image/agent/main.ts',
  supervisor: 'kernel-image/agent/supervisor.ts',
};
const COMMON = {
  absWorkingDir: root,
  bundle: true,
  platform: 'node',
  target: 'node20',
  format: 'cjs',
  logLevel: 'error',
  metafile: true,
};
/** Binaries and what is optional: found in node_modules, or not at all. */
const SERVICE_EXTERNAL = ['libsql', 'cpu-features', 'pg-native', '*.node'];
/** The process keeps its text in memory: 5 MB instead of 14. Lines, so that a stack trace still tells where. */
const SMALL = { minifyWhitespace: true, legalComments: 'none', lineLimit: 120 };
/** `import()` becomes `require()`: a script that was compiled before (`run-bundle.js`) has lost its way to Node's loader. */
const REQUIRED = { supported: { 'dynamic-import': false } };
/** Written by npm with every change to node_modules: stands for all that bundles have from there. */
const INSTALLED = 'node_modules/.package-lock.json';
/** Which files `dist/` was made of, and as what: size and time of change of each. */
const INPUTS = path.join(root, 'dist', 'inputs.json');
/** Packages with binaries, which no bundle can hold: shipped beside it, for this kind of machine. */
const NATIVE = [
  'koffi',
  `@koromix/koffi-${process.platform}-${process.arch}`,
  '@lydell/node-pty',
  `@lydell/node-pty-${process.platform}-${process.arch}`,
];
/** What of them runs: no sources, no documents, no second form of the same module, nothing for another libc. */
const NATIVE_FILES = /(^|\/)(package\.json|LICENSE[^/]*|[^/]+\.(c?js|node))$/;
const NATIVE_LEFT_OUT = /(^|\/)(doc|vendor|worker|musl_\w+|win[^/]*\.js|cnoke\.cjs)(\/|$)/i;

async function build() {
  const { build: bundle } = require('esbuild');
  const present = (entries) =>
    Object.fromEntries(Object.entries(entries).filter(([, file]) => fs.existsSync(path.join(root, file))));
  fs.rmSync(INPUTS, { force: true });
  const onHost = { ...COMMON, outdir: 'dist', sourcemap: 'linked', sourcesContent: false };
  const made = await Promise.all([
    bundle({ ...onHost, entryPoints: SERVICE, external: SERVICE_EXTERNAL, ...SMALL, ...REQUIRED }),
    bundle({ ...onHost, entryPoints: present(TOOLS), packages: 'external' }),
    buildAgent(path.join(root, 'dist', 'agent')),
  ]);
  const sources = made
    .flatMap(({ metafile }) => Object.keys(metafile.inputs))
    .filter((file) => !file.startsWith('node_modules/'));
  const files = [...new Set(sources), INSTALLED, 'build.js'];
  fs.writeFileSync(INPUTS, JSON.stringify(Object.fromEntries(files.map((file) => [file, stateOf(file)]))));
}

/** Whether `dist/` is what `build` would make of the sources as they are: most starts find it so. */
function isBuilt() {
  try {
    const inputs = JSON.parse(fs.readFileSync(INPUTS, 'utf8'));
    return Object.entries(inputs).every(([file, state]) => stateOf(file) === state);
  } catch {
    return false; // never built, or a file is gone
  }
}

function stateOf(file) {
  const { size, mtimeMs } = fs.statSync(path.join(root, file));
  return `${size} ${mtimeMs}`;
}

/** Makes the folder that is shipped into sandboxes: `agent.js`, `supervisor.js` and the native packages. */
async function buildAgent(outdir) {
  const { build: bundle } = require('esbuild');
  const made = await bundle({
    ...COMMON,
    outdir,
    entryPoints: AGENT,
    external: NATIVE,
    minifySyntax: true,
    legalComments: 'eof',
  });
  for (const name of NATIVE) {
    const from = path.join(root, 'node_modules', name);
    await copyMatching(from, path.join(outdir, 'node_modules', name));
  }
  return made;
}

async function copyMatching(from, to) {
  for (const entry of await fs.promises.readdir(from, { recursive: true, withFileTypes: true })) {
    const file = path.join(entry.parentPath ?? entry.path, entry.name);
    const relative = path.relative(from, file);
    if (!entry.isFile() || !NATIVE_FILES.test(relative) || NATIVE_LEFT_OUT.test(relative)) continue;
    const target = path.join(to, relative);
    await fs.promises.mkdir(path.dirname(target), { recursive: true });
    // Never in place: agents that run have these files mapped, and would crash on what changes under them.
    const made = `${target}.${process.pid}`;
    await fs.promises.copyFile(file, made);
    await fs.promises.rename(made, target);
  }
}

module.exports = { build, buildAgent, isBuilt };

if (require.main === module) {
  build().catch((error) => {
    console.error(error.message);
    process.exitCode = 1;
  });
}
