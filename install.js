'use strict';

/** Installs the npm packages of the lock file when they are not there yet; returns at once when they are. */
const { spawnSync } = require('node:child_process');
const crypto = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');

const root = __dirname;
const marker = path.join(root, 'node_modules', '.cellbox-installed');

/** `full` adds what tests and development need. */
function installPackages({ full }) {
  const [major = 0] = process.versions.node.split('.').map(Number);
  if (major < 20) {
    fail(
      `Cellbox needs Node 20 or newer; this is ${process.versions.node}. Install a newer Node and run the command again.`,
    );
  }
  const lock = crypto
    .createHash('sha256')
    .update(fs.readFileSync(path.join(root, 'package-lock.json')))
    .digest('hex');
  const installed = fs.existsSync(marker) ? fs.readFileSync(marker, 'utf8') : '';
  if (installed === `${lock} full` || (!full && installed === `${lock} runtime`)) return;
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

function fail(message) {
  console.error(message);
  process.exit(1);
}

module.exports = { installPackages };
