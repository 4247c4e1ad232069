import { create } from '@bufbuild/protobuf';
import { randomBytes } from 'node:crypto';
import fs from 'node:fs/promises';
import { Code, ConnectError } from '@connectrpc/connect';
import type { HandlerContext, ServiceImpl } from '@connectrpc/connect';
import { WatchDirResponseSchema } from '../../../../protocol/envd/gen/filesystem_pb';
import type {
  CreateWatcherRequest,
  Filesystem,
  WatchDirRequest,
} from '../../../../protocol/envd/gen/filesystem_pb';
import type { AgentContext } from '../../app';
import { callerOf, streamEvents } from '../../rpc';
import { resolvePath } from '../../users';
import { describe, entryView } from '../entry';
import { entryMessage } from '../entry-codec';
import { isLegacyClient } from '../legacy-client';
import { Hub } from './hub';
import { isNetworkMount } from './network-mount';
import { Watcher } from './watcher';
import { watchFailure } from './watch-failure';

export interface WatchLimits {
  /** Streams and polled watchers together. */
  maxWatchers: number;
  /** Events that wait in one of them. */
  maxEvents: number;
  /** A polled watcher that nobody asks for this long is removed. */
  idleMs: number;
}

const LIMITS: WatchLimits = { maxWatchers: 256, maxEvents: 100_000, idleMs: 3_600_000 };

type WatchService = Pick<
  ServiceImpl<typeof Filesystem>,
  'watchDir' | 'createWatcher' | 'getWatcherEvents' | 'removeWatcher'
>;

/** A watcher that is asked for its events, and the timer that ends it when it is not. */
interface PolledWatcher {
  watcher: Watcher;
  idle: NodeJS.Timeout;
  remove: () => void;
}

/**
 * Watching directories: as a stream, or by asking. Polled watchers live in this process's memory: after a restart of
 * the agent they are `not_found`, as after `idleMs` without a call.
 */
export function createWatchService(context: AgentContext, limits: WatchLimits = LIMITS): WatchService {
  const hub = new Hub();
  const polled = new Map<string, PolledWatcher>();
  let count = 0;

  /** The started watcher, and what ends it: to be called once. */
  async function open(
    request: WatchDirRequest | CreateWatcherRequest,
    call: HandlerContext,
  ): Promise<{ watcher: Watcher; close: () => void }> {
    if (count >= limits.maxWatchers) {
      throw new ConnectError(
        `this sandbox has ${limits.maxWatchers} watchers, and may not have more`,
        Code.ResourceExhausted,
      );
    }
    count += 1;
    let watcher: Watcher | undefined;
    let closed = false;
    const close = () => {
      if (closed) return;
      closed = true;
      count -= 1;
      watcher?.close();
    };
    try {
      const apiPath = resolvePath(request.path, callerOf(call), context.state.defaultWorkdir);
      const diskPath = context.users.toDisk(apiPath);
      await checkDirectory(context, apiPath, diskPath, request.allowNetworkMounts);
      const wantsEntry = request.includeEntry && !isLegacyClient(call);
      const view = wantsEntry ? await entryView(context, callerOf(call)) : undefined;
      watcher = new Watcher(hub, {
        apiPath,
        diskPath,
        recursive: request.recursive,
        describe: view && ((spelled, place) => entryMessage(describe(view, spelled, place))),
        maxEvents: limits.maxEvents,
      });
      await watcher.start(call.signal);
      return { watcher, close };
    } catch (error) {
      close();
      throw error;
    }
  }

  function find(id: string): PolledWatcher {
    const found = polled.get(id);
    if (found === undefined) throw new ConnectError(`there is no watcher '${id}'`, Code.NotFound);
    return found;
  }

  return {
    async *watchDir(request, call) {
      const { watcher, close } = await open(request, call);
      // Also while the client takes nothing, when none of our awaits would notice that it left.
      call.signal.addEventListener('abort', close, { once: true });
      try {
        yield create(WatchDirResponseSchema, { event: { case: 'start', value: {} } });
        const source = {
          next: async () => {
            const value = await watcher.next();
            return value && create(WatchDirResponseSchema, { event: { case: 'filesystem', value } });
          },
        };
        const keepalive = () => create(WatchDirResponseSchema, { event: { case: 'keepalive', value: {} } });
        yield* streamEvents(source, call, keepalive);
      } finally {
        call.signal.removeEventListener('abort', close);
        close();
      }
    },

    async createWatcher(request, call) {
      const { watcher, close } = await open(request, call);
      const id = `w${randomBytes(12).toString('hex')}`;
      const remove = () => {
        polled.delete(id);
        close();
      };
      polled.set(id, { watcher, idle: setTimeout(remove, limits.idleMs).unref(), remove });
      return { watcherId: id };
    },

    async getWatcherEvents(request) {
      const { watcher, idle } = find(request.watcherId);
      idle.refresh();
      return { events: await watcher.takeAll() };
    },

    removeWatcher(request) {
      const { idle, remove } = find(request.watcherId);
      clearTimeout(idle);
      remove();
      return {};
    },
  };
}

async function checkDirectory(
  context: AgentContext,
  apiPath: string,
  diskPath: string,
  allowNetworkMounts: boolean,
): Promise<void> {
  if (process.platform !== 'linux') {
    throw new ConnectError('watching directories needs Linux', Code.Unimplemented);
  }
  try {
    const found = await fs.stat(diskPath);
    if (!found.isDirectory()) throw new ConnectError(`'${apiPath}' is not a directory`, Code.InvalidArgument);
    if (!allowNetworkMounts && (await isNetworkMount(context, diskPath, found.dev))) {
      throw new ConnectError(
        `'${apiPath}' is on a network mount, where changes by others are not seen; ` +
          'set allow_network_mounts to watch it all the same',
        Code.InvalidArgument,
      );
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') {
      throw new ConnectError(`'${apiPath}' does not exist`, Code.NotFound);
    }
    throw watchFailure(error);
  }
}
