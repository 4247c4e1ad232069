import type { HandlerContext } from '@connectrpc/connect';
import { create } from '@bufbuild/protobuf';
import { EntryInfoSchema } from '../../../protocol/envd/gen/filesystem_pb';
import type { EntryInfo } from '../../../protocol/envd/gen/filesystem_pb';
import type { FileEntry } from './entry';
import { entryMessage } from './entry-codec';

/** Old Python clients, known by exactly this name, fail on fields that they don't know. */
const LEGACY_AGENT = 'connect-python';

/** Whether a call's client must not be sent newer fields: an event to such a client carries no entry. */
export function isLegacyClient(call: HandlerContext): boolean {
  return call.requestHeader.get('user-agent') === LEGACY_AGENT;
}

/** The entry with the fields that the call's client knows. */
export function forClient(call: HandlerContext, entry: FileEntry): EntryInfo {
  if (!isLegacyClient(call)) return entryMessage(entry);
  call.responseHeader.set('X-E2B-Legacy-SDK', 'true');
  return create(EntryInfoSchema, { name: entry.name, type: entry.type, path: entry.path });
}
