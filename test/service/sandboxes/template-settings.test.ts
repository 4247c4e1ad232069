import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { loadConfig } from '../../../service/config';
import { openTemplates } from '../../../service/sandboxes/template-settings';

let directory: string;
let file: string;

beforeEach(() => {
  directory = fs.mkdtempSync(path.join(os.tmpdir(), 'cbx-templates-'));
  file = path.join(directory, 'templates.json');
});

afterEach(() => {
  fs.rmSync(directory, { recursive: true });
});

function open(content: unknown, env: NodeJS.ProcessEnv = {}) {
  fs.writeFileSync(file, typeof content === 'string' ? content : JSON.stringify(content));
  return openTemplates(
    loadConfig(
      { CELLBOX_MAX_CPU_COUNT: '8', CELLBOX_MAX_MEMORY_MB: '16384', CELLBOX_TEMPLATES: file, ...env },
      [],
    ),
  );
}

/** The lines after the first, which names the file. */
function mistakesOf(content: unknown, env?: NodeJS.ProcessEnv): string[] {
  try {
    open(content, env);
  } catch (error) {
    const [first, ...lines] = (error as Error).message.split('\n');
    expect(first).toBe(`CELLBOX_TEMPLATES=${file} is not valid:`);
    return lines.map((line) => line.trim());
  }
  return [];
}

describe('the file of templates', () => {
  it('gives templates and sizes their figures', () => {
    const templates = open({
      sizes: { small: { cpuCount: 1, memoryMB: 512, diskSizeMB: 1024, openFiles: 2048 } },
      templates: { base: { size: 'small' }, cellboxcodeinterp001: { cpuCount: 4, pids: 4096 } },
    });
    expect(templates.find('base')?.resources).toEqual({
      cpuCount: 1,
      memoryMB: 512,
      diskSizeMB: 1024,
      pids: 1024,
      openFiles: 2048,
    });
    expect(templates.find('code-interpreter-v1')?.resources).toMatchObject({ cpuCount: 4, pids: 4096 });
    expect(templates.sizes.all.has('small')).toBe(true);
    expect(templates.maximum).toMatchObject({ cpuCount: 8, memoryMB: 16_384, pids: 4096 });
  });

  it('may leave everything out', () => {
    const usual = { cpuCount: 2, memoryMB: 2048, diskSizeMB: 10_240, pids: 1024, openFiles: 16_384 };
    for (const templates of [open({}), openTemplates(loadConfig({}, []))])
      expect(templates.all.map(({ resources }) => resources)).toEqual([usual, usual]);
  });

  it('gives a template an isolation level, by any name that one can have', () => {
    const templates = open({ templates: { base: { isolation: 'gvisor', memoryMB: 512 } } });
    expect(templates.find('base')).toMatchObject({ isolation: 'gvisor', resources: { memoryMB: 512 } });
    expect(templates.find('code-interpreter-v1')).not.toHaveProperty('isolation');
    expect(mistakesOf({ templates: { base: { isolation: '../runc' } } })).toEqual([
      'templates.base.isolation: is no name of an isolation level',
    ]);
  });

  it('takes no word that it does not know', () => {
    expect(
      mistakesOf({
        size: {},
        sizes: { small: { cpuCount: 1, memoryMB: 512, diskSizeMB: 1024, pid: 5 } },
        templates: { base: { memory: 5 } },
      }),
    ).toEqual([
      'sizes.small: Unrecognized key: "pid"',
      'templates.base: Unrecognized key: "memory"',
      'the file: Unrecognized key: "size"',
    ]);
  });

  it('names every figure that is missing or can not be', () => {
    expect(mistakesOf({ sizes: { a: { cpuCount: 0.5, memoryMB: 64, diskSizeMB: '1' }, B: null } })).toEqual([
      expect.stringContaining('sizes.a.cpuCount: '),
      expect.stringContaining('sizes.a.memoryMB: '),
      expect.stringContaining('sizes.a.diskSizeMB: '),
      expect.stringContaining('sizes.B: '),
    ]);
  });

  it('takes no template that there is not, and none twice', () => {
    expect(mistakesOf({ templates: { python: {}, base: {}, cellboxbase0template: {} } })).toEqual([
      'templates.python: there is no such template; there are base, code-interpreter-v1',
      'templates.cellboxbase0template: is said twice, by alias and by id',
    ]);
  });

  it('takes no size that there is not, or that contradicts what stands beside it', () => {
    const [unknown, beside] = mistakesOf({
      templates: { base: { size: 'huge' }, 'code-interpreter-v1': { size: '1vcpu-2gb', memoryMB: 512 } },
    });
    expect(unknown).toMatch(/^templates\.base\.size: "huge" is not known; there are 1vcpu-0\.5gb, /);
    expect(beside).toBe('templates.code-interpreter-v1.size: can not be given together with memoryMB');
  });

  it('takes nothing above the maximum', () => {
    const sizes = { big: { cpuCount: 9, memoryMB: 512, diskSizeMB: 1024 } };
    expect(mistakesOf({ sizes })).toEqual(['sizes.big.cpuCount: at most 8 CPUs for one sandbox']);
    expect(mistakesOf({ templates: { base: { pids: 2049 } } }, { CELLBOX_MAX_PIDS: '2048' })).toEqual([
      'templates.base.pids: at most 2048 processes for one sandbox',
    ]);
  });

  it('must be there, and JSON', () => {
    expect(mistakesOf('{"sizes": ')).toEqual([expect.stringContaining('is not JSON: ')]);
    expect(() => openTemplates(loadConfig({ CELLBOX_TEMPLATES: `${file}x` }, []))).toThrow('no such file');
  });
});
