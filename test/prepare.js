'use strict';

/**
 * Makes what suites with real kernels need, once: the local runtime's Python environment, the kernel images when an
 * engine answers, environments with the official Python SDKs, and the official CLI. What is there already is reused. Writes
 * `.cellbox/test/prepared.json`.
 */
const { spawnSync } = require('node:child_process');
const crypto = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');
const { isBuilt } = require('../build.js');

const root = path.join(__dirname, '..');
// By hand after a change: tests would else run the agent that was built last.
if (!isBuilt()) run(process.execPath, [path.join(root, 'build.js')]);
const {
  connectEngine,
  loadConfig,
  pingEngine,
  prepareImage,
  prepareLocalPython,
  prepareProxyImage,
} = require('../dist/prepare.js');

const home = path.join(root, '.cellbox', 'test');
const say = (line) => console.error(line);

function run(command, args) {
  const done = spawnSync(command, args, { stdio: ['ignore', 'inherit', 'inherit'] });
  if (done.status !== 0) throw new Error(`${command} ${args.join(' ')} failed`);
}

/** A virtual environment with one generation of the official Python SDK. */
function prepareSdk(generation, basePython) {
  const requirements = path.join(__dirname, 'compat', 'python', `requirements-${generation}.txt`);
  const hash = crypto.createHash('sha256').update(fs.readFileSync(requirements)).digest('hex').slice(0, 12);
  const dir = path.join(home, `sdk-${generation}-${hash}`);
  const python = path.join(dir, 'bin', 'python');
  if (!fs.existsSync(path.join(dir, '.complete'))) {
    say(`Installing the official Python SDK, generation ${generation} …`);
    fs.rmSync(dir, { recursive: true, force: true });
    run(basePython, ['-m', 'venv', dir]);
    run(python, ['-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', '-r', requirements]);
    fs.writeFileSync(path.join(dir, '.complete'), '');
  }
  return python;
}

/** The official CLI: one file that needs nothing else, so that it is unpacked and not installed. */
const CLI = {
  version: '2.19.0',
  sha512: '/v9xE+0NSVBM/xghJX7MoEK3hrAQgcnllw8tv5pDhvZ8rT9x6b+SD66yBLAh/9u+xBikhpJnsPt89HjFAhzroA==',
};

function prepareCli() {
  const dir = path.join(home, `e2b-cli-${CLI.version}`);
  const program = path.join(dir, 'package', 'dist', 'index.js');
  if (!fs.existsSync(path.join(dir, '.complete'))) {
    say(`Fetching the official CLI ${CLI.version} …`);
    fs.rmSync(dir, { recursive: true, force: true });
    fs.mkdirSync(dir);
    run('npm', ['pack', '--silent', '--pack-destination', dir, `@e2b/cli@${CLI.version}`]);
    const archive = path.join(dir, `e2b-cli-${CLI.version}.tgz`);
    const hash = crypto.createHash('sha512').update(fs.readFileSync(archive)).digest('base64');
    if (hash !== CLI.sha512) throw new Error(`${archive} is not the CLI that was published: ${hash}`);
    run('tar', ['-xzf', archive, '-C', dir]);
    fs.writeFileSync(path.join(dir, '.complete'), '');
  }
  return program;
}

async function main() {
  fs.mkdirSync(home, { recursive: true });
  const settings = loadConfig(process.env, []);
  const python = await prepareLocalPython({ ...settings, pythonDir: home }, say);
  const images = {};
  const engine = await pingEngine(connectEngine());
  if (engine.ok) {
    for (const imageFlavor of ['slim', 'full'])
      images[imageFlavor] = await prepareImage({ ...settings, imageFlavor }, say);
    images.proxy = await prepareProxyImage(settings, say);
  } else if (process.env.CELLBOX_REQUIRE_DOCKER === '1') {
    throw new Error(`CELLBOX_REQUIRE_DOCKER=1, but no container engine answers: ${engine.detail}`);
  } else {
    say(`No container engine answers (${engine.detail}): its cases are skipped`);
  }
  const basePython = ['python3.13', 'python3.12', 'python3.11', 'python3'].find(
    (name) => spawnSync(name, ['-c', 'import venv, ensurepip']).status === 0,
  );
  if (basePython === undefined) throw new Error('no Python >= 3.11 with venv was found');
  const sdkPython = { a: prepareSdk('a', basePython), b: prepareSdk('b', basePython) };
  const prepared = { python, pythonDir: home, images, sdkPython, cli: prepareCli() };
  fs.writeFileSync(path.join(home, 'prepared.json'), JSON.stringify(prepared, null, 2));
  say(JSON.stringify(prepared));
}

main().catch((error) => {
  console.error(error.message);
  process.exit(1);
});
