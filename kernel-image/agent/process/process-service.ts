import type { ServiceImpl } from '@connectrpc/connect';
import type { Process } from '../../../protocol/envd/gen/process_pb';
import type { AgentContext } from '../app';

/** `process.Process`: commands and terminals. */
export function createProcessService(_context: AgentContext): Partial<ServiceImpl<typeof Process>> {
  return {};
}
