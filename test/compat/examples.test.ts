import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import path from 'node:path';
import { ROOT, cleanEnv, prepared, startService } from '../started-service';
import type { StartedService } from '../started-service';

/** What a program of ours may take, a sandbox of its own included. */
const PROGRAM_DEADLINE_MS = 90_000;

interface Ran {
  code: number | null;
  stdout: string;
  stderr: string;
}

let service: StartedService;
/** Inside the repository, so that the SDK of node_modules is found from here. */
let scratch: string;

beforeAll(async () => {
  service = await startService({ runtime: 'local' });
  const home = path.join(ROOT, '.cellbox', 'test');
  fs.mkdirSync(home, { recursive: true });
  scratch = fs.mkdtempSync(path.join(home, 'readme-'));
}, 180_000);

afterAll(async () => {
  if (scratch !== undefined) fs.rmSync(scratch, { recursive: true, force: true });
  await service?.stop();
}, 60_000);

/** Runs a program as a user would: told where the service is by the three printed variables, and by nothing else. */
async function run(file: string): Promise<Ran> {
  const command = file.endsWith('.py') ? prepared().sdkPython.b : process.execPath;
  const child = spawn(command, [file], {
    cwd: ROOT,
    env: cleanEnv({ ...service.exported, PYTHONDONTWRITEBYTECODE: '1', PYTHONUNBUFFERED: '1' }),
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: PROGRAM_DEADLINE_MS,
    killSignal: 'SIGKILL',
  });
  const ran: Ran = { code: null, stdout: '', stderr: '' };
  child.stdout.setEncoding('utf8').on('data', (text: string) => (ran.stdout += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (ran.stderr += text));
  [ran.code] = (await once(child, 'close')) as [number | null];
  return ran;
}

/** Asserts a clean end first, so that a failing program shows what it said. */
async function linesOf(file: string): Promise<string[]> {
  const ran = await run(file);
  expect(ran).toEqual({ code: 0, stdout: ran.stdout, stderr: '' });
  return ran.stdout.trimEnd().split('\n');
}

/** Ids and sizes differ from run to run; everything else is told exactly. */
function plain(line: string): string {
  return line
    .replace(/^sandbox [a-z0-9]+$/, 'sandbox <id>')
    .replace(/PNG of \d{4,} bytes/, 'PNG of <n> bytes')
    .replace(/\d{4,} characters of PNG/, '<n> characters of PNG');
}

async function liveSandboxes(): Promise<unknown> {
  const response = await fetch(`${service.url}/v2/sandboxes`, { headers: { 'x-api-key': service.apiKey } });
  return response.json();
}

describe('examples', () => {
  afterEach(async () => {
    expect(await liveSandboxes()).toEqual([]); // each cleans up behind itself
  });

  it.each(['examples/quickstart.mjs', 'examples/quickstart.py'])(
    '%s gets from a CSV file to a chart and a table',
    async (file) => {
      const lines = (await linesOf(file)).map(plain);
      const table = lines.find((line) => line.startsWith('table ')) ?? '';
      expect(lines).toEqual([
        'sandbox <id>',
        'chart "Sales by city" (bar), also as a PNG of <n> bytes',
        '  Bergen: 16',
        '  Oslo: 24',
        table,
        'best city: Oslo',
      ]);
      // JSON, or Python's way to write the same.
      const data: unknown = JSON.parse(table.replace(/^table /, '').replaceAll("'", '"'));
      expect(data).toEqual({ city: ['Bergen', 'Oslo'], sales: [16, 24] });
    },
    PROGRAM_DEADLINE_MS,
  );

  it(
    'examples/streaming.mjs tells of lines and charts while the cell runs',
    async () => {
      const lines = (await linesOf('examples/streaming.mjs')).map(plain);
      expect(lines.map((line) => line.replace(/^[\d.]+ s {2}/, ''))).toEqual([
        'stdout  step 1 of 3',
        'chart   After step 1: line, <n> characters of PNG',
        'stdout  step 2 of 3',
        'chart   After step 2: line, <n> characters of PNG',
        'stdout  step 3 of 3',
        'chart   After step 3: line, <n> characters of PNG',
        'stderr  done',
        'the cell has ended with 3 charts',
      ]);
      const seconds = lines.map((line) => parseFloat(line));
      // The cell sleeps half a second after each chart. That lines come while it runs is proved in sdk-js.test.ts.
      expect(seconds.at(-1)).toBeGreaterThanOrEqual(1.5);
    },
    PROGRAM_DEADLINE_MS,
  );

  it(
    'examples/contexts.py shows what contexts share and what they do not',
    async () => {
      const lines = await linesOf('examples/contexts.py');
      const naps = Number(/side by side: ([\d.]+) s/.exec(lines[3] ?? '')?.[1]);
      expect(naps).toBeGreaterThanOrEqual(1); // that they are side by side is proved in test_async.py
      expect(lines.filter((_, index) => index !== 3)).toEqual([
        'x in the second context: NameError',
        'x in the first context: of the first',
        'directory of the second context: /tmp',
        'JavaScript: [ 1, 4, 9 ]',
        'x after a restart: NameError',
        'contexts: javascript, python, python',
      ]);
    },
    PROGRAM_DEADLINE_MS,
  );
});

interface Block {
  language: 'ts' | 'python';
  /** Line of the README where it begins. */
  line: number;
  code: string;
}

/** The README's fenced blocks that are programs. */
function programsOf(markdown: string): Block[] {
  return [...markdown.matchAll(/^```(ts|python)\n(.*?)^```$/gms)].map((match) => ({
    language: match[1] as Block['language'], // the pattern knows no other
    line: markdown.slice(0, match.index).split('\n').length,
    code: match[2] ?? '',
  }));
}

describe('README', () => {
  const blocks = programsOf(fs.readFileSync(path.join(ROOT, 'README.md'), 'utf8'));

  it('shows a program for each SDK', () => {
    expect(new Set(blocks.map((block) => block.language))).toEqual(new Set(['ts', 'python']));
  });

  it.each(blocks)(
    'has a $language program at line $line that runs and prints',
    async ({ language, line, code }) => {
      const file = path.join(scratch, `line-${line}.${language === 'ts' ? 'mjs' : 'py'}`);
      fs.writeFileSync(file, code);
      expect((await linesOf(file)).join('\n')).toMatch(/\S/);
      expect(await liveSandboxes()).toEqual([]);
    },
    PROGRAM_DEADLINE_MS,
  );
});
