import { Client } from './e2e/client';
import { runtimesUnderTest, startService } from './started-service';
import type { StartedService, StartOptions } from './started-service';

type Runtime = StartOptions['runtime'];

/** What the tests of one runtime work with. Service and client can be used once a hook or a test runs. */
export interface OnRuntime {
  runtime: Runtime;
  /** The one that runs now, after `startAgain`, too. */
  service: StartedService;
  client: Client;
  /** Starts another service on what the one before, which has ended, left. */
  startAgain(): Promise<void>;
}

/** Longer than a service may take to say that it is ready. */
const START_DEADLINE_MS = 180_000;

/**
 * Declares the same tests for every runtime, or one of them, `$runtime` in the title being its name. Each gets a service
 * of its own, with these settings, before any hook of the tests; it ends after them. Runtimes that are not there are
 * skipped, visibly.
 */
export function describeOnRuntimes(
  title: string,
  { only, env }: { only?: Runtime; env?: Record<string, string> },
  declare: (on: OnRuntime) => void,
): void {
  for (const { runtime, skip } of runtimesUnderTest()) {
    if (only !== undefined && only !== runtime) continue;
    const suite = skip === undefined ? describe : describe.skip;
    suite(title.replace('$runtime', runtime) + (skip === undefined ? '' : ` (skipped: ${skip})`), () => {
      // Empty until the first start; one object for all of them, so that tests and client need not be told of another.
      const service = {} as StartedService;
      const startAgain = async (): Promise<void> => {
        Object.assign(service, await startService({ runtime, env, dataDir: service.dataDir }));
      };
      beforeAll(startAgain, START_DEADLINE_MS);
      declare({ runtime, service, client: new Client(service), startAgain });
      // Runs last, because it is declared last; with nothing to stop when the start failed.
      afterAll(() => service.stop?.());
    });
  }
}
