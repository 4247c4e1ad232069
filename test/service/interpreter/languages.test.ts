import { execFileSync } from 'node:child_process';
import vm from 'node:vm';

import fc from 'fast-check';

import { ServiceError } from '../../../service/errors';
import type { Language } from '../../../service/interpreter/languages';
import {
  checkEnv,
  findLanguage,
  missingLanguageMessage,
  normalizeLanguage,
  splitStreamText,
} from '../../../service/interpreter/languages';

function language(name: string): Language {
  const found = findLanguage(name);
  if (found === undefined) throw new Error(`no language ${name}`);
  return found;
}

function setEnv(name: string, env: Record<string, string>): string {
  const code = language(name).setEnvCode?.(env);
  if (code === undefined) throw new Error(`${name} sets no variables by code`);
  return code;
}

function restoreEnv(name: string, names: string[]): string {
  const code = language(name).restoreEnvCode?.(names);
  if (code === undefined) throw new Error(`${name} restores no variables by code`);
  return code;
}

const AWKWARD = `q"'\`\\ $HOME $(id) !! \n\r\ttab \u0001\u001b é☃😀 \u2028\u0085 %s`;

describe('normalizeLanguage', () => {
  it.each([
    ['', 'python'],
    [null, 'python'],
    [undefined, 'python'],
    ['  ', 'python'],
    ['Python', 'python'],
    ['js', 'javascript'],
    [' TS ', 'typescript'],
    ['R', 'r'],
    ['cobol', 'cobol'],
  ])('reads %p as %s', (raw, expected) => {
    expect(normalizeLanguage(raw)).toBe(expected);
  });
});

describe('findLanguage', () => {
  it('knows the six languages and their kernels', () => {
    const names = ['python', 'javascript', 'typescript', 'bash', 'r', 'java'];
    expect(names.map((name) => findLanguage(name)?.kernelName)).toEqual([
      'python3',
      'javascript',
      'typescript',
      'bash',
      'r',
      'java',
    ]);
  });

  it.each(['cobol', 'toString', ''])('knows no %p', (name) => {
    expect(findLanguage(name)).toBeUndefined();
  });
});

describe('checkEnv', () => {
  it.each<Record<string, string>>([{ '': 'x' }, { 'A=B': 'x' }, { 'A\0B': 'x' }, { A: 'x\0y' }])(
    'refuses %j',
    (env) => {
      expect(() => checkEnv(env)).toThrow(ServiceError);
    },
  );

  it('accepts everything else, an empty value among it', () => {
    expect(() => checkEnv({ A: '', 'b-c.d': AWKWARD })).not.toThrow();
  });

  it('never repeats the value in the error', () => {
    expect(() => checkEnv({ TOKEN: 'secret\0' })).toThrow(
      expect.objectContaining({ message: expect.not.stringContaining('secret') }),
    );
  });

  it.each(['javascript', 'typescript', 'bash', 'r', 'java'])('guards what %s sets', (name) => {
    expect(() => setEnv(name, { A: '\0' })).toThrow(expect.objectContaining({ code: 'invalid_argument' }));
  });
});

describe('bash environment', () => {
  /** Runs lines as the kernel's bash would, all in one shell; answers what `report` prints. */
  function bash(lines: string[], env: Record<string, string> = {}): Buffer {
    return execFileSync('bash', ['--norc', '-c', lines.join('\n')], {
      env: { PATH: process.env.PATH ?? '', ...env },
    });
  }

  it('carries any value byte for byte', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'grapheme' }), (text) => {
        const value = text.replaceAll('\0', '');
        expect(bash([setEnv('bash', { FOO: value }), `printf %s "$FOO"`]).toString()).toBe(value);
      }),
      { numRuns: 15, examples: [[AWKWARD], [''], ['é'.repeat(3000)]] },
    );
  });

  it('exports what it sets, and gives the kept values back after several sets', () => {
    const report = `env | grep -E '^(OLD|NEW)=' | sort; echo "\${NEW-unset} $(declare -p OLD LOCAL)"`;
    const output = bash(
      [
        'LOCAL=l',
        setEnv('bash', { OLD: 'changed', NEW: 'n', LOCAL: 'x' }),
        setEnv('bash', { OLD: 'changed again' }),
        report,
        restoreEnv('bash', ['OLD', 'NEW', 'LOCAL', 'NEVER']),
        report,
        'declare -p __cellbox_saved 2>/dev/null || echo clean',
      ],
      { OLD: 'o' },
    );
    expect(output.toString().trimEnd().split('\n')).toEqual([
      'NEW=n',
      'OLD=changed again',
      'n declare -x OLD="changed again"',
      'declare -x LOCAL="x"',
      'OLD=o',
      'unset declare -x OLD="o"',
      'declare -- LOCAL="l"',
      'clean',
    ]);
  });

  it('sends lines of plain ASCII, short enough for a terminal', () => {
    const lines = setEnv('bash', { FOO: AWKWARD.repeat(200) }).split('\n');
    expect(lines.filter((line) => line.length > 2100 || /[^ -~]/.test(line))).toEqual([]);
  });

  it.each(['A-B', '1A', 'A;rm -rf /', 'é', 'PS1', 'PROMPT_COMMAND', 'UID'])('refuses the name %s', (name) => {
    expect(() => setEnv('bash', { [name]: 'x' })).toThrow(
      expect.objectContaining({ code: 'invalid_argument' }),
    );
  });
});

describe('JavaScript environment', () => {
  /** A realm with the part of Deno that the code uses; the symbol registry is shared, as in the kernel. */
  function realm(variables: Map<string, string>): vm.Context {
    const env = {
      get: (name: string) => variables.get(name),
      set: (name: string, value: string) => variables.set(name, value),
      delete: (name: string) => variables.delete(name),
    };
    return vm.createContext({ Deno: { env } });
  }

  it('carries any name and value, and restores what was there before', () => {
    const names = fc.string({ minLength: 1 }).filter((name) => !/[=\0]/.test(name));
    const values = fc.string({ unit: 'binary' }).map((value) => value.replaceAll('\0', ''));
    fc.assert(
      fc.property(fc.dictionary(names, values), fc.dictionary(names, values), (before, env) => {
        const variables = new Map(Object.entries(before));
        const context = realm(variables);
        vm.runInContext(setEnv('javascript', env), context);
        expect(Object.fromEntries(variables)).toEqual({ ...before, ...env });
        vm.runInContext(restoreEnv('javascript', Object.keys(env)), context);
        expect(Object.fromEntries(variables)).toEqual(before);
      }),
    );
  });

  it('has no value, and leaves no name in the global scope', () => {
    const context = realm(new Map());
    expect(vm.runInContext(setEnv('typescript', { A: AWKWARD, __proto__x: 'y' }), context)).toBeUndefined();
    expect(vm.runInContext('Object.keys(globalThis)', context)).toEqual(['Deno']);
  });
});

describe('R and Java environment', () => {
  it("writes R strings by R's rules", () => {
    const code = setEnv('r', { 'a"b': AWKWARD });
    expect(code).toContain('names <- c("a\\"b")');
    expect(code).toContain(
      'c("q\\"\'`\\\\ $HOME $(id) !! \\u000a\\u000d\\u0009tab \\u0001\\u001b é☃😀 \u2028\u0085 %s")',
    );
  });

  it("writes Java strings by Java's rules: no \\u escape that ends a line", () => {
    expect(setEnv('java', { 'a"b': AWKWARD })).toContain(
      '{"a\\"b", "q\\"\'`\\\\ $HOME $(id) !! \\012\\015\\011tab \\001\\033 \\u00e9\\u2603\\ud83d\\ude00 \\u2028\\u0085 %s"}',
    );
  });

  it('cuts a Java value that no class file can hold as one constant', () => {
    const constants = setEnv('java', { A: '☃'.repeat(50_000) }).match(/"[^"]*"/g) ?? [];
    expect(Math.max(...constants.map((constant) => constant.length / 2))).toBeLessThan(65_535);
    expect(constants.join('').match(/\\u2603/g)).toHaveLength(50_000);
  });

  it.each(['r', 'java'])('names every variable it restores in %s', (name) => {
    const code = restoreEnv(name, ['A', 'b"c']);
    expect(code).toContain('"A"');
    expect(code).toContain('"b\\"c"');
  });
});

describe('drainCode', () => {
  it('prints the marker as it is', () => {
    const printed: string[] = [];
    const core = { print: (text: string) => printed.push(text) };
    const code = language('javascript').drainCode?.(AWKWARD) ?? '';
    vm.runInNewContext(code, { Deno: { internal: 'i', i: { core } } });
    expect(printed).toEqual([AWKWARD]);
  });
});

describe('diagnosis', () => {
  const diagnosis = language('typescript').diagnosis;

  it('applies to the error that says nothing, and to no other', () => {
    expect(diagnosis?.appliesTo({ name: 'Error', value: 'Execution failed', traceback: '' })).toBe(true);
    expect(
      diagnosis?.appliesTo({
        name: 'Error',
        value: 'Execution failed',
        traceback: 'Error: Execution failed\n at',
      }),
    ).toBe(false);
    expect(diagnosis?.appliesTo({ name: 'TypeError', value: 'x', traceback: '' })).toBe(false);
  });

  it('guards the source from running, whatever it holds', () => {
    const code = diagnosis?.code('let a = `${1}`; "\\"\u2028\ud800') ?? '';
    const body = vm.runInNewContext(code.replace(/^await import/, '(x => x)')) as string;
    expect(decodeURIComponent(body)).toMatch(/,throw 0;let a = `\$\{1\}`; "\\"\u2028\ufffd$/);
  });

  it("tells the place in the user's own line", () => {
    const value =
      'SyntaxError: Expected a semicolon\n  |\n1 | throw 0;let a b\n  |               ~\n    at data:application/typescript;charset=utf-8,throw:1:15';
    expect(diagnosis?.read({ name: 'TypeError', value, traceback: '' })).toEqual({
      name: 'SyntaxError',
      value: 'Expected a semicolon',
      traceback: 'SyntaxError: Expected a semicolon\n  |\n1 | let a b\n  |       ~',
    });
  });

  it('keeps the first error when the source parses after all', () => {
    expect(diagnosis?.read({ name: 'Error', value: '0', traceback: '' })).toBeUndefined();
  });
});

describe('splitStreamText', () => {
  it.each([
    ['java', 'Hello, World!\n', ['Hello, World!', '\n']],
    ['java', 'no end', ['no end']],
    ['java', '\n', ['\n']],
    ['java', 'a\nb\n', ['a\nb', '\n']],
    ['python', 'a\n', ['a\n']],
  ])('sends what %s prints, %j, as %j', (name, text, expected) => {
    expect(splitStreamText(language(name), text)).toEqual(expected);
  });
});

describe('missingLanguageMessage', () => {
  it('names the full image for a language that slim lacks', () => {
    expect(missingLanguageMessage('r', { runtime: 'docker', flavor: 'slim' })).toBe(
      'R comes with the full image: set CELLBOX_IMAGE_FLAVOR=full and start Cellbox again.',
    );
  });

  it('repeats what the host lacks on the local runtime', () => {
    expect(missingLanguageMessage('java', { runtime: 'local' }, 'The program java was not found.')).toBe(
      'The program java was not found. Or use the docker runtime with CELLBOX_IMAGE_FLAVOR=full.',
    );
  });

  it('lists the languages for one that does not exist', () => {
    expect(missingLanguageMessage('cobol', { runtime: 'local' })).toContain(
      'python, javascript, typescript, bash, r, java',
    );
  });
});
