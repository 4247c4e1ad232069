import type { KernelMessage } from '@jupyterlab/services/lib/kernel';
import { z } from 'zod';
import type { KernelDeath } from './endings';

/** What our gateway adds to the status message that announces a death; see `cellbox_kernel/endings.py`. */
const Death = z.object({
  exit_code: z.int().optional().catch(undefined),
  signal: z.string().max(64).optional().catch(undefined),
  oom: z.boolean().optional().catch(undefined),
  memory_peak_bytes: z.number().nonnegative().optional().catch(undefined),
  memory_limit_bytes: z.number().nonnegative().optional().catch(undefined),
});

/** How a kernel ended, from a status message that says so; undefined for every other message. */
export function readDeath(message: KernelMessage.IMessage): KernelDeath | undefined {
  const state = (message.content as { execution_state?: unknown }).execution_state;
  if (state !== 'restarting' && state !== 'dead') return undefined;
  return deathOf((message.metadata as { cellbox?: unknown }).cellbox);
}

/** What a gateway says of an end of a process, in a message or in a kernel's model. */
export function deathOf(ending: unknown): KernelDeath {
  const told = Death.safeParse(ending);
  if (!told.success) return {};
  const { exit_code, signal, oom, memory_peak_bytes, memory_limit_bytes } = told.data;
  return {
    ...(exit_code !== undefined && { exitCode: exit_code }),
    ...(signal !== undefined && { signal }),
    ...(oom !== undefined && { oom }),
    ...(memory_peak_bytes !== undefined && { memoryPeakBytes: memory_peak_bytes }),
    ...(memory_limit_bytes !== undefined && { memoryLimitBytes: memory_limit_bytes }),
  };
}

const MIB = 1_048_576;

/** The same for people, in one sentence without a full stop. */
export function describeDeath({ oom, signal, exitCode, memoryLimitBytes }: KernelDeath): string {
  if (oom === true) {
    const limit = memoryLimitBytes === undefined ? '' : ` of ${Math.round(memoryLimitBytes / MIB)} MiB`;
    return `A kernel was killed because the memory${limit} ran out`;
  }
  if (signal !== undefined) return `A kernel was killed by ${signal}`;
  return exitCode === undefined ? 'A kernel ended' : `A kernel ended with exit code ${exitCode}`;
}

const Used = z.object({
  cpu_ms: z.number().nonnegative().optional().catch(undefined),
  memory_peak_bytes: z.number().nonnegative().optional().catch(undefined),
});

/** What a kernel says in its reply that the cell used. */
export function readUsage(reply: KernelMessage.IExecuteReplyMsg): {
  cpuMs?: number;
  memoryPeakBytes?: number;
} {
  const told = Used.safeParse((reply.metadata as { cellbox?: unknown } | undefined)?.cellbox);
  if (!told.success) return {};
  const { cpu_ms, memory_peak_bytes } = told.data;
  return {
    ...(cpu_ms !== undefined && { cpuMs: cpu_ms }),
    ...(memory_peak_bytes !== undefined && { memoryPeakBytes: memory_peak_bytes }),
  };
}

/** Whether the cell asked its kernel to end, as `exit()` does, which happens after the reply. */
export function asksToExit(reply: KernelMessage.IExecuteReplyMsg): boolean {
  const { payload } = reply.content as { payload?: unknown };
  return (
    Array.isArray(payload) &&
    payload.some((each: { source?: unknown; keepkernel?: unknown } | null) => {
      return each?.source === 'ask_exit' && !each.keepkernel;
    })
  );
}
