import * as newest from '@e2b/code-interpreter';
import * as older from 'code-interpreter-a';
import { runtimesUnderTest, startService } from '../started-service';
import type { StartedService } from '../started-service';

/** The official JavaScript SDK: the newest, or one of the 2.45 era, whose types are close enough to be called the same. */
export type Sdk = typeof newest;
export type Sandbox = newest.Sandbox;

const GENERATIONS: Array<{ generation: string; sdk: Sdk }> = [
  { generation: 'newest', sdk: newest },
  // The older package's classes have the same methods; only private members make the types differ.
  { generation: '2.45 era', sdk: older as unknown as Sdk },
];

/** What the cases of one runtime and one generation work with. `service()` may be called once a case runs. */
export interface Subject {
  sdk: Sdk;
  /** Its name, for texts. */
  generation: string;
  runtime: 'local' | 'docker';
  service(): StartedService;
}

/**
 * Declares the same cases for every runtime and both generations of the JavaScript SDK, which learn where the service
 * is from the environment alone. Each runtime gets one service, with these settings; runtimes that are not there are skipped, visibly.
 */
export function describeWithJsSdks(
  topic: string,
  declare: (subject: Subject) => void,
  env: Record<string, string> = {},
): void {
  for (const { runtime, skip } of runtimesUnderTest()) {
    const describeRuntime = skip === undefined ? describe : describe.skip;
    describeRuntime(`${topic} on ${runtime}${skip === undefined ? '' : ` (skipped: ${skip})`}`, () => {
      let service: StartedService;

      beforeAll(async () => {
        service = await startService({ runtime, env });
        Object.assign(process.env, service.exported);
      }, 180_000);

      afterAll(async () => {
        for (const name of Object.keys(service?.exported ?? {})) delete process.env[name];
        await service?.stop();
      }, 60_000);

      describe.each(GENERATIONS)('JavaScript SDK, $generation', ({ sdk, generation }) => {
        declare({ sdk, generation, runtime, service: () => service });
      });
    });
  }
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
