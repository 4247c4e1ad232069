import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { z } from 'zod';
import type { LanguageInfo } from '../protocol/native';
import { findLanguage, missingLanguageMessage } from './interpreter/languages';
import type { KernelHome } from './interpreter/languages';
import type { Logger } from './log';
import { connectEngine } from './runtime/docker-engine';
import { runHelper } from './runtime/docker-helper';

const REPORT_DEADLINE_MS = 90_000;
const NAMES = ['python', 'javascript', 'typescript', 'bash', 'r', 'java'] as const;

/** What `python -m cellbox_kernel.kernelspecs` prints. */
const Report = z.record(z.string(), z.object({ available: z.boolean(), missing: z.string().nullable() }));
type Report = z.output<typeof Report>;

/** Asks the environment that kernels start in which of them it can start. */
export type AskKernelspecs = () => Promise<string>;

/** Asks a Python of this host. */
export function askLocally(python: string): AskKernelspecs {
  return async () => {
    const run = promisify(execFile);
    const { stdout } = await run(python, ['-m', 'cellbox_kernel.kernelspecs'], {
      timeout: REPORT_DEADLINE_MS,
      killSignal: 'SIGKILL',
    });
    return stdout;
  };
}

/** Asks the Python of a kernel image. */
export function askImage(image: string, serviceId: string): AskKernelspecs {
  return async () => {
    const output = await runHelper(connectEngine(), {
      image,
      serviceId,
      script: 'exec /opt/cellbox/venv/bin/python -m cellbox_kernel.kernelspecs 2>/dev/null',
      hostConfig: { NetworkMode: 'none', CapAdd: [] },
      timeoutMs: REPORT_DEADLINE_MS,
    });
    return output;
  };
}

/**
 * Which languages sandboxes of this service have, and how to get the others. Asked once, in the background, because
 * the probes for R and Java start processes; until the answer is there remedies are general ones.
 */
export class LanguageReport {
  private report: Promise<Report> | undefined;
  private known: Report = {};

  constructor(
    private readonly home: KernelHome,
    private readonly ask: AskKernelspecs,
    private readonly logger: Logger,
  ) {}

  /** Asks, unless that was done. Never rejects: without an answer every language counts as there. */
  read(): Promise<Report> {
    this.report ??= this.ask()
      .then((text) => (this.known = Report.parse(JSON.parse(text))))
      .catch((error: unknown) => {
        this.logger.warn({ err: error }, "can't tell which languages are there");
        return {};
      });
    return this.report;
  }

  /** Every language that Cellbox knows; what a missing one lacks. */
  async list(): Promise<LanguageInfo[]> {
    const report = await this.read();
    return NAMES.map((name) => {
      const kernel = report[findLanguage(name)?.kernelName ?? name] ?? report[name];
      if (kernel === undefined || kernel.available) return { name };
      return { name, missing: this.remedyFor(name) ?? '' };
    });
  }

  /** One sentence that says how to get a language that a sandbox could not start. */
  remedyFor(name: string): string {
    return missingLanguageMessage(name, this.home, this.known[name]?.missing);
  }
}
