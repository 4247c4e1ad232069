'use strict';

/** Runs the tests of the Python package in the local runtime's own environment, which `prepare.js` has made. */
const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');

const root = path.join(__dirname, '..');
const state = JSON.parse(fs.readFileSync(path.join(root, '.cellbox', 'test', 'prepared.json'), 'utf8'));
const run = (args, stdio = 'inherit') =>
  spawnSync(state.python, args, { cwd: path.join(root, 'kernel-image', 'python'), stdio }).status ?? 1;

if (run(['-c', 'import pytest'], 'ignore') !== 0) run(['-m', 'pip', 'install', '--quiet', 'pytest']);
process.exitCode = run(['-m', 'pytest', '-q', '-p', 'no:cacheprovider', 'tests']);
