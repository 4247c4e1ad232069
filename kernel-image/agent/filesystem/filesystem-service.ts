import type { ServiceImpl } from '@connectrpc/connect';
import type { Filesystem } from '../../../protocol/envd/gen/filesystem_pb';
import type { AgentContext } from '../app';

/** `filesystem.Filesystem`: everything about files but their contents. */
export function createFilesystemService(_context: AgentContext): Partial<ServiceImpl<typeof Filesystem>> {
  return {};
}
