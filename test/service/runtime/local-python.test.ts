import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { choosePython, preparePython, withLock } from '../../../service/runtime/local-python';

const found = (executable: string, version: string, hasVenv = true) => ({ executable, version, hasVenv });

let scratch: string;

beforeEach(async () => {
  scratch = await fs.mkdtemp(path.join(os.tmpdir(), 'cbx-python-'));
});

afterEach(async () => {
  await fs.rm(scratch, { recursive: true, force: true });
});

describe('choosePython()', () => {
  it('takes the first that fits', () => {
    const pythons = [found('/a', '3.14'), found('/b', '3.10'), found('/c', '3.12'), found('/d', '3.11')];
    expect(choosePython(pythons, false)?.executable).toBe('/c');
  });

  it('passes over one without venv, unless uv makes the environment', () => {
    const pythons = [found('/a', '3.13', false), found('/b', '3.11')];
    expect(choosePython(pythons, false)?.executable).toBe('/b');
    expect(choosePython(pythons, true)?.executable).toBe('/a');
  });

  it('names the package to install when venv is missing', () => {
    expect(() => choosePython([found('/usr/bin/python3', '3.13', false)], false)).toThrow(/python3-venv/);
  });

  it('says what it needs and what it found when none fits', () => {
    expect(() => choosePython([found('/a', '3.9')], false)).toThrow(/3\.11 to 3\.13.*found: 3\.9/);
    expect(() => choosePython([], false)).toThrow(/found: none/);
  });

  it('leaves it to uv to fetch one when none fits', () => {
    expect(choosePython([found('/a', '3.9')], true)).toBeUndefined();
  });
});

describe('preparePython()', () => {
  it('turns a failing installation into one clear line, and leaves it to be tried again', async () => {
    const kernelImageDir = path.join(scratch, 'kernel-image');
    await fs.mkdir(path.join(kernelImageDir, 'python'), { recursive: true });
    await fs.writeFile(
      path.join(kernelImageDir, 'requirements-slim.txt'),
      '--no-index\nno-such-package-of-cellbox==1\n',
    );
    const options = { dataDir: path.join(scratch, 'data'), kernelImageDir, onProgress: () => {} };
    for (let attempt = 0; attempt < 2; attempt++) {
      await expect(preparePython(options)).rejects.toMatchObject({
        code: 'failed_precondition',
        message: expect.stringMatching(
          /^Making the Python environment failed at "Python packages": .*no-such-package/,
        ),
        remedy: expect.stringContaining('package index'),
      });
    }
    const left = await fs.readdir(options.dataDir);
    expect(left.filter((name) => name.includes('lock'))).toEqual([]);
  }, 120_000);
});

describe('withLock()', () => {
  const silent = () => {};

  it('lets one work at a time', async () => {
    let inside = 0;
    let most = 0;
    const work = async () => {
      most = Math.max(most, ++inside);
      await new Promise(setImmediate);
      inside--;
    };
    const file = path.join(scratch, 'lock');
    await Promise.all([1, 2, 3, 4].map(() => withLock(file, silent, undefined, work)));
    expect(most).toBe(1);
    expect(await fs.readdir(scratch)).toEqual([]);
  });

  it.each([
    ['of a process that is gone', JSON.stringify({ pid: process.pid, startTime: 'before' })],
    ['with nonsense in it', 'nonsense'],
  ])('takes over a lock %s', async (_, text) => {
    const file = path.join(scratch, 'lock');
    await fs.writeFile(file, text);
    let worked = false;
    await withLock(file, silent, AbortSignal.timeout(30_000), async () => void (worked = true));
    expect(worked).toBe(true);
  });

  it('gives up waiting when told, and leaves the holder alone', async () => {
    const file = path.join(scratch, 'lock');
    await withLock(file, silent, undefined, async () => {
      await expect(withLock(file, silent, AbortSignal.timeout(50), async () => {})).rejects.toThrow(/abort/i);
      expect(await fs.readdir(scratch)).toEqual(['lock']);
    });
  });
});
