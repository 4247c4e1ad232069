import * as newest from '@e2b/code-interpreter';
import * as older from 'code-interpreter-a';
import { describeOnRuntimes } from '../describe-on-runtimes';
import type { OnRuntime } from '../describe-on-runtimes';

/** The official JavaScript SDK: the newest, or one of the 2.45 era, whose types are close enough to be called the same. */
export type Sdk = typeof newest;
export type Sandbox = newest.Sandbox;

const GENERATIONS: Array<{ generation: string; sdk: Sdk }> = [
  { generation: 'newest', sdk: newest },
  // The older package's classes have the same methods; only private members make the types differ.
  { generation: '2.45 era', sdk: older as unknown as Sdk },
];

/** What the cases of one runtime and one generation work with. */
export interface Subject extends Pick<OnRuntime, 'runtime' | 'service'> {
  sdk: Sdk;
  /** Its name, for texts. */
  generation: string;
}

/**
 * Declares the same cases for every runtime and both generations of the JavaScript SDK, which learn where the service
 * is from the environment alone. Each runtime gets one service, with these settings.
 */
export function describeWithJsSdks(
  topic: string,
  declare: (subject: Subject) => void,
  env: Record<string, string> = {},
): void {
  describeOnRuntimes(`${topic} on $runtime`, { env }, ({ runtime, service }) => {
    beforeAll(() => {
      Object.assign(process.env, service.exported);
    });

    afterAll(() => {
      for (const name of Object.keys(service.exported ?? {})) delete process.env[name];
    });

    describe.each(GENERATIONS)('JavaScript SDK, $generation', ({ sdk, generation }) => {
      declare({ sdk, generation, runtime, service });
    });
  });
}

/** Resolves when `condition` holds, asking again every few milliseconds; rejects, saying what was waited for. */
export async function until(
  what: string,
  condition: () => boolean | Promise<boolean>,
  deadlineMs = 30_000,
): Promise<void> {
  const deadline = Date.now() + deadlineMs;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`waited ${deadlineMs} ms in vain for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
