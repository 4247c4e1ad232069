import { spawnSync } from 'node:child_process';
import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';

let directory: string;
beforeEach(async () => {
  directory = await fs.mkdtemp(path.join(os.tmpdir(), 'bundle-'));
});
afterEach(() => fs.rm(directory, { recursive: true }));

const file = () => path.join(directory, 'main.js');
const cache = () => `${file()}.cache`;

/** Runs the bundle in a process of its own, which then remembers it. */
function run(): string {
  const program = `
    const { runBundle } = require(${JSON.stringify(path.resolve(__dirname, '../../run-bundle.js'))});
    const { exports, remember } = runBundle(process.argv[1]);
    console.log(exports.tell());
    remember();`;
  const { stdout, stderr } = spawnSync(process.execPath, ['-e', program, file()], { encoding: 'utf8' });
  expect(stderr).toBe('');
  return stdout.trim();
}

describe('runBundle()', () => {
  it('runs it as a module of its place, with and without what was remembered', async () => {
    await fs.writeFile(path.join(directory, 'beside.js'), 'module.exports = "beside";');
    await fs.writeFile(
      file(),
      `exports.tell = () => [require('./beside.js'), __dirname === ${JSON.stringify(directory)}, module.exports === exports].join();`,
    );
    expect(run()).toBe('beside,true,true');
    const { mtimeMs } = await fs.stat(cache());
    expect(run()).toBe('beside,true,true');
    expect((await fs.stat(cache())).mtimeMs).toBe(mtimeMs); // it was good, so it stays
  });

  it('does not take what was remembered of another bundle of the same length', async () => {
    await fs.writeFile(file(), `exports.tell = () => 'one';`);
    expect(run()).toBe('one');
    await fs.writeFile(file(), `exports.tell = () => 'two';`);
    expect(run()).toBe('two');
    expect(run()).toBe('two');
  });

  it('takes no harm from a damaged or missing record', async () => {
    await fs.writeFile(file(), `exports.tell = () => 'one';`);
    run();
    const bytes = await fs.readFile(cache());
    const damaged = Buffer.from(bytes);
    damaged.fill(0, damaged.length >> 1);
    for (const each of [damaged, bytes.subarray(0, bytes.length >> 1), Buffer.alloc(0)]) {
      await fs.writeFile(cache(), each);
      expect(run()).toBe('one');
    }
  });
});
