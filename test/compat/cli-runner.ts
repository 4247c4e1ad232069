import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { spawn as spawnTerminal } from '@lydell/node-pty';
import { cleanEnv, prepared } from '../started-service';
import type { StartedService } from '../started-service';
import { until } from './js-sdks';

export interface Outcome {
  code: number | null;
  stdout: string;
  stderr: string;
}

const DEADLINE_MS = 120_000;

/** The official `e2b` CLI, unmodified, told where the service is by the environment only; with a home of its own. */
export class Cli {
  private readonly home = fs.mkdtempSync(path.join(os.tmpdir(), 'cbx-cli-'));

  constructor(private readonly service: StartedService) {}

  /**
   * Runs one command to its end. Without `input` its standard input is no pipe, which it looks at. `onStdout` is told
   * all that it has printed so far.
   */
  async run(
    args: string[],
    {
      input,
      env = {},
      onStdout,
    }: { input?: string; env?: Record<string, string>; onStdout?: (printed: string) => void } = {},
  ): Promise<Outcome> {
    const child = spawn(process.execPath, [prepared().cli, ...args], {
      env: { ...this.env(), ...env },
      stdio: [input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'],
      timeout: DEADLINE_MS,
    });
    let stdout = '';
    let stderr = '';
    child.stdout?.on('data', (chunk: Buffer) => {
      stdout += chunk.toString();
      onStdout?.(stdout);
    });
    child.stderr?.on('data', (chunk: Buffer) => (stderr += chunk.toString()));
    child.stdin?.end(input);
    const [code] = (await once(child, 'close')) as [number | null];
    return { code, stdout, stderr };
  }

  /** The same for one that must succeed; what it printed. */
  async print(...args: string[]): Promise<string> {
    const { code, stdout, stderr } = await this.run(args);
    if (code !== 0) throw new Error(`e2b ${args.join(' ')} ended with ${code}:\n${stdout}${stderr}`);
    return stdout;
  }

  async json<Shape>(...args: string[]): Promise<Shape> {
    return JSON.parse(await this.print(...args, '--format', 'json')) as Shape;
  }

  /**
   * Runs one command at a terminal: when it has printed what `prompt` matches, `typed` is entered. Resolves with all
   * that it showed once it has ended.
   */
  async atTerminal(args: string[], prompt: RegExp, typed: string): Promise<string> {
    const terminal = spawnTerminal(process.execPath, [prepared().cli, ...args], {
      env: { ...this.env(), TERM: 'xterm' },
      cols: 200,
      rows: 40,
    });
    let shown = '';
    let ended = false;
    terminal.onData((data) => (shown += data));
    terminal.onExit(() => (ended = true));
    try {
      await until('a prompt', () => ended || prompt.test(shown), DEADLINE_MS);
      terminal.write(typed);
      await until('the end of the terminal', () => ended, DEADLINE_MS);
      return shown;
    } catch (cause) {
      throw new Error(`e2b ${args.join(' ')} showed:\n${shown}`, { cause });
    } finally {
      if (!ended) terminal.kill('SIGKILL');
    }
  }

  close(): void {
    fs.rmSync(this.home, { recursive: true, force: true });
  }

  private env(): Record<string, string> {
    // It would ask the registry for a newer one, and colour what it prints.
    const quiet = { HOME: this.home, NO_UPDATE_NOTIFIER: '1', FORCE_COLOR: '0', NO_COLOR: '1' };
    return { ...cleanEnv(this.service.exported), ...quiet };
  }
}
