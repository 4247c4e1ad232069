import { spawnSync } from 'node:child_process';
import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';

const LOCK = {
  packages: {
    '': { name: 'project' },
    'node_modules/needed': { version: '1.0.0' },
    'node_modules/for-tests': { version: '2.0.0', dev: true },
    'node_modules/for-another-platform': { version: '3.0.0', optional: true },
  },
};
const NEEDED = { 'node_modules/needed': { version: '1.0.0' } };
const FOR_TESTS = { 'node_modules/for-tests': { version: '2.0.0', dev: true } };

/** Asks for the packages in a project where npm left `present`; in the place of npm is a program that says how it was called. */
async function install(present: object, { full }: { full: boolean }): Promise<string> {
  const root = await fs.mkdtemp(path.join(os.tmpdir(), 'install-'));
  try {
    await fs.copyFile(path.join(__dirname, '..', '..', 'install.js'), path.join(root, 'install.js'));
    await fs.writeFile(path.join(root, 'package-lock.json'), JSON.stringify(LOCK));
    await fs.mkdir(path.join(root, 'node_modules'));
    await fs.writeFile(
      path.join(root, 'node_modules', '.package-lock.json'),
      JSON.stringify({ packages: present }),
    );
    await fs.writeFile(path.join(root, 'npm'), '#!/bin/sh\necho "npm $*"\n', { mode: 0o755 });
    const program = `require('./install.js').installPackages({ full: ${full} })`;
    const twice = [program, program].map(
      (text) =>
        spawnSync(process.execPath, ['-e', text], {
          cwd: root,
          env: { ...process.env, PATH: `${root}:${process.env['PATH'] ?? ''}` },
          encoding: 'utf8',
        }).stdout,
    );
    expect(twice[1]).toBe(''); // what was found or made is remembered
    return twice[0]?.split(' ').slice(0, 2).join(' ') ?? '';
  } finally {
    await fs.rm(root, { recursive: true });
  }
}

describe('installPackages()', () => {
  it('leaves what somebody has installed by hand, with all that tests need', async () => {
    expect(await install({ ...NEEDED, ...FOR_TESTS }, { full: false })).toBe('');
    expect(await install({ ...NEEDED, ...FOR_TESTS }, { full: true })).toBe('');
    expect(await install(NEEDED, { full: false })).toBe('');
  });

  it('installs what is missing or of another version', async () => {
    expect(await install(NEEDED, { full: true })).toBe('npm ci');
    expect(await install(FOR_TESTS, { full: false })).toBe('npm ci');
    expect(await install({ 'node_modules/needed': { version: '0.9.0' } }, { full: false })).toBe('npm ci');
  });
});
