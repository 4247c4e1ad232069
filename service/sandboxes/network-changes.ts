import type { Logger } from '../log';
import type { Runtime } from '../runtime/runtime';
import { gone, inTurn, isOver } from './entry';
import type { Entry } from './entry';
import { accessOf } from './network';
import type { Egress } from './network';
import type { SandboxLog } from './sandbox-log';
import type { Store } from './store';
import { deadline } from './waiting';

export interface NetworkChangesOptions {
  runtime: Runtime;
  store: Store;
  logger: Logger;
  log: SandboxLog;
}

/** How long new network rules may take. */
const NETWORK_TIMEOUT_MS = 30_000;

/** Changes what sandboxes may reach, for each of them one change after another. */
export class NetworkChanges {
  constructor(private readonly options: NetworkChangesOptions) {}

  /**
   * Resolves when it holds, also for connections that stand; of a paused sandbox, when it holds before anything runs there.
   * A pause or resume under way is waited for. A change that fails is taken back.
   */
  async make(entry: Entry, egress: Egress): Promise<void> {
    while (entry.phase !== 'running' && entry.transition !== undefined) await entry.transition;
    if (isOver(entry)) throw gone(entry.sandbox.id);
    const work = () => this.change(entry, egress);
    if (entry.phase !== 'running') return inTurn(entry, work); // a resume comes after it
    const change = entry.networkTurn.then(work);
    entry.networkTurn = change.catch(() => undefined); // the caller hears of it
    await change;
  }

  private async change(entry: Entry, egress: Egress): Promise<void> {
    const { runtime, store, logger, log } = this.options;
    const { sandbox } = entry;
    const { id } = sandbox;
    const setAccess = (to: Egress) =>
      deadline(runtime.setNetwork(id, accessOf(to)), NETWORK_TIMEOUT_MS, 'Setting the network rules');
    const access = accessOf(egress);
    if (typeof access === 'object') await runtime.prepareNetwork(access);
    try {
      await setAccess(egress);
      // The machine first: after a crash in between it gets the old rules again, and nobody was told of the new.
      await store.updateSandbox(id, egress);
    } catch (error) {
      if (isOver(entry)) throw gone(id);
      await setAccess(sandbox).catch((cause: unknown) =>
        logger.error(
          { sandboxId: id, err: cause },
          'network rules that were not recorded could not be taken back',
        ),
      );
      throw error;
    }
    sandbox.allowInternetAccess = egress.allowInternetAccess;
    sandbox.allowOut = egress.allowOut;
    sandbox.denyOut = egress.denyOut;
    log.note(sandbox, 'info', 'What the sandbox may reach was changed');
  }
}
