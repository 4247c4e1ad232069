'use strict';

/**
 * Bundles the service and the agent into dist/ (a quarter of a second): Node 20 runs no TypeScript.
 * Types are checked by `npm run types`, not here.
 */
const fs = require('node:fs');
const path = require('node:path');

const root = __dirname;

/** Output file → entry. The agent is shipped into sandboxes, so it carries its dependencies; the service finds them in node_modules. */
const SERVICE = { main: 'service/main.ts', prepare: 'service/prepare.ts', bench: 'bench/main.ts' };
const AGENT = {
  'agent/agent': 'kernel-image/agent/main.ts',
  'agent/supervisor': 'kernel-image/agent/supervisor.ts',
};

async function build() {
  const { build: bundle } = require('esbuild');
  const common = {
    absWorkingDir: root,
    bundle: true,
    platform: 'node',
    target: 'node20',
    format: 'cjs',
    outdir: 'dist',
    logLevel: 'error',
  };
  const present = (entries) =>
    Object.fromEntries(Object.entries(entries).filter(([, file]) => fs.existsSync(path.join(root, file))));
  await Promise.all([
    bundle({ ...common, entryPoints: present(SERVICE), packages: 'external', sourcemap: 'linked' }),
    bundle({ ...common, entryPoints: present(AGENT), minifySyntax: true, legalComments: 'eof' }),
  ]);
}

module.exports = { build };

if (require.main === module) {
  build().catch((error) => {
    console.error(error.message);
    process.exitCode = 1;
  });
}
