import fs from 'node:fs/promises';
import type { Stats } from 'node:fs';
import path from 'node:path';
import { Code, ConnectError } from '@connectrpc/connect';
import type { HandlerContext, ServiceImpl } from '@connectrpc/connect';
import type { EntryInfo, Filesystem } from '../../../protocol/envd/gen/filesystem_pb';
import type { AgentContext } from '../app';
import { callerOf } from '../rpc';
import { jsonAnswerOf } from '../plain-calls';
import { resolvePath } from '../users';
import type { SandboxUser } from '../users';
import { Utf8Chunks } from '../utf8-chunks';
import { makeDirectories } from './directories';
import { entryView, readEntry } from './entry';
import type { FileEntry } from './entry';
import { entryText } from './entry-codec';
import { errorCode, fileFailure } from './failure';
import { listDirectory } from './list';
import { forClient, isLegacyClient } from './legacy-client';
import { removeTree } from './remove';
import { createWatchService } from './watch/watch-service';

/** `filesystem.Filesystem`: everything about files but their contents. */
export function createFilesystemService(context: AgentContext): Partial<ServiceImpl<typeof Filesystem>> {
  const { users } = context;

  const caller = (call: HandlerContext, text: string): { user: SandboxUser; apiPath: string } => {
    const user = callerOf(call);
    return { user, apiPath: resolvePath(text, user, context.state.defaultWorkdir) };
  };
  const entryOf = (user: SandboxUser, apiPath: string) => {
    try {
      return readEntry(context, user, apiPath);
    } catch (error) {
      throw fileFailure(error, apiPath);
    }
  };

  return {
    ...createWatchService(context),

    stat: async (request, call) => {
      const { user, apiPath } = caller(call, request.path);
      return { entry: forClient(call, entryOf(user, apiPath)) };
    },

    makeDir: async (request, call) => {
      const { user, apiPath } = caller(call, request.path);
      await requireNothing(users.toDisk(apiPath), apiPath);
      try {
        await makeDirectories(context, user, users.toDisk(apiPath));
      } catch (error) {
        throw fileFailure(error, apiPath);
      }
      return { entry: forClient(call, entryOf(user, apiPath)) };
    },

    move: async (request, call) => {
      const { user, apiPath: source } = caller(call, requireNamed(request.source, 'source'));
      const { apiPath: destination } = caller(call, requireNamed(request.destination, 'destination'));
      try {
        // First, so that a mistake in the source makes no directories.
        await fs.lstat(users.toDisk(source));
      } catch (error) {
        throw fileFailure(error, source);
      }
      try {
        await makeDirectories(context, user, path.posix.dirname(users.toDisk(destination)));
        await fs.rename(users.toDisk(source), users.toDisk(destination));
      } catch (error) {
        throw moveFailure(error, source, destination);
      }
      return { entry: forClient(call, entryOf(user, destination)) };
    },

    remove: async (request, call) => {
      const { apiPath } = caller(call, requireNamed(request.path, 'path'));
      const place = requireRemovable(apiPath);
      try {
        await removeTree(users.toDisk(place));
      } catch (error) {
        throw fileFailure(error, apiPath);
      }
      return {};
    },

    listDir: async (request, call) => {
      const { user, apiPath } = caller(call, request.path);
      const view = entryView(context, user);
      const list = (tell: (entry: FileEntry) => void): Promise<void> =>
        listDirectory(view, apiPath, users.toDisk(apiPath), request.depth || 1, tell);
      const answer = jsonAnswerOf(call);
      if (answer !== undefined && !isLegacyClient(call)) {
        // No objects: of thousands that live to the end each is copied twice by the garbage collector.
        const json = new Utf8Chunks();
        let separator = '{"entries":[';
        await list((entry) => {
          json.add(separator + entryText(entry));
          separator = ',';
        });
        // A list of nothing is left out.
        json.add(separator === ',' ? ']}' : '{}');
        answer.chunks = json.take();
        return {};
      }
      const entries: EntryInfo[] = [];
      await list((entry) => entries.push(forClient(call, entry)));
      return { entries };
    },
  };
}

/** An empty path means the working directory elsewhere; no one means that when they remove or move. */
function requireNamed(text: string, field: string): string {
  if (text === '') throw new ConnectError(`${field} must not be empty`, Code.InvalidArgument);
  return text;
}

/** Without slashes at its end: `link/` is what the link leads to, and to remove that is not what was asked. */
function requireRemovable(apiPath: string): string {
  const place = apiPath.replace(/\/+$/, '');
  const name = path.posix.basename(place);
  if (name === '' || name === '.' || name === '..' || path.posix.normalize(place) === '/') {
    throw new ConnectError(`path '${apiPath}' can't be removed`, Code.InvalidArgument);
  }
  return place;
}

async function requireNothing(diskPath: string, apiPath: string): Promise<void> {
  let found: Stats;
  try {
    found = await fs.stat(diskPath);
  } catch (error) {
    if (errorCode(error) === 'ENOENT') return;
    throw fileFailure(error, apiPath);
  }
  if (found.isDirectory()) {
    throw new ConnectError(`path '${apiPath}' is a directory already`, Code.AlreadyExists);
  }
  throw new ConnectError(`path '${apiPath}' exists and is not a directory`, Code.InvalidArgument);
}

function moveFailure(error: unknown, source: string, destination: string): ConnectError {
  const code = errorCode(error);
  // Gone since it was looked at.
  if (code === 'ENOENT') return fileFailure(error, source);
  if (code === 'EXDEV') {
    const message = `'${source}' can't be moved to another file system, where '${destination}' would be`;
    return new ConnectError(message, Code.Internal);
  }
  return fileFailure(error, destination);
}
