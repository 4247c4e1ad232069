'use strict';

/**
 * Runs a bundle with what V8 made of it the last time: compiling some megabytes anew is a third of each start. Node 20 has
 * nothing for that; later ones do (`module.enableCompileCache`).
 */
const crypto = require('node:crypto');
const fs = require('node:fs');
const { createRequire } = require('node:module');
const path = require('node:path');
const vm = require('node:vm');

/** `remember` keeps what V8 has by then, for the next start; it does nothing when that is what was found. */
function runBundle(file) {
  const { size, mtimeMs } = fs.statSync(file);
  const bundle = `${size} ${mtimeMs}`;
  const cachedData = readCache(`${file}.cache`, bundle);
  const text = fs.readFileSync(file, 'utf8');
  const script = new vm.Script(`(function (exports, require, module, __filename, __dirname) {${text}\n})`, {
    filename: file,
    cachedData,
  });
  const module = { exports: {} };
  script.runInThisContext()(module.exports, createRequire(file), module, file, path.dirname(file));
  const remember = () => {
    if (script.cachedDataRejected !== false) writeCache(`${file}.cache`, bundle, script.createCachedData());
  };
  return { exports: module.exports, remember };
}

/**
 * Undefined unless it was made of this bundle and is whole. V8 looks at its own version and flags, of the bundle only at its
 * length, and at a damaged record not at all: it crashes.
 */
function readCache(cache, bundle) {
  try {
    const bytes = fs.readFileSync(cache);
    const end = bytes.indexOf('\n');
    const data = bytes.subarray(end + 1);
    return bytes.toString('latin1', 0, end) === `${bundle} ${digest(data)}` ? data : undefined;
  } catch {
    return undefined; // never written
  }
}

function writeCache(cache, bundle, data) {
  try {
    const made = `${cache}.${process.pid}`;
    fs.writeFileSync(made, Buffer.concat([Buffer.from(`${bundle} ${digest(data)}\n`), data]));
    fs.renameSync(made, cache);
  } catch {
    // A directory that can't be written: the next start takes as long as this one.
  }
}

function digest(data) {
  return crypto.createHash('sha256').update(data).digest('hex');
}

module.exports = { runBundle };
