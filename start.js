#!/usr/bin/env node
'use strict';

/** `npm start`: installs what is missing, bundles, and runs the service in this process. */
const { installPackages } = require('./install.js');

installPackages({ full: false });
require('./build.js')
  .build()
  .then(() => require('./dist/main.js').main(process.argv.slice(2)))
  .catch((error) => {
    console.error(error instanceof Error ? error.message : error);
    process.exitCode = 1;
  });
