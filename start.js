#!/usr/bin/env node
'use strict';

/** `npm start`: installs what is missing, bundles what has changed, and runs the service in this process. */
const { spawnSync } = require('node:child_process');
const path = require('node:path');
const v8 = require('node:v8');
const { isBuilt } = require('./build.js');
const { installPackages } = require('./install.js');
const { runBundle } = require('./run-bundle.js');

// Passing on a large file must not grow the service: V8 looks through new objects each megabyte of them instead of each
// sixteen, and gives buffers back at once instead of when a thread of its own gets its turn. Buffers themselves are not
// counted in that megabyte: `service/edge/pass-on.ts`.
v8.setFlagsFromString('--semi-space-growth-factor=1');
v8.setFlagsFromString('--no-concurrent-array-buffer-sweeping');
// Long texts on their way through are garbage at once. V8 lets the heap grow to more than three times of what lives there;
// with two and a half a 50 MB output peaks at 195 MB of memory instead of 230 to 270, for a tenth more processor time.
v8.setFlagsFromString('--heap-growing-percent=150');

installPackages({ full: false });
// In a process of its own: here the bundler would stay in memory, and its helper process beside it.
const build = isBuilt()
  ? { status: 0 }
  : spawnSync(process.execPath, [path.join(__dirname, 'build.js')], { stdio: 'inherit' });
if (build.status === 0) {
  const { exports: service, remember } = runBundle(path.join(__dirname, 'dist', 'main.js'));
  service
    .main(process.argv.slice(2))
    .then(remember)
    .catch((error) => {
      console.error(error instanceof Error ? error.message : error);
      process.exitCode = 1;
    });
} else {
  if (build.error !== undefined) console.error(build.error.message);
  process.exitCode = 1;
}
