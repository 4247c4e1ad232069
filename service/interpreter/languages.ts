import { ServiceError } from '../errors';

/**
 * What the interpreter must know about each language's kernel: data and pure functions, no sockets.
 *
 * The gateway gives every kernel its environment and working directory when it starts it. What is left to do by
 * code goes through silent requests of its own, never into the user's cell, and leaves nothing in the user's
 * namespace.
 */
export interface Language {
  /** The name clients use, as listings show it. */
  readonly name: string;
  /** The kernelspec's name. */
  readonly kernelName: string;
  readonly displayName: string;

  /**
   * Code that sets variables for the executions until `restoreEnvCode`, keeping the values they had before the first
   * of several such calls. Absent when the kernel does it itself, from the request's metadata (python).
   * Throws `invalid_argument` for what the language can't set.
   */
  setEnvCode?(env: Readonly<Record<string, string>>): string;
  /** Code that gives the named variables the values kept by `setEnvCode`, and removes those that had none. */
  restoreEnvCode?(names: readonly string[]): string;
  /** Code to run once, silently, in every new, restarted or crashed-and-restarted kernel, before anything else. */
  startupCode?(options: { cwd: string; env: Readonly<Record<string, string>> }): string | undefined;
  /**
   * Code for a kernel that is started ahead of time, run once and silently: what the first cell would pay for, and a
   * fresh state for generators of random numbers.
   */
  readonly warmUpCode?: string;
  /**
   * Code that sets variables for the rest of a kernel's life: one that was started ahead of time is somebody's now.
   * Absent for languages whose kernels are never started ahead.
   */
  claimCode?(env: Readonly<Record<string, string>>): string;
  /** The same for a kernel that an earlier service has used: what is missing is set, what its code has changed stays. */
  adoptCode?(env: Readonly<Record<string, string>>): string;

  /**
   * Code that prints `marker` as a stdout message of its own, for a kernel that says `idle` while output of the cell
   * is still on its way. Sent silently after idle and reply: output that comes before the marker belongs to the
   * execution, whichever of the two requests it names as its parent. Absent where `idle` can be believed.
   */
  drainCode?(marker: string): string;
  /** For a kernel that refuses some cells without saying why. */
  readonly diagnosis?: Diagnosis;

  /** Whether variables survive an interrupt. Where not, the interrupt ends the kernel and the gateway starts a new one. */
  readonly interruptKeepsState: boolean;
  /** Whether silent requests move the kernel's execution count; the count told to clients must leave them out. */
  readonly silentRequestsCount: boolean;
  /** Whether a line's end is sent as an event apart from its text, as E2B's kernel of the language does. */
  readonly sendsNewlineApart: boolean;
}

/** An error as a kernel reports it. */
export interface KernelError {
  name: string;
  value: string;
  traceback: string;
}

/** How to find out why a kernel refused a cell. */
export interface Diagnosis {
  /** Whether this error is one that says nothing. */
  appliesTo(error: KernelError): boolean;
  /** A silent request that compiles `source` once more, without running it, and fails with the reason. */
  code(source: string): string;
  /** The error to tell instead, read from how that request failed; `undefined` keeps the first one. */
  read(error: KernelError): KernelError | undefined;
}

/** Which kernels a sandbox can have, to word what to do about a missing one. */
export type KernelHome = { runtime: 'docker' | 'kubernetes'; flavor: string } | { runtime: 'local' };

/** The language a client means: no name is python, `js` and `ts` are short for theirs, the rest is trimmed and lower-cased. */
export function normalizeLanguage(raw: string | null | undefined): string {
  const name = (raw ?? '').trim().toLowerCase();
  return ALIASES.get(name) ?? name;
}

/** Looks up a normalised name. */
export function findLanguage(name: string): Language | undefined {
  return LANGUAGES.find((language) => language.name === name);
}

/**
 * One sentence that says how to get a language that this sandbox can't start. `missing` is what
 * `cellbox_kernel.kernelspecs` reported for it, where it was asked.
 */
export function missingLanguageMessage(name: string, home: KernelHome, missing?: string | null): string {
  const language = findLanguage(name);
  if (language === undefined) {
    return `Cellbox has no kernel for '${name}'. Available languages: ${LANGUAGES.map((known) => known.name).join(', ')}.`;
  }
  if (home.runtime === 'local') {
    const what = missing ?? `This host lacks what the ${language.displayName} kernel needs.`;
    return `${what} Or use the docker runtime with CELLBOX_IMAGE_FLAVOR=full.`;
  }
  if (home.flavor === 'slim' && FULL_ONLY.has(name)) {
    return `${language.displayName} comes with the full image: set CELLBOX_IMAGE_FLAVOR=full and start Cellbox again.`;
  }
  return `The image has no ${language.displayName} kernel: build it from Dockerfile.kernel, or unset CELLBOX_IMAGE.`;
}

/**
 * Refuses, with the variable's name, what no process environment can hold. For every language, also those whose kernel
 * sets the variables itself.
 */
export function checkEnv(env: Readonly<Record<string, string>>): void {
  for (const [name, value] of Object.entries(env)) {
    if (name === '' || /[=\0]/.test(name)) {
      throw invalid(
        `${JSON.stringify(name)} can't name an environment variable: empty, or has '=' or NUL in it`,
      );
    }
    if (value.includes('\0'))
      throw invalid(`The value of environment variable ${name} has a NUL character in it`);
  }
}

/** The events in which a stream message of the language reaches the client. */
export function splitStreamText(language: Language, text: string): string[] {
  if (!language.sendsNewlineApart || text.length < 2 || !text.endsWith('\n')) return [text];
  return [text.slice(0, -1), '\n'];
}

const ALIASES: ReadonlyMap<string, string> = new Map([
  ['', 'python'],
  ['js', 'javascript'],
  ['ts', 'typescript'],
]);

const FULL_ONLY: ReadonlySet<string> = new Set(['r', 'java']);

const quiet = { silentRequestsCount: false, sendsNewlineApart: false };

const PYTHON_WARM_UP = `
import random, sys
random.seed()
if 'numpy.random' in sys.modules:
    sys.modules['numpy.random'].seed()
get_ipython().display_formatter.format(1)
`;

const PYTHON_CLAIM = `
import json, os
os.environ.update(json.loads(env))
`;

const PYTHON_ADOPT = `
import json, os
for name, value in json.loads(env).items(): os.environ.setdefault(name, value)
`;

const python: Language = {
  name: 'python',
  kernelName: 'python3',
  displayName: 'Python',
  // Each in a namespace of its own, as one expression: nothing of it is left in the user's.
  warmUpCode: `exec(${pythonText(PYTHON_WARM_UP)}, {'get_ipython': get_ipython})`,
  claimCode: (env) => `exec(${pythonText(PYTHON_CLAIM)}, {'env': ${pythonText(JSON.stringify(env))}})`,
  adoptCode: (env) => `exec(${pythonText(PYTHON_ADOPT)}, {'env': ${pythonText(JSON.stringify(env))}})`,
  interruptKeepsState: true,
  ...quiet,
};

/**
 * A Python string. JSON's escapes are Python's, too, but for surrogate pairs: what is not ASCII must therefore be
 * inside JSON that is read again.
 */
function pythonText(text: string): string {
  return JSON.stringify(
    text.replace(/[\u0080-\uffff]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`),
  );
}

// ---- JavaScript and TypeScript: Deno ----

// One hidden object holds what we keep in the kernel. Symbol.for, because each request is a script of its own.
const DENO_STATE = `globalThis[Symbol.for('cellbox')]`;

/*
 * What Deno's kernel lacks:
 * - It sends every console line as a message, after the cell's `idle` when there are many: lines are gathered until the
 *   running code gives way (a microtask), 64 KiB, or 100 ms.
 * - process.stdout and Deno.stdout write to the kernel's own stdout, where nobody reads.
 * - There is no `require`.
 */
const DENO_STARTUP = `Object.defineProperty(globalThis, Symbol.for('cellbox'), { configurable: true, value: await (async () => {
  const { core, Console } = Deno[Deno.internal];
  const now = performance.now.bind(performance);
  const later = queueMicrotask;
  const state = { saved: new Map() };
  let buffer = '', toStderr = false, flushedAt = 0;
  const flush = () => {
    if (buffer === '') return;
    const text = buffer;
    buffer = '';
    flushedAt = now();
    core.print(text, toStderr);
  };
  const print = (text, isError) => {
    if (isError !== toStderr) { flush(); toStderr = isError; }
    if (buffer === '') later(flush);
    buffer += text;
    if (buffer.length >= 65536 || now() - flushedAt >= 100) flush();
  };
  state.mark = (marker) => { flush(); core.print(marker, false); };
  const own = new Console((text, level) => print(text, level > 1));
  for (const name of Object.keys(own)) if (typeof own[name] === 'function') console[name] = own[name];
  const replace = (target, name, value) => Object.defineProperty(target, name, { value, writable: true, configurable: true });
  for (const [stream, isError] of [['stdout', false], ['stderr', true]]) {
    const decoder = new TextDecoder();
    const write = (chunk) => print(typeof chunk === 'string' ? chunk : decoder.decode(chunk, { stream: true }), isError);
    replace(process[stream], 'write', (chunk, encoding, done) => {
      write(chunk);
      const callback = typeof encoding === 'function' ? encoding : done;
      if (typeof callback === 'function') later(() => callback());
      return true;
    });
    replace(Deno[stream], 'writeSync', (chunk) => { write(chunk); return chunk.byteLength; });
    replace(Deno[stream], 'write', async (chunk) => { write(chunk); return chunk.byteLength; });
  }
  const { createRequire } = await import('node:module');
  replace(globalThis, 'require', createRequire(process.cwd() + '/cell.js'));
  return state;
})() }); void 0`;

// Put before the source on its first line: whatever else the module holds, its body doesn't run.
const DENO_GUARD = 'throw 0;';

/** A cell that doesn't parse fails with these words alone; imported as a module the same text fails with the place. */
const denoDiagnosis: Diagnosis = {
  appliesTo: (error) => error.value === 'Execution failed' && error.traceback === '',
  code: (source) =>
    `await import('data:application/typescript;charset=utf-8,' + encodeURIComponent(${JSON.stringify(DENO_GUARD + wellFormed(source))}))`,
  read(error) {
    const text = error.value.startsWith('SyntaxError: ')
      ? error.value.slice('SyntaxError: '.length)
      : undefined;
    if (text === undefined) return undefined;
    const lines = text.split('\n').filter((line) => !line.startsWith('    at data:'));
    const first = lines.findIndex((line) => line.includes(` | ${DENO_GUARD}`));
    if (first !== -1) {
      lines[first] = (lines[first] ?? '').replace(DENO_GUARD, '');
      const caret = lines[first + 1];
      if (caret !== undefined) lines[first + 1] = caret.replace(' '.repeat(DENO_GUARD.length), '');
    }
    return { name: 'SyntaxError', value: lines[0] ?? '', traceback: `SyntaxError: ${lines.join('\n')}` };
  },
};

const deno = {
  setEnvCode(env: Readonly<Record<string, string>>): string {
    checkEnv(env);
    return `((pairs) => {
  const { saved } = ${DENO_STATE} ?? Object.defineProperty(globalThis, Symbol.for('cellbox'), { configurable: true, value: { saved: new Map() } })[Symbol.for('cellbox')];
  const variables = globalThis.Deno.env;
  for (const [name, value] of pairs) {
    if (!saved.has(name)) saved.set(name, variables.get(name));
    variables.set(name, value);
  }
})(${jsLiteral(Object.entries(env))})`;
  },
  restoreEnvCode(names: readonly string[]): string {
    return `((names) => {
  const saved = ${DENO_STATE}?.saved;
  const variables = globalThis.Deno.env;
  for (const name of names) {
    if (!saved?.has(name)) continue;
    const value = saved.get(name);
    saved.delete(name);
    if (value === undefined) variables.delete(name);
    else variables.set(name, value);
  }
})(${jsLiteral(names)})`;
  },
  startupCode: (): string => DENO_STARTUP,
  // Without startup code in the kernel nothing is gathered, and the marker alone does.
  drainCode: (marker: string): string =>
    `((marker) => { const state = ${DENO_STATE}; if (state?.mark) state.mark(marker); else globalThis.Deno[globalThis.Deno.internal].core.print(marker, false); })(${jsLiteral(marker)})`,
  diagnosis: denoDiagnosis,
  interruptKeepsState: false,
  ...quiet,
};

const javascript: Language = {
  name: 'javascript',
  kernelName: 'javascript',
  displayName: 'JavaScript',
  ...deno,
};
const typescript: Language = {
  name: 'typescript',
  kernelName: 'typescript',
  displayName: 'TypeScript',
  ...deno,
};

/** JSON is JavaScript. Pairs and lists only: as a member of an object literal, `__proto__` would not be a name. */
function jsLiteral(value: string | readonly unknown[]): string {
  return JSON.stringify(value);
}

// ---- bash ----

// The kernel finds the end of a cell by the prompt; the rest can't be assigned at all.
const BASH_REFUSED: ReadonlySet<string> = new Set(
  'PS0 PS1 PS2 PROMPT_COMMAND BASHOPTS BASH_VERSINFO EUID PPID SHELLOPTS UID'.split(' '),
);
// The kernel types its lines into a terminal, where a very long one is cut: longer values are put together.
const BASH_LINE_BYTES = 500;

const bash: Language = {
  name: 'bash',
  kernelName: 'bash',
  displayName: 'Bash',
  setEnvCode(env) {
    checkEnv(env);
    const lines = ['declare -gA __cellbox_saved'];
    for (const [name, value] of Object.entries(env)) {
      if (!/^[A-Za-z_][A-Za-z0-9_]*$/.test(name))
        throw invalid(`bash can't have a variable named ${JSON.stringify(name)}`);
      if (BASH_REFUSED.has(name))
        throw invalid(`${name} can't be set for one execution: bash needs it itself`);
      lines.push(
        `[[ -v __cellbox_saved[${name}] ]] || __cellbox_saved[${name}]="$(declare -p ${name} 2>/dev/null)"`,
      );
      const [first, ...rest] = bashLiterals(value);
      lines.push(`export ${name}=${first ?? "''"}`, ...rest.map((part) => `${name}+=${part}`));
    }
    return lines.join('\n');
  },
  restoreEnvCode(names) {
    const lines = names.map(
      (name) =>
        `if [[ -v __cellbox_saved[${name}] ]]; then unset -v ${name}; eval "\${__cellbox_saved[${name}]}"; unset -v "__cellbox_saved[${name}]"; fi`,
    );
    lines.push('[[ ${#__cellbox_saved[@]} -gt 0 ]] || unset -v __cellbox_saved');
    return lines.join('\n');
  },
  interruptKeepsState: true,
  ...quiet,
};

/** Bytes as $'…' in pure ASCII: nothing in it means anything to the terminal, to history expansion or to the shell. */
function bashLiterals(value: string): string[] {
  const bytes = Buffer.from(value, 'utf8');
  const literals: string[] = [];
  for (let start = 0; start < bytes.length; start += BASH_LINE_BYTES) {
    const text = [...bytes.subarray(start, start + BASH_LINE_BYTES)].map((byte) => {
      const character = String.fromCharCode(byte);
      return /[A-Za-z0-9_./:@%+,-]/.test(character) ? character : `\\x${byte.toString(16).padStart(2, '0')}`;
    });
    literals.push(`$'${text.join('')}'`);
  }
  return literals;
}

// ---- R ----

// options() rather than a variable: rm(list = ls(all.names = TRUE)) leaves it alone.
const r: Language = {
  name: 'r',
  kernelName: 'r',
  displayName: 'R',
  setEnvCode(env) {
    checkEnv(env);
    const names = Object.keys(env);
    return `invisible(local({
  names <- ${rVector(names)}
  saved <- getOption("cellbox.saved", list())
  for (name in setdiff(names, names(saved))) saved[[name]] <- Sys.getenv(name, unset = NA)
  options(cellbox.saved = saved)
  do.call(Sys.setenv, structure(as.list(${rVector(Object.values(env))}), names = names))
}))`;
  },
  restoreEnvCode(names) {
    return `invisible(local({
  saved <- getOption("cellbox.saved", list())
  for (name in intersect(${rVector(names)}, names(saved))) {
    if (is.na(saved[[name]])) Sys.unsetenv(name)
    else do.call(Sys.setenv, structure(list(saved[[name]]), names = name))
    saved[[name]] <- NULL
  }
  options(cellbox.saved = if (length(saved)) saved else NULL)
}))`;
  },
  interruptKeepsState: true,
  ...quiet,
};

function rVector(values: readonly string[]): string {
  return values.length === 0 ? 'character(0)' : `c(${values.map(rString).join(', ')})`;
}

function rString(value: string): string {
  // \u for control characters: R refuses a string that mixes \x with \u.
  const escaped = wellFormed(value).replace(/["\\\x01-\x1f\x7f]/g, (character) =>
    character === '"' || character === '\\' ? `\\${character}` : `\\u${hex4(character)}`,
  );
  return `"${escaped}"`;
}

// ---- Java ----

// As in E2B's image, a Java program finds variables among the system properties: the process's environment can't change.
const java: Language = {
  name: 'java',
  kernelName: 'java',
  displayName: 'Java',
  setEnvCode(env) {
    checkEnv(env);
    const pairs = Object.entries(env).map(([name, value]) => `{${javaString(name)}, ${javaString(value)}}`);
    return `for (String[] pair : new String[][] {${pairs.join(', ')}}) {
  String kept = "cellbox.saved." + pair[0], before = System.getProperty(pair[0]);
  if (System.getProperty(kept) == null) System.setProperty(kept, before == null ? "" : "=" + before);
  System.setProperty(pair[0], pair[1]);
}`;
  },
  restoreEnvCode(names) {
    return `for (String name : new String[] {${names.map(javaString).join(', ')}}) {
  String before = System.clearProperty("cellbox.saved." + name);
  if (before == null) continue;
  if (before.isEmpty()) System.clearProperty(name); else System.setProperty(name, before.substring(1));
}`;
  },
  /*
   * The environment becomes system properties. Then the kernel's own renderers for maps, lists and tables go, all but
   * the one for images: asked for text they answer null, which fails the cell (maps), or a form of their own (lists).
   */
  startupCode: () => `{
  System.getenv().forEach((name, value) -> System.getProperties().putIfAbsent(name, value));
  try {
    Object display = org.rapaio.jupyter.kernel.display.DisplaySystem.inst();
    for (String name : new String[] {"systemDisplayTransformers", "systemDisplayRenderers"}) {
      java.lang.reflect.Field field = display.getClass().getDeclaredField(name);
      field.setAccessible(true);
      java.util.List<Object> kept = new java.util.ArrayList<>();
      for (Object each : (java.util.List<?>) field.get(display)) if (each.getClass().getSimpleName().contains("Image")) kept.add(each);
      field.set(display, kept);
    }
  } catch (ReflectiveOperationException | RuntimeException another_version_of_the_kernel) { }
}`,
  interruptKeepsState: false,
  silentRequestsCount: true,
  sendsNewlineApart: true,
};

// A constant of a class file holds 65,535 bytes at most; a character takes up to three.
const JAVA_CONSTANT_CHARACTERS = 16_000;

function javaString(value: string): string {
  const parts: string[] = [];
  for (let start = 0; start < value.length; start += JAVA_CONSTANT_CHARACTERS) {
    parts.push(javaConstant(value.slice(start, start + JAVA_CONSTANT_CHARACTERS)));
  }
  return parts.length > 1 ? `String.join("", ${parts.join(', ')})` : (parts[0] ?? '""');
}

function javaConstant(value: string): string {
  // Octal for control characters: javac turns \u000a into a line's end before it sees the string.
  const escaped = value.replace(/["\\\x00-\x1f\x7f]|[^\x00-\x7f]/g, (character) => {
    if (character === '"' || character === '\\') return `\\${character}`;
    const code = character.charCodeAt(0);
    return code < 0x80 ? `\\${code.toString(8).padStart(3, '0')}` : `\\u${hex4(character)}`;
  });
  return `"${escaped}"`;
}

// ----

const LANGUAGES: readonly Language[] = [python, javascript, typescript, bash, r, java];

function hex4(character: string): string {
  return character.charCodeAt(0).toString(16).padStart(4, '0');
}

/** Lone surrogates, which UTF-8 can't carry, become U+FFFD. */
function wellFormed(text: string): string {
  return Buffer.from(text, 'utf8').toString('utf8');
}

function invalid(message: string): ServiceError {
  return new ServiceError('invalid_argument', message);
}
