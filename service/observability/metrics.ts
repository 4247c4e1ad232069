import fs from 'node:fs';
import { STATUS_CODES } from 'node:http';
import { Counter, Gauge, Histogram, Registry } from 'prom-client';
import { TERMINATIONS } from '../../protocol/interpreter';
import type { Accounting, Termination } from '../../protocol/interpreter';
import { watchEventLoop } from './event-loop';
import type { RequestKind } from './request-observer';
import { REQUEST_KINDS } from './request-observer';

/** How a create ended. `pooled`: it got a machine that was kept ready. */
export interface CreateOutcome {
  /** `ok`, or the word of the `ServiceError` that it ended with. */
  result: string;
  pooled: boolean;
  seconds: number;
}

export interface RequestOutcome {
  kind: RequestKind;
  isCommand: boolean;
  status: number | 'aborted';
  method: string;
  route: string | undefined;
  seconds: number;
}

export const SANDBOX_STATES = ['starting', 'running', 'paused', 'stopping'] as const;
export type SandboxState = (typeof SANDBOX_STATES)[number];

/** One pool as the metrics tell it. */
export interface PoolFigures {
  template: string;
  ready: number;
  starting: number;
  target: number;
  claimedTotal: number;
  missesTotal: number;
  /** Milliseconds since the epoch; undefined: never. */
  lastErrorAt: number | undefined;
}

/** Who is asked when the metrics are. */
export interface MetricSources {
  sandboxes(): Record<SandboxState, number>;
  pools(): PoolFigures[];
}

const CREATE_BUCKETS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];
const REQUEST_BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30];
const EXECUTION_BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800];
const MIB = 1_048_576;
const MEMORY_BUCKETS = [64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768].map((size) => size * MIB);
const KNOWN_STATUSES = new Set(Object.keys(STATUS_CODES));

/**
 * The service's metrics for Prometheus; docs/METRICS.md describes each. Labels take few, known values: never an id, never
 * a text of a client. What is a state is read when the metrics are asked for; the rest is counted as it happens.
 *
 * `close` ends the measuring of the event loop; idempotent.
 */
export class ServiceMetrics {
  readonly registry = new Registry();
  private sources: MetricSources | undefined;
  private readonly loop: { close(): void };

  private readonly creates = this.counter('cellbox_sandbox_creates_total', 'Creates by how they ended', [
    'result',
    'pooled',
  ]);
  private readonly createSeconds = this.histogram(
    'cellbox_sandbox_create_duration_seconds',
    'Time from the checked request to the live sandbox, of creates that succeeded',
    CREATE_BUCKETS,
    ['pooled'],
  );
  private readonly executions = this.counter(
    'cellbox_executions_total',
    'Executions that ended, by their termination',
    ['termination'],
  );
  private readonly queueSeconds = this.histogram(
    'cellbox_execution_queue_seconds',
    'Time that executions waited for their turn and their kernel',
    EXECUTION_BUCKETS,
  );
  private readonly wallSeconds = this.histogram(
    'cellbox_execution_wall_seconds',
    'Time from the kernel taking an execution to its end',
    EXECUTION_BUCKETS,
  );
  private readonly cpuSeconds = this.histogram(
    'cellbox_execution_cpu_seconds',
    'Processor time of executions, where the kernel tells it',
    EXECUTION_BUCKETS,
  );
  private readonly memoryBytes = this.histogram(
    'cellbox_execution_memory_peak_bytes',
    'Peak memory of executions, where it is known',
    MEMORY_BUCKETS,
  );
  private readonly outputBytes = this.counter(
    'cellbox_execution_output_bytes_total',
    'Text and results that executions put out',
  );
  private readonly commands = this.counter(
    'cellbox_commands_total',
    'Requests to start a command or terminal, by the status of their stream',
    ['status'],
  );
  private readonly commandsOpen = this.gauge(
    'cellbox_command_streams_open',
    'Streams of commands and terminals that their clients follow now',
  );
  private readonly requests = this.counter(
    'cellbox_requests_total',
    'Requests that ended, by who answered and status',
    ['kind', 'status'],
  );
  private readonly requestsOpen = this.gauge(
    'cellbox_requests_open',
    'Requests and upgraded connections now',
    ['kind'],
  );
  private readonly apiSeconds = this.histogram(
    'cellbox_api_request_duration_seconds',
    'Time of requests to the control plane and the native API, streams included',
    REQUEST_BUCKETS,
    ['method', 'route'],
  );
  private readonly engineErrors = this.counter(
    'cellbox_engine_errors_total',
    'Operations of the runtime that failed',
    ['operation', 'code'],
  );
  private readonly engineSeconds = this.histogram(
    'cellbox_engine_operation_duration_seconds',
    'Time of operations of the runtime that succeeded',
    CREATE_BUCKETS,
    ['operation'],
  );
  private readonly loopDelay = this.histogram(
    'cellbox_event_loop_delay_seconds',
    'How late a timer fired that is set every 100 ms',
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5],
  );

  constructor(version: string) {
    this.gauge('cellbox_build_info', 'Always 1; the version is in the label', ['version']).set(
      { version },
      1,
    );
    for (const termination of TERMINATIONS) this.executions.inc({ termination }, 0);
    for (const kind of REQUEST_KINDS) this.requestsOpen.set({ kind }, 0);
    for (const pooled of ['true', 'false']) this.creates.inc({ result: 'ok', pooled }, 0);
    this.sampleProcess();
    this.sampleSandboxes();
    this.samplePools();
    this.loop = watchEventLoop((seconds) => this.loopDelay.observe(seconds));
  }

  /** From now on states and pools are told. */
  watch(sources: MetricSources): void {
    this.sources = sources;
  }

  createEnded({ result, pooled, seconds }: CreateOutcome): void {
    this.creates.inc({ result, pooled: String(pooled) });
    if (result === 'ok') this.createSeconds.observe({ pooled: String(pooled) }, seconds);
  }

  executionEnded(termination: Termination, accounting: Accounting): void {
    this.executions.inc({ termination });
    this.queueSeconds.observe(accounting.queued_ms / 1000);
    this.wallSeconds.observe(accounting.wall_ms / 1000);
    if (accounting.cpu_ms !== null) this.cpuSeconds.observe(accounting.cpu_ms / 1000);
    if (accounting.memory_peak_bytes !== null) this.memoryBytes.observe(accounting.memory_peak_bytes);
    this.outputBytes.inc(accounting.output_bytes);
  }

  requestBegins(kind: RequestKind, isCommand: boolean): void {
    this.requestsOpen.inc({ kind });
    if (isCommand) this.commandsOpen.inc();
  }

  requestEnds({ kind, isCommand, status: code, method, route, seconds }: RequestOutcome): void {
    // Programs in sandboxes make up any number: only those that mean something become a label.
    const status = code === 'aborted' || KNOWN_STATUSES.has(String(code)) ? String(code) : 'other';
    this.requestsOpen.dec({ kind });
    this.requests.inc({ kind, status });
    if (isCommand) {
      this.commandsOpen.dec();
      this.commands.inc({ status });
    }
    if (kind === 'control_plane') this.apiSeconds.observe({ method, route: route ?? 'none' }, seconds);
  }

  engineSucceeded(operation: string, seconds: number): void {
    this.engineSeconds.observe({ operation }, seconds);
  }

  engineFailed(operation: string, code: string): void {
    this.engineErrors.inc({ operation, code });
  }

  close(): void {
    this.loop.close();
  }

  // --- asked for when the metrics are -----------------------------------------------------------------------------

  private sampleProcess(): void {
    const startedAt = Date.now() / 1000 - process.uptime();
    this.sampled('process_start_time_seconds', 'When the process started, since the epoch', [], (gauge) =>
      gauge.set(startedAt),
    );
    this.sampled('process_resident_memory_bytes', 'Memory of the process', [], (gauge) =>
      gauge.set(process.memoryUsage.rss()),
    );
    this.sampled('nodejs_heap_size_used_bytes', 'Heap in use', [], (gauge) =>
      gauge.set(process.memoryUsage().heapUsed),
    );
    this.sampled('nodejs_external_memory_bytes', 'Memory of buffers and the like', [], (gauge) =>
      gauge.set(process.memoryUsage().external),
    );
    this.sampled('process_open_fds', 'Open files and sockets, where the system tells', [], (gauge) => {
      try {
        gauge.set(fs.readdirSync('/proc/self/fd').length);
      } catch {
        gauge.set(Number.NaN); // no /proc here
      }
    });
    const cpu = this.counter('process_cpu_seconds_total', 'Processor time of the process');
    let told = 0;
    // A counter only adds: what came since the last time.
    Object.assign(cpu, {
      collect: () => {
        const { user, system } = process.cpuUsage();
        const now = (user + system) / 1e6;
        cpu.inc(Math.max(0, now - told));
        told = now;
      },
    });
  }

  private sampleSandboxes(): void {
    this.sampled('cellbox_sandboxes', 'Sandboxes by state', ['state'], (gauge) => {
      const counts = this.sources?.sandboxes();
      for (const state of SANDBOX_STATES) gauge.set({ state }, counts?.[state] ?? 0);
    });
  }

  private samplePools(): void {
    const figures: Array<[name: string, help: string, read: (pool: PoolFigures) => number | undefined]> = [
      ['cellbox_pool_ready', 'Machines kept ready', (pool) => pool.ready],
      ['cellbox_pool_starting', 'Machines on their way into the pool', (pool) => pool.starting],
      ['cellbox_pool_target', 'Machines that should be ready', (pool) => pool.target],
      [
        'cellbox_pool_last_error_timestamp_seconds',
        'When a machine of the pool failed last; absent when none did',
        (pool) => (pool.lastErrorAt === undefined ? undefined : pool.lastErrorAt / 1000),
      ],
    ];
    for (const [name, help, read] of figures) {
      this.sampled(name, help, ['template'], (gauge) => {
        for (const pool of this.sources?.pools() ?? []) {
          const value = read(pool);
          if (value !== undefined) gauge.set({ template: pool.template }, value);
        }
      });
    }
    const totals: Array<[name: string, help: string, read: (pool: PoolFigures) => number]> = [
      ['cellbox_pool_claims_total', 'Creates that got a machine of the pool', (pool) => pool.claimedTotal],
      ['cellbox_pool_misses_total', 'Creates that found the pool empty', (pool) => pool.missesTotal],
    ];
    for (const [name, help, read] of totals) {
      const counter = this.counter(name, help, ['template']);
      Object.assign(counter, {
        collect: () => {
          counter.reset();
          for (const pool of this.sources?.pools() ?? [])
            counter.inc({ template: pool.template }, read(pool));
        },
      });
    }
  }

  // --- making them ------------------------------------------------------------------------------------------------

  private counter<Label extends string>(
    name: string,
    help: string,
    labelNames: Label[] = [],
  ): Counter<Label> {
    return new Counter({ name, help, labelNames, registers: [this.registry] });
  }

  private gauge<Label extends string>(name: string, help: string, labelNames: Label[] = []): Gauge<Label> {
    return new Gauge({ name, help, labelNames, registers: [this.registry] });
  }

  private histogram<Label extends string>(
    name: string,
    help: string,
    buckets: number[],
    labelNames: Label[] = [],
  ): Histogram<Label> {
    return new Histogram({ name, help, buckets, labelNames, registers: [this.registry] });
  }

  private sampled<Label extends string>(
    name: string,
    help: string,
    labelNames: Label[],
    collect: (gauge: Gauge<Label>) => void,
  ): void {
    new Gauge<Label>({
      name,
      help,
      labelNames,
      registers: [this.registry],
      collect() {
        collect(this);
      },
    });
  }
}
