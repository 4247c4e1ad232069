import { setTimeout as delay } from 'node:timers/promises';
import type { SignedQuery } from '../../protocol/routing';
import { MIN_REFRESH_SECONDS } from '../../protocol/control-plane';
import type { LogLevel } from '../../protocol/control-plane';
import { fileSignature } from '../../protocol/signature';
import { ServiceError } from '../errors';
import type { ErrorCode } from '../errors';
import type { Logger } from '../log';
import { noteSandbox, outsideScope, traced } from '../observability/scope';
import type { InstanceEnd, Resources, Runtime } from '../runtime/runtime';
import { sameSecret } from '../secrets';
import type { Secrets } from '../secrets';
import { adoptAll } from './adoption';
import { phaseAfter, shownAs } from './lifecycle';
import type { Change, Phase } from './lifecycle';
import { MachineStopper } from './machine-stopper';
import { MetricsSampler } from './metrics';
import type { MetricSample } from './metrics-history';
import { accessOf } from './network';
import type { Egress } from './network';
import { Pools } from './pools';
import type { PoolsOptions } from './pools';
import { CreateRates } from './quotas';
import type { TeamLimits } from './quotas';
import { Reaper } from './reaper';
import { Replays } from './replays';
import { SandboxLog } from './sandbox-log';
import type { EndReason } from './sandbox-log';
import type { LogRecord } from './log-files';
import type { CreateOptions, RunningSandbox, Sandbox } from './sandbox';
import { SandboxStarter } from './starter';
import type { Store } from './store';
import { Templates } from './templates';
import type { ChosenTemplate } from './templates';
import { deadline } from './waiting';

/**
 * What happens to sandboxes, told to whoever keeps something per sandbox. Called in order for one sandbox, never
 * before the change is visible through `find`. An exception in a callback is logged and changes nothing.
 */
export interface SandboxEvents {
  /** A create has ended, with `ok` or the word of its failure. */
  onCreate?(outcome: { result: 'ok' | ErrorCode; pooled: boolean; seconds: number }): void;
  /** A new sandbox runs. */
  onReady?(sandbox: RunningSandbox): void;
  /**
   * A sandbox of an earlier process runs, with the kernels it has. One that was paused is told of at its resume, with
   * the moment since when it was (milliseconds since the epoch).
   */
  onAdopted?(sandbox: RunningSandbox, pausedAt: number | undefined): void;
  /** About to be frozen: its connections are to be dropped, its memory stays. */
  onPaused?(sandboxId: string): void;
  /** Thawed, with the kernels it had. */
  onResumed?(sandbox: RunningSandbox): void;
  /** Gone for good, told once. */
  onEnded?(sandboxId: string): void;
}

export interface SandboxesOptions {
  runtime: Runtime;
  store: Store;
  secrets: Secrets;
  logger: Logger;
  events?: SandboxEvents;
  /** What a sandbox has when neither its create nor its template says otherwise. */
  resources: Resources;
  /** Absent: the built-in ones, all with `resources`. */
  templates?: Templates;
  /** Of each team, unless `limitsOf` says otherwise. */
  maxSandboxes: number;
  /** What a team may have, asked at each create. */
  limitsOf?: (teamId: string) => TeamLimits;
  maxTimeoutSeconds: number;
  startTimeoutMs: number;
  /** How often running sandboxes are asked what they use; 5 s when absent. */
  metricsIntervalMs?: number;
  /** Machines kept ready, by template id. Absent: none, and every create starts its own. */
  pool?: Pick<PoolsOptions, 'warmer' | 'sizes' | 'parallel' | 'checkEveryMs' | 'freeMemoryMB'>;
  /** Where the logs of sandboxes are kept. Absent: only what machines themselves keep is told. */
  logDirectory?: string;
  now?: () => number;
}

export interface ListFilter {
  states?: readonly Sandbox['state'][];
  metadata?: ReadonlyMap<string, string>;
  templateId?: string;
  /** Milliseconds since the epoch, inclusive. */
  startedAfter?: number;
  order?: 'asc' | 'desc';
}

export interface ConnectOptions {
  timeoutSeconds: number;
  /** Only a paused sandbox is wanted: a running one is a conflict. */
  mustBePaused?: boolean;
  autoPause?: boolean;
}

/** A live sandbox with what only this class needs to know of it. */
interface Entry {
  readonly sandbox: RunningSandbox;
  /** Changed by `step` alone, which keeps `sandbox.state` in line with it. */
  phase: Phase;
  /** The listeners have heard of it: not so for one that was taken over while paused. */
  announced: boolean;
  /** A pause or resume under way; settles without rejecting. Whoever starts the next one awaits it first. */
  transition: Promise<void> | undefined;
  /** The last change of its network; never rejects. The next one comes after it. */
  networkTurn: Promise<void>;
}

/** A create under way. */
interface Start {
  readonly teamId: string;
  /** Of the machine that it is going to be. */
  id: string | undefined;
  readonly abort: AbortController;
  settled: Promise<unknown>;
}

const METRICS_INTERVAL_MS = 5_000;
/** The first cell of a new sandbox comes first: asked beside it, the agent made it 12 ms slower (of 25). */
const FIRST_METRICS_AFTER_MS = 250;
/** How long a pause or resume may take. */
const TRANSITION_TIMEOUT_MS = 30_000;
/** How long new network rules may take. */
const NETWORK_TIMEOUT_MS = 30_000;
/** How long a machine may take to hear of its deadline; a hostile one may never answer. */
const TELL_TIMEOUT_MS = 5_000;
/** How long `close` waits for machines to end. */
const CLOSE_TIMEOUT_MS = 20_000;
/** How long traffic for a paused sandbox waits until that runs. */
const WAKE_TIMEOUT_MS = 60_000;
/** At least so long a sandbox runs that traffic has resumed. */
const MIN_WOKEN_SECONDS = 300;
/** A paused machine must not end itself by the deadline it had: the dead-man timer inside gets this one instead. */
const PAUSED_DEADLINE_MS = 10 * 365 * 86_400_000;

/**
 * Which sandboxes exist, until when, in which state. The only part that starts and ends machines.
 *
 * Truth is in memory and written through to the store before a caller hears of it. A sandbox is gone for every caller
 * the moment its end is decided; its machine ends behind that, with retries. Methods reject with `not_found` for an
 * unknown id or one of another team, `failed_precondition` while it is ending or in the wrong state.
 */
export class Sandboxes {
  private readonly options: SandboxesOptions;
  private readonly now: () => number;
  private readonly live = new Map<string, Entry>();
  private readonly starting = new Set<Start>();
  /** Team by id of what is being ended, until the end is recorded: callers meet a conflict, from then on nothing. */
  private readonly killing = new Map<string, string>();
  /** Ended for every caller, machine not gone yet. */
  private readonly stopper: MachineStopper;
  private readonly starter: SandboxStarter;
  private readonly rates: CreateRates;
  /** Teams that created something or own what was taken over: those that machines are kept ready for. */
  private readonly teams = new Set<string>();
  private readonly replays: Replays;
  readonly templates: Templates;
  /** Machines kept ready; undefined when there is no part that could make them ready. */
  readonly pools: Pools | undefined;
  private readonly reaper: Reaper;
  private readonly metrics: MetricsSampler;
  private readonly log: SandboxLog;
  private isAdopting = false;
  private closing: Promise<void> | undefined;

  constructor(options: SandboxesOptions) {
    this.options = options;
    this.now = options.now ?? Date.now;
    this.rates = new CreateRates(this.now);
    this.reaper = new Reaper((id) => outsideScope(() => this.expire(id)), this.now);
    const { runtime, logger } = options;
    this.stopper = new MachineStopper(runtime, logger);
    this.replays = new Replays(options.store, (id) => this.live.get(id)?.sandbox);
    this.templates = options.templates ?? new Templates(options.resources);
    const parts = { ...options, templates: this.templates, now: this.now, stopper: this.stopper };
    this.pools =
      options.pool &&
      new Pools({
        ...parts,
        ...options.pool,
        room: () => this.room,
        coldStarts: () => this.starter.coldStarts,
      });
    this.starter = new SandboxStarter({ ...parts, pools: this.pools });
    this.metrics = new MetricsSampler({
      intervalMs: options.metricsIntervalMs ?? METRICS_INTERVAL_MS,
      logger: options.logger,
      now: this.now,
    });
    this.log = new SandboxLog({
      runtime,
      logger,
      directory: options.logDirectory,
      now: this.now,
      // Until all are taken over, any may be.
      isLive: (id) => this.isAdopting || this.live.has(id),
    });
  }

  /** The soonest deadline of a team's sandboxes, when at the latest there is room for another one. */
  nextDeadlineOf(teamId: string): number | undefined {
    const deadlines = [...this.live.values()]
      .filter(({ sandbox }) => sandbox.teamId === teamId && sandbox.state === 'running')
      .map(({ sandbox }) => sandbox.endAt);
    return deadlines.length === 0 ? undefined : Math.min(...deadlines);
  }

  /** How many there are in each state, and machines whose sandbox is gone already. */
  get counts(): Record<'starting' | 'running' | 'paused' | 'stopping', number> {
    let paused = 0;
    for (const { sandbox } of this.live.values()) if (sandbox.state === 'paused') paused++;
    const stopping = this.stopper.pending.length;
    return { starting: this.starting.size, running: this.live.size - paused, paused, stopping };
  }

  // --- looking up -----------------------------------------------------------------------------------------------

  /** Whether there is such a sandbox, whatever its state and its team. */
  has(id: string): boolean {
    return this.live.has(id);
  }

  /** The sandbox with its machine, when it runs; undefined when it is gone, paused or on its way there. No rights checked. */
  find(id: string): RunningSandbox | undefined {
    const entry = this.live.get(id);
    return entry === undefined ? undefined : running(entry);
  }

  /** A sandbox that does not run and is resumed by traffic; `wake` does it. No rights checked. */
  findSleeping(id: string): Sandbox | undefined {
    const entry = this.live.get(id);
    return entry === undefined || entry.phase === 'running' || !entry.sandbox.autoResume
      ? undefined
      : entry.sandbox;
  }

  /** The running sandbox whose access token signed a file URL that doesn't say which one it is for. */
  findBySignature(query: SignedQuery): RunningSandbox | undefined {
    // A '+' that was not encoded in the URL arrives as a space.
    const given = query.signature.replaceAll(' ', '+');
    let found: RunningSandbox | undefined;
    for (const entry of this.live.values()) {
      const token = entry.sandbox.accessToken;
      if (token !== undefined && sameSecret(given, fileSignature(query, token))) found = running(entry);
    }
    return found;
  }

  get(teamId: string, id: string): Sandbox {
    return this.entry(teamId, id).sandbox;
  }

  /** Sandboxes of a team, newest first unless told otherwise. Paging is the caller's: the order is total. */
  list(teamId: string, filter: ListFilter = {}): Sandbox[] {
    const sign = filter.order === 'asc' ? 1 : -1;
    return [...this.live.values()]
      .map((entry) => entry.sandbox)
      .filter((sandbox) => sandbox.teamId === teamId && matches(sandbox, filter))
      .sort((a, b) => sign * (a.startedAt - b.startedAt || (a.id < b.id ? -1 : 1)));
  }

  /**
   * What the sandbox used from `start` to `end` (milliseconds since the epoch, both inclusive), oldest first, as far as
   * this process has seen it. A paused one is not asked; what it used before is still told.
   */
  async listMetrics(teamId: string, id: string, start: number, end: number): Promise<MetricSample[]> {
    this.entry(teamId, id);
    return this.metrics.between(id, start, end);
  }

  /** The newest of them; undefined when there is none yet. */
  async lastMetric(teamId: string, id: string): Promise<MetricSample | undefined> {
    this.entry(teamId, id);
    return this.metrics.last(id);
  }

  /**
   * What happened to a sandbox and what its machine's own programs said, oldest first; until a day after its end. A
   * starting one has none yet.
   */
  async readLog(teamId: string, id: string): Promise<LogRecord[]> {
    const sandbox = this.live.get(id)?.sandbox;
    if (sandbox !== undefined) return this.log.read(this.entry(teamId, id).sandbox);
    const records = await this.log.readEnded(id, teamId);
    if (records.length === 0) throw gone(id);
    return records;
  }

  /** Adds a line to the log of a sandbox; nothing when there is no such sandbox. For parts that know more of it. */
  note(id: string, level: LogLevel, message: string, fields: Record<string, string>): void {
    const sandbox = this.live.get(id)?.sandbox;
    if (sandbox !== undefined) this.log.note(sandbox, level, message, fields);
  }

  // --- creating -------------------------------------------------------------------------------------------------

  /**
   * Starts a sandbox; resolves once its agent is connected. Leaves nothing behind when it fails or `signal` aborts.
   * With an idempotency key `signal` is ignored: the caller's next attempt is going to want the sandbox.
   */
  async create(teamId: string, options: CreateOptions, signal?: AbortSignal): Promise<Sandbox> {
    const key = options.idempotencyKey;
    if (key === undefined) return this.startObserved(teamId, options, signal);
    return this.replays.run(teamId, key, options, () => this.startObserved(teamId, options, undefined));
  }

  /** As `startNew`, told to the listeners and a step of the request's trace. */
  private async startObserved(
    teamId: string,
    options: CreateOptions,
    callerGone: AbortSignal | undefined,
  ): Promise<Sandbox> {
    const startedAt = performance.now();
    let pooled = false;
    const ended = (result: 'ok' | ErrorCode): void => {
      const seconds = (performance.now() - startedAt) / 1000;
      this.tell('onCreate', (events) => events.onCreate?.({ result, pooled, seconds }));
    };
    try {
      const sandbox = await traced('sandbox.create', { 'cellbox.template': options.template }, () =>
        this.startNew(teamId, options, callerGone, () => (pooled = true)),
      );
      ended('ok');
      return sandbox;
    } catch (error) {
      ended(ServiceError.from(error).code);
      throw error;
    }
  }

  private async startNew(
    teamId: string,
    options: CreateOptions,
    callerGone: AbortSignal | undefined,
    onPooled: () => void,
  ): Promise<Sandbox> {
    if (this.closing !== undefined) throw new ServiceError('unavailable', 'The service is shutting down');
    const { template, resources } = this.checkOptions(options);
    this.teams.add(teamId);
    const { maxSandboxes, createsPerMinute } = this.limitsOf(teamId);
    if (this.countOf(teamId) >= maxSandboxes) {
      throw new ServiceError(
        'resource_exhausted',
        `The limit of ${maxSandboxes} concurrent sandboxes is reached`,
        {
          remedy:
            'Kill a sandbox or wait for one to end; whoever runs the service can raise the limit of the team, or CELLBOX_MAX_SANDBOXES for all that have none.',
        },
      );
    }
    this.rates.take(teamId, createsPerMinute);
    const controller = new AbortController();
    const start: Start = { teamId, id: undefined, abort: controller, settled: Promise.resolve() };
    this.starting.add(start);
    const started = this.starter.start({
      teamId,
      template,
      resources,
      options,
      abort: controller.signal,
      callerGone,
      onId: (id) => {
        start.id = id;
        noteSandbox(id);
      },
      take: (sandbox, pooled) => {
        if (pooled) onPooled();
        this.begin(sandbox, pooled);
      },
    });
    start.settled = started.catch(() => undefined);
    try {
      return await started;
    } finally {
      this.starting.delete(start);
      this.pools?.wake();
    }
  }

  /** How many more sandboxes one team could create at once. Machines kept ready don't count: they make room. */
  private get room(): number {
    if (this.teams.size === 0) return this.options.maxSandboxes;
    return Math.max(...[...this.teams].map((id) => this.limitsOf(id).maxSandboxes - this.countOf(id)));
  }

  private limitsOf(teamId: string): TeamLimits {
    const { limitsOf, maxSandboxes } = this.options;
    return limitsOf?.(teamId) ?? { maxSandboxes, createsPerMinute: 0 };
  }

  /** Sandboxes of a team, those included that are starting. */
  private countOf(teamId: string): number {
    let count = 0;
    for (const { sandbox } of this.live.values()) if (sandbox.teamId === teamId) count++;
    for (const start of this.starting) if (start.teamId === teamId) count++;
    return count;
  }

  private checkOptions(options: CreateOptions): ChosenTemplate {
    const chosen = this.templates.choose(options.template, options.resources);
    this.checkTimeout(options.timeoutSeconds);
    if (options.timeoutSeconds <= 0) {
      throw new ServiceError('invalid_argument', 'Timeout must be greater than 0');
    }
    if (!options.allowPublicTraffic && !options.secure) {
      throw new ServiceError(
        'invalid_argument',
        'network.allowPublicTraffic can only be off on a secured sandbox (secure: true)',
      );
    }
    this.checkNetwork(options);
    return chosen;
  }

  private checkNetwork(egress: Egress): void {
    const { whyNoNetworkRules } = this.options.runtime;
    if (whyNoNetworkRules === undefined || typeof accessOf(egress) !== 'object') return;
    throw new ServiceError('failed_precondition', whyNoNetworkRules);
  }

  private begin(sandbox: RunningSandbox, pooled: boolean): void {
    const { id, templateAlias, endAt } = sandbox;
    const networkTurn = Promise.resolve();
    this.take({ sandbox, phase: 'running', announced: true, transition: undefined, networkTurn });
    this.options.logger.info({ sandboxId: id, template: templateAlias, endAt }, 'sandbox started');
    this.log.created(sandbox, pooled);
    this.metrics.start(sandbox, FIRST_METRICS_AFTER_MS);
    this.tell('onReady', (events) => events.onReady?.(sandbox));
  }

  /** From here on the sandbox is live: it has a deadline, and the end of its machine is noticed. */
  private take(entry: Entry): void {
    const { id, instance, state, endAt } = entry.sandbox;
    this.live.set(id, entry);
    this.teams.add(entry.sandbox.teamId);
    if (state === 'running') this.setDeadline(entry, endAt);
    void instance.ended.then((end) => outsideScope(() => this.onMachineEnd(entry, end)));
  }

  private onMachineEnd(entry: Entry, end: InstanceEnd): void {
    const { id } = entry.sandbox;
    // While the service stops, the machines are the next one's business.
    if (this.live.get(id) !== entry || this.closing !== undefined) return;
    this.options.logger.warn({ sandboxId: id, end }, 'sandbox ended by itself');
    const detail = end.reason === 'exited' ? end.detail : 'it was stopped';
    this.endNow(entry, { reason: 'machine_ended', detail }).catch((error: unknown) =>
      this.options.logger.error({ sandboxId: id, err: error }, 'forgetting a sandbox failed'),
    );
  }

  // --- the way out ----------------------------------------------------------------------------------------------

  /** Replaces what a running sandbox may reach; resolves when it holds, also for connections that stand. */
  async setNetwork(teamId: string, id: string, egress: Egress): Promise<void> {
    const entry = this.runningEntry(teamId, id);
    this.checkNetwork(egress);
    const change = entry.networkTurn.then(() => this.changeNetwork(entry, egress));
    entry.networkTurn = change.catch(() => undefined); // the caller hears of it
    await change;
  }

  private async changeNetwork({ sandbox }: Entry, egress: Egress): Promise<void> {
    const { runtime, store, logger } = this.options;
    const { id } = sandbox;
    const setAccess = (to: Egress) =>
      deadline(runtime.setNetwork(id, accessOf(to)), NETWORK_TIMEOUT_MS, 'Setting the network rules');
    try {
      await setAccess(egress);
      // The machine first: after a crash in between it gets the old rules again, and nobody was told of the new.
      await store.updateSandbox(id, egress);
    } catch (error) {
      if (this.live.get(id)?.sandbox !== sandbox) throw gone(id);
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
    this.log.note(sandbox, 'info', 'What the sandbox may reach was changed');
  }

  // --- deadlines ------------------------------------------------------------------------------------------------

  /**
   * Sets the deadline to `seconds` from now, sooner or later than before. Cut silently at the longest time-out
   * counted from the start of the current run; refused once that has passed.
   */
  async setTimeout(teamId: string, id: string, seconds: number): Promise<void> {
    const entry = this.runningEntry(teamId, id);
    await this.moveDeadline(entry, this.now() + seconds * 1000);
  }

  /** Makes the sandbox live at least `seconds` (and 15 s) from now. */
  async refresh(teamId: string, id: string, seconds: number): Promise<void> {
    const entry = this.runningEntry(teamId, id);
    const wanted = this.now() + Math.max(seconds, MIN_REFRESH_SECONDS) * 1000;
    if (wanted > entry.sandbox.endAt) await this.moveDeadline(entry, wanted);
  }

  private async moveDeadline(entry: Entry, wanted: number): Promise<void> {
    const latest = entry.sandbox.runStartedAt + this.options.maxTimeoutSeconds * 1000;
    if (latest <= this.now()) {
      throw new ServiceError('invalid_argument', `The sandbox has reached its longest time-out`);
    }
    this.setDeadline(entry, Math.min(wanted, latest));
    await this.options.store.updateSandbox(entry.sandbox.id, { endAt: entry.sandbox.endAt });
  }

  private setDeadline(entry: Entry, endAt: number): void {
    entry.sandbox.endAt = endAt;
    this.reaper.set(entry.sandbox.id, endAt);
    // Only the dead-man timer inside hears of it late when this fails, and the next change tells it again.
    void this.tellDeadline(entry, endAt);
  }

  private async tellDeadline(entry: Entry, endAt: number): Promise<void> {
    const { id, instance } = entry.sandbox;
    try {
      await deadline(instance.setDeadline(endAt), TELL_TIMEOUT_MS, 'Telling the deadline');
    } catch (error) {
      this.options.logger.debug({ sandboxId: id, err: error }, 'a machine was not told its deadline');
    }
  }

  private checkTimeout(seconds: number): void {
    const max = this.options.maxTimeoutSeconds;
    if (seconds <= max) return;
    const text = max % 3600 === 0 ? `${max / 3600} hours` : `${max} seconds`;
    throw new ServiceError('invalid_argument', `Timeout cannot be greater than ${text}`);
  }

  /** The deadline has passed. */
  private expire(id: string): void {
    const entry = this.live.get(id);
    // Whatever changes its state meanwhile gives it a deadline, or takes it away.
    if (entry?.phase !== 'running') return;
    const work = entry.sandbox.autoPause
      ? this.pauseEntry(entry, 'deadline')
      : this.endNow(entry, { reason: 'deadline' });
    work.catch((error: unknown) => {
      this.options.logger.error({ sandboxId: id, err: error }, 'a deadline could not be kept');
      if (this.live.get(id) === entry && entry.phase === 'running') {
        // It could not be frozen: its time is up all the same.
        return this.endNow(entry, { reason: 'deadline' }).catch(() => undefined); // logged where the machine is stopped
      }
      return undefined;
    });
  }

  // --- pausing and coming back ----------------------------------------------------------------------------------
  // What may follow what is in lifecycle.ts; why it is so, in docs/decisions/0013-pause.md.

  /** Freezes memory and processors. A paused sandbox has no deadline. */
  async pause(teamId: string, id: string): Promise<void> {
    const entry = this.entry(teamId, id);
    if (entry.phase !== 'running') {
      throw new ServiceError(
        'failed_precondition',
        `Sandbox ${quoted(id)} is already paused or changing state`,
      );
    }
    await this.pauseEntry(entry, 'request');
  }

  /** Of one that runs. */
  private pauseEntry(entry: Entry, reason: 'request' | 'deadline'): Promise<void> {
    const { sandbox } = entry;
    const { store, logger } = this.options;
    // From the first moment on it counts as paused, and traffic is refused: nothing may be half-frozen.
    this.step(entry, 'pause');
    return this.change(entry, async () => {
      const before = sandbox.endAt;
      sandbox.endAt = this.now();
      this.reaper.clear(sandbox.id);
      this.metrics.pause(sandbox.id);
      this.tell('onPaused', (events) => events.onPaused?.(sandbox.id));
      await this.tellDeadline(entry, this.now() + PAUSED_DEADLINE_MS);
      try {
        await this.setFrozen(entry, true);
      } catch (error) {
        // Whatever it is now, thawed is what the caller is going to find.
        if (!isOver(entry)) await this.setFrozen(entry, false).catch(() => undefined); // most often it was never frozen
        if (isOver(entry)) throw gone(sandbox.id);
        this.step(entry, 'freeze-failed');
        this.setDeadline(entry, before);
        this.metrics.start(sandbox);
        this.tell('onResumed', (events) => events.onResumed?.(sandbox));
        this.log.note(sandbox, 'error', 'The sandbox could not be paused and goes on', { reason });
        throw error;
      }
      if (isOver(entry)) throw gone(sandbox.id);
      this.step(entry, 'frozen');
      await store.updateSandbox(sandbox.id, { state: 'paused', endAt: sandbox.endAt });
      logger.info({ sandboxId: sandbox.id }, 'sandbox paused');
      this.log.note(sandbox, 'info', 'The sandbox was paused', { reason });
    });
  }

  /**
   * Makes a sandbox usable: resumes a paused one, extends (never shortens) the time of a running one. A pause under
   * way is waited for.
   */
  async connect(
    teamId: string,
    id: string,
    options: ConnectOptions,
  ): Promise<{ sandbox: Sandbox; resumed: boolean }> {
    this.checkTimeout(options.timeoutSeconds);
    const entry = this.entry(teamId, id, 'failed_precondition');
    let resumed = false;
    while (entry.transition !== undefined) await entry.transition;
    if (isOver(entry)) throw ending(id);
    if (entry.phase === 'paused') {
      await this.resumeEntry(entry, options.timeoutSeconds, 'request');
      resumed = true;
    } else if (options.mustBePaused === true) {
      throw new ServiceError('failed_precondition', `Sandbox ${quoted(id)} is already running`);
    }
    const { sandbox } = entry;
    if (options.autoPause !== undefined && options.autoPause !== sandbox.autoPause) {
      sandbox.autoPause = options.autoPause;
      await this.options.store.updateSandbox(id, { autoPause: options.autoPause });
    }
    const wanted = this.now() + options.timeoutSeconds * 1000;
    if (!resumed && wanted > sandbox.endAt) await this.moveDeadline(entry, wanted);
    return { sandbox, resumed };
  }

  /**
   * Resumes a sandbox that traffic has come for, for as long as it was created for. Whoever brings the traffic was
   * found to have the right. Resolves when it runs.
   *
   * @throws ServiceError `not_found` when there is none that wants this, `deadline_exceeded` when it takes too long.
   */
  async wake(id: string): Promise<void> {
    const deadlineAt = Date.now() + WAKE_TIMEOUT_MS;
    const soon = (work: Promise<void>) =>
      deadline(work, Math.max(0, deadlineAt - Date.now()), 'Resuming the sandbox');
    const entry = this.live.get(id);
    if (entry === undefined || this.closing !== undefined) throw gone(id);
    while (entry.transition !== undefined) await soon(entry.transition);
    if (isOver(entry)) throw gone(id);
    if (entry.phase === 'running') return;
    const { autoResume, timeoutSeconds } = entry.sandbox;
    if (!autoResume) throw gone(id);
    const seconds = Math.min(Math.max(timeoutSeconds, MIN_WOKEN_SECONDS), this.options.maxTimeoutSeconds);
    await soon(this.resumeEntry(entry, seconds, 'traffic'));
  }

  /** Of one that is paused. */
  private resumeEntry(entry: Entry, timeoutSeconds: number, reason: 'request' | 'traffic'): Promise<void> {
    const { sandbox } = entry;
    const { store, logger } = this.options;
    this.step(entry, 'resume');
    return this.change(entry, async () => {
      const pausedAt = sandbox.endAt;
      let runStartedAt: number;
      try {
        await this.setFrozen(entry, false);
        runStartedAt = this.now();
        // Before anybody can use it: what is written down as paused would be frozen by the next service.
        const endAt = runStartedAt + timeoutSeconds * 1000;
        if (!isOver(entry)) await store.updateSandbox(sandbox.id, { state: 'running', runStartedAt, endAt });
      } catch (error) {
        if (!isOver(entry)) await this.setFrozen(entry, true).catch(() => undefined); // the next resume takes it as it is
        if (isOver(entry)) throw ending(sandbox.id);
        this.step(entry, 'thaw-failed');
        throw error;
      }
      if (isOver(entry)) throw ending(sandbox.id);
      // All of this in one go: whoever finds it running finds its kernels, too.
      this.step(entry, 'thawed');
      sandbox.runStartedAt = runStartedAt;
      this.setDeadline(entry, runStartedAt + timeoutSeconds * 1000);
      logger.info({ sandboxId: sandbox.id, endAt: sandbox.endAt }, 'sandbox resumed');
      this.log.note(sandbox, 'info', 'The sandbox was resumed', { reason });
      this.metrics.start(sandbox);
      if (entry.announced) this.tell('onResumed', (events) => events.onResumed?.(sandbox));
      else this.tell('onAdopted', (events) => events.onAdopted?.(sandbox, pausedAt));
      entry.announced = true;
    });
  }

  /** Whatever it is now: an attempt that was given up may have been carried out after all. */
  private async setFrozen(entry: Entry, frozen: boolean): Promise<void> {
    const { runtime } = this.options;
    const { id } = entry.sandbox;
    const [work, what] = frozen
      ? [() => runtime.pause(id), 'Pausing the sandbox']
      : [() => runtime.resume(id), 'Resuming the sandbox'];
    try {
      await deadline(work(), TRANSITION_TIMEOUT_MS, what);
    } catch (error) {
      if (!(error instanceof ServiceError && error.code === 'failed_precondition')) throw error;
    }
  }

  private step(entry: Entry, change: Change): void {
    entry.phase = phaseAfter(entry.phase, change);
    entry.sandbox.state = shownAs(entry.phase) ?? entry.sandbox.state;
  }

  /** Runs one change of state; the next one waits for it. */
  private change(entry: Entry, work: () => Promise<void>): Promise<void> {
    const result = work();
    const transition = result
      .catch(() => undefined) // the caller of `change` hears of it
      .then(() => {
        if (entry.transition === transition) entry.transition = undefined;
      });
    entry.transition = transition;
    return result;
  }

  // --- ending ---------------------------------------------------------------------------------------------------

  /** Ends a sandbox, running, paused or starting. Resolves when it is gone for every caller; its machine follows. */
  async kill(teamId: string, id: string): Promise<void> {
    const start = [...this.starting].find((each) => each.id === id && each.teamId === teamId);
    if (start !== undefined) {
      start.abort.abort();
      return;
    }
    await this.endNow(this.entry(teamId, id), { reason: 'request' });
  }

  private async endNow(entry: Entry, why: EndReason): Promise<void> {
    const { id, teamId } = entry.sandbox;
    if (this.live.get(id) !== entry) return;
    this.live.delete(id);
    this.step(entry, 'end');
    this.reaper.clear(id);
    this.killing.set(id, teamId);
    const noted = this.log.ended(entry.sandbox, why);
    void this.log.prune();
    const after = entry.transition;
    this.stopper.stop(id, after === undefined ? noted : after.then(() => noted));
    this.pools?.wake();
    this.metrics.forget(id);
    this.tell('onEnded', (events) => events.onEnded?.(id));
    try {
      // At once, not when the machine is gone: after a crash in between the machine is an orphan, which is ended.
      await this.options.store.removeSandbox(id);
    } finally {
      this.killing.delete(id);
    }
    this.options.logger.info({ sandboxId: id }, 'sandbox ended');
  }

  // --- start and end of the service -----------------------------------------------------------------------------

  /** Brings store and machines together, once, before anything else is called; see `adoptAll`. */
  async adopt(): Promise<{ adopted: number; removed: number }> {
    const take = (sandbox: RunningSandbox): void => {
      const { state } = sandbox;
      const announced = state === 'running';
      this.take({ sandbox, phase: state, announced, transition: undefined, networkTurn: Promise.resolve() });
      this.log.note(sandbox, 'info', 'The service was started again and took the sandbox over');
      if (!announced) return;
      this.metrics.start(sandbox);
      this.tell('onAdopted', (events) => events.onAdopted?.(sandbox, undefined));
    };
    const onRemoved = (sandbox: Pick<Sandbox, 'id' | 'teamId'>, detail: string): void => {
      void this.log.ended(sandbox, { reason: 'service_restarted', detail });
    };
    this.isAdopting = true;
    try {
      return await adoptAll({ ...this.options, now: this.now, stopper: this.stopper, take, onRemoved });
    } finally {
      this.isAdopting = false;
      void this.log.prune();
    }
  }

  /**
   * Stops taking work and waits for what is under way. `kill` ends every sandbox; `keep` leaves them to the next
   * process, which adopts them. Bounded; idempotent, the first call decides.
   */
  close(options: { onStop: 'keep' | 'kill' }): Promise<void> {
    this.closing ??= this.shutDown(options.onStop);
    return this.closing;
  }

  private async shutDown(onStop: 'keep' | 'kill'): Promise<void> {
    const starts = [...this.starting];
    const emptied = this.pools?.close();
    for (const start of starts) start.abort.abort();
    this.reaper.close();
    this.metrics.close();
    const timeout = new AbortController();
    const work = async () => {
      await Promise.all(starts.map((start) => start.settled));
      if (onStop === 'kill')
        await Promise.all(
          [...this.live.values()].map((entry) => this.endNow(entry, { reason: 'service_stopped' })),
        );
      else await Promise.all([...this.live.values()].map((entry) => entry.transition));
      await emptied;
      await this.stopper.settled();
      await this.log.settled();
    };
    try {
      await Promise.race([
        work(),
        delay(CLOSE_TIMEOUT_MS, undefined, { signal: timeout.signal }).then(() =>
          this.options.logger.error(
            { sandboxes: this.stopper.pending },
            'sandboxes did not end in time; the next start ends them',
          ),
        ),
      ]);
    } finally {
      timeout.abort();
      this.stopper.close();
    }
  }

  // --- small things ---------------------------------------------------------------------------------------------

  private entry(
    teamId: string,
    id: string,
    whileEnding: 'not_found' | 'failed_precondition' = 'not_found',
  ): Entry {
    const entry = this.live.get(id);
    if (entry !== undefined && entry.sandbox.teamId === teamId) return entry;
    if (whileEnding === 'failed_precondition' && this.killing.get(id) === teamId) throw ending(id);
    throw gone(id);
  }

  /** For what only makes sense on a running sandbox: a paused one is not found there, a changing one is a conflict. */
  private runningEntry(teamId: string, id: string): Entry {
    const entry = this.entry(teamId, id, 'failed_precondition');
    if (entry.phase === 'pausing' || entry.phase === 'resuming') {
      throw new ServiceError('failed_precondition', `Sandbox ${quoted(id)} is changing its state`);
    }
    if (entry.phase !== 'running') throw gone(id);
    return entry;
  }

  private tell(name: keyof SandboxEvents, call: (events: SandboxEvents) => void): void {
    try {
      if (this.options.events !== undefined) call(this.options.events);
    } catch (error) {
      this.options.logger.error({ event: name, err: error }, 'a listener for sandboxes failed');
    }
  }
}

function running(entry: Entry): RunningSandbox | undefined {
  return entry.phase === 'running' ? entry.sandbox : undefined;
}

/** Asked again after each wait: it can end at any moment. */
function isOver(entry: Entry): boolean {
  return entry.phase === 'ended';
}

function matches(sandbox: Sandbox, filter: ListFilter): boolean {
  if (filter.states !== undefined && !filter.states.includes(sandbox.state)) return false;
  if (filter.templateId !== undefined && filter.templateId !== sandbox.templateId) return false;
  if (filter.startedAfter !== undefined && sandbox.startedAt < filter.startedAfter) return false;
  for (const [key, value] of filter.metadata ?? []) {
    if (!Object.hasOwn(sandbox.metadata, key) || sandbox.metadata[key] !== value) return false;
  }
  return true;
}

function quoted(id: string): string {
  return `"${id}"`;
}

function gone(id: string): ServiceError {
  return new ServiceError('not_found', `Sandbox ${quoted(id)} doesn't exist or you don't have access to it`);
}

function ending(id: string): ServiceError {
  return new ServiceError('failed_precondition', `Sandbox ${quoted(id)} is being killed`);
}
