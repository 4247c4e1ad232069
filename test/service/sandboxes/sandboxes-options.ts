import { createLogger } from '../../../service/log';
import type { SandboxesOptions } from '../../../service/sandboxes/sandboxes';
import type { Store } from '../../../service/sandboxes/store';
import { Secrets } from '../../../service/secrets';
import { FakeRuntime } from '../../fakes/fake-runtime';
import type { FakeEngine } from '../../fakes/fake-runtime';

export const RESOURCES = { cpuCount: 2, memoryMB: 2048, diskSizeMB: 10_240, pids: 1024, openFiles: 16_384 };

/** What `Sandboxes` needs over machines in memory: three for each team, for an hour at most. */
export function sandboxesOptions(engine: FakeEngine, store: Store): SandboxesOptions {
  return {
    runtime: new FakeRuntime(engine),
    store,
    secrets: new Secrets(Buffer.alloc(32, 7)),
    logger: createLogger('silent'),
    resources: RESOURCES,
    maxSandboxes: 3,
    maxTimeoutSeconds: 3600,
    startTimeoutMs: 5_000,
  };
}
