import { z } from 'zod';

const count = z.number().int().min(0).max(Number.MAX_SAFE_INTEGER);

/** What the agent answers to `GET /metrics`. Amounts are bytes where the name doesn't say otherwise. */
export const AgentMetrics = z.object({
  /** Seconds since the epoch, by the sandbox's clock. */
  ts: count,
  cpu_count: count.min(1).max(65_536),
  /** Of all `cpu_count` processors together, since the call before: 100 when all of them were busy. */
  cpu_used_pct: z.number().min(0).max(100),
  mem_total: count,
  /** Without file pages that the kernel gives back when asked. */
  mem_used: count,
  mem_cache: count,
  mem_total_mib: count,
  mem_used_mib: count,
  disk_used: count,
  disk_total: count,
});
export type AgentMetrics = z.infer<typeof AgentMetrics>;
