import { Sandbox } from '@e2b/code-interpreter';
import type { Service } from './service';

/** As many as a small machine starts at a time without waiting for each other. */
const AT_A_TIME = 4;
const KEEP_MS = 3_600_000;

/** Many live sandboxes, each of which has run a cell. */
export async function startFleet(service: Service, count: number): Promise<Sandbox[]> {
  const { url, apiKey } = service;
  const sandboxes: Sandbox[] = [];
  let next = 0;
  const start = async (): Promise<void> => {
    while (next++ < count) {
      const sandbox = await Sandbox.create({ apiKey, apiUrl: url, sandboxUrl: url, timeoutMs: KEEP_MS });
      sandboxes.push(sandbox);
      await sandbox.runCode('1');
    }
  };
  const started = await Promise.allSettled(Array.from({ length: AT_A_TIME }, start));
  const failed = started.find((each) => each.status === 'rejected');
  if (failed !== undefined) {
    await endFleet(sandboxes);
    throw failed.reason as Error;
  }
  return sandboxes;
}

/** Ends them all; one that has ended is fine. */
export async function endFleet(sandboxes: Sandbox[]): Promise<void> {
  const ended = await Promise.allSettled(sandboxes.splice(0).map((sandbox) => sandbox.kill()));
  for (const each of ended)
    if (each.status === 'rejected') console.error(`a sandbox stays: ${String(each.reason)}`);
}
