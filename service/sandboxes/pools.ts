import os from 'node:os';
import { ServiceError } from '../errors';
import type { Logger } from '../log';
import { outsideScope } from '../observability/scope';
import { pingAgent } from '../runtime/instance-start';
import type { Instance, Runtime } from '../runtime/runtime';
import type { MachineStopper } from './machine-stopper';
import { Pool } from './pool';
import type { PoolHost, PoolSize, PoolStatus } from './pool';
import { newSandboxId, ownEnv } from './sandbox';
import { BUILT_IN_TEMPLATES } from './templates';
import type { Template, Templates } from './templates';

/** What makes a machine ready beyond its agent: for the service, the interpreter with the default kernel. */
export interface Warmer {
  /** Resolves when a first cell would run at once; rejects when it won't. Bounded by itself. */
  warm(machine: { id: string; env: Record<string, string>; instance: Instance }): Promise<void>;
  /** Whether that holds now, as far as is known without asking. */
  isWarm(id: string): boolean;
  /** It ends, unclaimed. */
  drop(id: string): void;
  /** Kernels that somebody waits for, of machines that did not come from a pool. */
  readonly underWay: number;
}

export interface PoolsOptions {
  runtime: Runtime;
  warmer: Warmer;
  /** By template id; the others' pools are off until `setSize`. */
  sizes: ReadonlyMap<string, PoolSize>;
  stopper: MachineStopper;
  logger: Logger;
  templates: Templates;
  startTimeoutMs: number;
  now: () => number;
  /** How many machines there may be besides the sandboxes there are. */
  room: () => number;
  /** Fresh machines under way that somebody waits for: they come first. */
  coldStarts: () => number;
  /** Machines started at a time, pooled and others together. Default: one per processor. */
  parallel?: number;
  checkEveryMs?: number;
  freeMemoryMB?: () => number;
}

/**
 * Starting a successor takes a processor for a second. After a claim the first cell comes before that: without the pause,
 * create and first result together took 7 ms longer on two processors.
 */
const WAKE_AFTER_MS = 100;
const CHECK_EVERY_MS = 15_000;
const CHECK_TIMEOUT_MS = 5_000;
/** With less the host needs it for sandboxes that somebody uses. An idle machine takes 150 to 250 MiB. */
const ENOUGH_MEMORY_MB = 1024;

/**
 * One pool per template, of machines as the template has them: a create that asks for others starts its own. They stay
 * empty until `open`, which the service calls when it serves, and are empty for good after `close`.
 */
export class Pools {
  private readonly pools: ReadonlyMap<string, Pool>;
  private readonly parallel: number;
  private timer: NodeJS.Timeout | undefined;
  private waking: NodeJS.Timeout | undefined;
  private isOpen = false;
  private isClosed = false;

  constructor(private readonly options: PoolsOptions) {
    this.parallel = options.parallel ?? os.availableParallelism();
    const off: PoolSize = { min: 0, target: 0, max: 0 };
    this.pools = new Map(
      options.templates.all.map((template) => [
        template.id,
        new Pool(options.sizes.get(template.id) ?? off, this.hostFor(template)),
      ]),
    );
  }

  /** Begins to fill them. */
  open(): void {
    if (this.isOpen || this.isClosed) return;
    this.isOpen = true;
    this.timer = setInterval(() => {
      for (const pool of this.pools.values()) void pool.check(); // never rejects
    }, this.options.checkEveryMs ?? CHECK_EVERY_MS).unref();
    this.wake();
  }

  /** See `Pool.claim`. */
  async claim(templateId: string, signal: AbortSignal): Promise<Instance | undefined> {
    return this.isOpen ? this.pools.get(templateId)?.claim(signal) : undefined;
  }

  /** Ends a claimed machine that is not used after all; `error` when that is the machine's fault. */
  discard(templateId: string, instance: Instance, error?: unknown): void {
    this.end(instance);
    if (error !== undefined) this.pools.get(templateId)?.reportFailure(error);
  }

  list(): Array<PoolStatus & { template: Template }> {
    return this.options.templates.all.map((template) => ({ template, ...this.pool(template).status }));
  }

  /** @throws ServiceError `invalid_argument` for a size that contradicts itself */
  setSize(template: Template, size: PoolSize): PoolStatus {
    const pool = this.pool(template);
    pool.setSize(checkedSize(size));
    if (this.isOpen) pool.adjust();
    return pool.status;
  }

  /** Something changed that the pools depend on: they act in a moment. */
  wake(): void {
    if (!this.isOpen) return;
    this.waking ??= setTimeout(() => {
      this.waking = undefined;
      outsideScope(() => {
        for (const pool of this.pools.values()) pool.adjust();
      });
    }, WAKE_AFTER_MS).unref();
  }

  /** Empties them for good; resolves when no start is under way any more. Idempotent. */
  async close(): Promise<void> {
    this.isOpen = false;
    this.isClosed = true;
    clearInterval(this.timer);
    clearTimeout(this.waking);
    await Promise.all([...this.pools.values()].map((pool) => pool.close()));
  }

  private pool(template: Template): Pool {
    const pool = this.pools.get(template.id);
    if (pool === undefined) throw new Error(`no pool of ${template.id}`);
    return pool;
  }

  private hostFor(template: Template): PoolHost {
    const { runtime, warmer, logger, startTimeoutMs, now } = this.options;
    const envOf = (id: string) => ownEnv(id, template.id);
    return {
      start: async (signal) => {
        const id = newSandboxId();
        const spec = {
          id,
          env: envOf(id),
          resources: template.resources,
          network: 'full',
          ...(template.isolation !== undefined && { isolation: template.isolation }),
          labels: { pool: 'ready', template: template.id },
          // It counts when no service is in contact: then nobody is going to claim it.
          deadlineAt: now() + startTimeoutMs,
        } as const;
        return runtime.start(spec, AbortSignal.any([signal, AbortSignal.timeout(startTimeoutMs)]));
      },
      warm: (instance) => warmer.warm({ id: instance.id, env: envOf(instance.id), instance }),
      isWarm: (instance) => warmer.isWarm(instance.id),
      check: async (instance) => {
        await pingAgent(instance, AbortSignal.timeout(CHECK_TIMEOUT_MS));
        if (!warmer.isWarm(instance.id)) throw new ServiceError('unavailable', 'Its kernel does not answer');
      },
      end: (instance) => this.end(instance),
      isBusy: () => this.underWay() + this.options.coldStarts() + warmer.underWay >= this.parallel,
      changed: () => this.wake(),
      room: () => this.options.room() - this.held(),
      isMemoryShort: () => (this.options.freeMemoryMB ?? freeMemoryMB)() < ENOUGH_MEMORY_MB,
      now,
      logger: logger.child({ pool: template.alias }),
    };
  }

  private end(instance: Instance): void {
    this.options.warmer.drop(instance.id);
    this.options.stopper.stop(instance.id);
  }

  private underWay(): number {
    let sum = 0;
    for (const pool of this.pools.values()) sum += pool.underWay;
    return sum;
  }

  private held(): number {
    let sum = 0;
    for (const pool of this.pools.values()) sum += pool.held;
    return sum;
  }
}

/** The sizes by template that the settings ask for: only what the code interpreter's SDK starts is kept ready. */
export function poolSizes(settings: {
  poolSize: number;
  poolMin: number;
  poolMax: number | undefined;
}): ReadonlyMap<string, PoolSize> {
  const { poolSize: target, poolMin: min, poolMax = 2 * target } = settings;
  const template = BUILT_IN_TEMPLATES.find(({ alias }) => alias === 'code-interpreter-v1');
  return new Map(template && [[template.id, checkedSize({ min, target, max: poolMax })]]);
}

/** @throws ServiceError `invalid_argument` */
function checkedSize(size: PoolSize): PoolSize {
  if (size.min <= size.target && size.target <= size.max) return size;
  throw new ServiceError(
    'invalid_argument',
    `A pool's sizes must be min ≤ target ≤ max, not ${size.min}, ${size.target}, ${size.max}`,
    {
      remedy:
        'They are CELLBOX_POOL_MIN, CELLBOX_POOL_SIZE and CELLBOX_POOL_MAX, or the fields of the request.',
    },
  );
}

/** What programs could have, caches counted as free. */
function freeMemoryMB(): number {
  return os.freemem() / 1_048_576;
}
