import { createHash } from 'node:crypto';
import { CommandExitError, FileNotFoundError } from '@e2b/code-interpreter';
import type { Sandbox } from '@e2b/code-interpreter';
import type { Log } from './log';
import type { Step } from './plan';

const OPTIONS = { requestTimeoutMs: 90_000 };
const COMMAND = { timeoutMs: 90_000, requestTimeoutMs: 90_000 };
/** What nobody knows the content of: a write that was not acknowledged may have got anywhere. */
const ANYTHING = 'anything';
const ABSENT = 'absent';

/** The files of one sandbox as its client knows them, and commands over them, through the official SDK. */
export class Files {
  /** By name: the hashes that a file may have. */
  private readonly expected = new Map<number, Set<string>>();
  private writes = 0;

  constructor(
    private readonly sandbox: Sandbox,
    private readonly owner: string,
    private readonly log: Log,
  ) {}

  /** Rejects as the SDK does; the caller knows what excuses it. */
  async take({ action, name, bytes }: Extract<Step, { step: 'file' }>): Promise<void> {
    const path = this.path(name);
    const expected = this.at(name);
    switch (action) {
      case 'write': {
        const content = this.content(bytes);
        expected.add(ANYTHING); // until it is acknowledged
        await this.sandbox.files.write(path, content, OPTIONS);
        this.expected.set(name, new Set([hash(content)]));
        return;
      }
      case 'remove':
        if (expected.has(ABSENT)) return;
        expected.add(ANYTHING);
        await this.sandbox.files.remove(path, OPTIONS);
        this.expected.set(name, new Set([ABSENT]));
        return;
      case 'read': {
        const got = await this.read(path);
        this.compare(name, got);
        return;
      }
    }
  }

  async command({ action, name }: Extract<Step, { step: 'command' }>): Promise<void> {
    const { commands } = this.sandbox;
    switch (action) {
      case 'read-file': {
        const { stdout } = await commands.run(
          `sha256sum < ${this.path(name)} 2>/dev/null || echo ${ABSENT}`,
          COMMAND,
        );
        const [got = ''] = stdout.trim().split(/\s+/);
        this.compare(name, got);
        return;
      }
      case 'count': {
        const count = 15;
        const { stdout, exitCode } = await commands.run(
          `for i in $(seq ${count}); do echo ${this.owner} $i; sleep 0.05; done`,
          COMMAND,
        );
        const wanted = Array.from({ length: count }, (_, index) => `${this.owner} ${index + 1}\n`).join('');
        if (stdout !== wanted || exitCode !== 0)
          this.log.fail(
            'commands tell everything',
            `exit code ${exitCode}, ${JSON.stringify(stdout.slice(0, 300))}`,
          );
        return;
      }
      case 'fail':
        try {
          await commands.run(`echo ${this.owner}; exit 3`, COMMAND);
          this.log.fail('commands tell everything', 'exit code 3 was told as a success');
        } catch (error) {
          if (!(error instanceof CommandExitError)) throw error;
          if (error.exitCode !== 3 || error.stdout !== `${this.owner}\n`)
            this.log.fail(
              'commands tell everything',
              `exit code ${error.exitCode}, ${JSON.stringify(error.stdout)}`,
            );
        }
        return;
      case 'background': {
        const handle = await commands.run('sleep 300', { ...COMMAND, background: true });
        if (!(await commands.list(OPTIONS)).some(({ pid }) => pid === handle.pid))
          throw new Error('a command that runs is not listed');
        if (!(await handle.kill())) throw new Error('a command that ran could not be killed');
        return;
      }
    }
  }

  /** Everything that somebody in there could find out by looking. */
  async lookAround(): Promise<string> {
    const { stdout } = await this.sandbox.commands.run(
      'ls -laR /home /tmp /var/tmp 2>/dev/null | tail -n 2000; cat /proc/*/cmdline /proc/*/environ 2>/dev/null | tr "\\0" "\\n" | tail -n 4000; env; mount',
      COMMAND,
    );
    return stdout;
  }

  private async read(path: string): Promise<string> {
    try {
      return hash(await this.sandbox.files.read(path, OPTIONS));
    } catch (error) {
      if (error instanceof FileNotFoundError) return ABSENT;
      throw error;
    }
  }

  private compare(name: number, got: string): void {
    const expected = this.at(name);
    if (expected.has(ANYTHING)) {
      this.log.count('files found after a write that nobody acknowledged');
      this.expected.set(name, new Set([got])); // from here on it must stay so
    } else if (expected.has(got)) this.log.count('files found as they were left');
    else
      this.log.fail(
        'acknowledged files are there',
        `${this.path(name)} of ${this.owner}: ${got.slice(0, 12)}, not ${[...expected].map((each) => each.slice(0, 12)).join(' or ')}`,
      );
  }

  private at(name: number): Set<string> {
    const known = this.expected.get(name) ?? new Set([ABSENT]);
    this.expected.set(name, known);
    return known;
  }

  private content(bytes: number): string {
    const head = `${this.owner} ${++this.writes}\n`;
    return head + 'x'.repeat(Math.max(0, bytes - head.length));
  }

  private path(name: number): string {
    return `/home/user/chaos-${name}.txt`;
  }
}

function hash(text: string): string {
  return createHash('sha256').update(text).digest('hex');
}
