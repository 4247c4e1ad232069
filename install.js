'use strict';

/** Installs the npm packages of the lock file when they are not there yet; returns at once when they are. */
const { spawnSync } = require('node:child_process');
const crypto = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');

const root = __dirname;
const modules = path.join(root, 'node_modules');
const marker = path.join(modules, '.cellbox-installed');

/** `full` adds what tests and development need. */
function installPackages({ full }) {
  const [major = 0] = process.versions.node.split('.').map(Number);
  if (major < 20) {
    fail(
      `Cellbox needs Node 20 or newer; this is ${process.versions.node}. Install a newer Node and run the command again.`,
    );
  }
  const lockText = fs.readFileSync(path.join(root, 'package-lock.json'), 'utf8');
  const lock = crypto.createHash('sha256').update(lockText).digest('hex');
  const isEnough = (installed) => installed === `${lock} full` || (!full && installed === `${lock} runtime`);
  if (isEnough(readText(marker))) return;
  const present = `${lock} ${extentPresent(lockText)}`;
  if (isEnough(present)) {
    fs.writeFileSync(marker, present);
    return;
  }
  const started = Date.now();
  console.error(`Installing npm packages${full ? ' (with those for tests)' : ''} …`);
  const args = ['ci', '--no-audit', '--no-fund', '--loglevel=error', ...(full ? [] : ['--omit=dev'])];
  const npm = spawnSync('npm', args, {
    cwd: root,
    stdio: ['ignore', 'inherit', 'inherit'],
    shell: process.platform === 'win32',
  });
  if (npm.status !== 0)
    fail(`npm ${args.join(' ')} failed${npm.error ? `: ${npm.error.message}` : ''}; see its output above.`);
  fs.writeFileSync(marker, `${lock} ${full ? 'full' : 'runtime'}`);
  console.error(`npm packages are ready (${((Date.now() - started) / 1000).toFixed(1)} s)`);
}

/** What npm's own record says is installed: who ran `npm ci` by hand must not lose the packages for tests by a start. */
function extentPresent(lockText) {
  const record = readText(path.join(modules, '.package-lock.json'));
  if (record === '') return 'nothing';
  const { packages: present } = JSON.parse(record);
  const missing = Object.entries(JSON.parse(lockText).packages).filter(
    ([where, { version, optional, devOptional }]) =>
      where !== '' && !optional && !devOptional && present[where]?.version !== version,
  );
  if (missing.length === 0) return 'full';
  return missing.every(([, { dev }]) => dev) ? 'runtime' : 'nothing';
}

/** Empty when there is no such file. */
function readText(file) {
  return fs.existsSync(file) ? fs.readFileSync(file, 'utf8') : '';
}

function fail(message) {
  console.error(message);
  process.exit(1);
}

module.exports = { installPackages };
