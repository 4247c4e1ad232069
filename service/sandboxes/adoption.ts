import type { Logger } from '../log';
import type { Runtime } from '../runtime/runtime';
import type { Secrets } from '../secrets';
import type { MachineStopper } from './machine-stopper';
import { withTokens } from './sandbox';
import type { RunningSandbox } from './sandbox';
import type { Store, StoredSandbox } from './store';
import { deadline, giveUp } from './waiting';

/** How long freezing a machine of an earlier process may take, and reaching it. */
const REACH_TIMEOUT_MS = 30_000;

export interface AdoptionOptions {
  runtime: Runtime;
  store: Store;
  secrets: Secrets;
  logger: Logger;
  stopper: MachineStopper;
  now: () => number;
  /** From here on the sandbox is live. */
  take: (sandbox: RunningSandbox) => void;
  /** There was such a sandbox, and now there is none. */
  onRemoved: (sandbox: Pick<StoredSandbox, 'id' | 'teamId'>, why: string) => void;
}

/**
 * Brings store and machines together: live sandboxes are taken over, paused ones kept, expired ones ended (or paused,
 * where they asked for that), half-made ones and machines that nobody knows removed, records without a machine
 * forgotten. A machine that was kept ready for a create has no record, so it goes, too.
 */
export async function adoptAll(options: AdoptionOptions): Promise<{ adopted: number; removed: number }> {
  const { runtime, store, logger, stopper, now } = options;
  const [rows, records] = await Promise.all([store.listSandboxes(), runtime.list()]);
  const machines = new Map(records.map((record) => [record.id, record]));
  const known = new Map(rows.map((row) => [row.id, row]));
  let adopted = 0;
  let removed = 0;
  const remove = async (id: string, why: string): Promise<void> => {
    removed++;
    logger.warn({ sandboxId: id, why }, 'removed at start');
    const row = known.get(id);
    if (row !== undefined) {
      await store.removeSandbox(id);
      if (row.state !== 'starting') options.onRemoved(row, why);
    }
    if (machines.has(id)) stopper.stop(id);
  };
  await Promise.all([
    ...rows.map(async (row) => {
      const machine = machines.get(row.id);
      if (machine === undefined) return remove(row.id, 'its machine is gone');
      // Files without memory are what a pause may keep; a pause that had both has lost the memory to a restart of the host.
      if (machine.state === 'dead' || (machine.state === 'halted' && row.state !== 'paused')) {
        return remove(row.id, 'its machine is dead');
      }
      if (row.state === 'starting' || machine.state === 'starting') {
        return remove(row.id, 'it was half-made');
      }
      const expired = row.state === 'running' && row.endAt <= now();
      if (expired && !row.autoPause && machine.state === 'running') {
        return remove(row.id, 'its deadline had passed');
      }
      try {
        options.take(await reach(options, row, machine.state));
        adopted++;
      } catch (error) {
        logger.error({ sandboxId: row.id, err: error }, 'a sandbox could not be taken over');
        await remove(row.id, 'it could not be reached');
      }
    }),
    ...records
      .filter((record) => !known.has(record.id))
      .map((record) => remove(record.id, record.labels['pool'] === undefined ? 'nobody knows it' : 'nobody claimed it')), // prettier-ignore
  ]);
  return { adopted, removed };
}

async function reach(
  { runtime, store, secrets, now }: AdoptionOptions,
  row: StoredSandbox,
  machineState: 'running' | 'paused' | 'halted',
): Promise<RunningSandbox> {
  // The store decides; where a crash fell between a change and its record, the side is taken that loses nothing.
  const keepsFiles = row.pauseMode === 'filesystem' || machineState === 'halted';
  if (keepsFiles && machineState !== 'halted') {
    await deadline(runtime.halt(row.id), REACH_TIMEOUT_MS, 'Halting the sandbox');
  }
  const signal = AbortSignal.timeout(REACH_TIMEOUT_MS);
  const instance = await giveUp(runtime.adopt(row.id, signal), signal);
  const paused = row.state === 'paused' || machineState === 'paused';
  if (paused && !keepsFiles && machineState === 'running') {
    await deadline(runtime.pause(row.id), REACH_TIMEOUT_MS, 'Pausing the sandbox');
  }
  const pauseMode = !paused ? undefined : keepsFiles ? 'filesystem' : 'full';
  if (pauseMode !== undefined && (row.state === 'running' || row.pauseMode !== pauseMode)) {
    await store.updateSandbox(row.id, { state: 'paused', pauseMode, endAt: Math.min(row.endAt, now()) });
  }
  const endAt = paused ? Math.min(row.endAt, now()) : row.endAt;
  return { ...withTokens(row, secrets), state: paused ? 'paused' : 'running', pauseMode, endAt, instance };
}
