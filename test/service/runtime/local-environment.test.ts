import { execFile } from 'node:child_process';
import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';
import { EnvironmentTemplate } from '../../../service/runtime/local-environment';
import { readPythonFacts } from '../../../service/runtime/local-python';

const run = promisify(execFile);

let scratch: string;

beforeEach(async () => {
  scratch = await fs.mkdtemp(path.join(os.tmpdir(), 'cbx-environment-'));
});

afterEach(async () => {
  await fs.rm(scratch, { recursive: true, force: true });
});

describe('EnvironmentTemplate', () => {
  it('puts a writable environment above the shared one, with kernels that run in it', async () => {
    const shared = path.join(scratch, 'shared');
    await run('python3', ['-m', 'venv', '--without-pip', shared]);
    const facts = await readPythonFacts(path.join(shared, 'bin', 'python'));
    await fs.writeFile(path.join(facts.sitePackages, 'from_shared.py'), 'WHERE = "shared"\n');
    const spec = path.join(shared, 'share', 'jupyter', 'kernels', 'python3');
    await fs.mkdir(spec, { recursive: true });
    await fs.writeFile(
      path.join(spec, 'kernel.json'),
      JSON.stringify({
        argv: [path.join(shared, 'bin', 'python'), '-m', 'x', path.join(shared, 'bin', 'deno')],
      }),
    );
    await fs.mkdir(path.join(spec, 'classes'));
    await fs.writeFile(path.join(spec, 'classes', 'Main.class'), 'beside it');

    const own = path.join(scratch, 'own');
    const template = await EnvironmentTemplate.read(facts);
    await template.write(own, own);

    const python = path.join(own, 'bin', 'python');
    const program = 'import sys, from_shared; print(sys.prefix, from_shared.WHERE)';
    expect((await run(python, ['-c', program])).stdout.trim()).toBe(`${own} shared`);

    const site = path.join(own, 'lib', `python${facts.version}`, 'site-packages');
    await fs.writeFile(path.join(site, 'from_shared.py'), 'WHERE = "own"\n');
    expect((await run(python, ['-c', program])).stdout.trim()).toBe(`${own} own`);

    const ownSpec = path.join(own, 'share', 'jupyter', 'kernels', 'python3');
    const copied = await fs.readFile(path.join(ownSpec, 'kernel.json'), 'utf8');
    expect(JSON.parse(copied)).toEqual({ argv: [python, '-m', 'x', path.join(shared, 'bin', 'deno')] });
    expect(await fs.readFile(path.join(ownSpec, 'classes', 'Main.class'), 'utf8')).toBe('beside it');
  }, 60_000);
});
