import http from 'node:http';
import type { IncomingMessage } from 'node:http';
import { setTimeout as delay } from 'node:timers/promises';
import { AgentMetrics } from '../../protocol/agent-metrics';
import { AGENT_PORT, HEADERS } from '../../protocol/routing';
import { ServiceError } from '../errors';
import type { Logger } from '../log';
import { outsideScope } from '../observability/scope';
import { MetricHistory } from './metrics-history';
import type { MetricSample } from './metrics-history';
import type { RunningSandbox } from './sandbox';

/** How long an agent may take to answer; a hostile one may never do. */
const ASK_TIMEOUT_MS = 2_000;
/** Agents asked at the same time. */
const ASKED_AT_ONCE = 32;
const MAX_ANSWER_BYTES = 16 * 1024;
/** A slow one is left alone this many times as long as it took: whoever is slow on purpose takes few places. */
const REST_FACTOR = 10;

type Machine = Pick<RunningSandbox, 'id' | 'accessToken' | 'instance'>;

interface Watched {
  readonly history: MetricHistory;
  /** Ends the questions, also one under way. */
  readonly stop: AbortController;
  /** The first question of this run; undefined once it was answered or has failed. Never rejects. */
  first: Promise<void> | undefined;
}

/**
 * Asks the agent of every running sandbox what it uses, at once when it begins to run and then at intervals, and keeps
 * the answers in memory: they are lost when the service ends.
 *
 * Each sandbox has its own rhythm, so a slow one delays no other; it is asked less often, so that many of them don't
 * take all the places either. `close` ends all and is idempotent.
 */
export class MetricsSampler {
  private readonly options: { intervalMs: number; logger: Logger; now?: () => number };
  private readonly watched = new Map<string, Watched>();
  /** Calls of those that wait for a place, in order. */
  private readonly waiting = new Set<() => void>();
  private asking = 0;
  private closed = false;

  constructor(options: { intervalMs: number; logger: Logger; now?: () => number }) {
    this.options = options;
  }

  /** It runs, for the first time or again. The first question comes after `afterMs`. */
  start(machine: Machine, afterMs = 0): void {
    if (this.closed) return;
    this.pause(machine.id);
    const history = this.watched.get(machine.id)?.history ?? new MetricHistory();
    const each: Watched = { history, stop: new AbortController(), first: undefined };
    each.first = new Promise((resolve) => {
      const onFirst = () => {
        each.first = undefined;
        resolve();
      };
      outsideScope(() => {
        if (afterMs === 0) void this.keepAsking(machine, each, onFirst);
        else void wait(afterMs, each.stop.signal).then(() => this.keepAsking(machine, each, onFirst));
      });
    });
    this.watched.set(machine.id, each);
  }

  /** It is being frozen: what is known of it stays. */
  pause(id: string): void {
    this.watched.get(id)?.stop.abort();
  }

  forget(id: string): void {
    this.pause(id);
    this.watched.delete(id);
  }

  /** Samples from `start` to `end`, both inclusive, in milliseconds since the epoch. Waits for the first one. */
  async between(id: string, start: number, end: number): Promise<MetricSample[]> {
    return (await this.historyOf(id))?.between(start, end) ?? [];
  }

  /** The newest one. Waits for the first one. */
  async last(id: string): Promise<MetricSample | undefined> {
    return (await this.historyOf(id))?.last;
  }

  close(): void {
    this.closed = true;
    for (const id of [...this.watched.keys()]) this.forget(id);
  }

  private async historyOf(id: string): Promise<MetricHistory | undefined> {
    const each = this.watched.get(id);
    // Bounded: when very many begin at once, some wait longer for a place.
    if (each?.first !== undefined) await Promise.race([each.first, wait(ASK_TIMEOUT_MS, each.stop.signal)]);
    return each?.history;
  }

  /** Never rejects. `onFirst` is called after each question, and when there is none. */
  private async keepAsking(machine: Machine, { history, stop }: Watched, onFirst: () => void): Promise<void> {
    const { intervalMs, logger, now = Date.now } = this.options;
    while (!stop.signal.aborted) {
      let tookMs = 0;
      try {
        const answer = await this.inPlace(stop.signal, async (signal) => {
          const began = performance.now();
          try {
            return await askAgent(machine, signal);
          } finally {
            tookMs = performance.now() - began;
          }
        });
        if (!stop.signal.aborted) history.add(toSample(answer, now()));
      } catch (error) {
        if (!stop.signal.aborted) {
          logger.debug({ sandboxId: machine.id, err: error }, 'a sandbox did not tell its use');
        }
      }
      onFirst();
      await wait(Math.max(intervalMs, tookMs * REST_FACTOR), stop.signal);
    }
    onFirst();
  }

  /** Does the work when there is a place for it, within a deadline that begins then. */
  private async inPlace<T>(stop: AbortSignal, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    if (!(await this.takePlace(stop))) throw new ServiceError('unavailable', 'The sandbox no longer runs');
    // By hand: signals combined again and again would pile up at one that lives as long as the sandbox.
    const asking = new AbortController();
    const onStop = () => asking.abort(stop.reason);
    const timer = setTimeout(
      () => asking.abort(new ServiceError('deadline_exceeded', 'The agent did not answer in time')),
      ASK_TIMEOUT_MS,
    );
    stop.addEventListener('abort', onStop, { once: true });
    if (stop.aborted) onStop(); // since the place was handed over
    try {
      return await work(asking.signal);
    } finally {
      clearTimeout(timer);
      stop.removeEventListener('abort', onStop);
      // The place is handed over, so that nobody gets in between.
      const [next] = this.waiting;
      if (next === undefined) this.asking--;
      else next();
    }
  }

  /** False when it was told to stop before there was one. */
  private takePlace(stop: AbortSignal): boolean | Promise<boolean> {
    if (stop.aborted) return false;
    if (this.asking < ASKED_AT_ONCE) {
      this.asking++;
      return true;
    }
    return new Promise((resolve) => {
      const settle = (got: boolean) => {
        this.waiting.delete(take);
        stop.removeEventListener('abort', giveUp);
        resolve(got);
      };
      const take = () => settle(true);
      const giveUp = () => settle(false);
      this.waiting.add(take);
      stop.addEventListener('abort', giveUp, { once: true });
    });
  }
}

/** Settles after a while or with the signal; keeps no process alive. */
async function wait(ms: number, signal: AbortSignal): Promise<void> {
  await delay(ms, undefined, { signal, ref: false }).catch(() => {}); // told to stop: the caller looks
}

/** One question over a connection of its own. What answers is not to be trusted with its length, speed or sense. */
async function askAgent(machine: Machine, signal: AbortSignal): Promise<AgentMetrics> {
  const socket = await machine.instance.dial(AGENT_PORT, { signal });
  try {
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      const request = http.get({
        path: '/metrics',
        headers: {
          host: 'sandbox',
          connection: 'close',
          ...(machine.accessToken !== undefined && { [HEADERS.accessToken]: machine.accessToken }),
        },
        createConnection: () => socket,
        signal,
      });
      request.on('error', reject); // for as long as the response lasts
      request.on('response', resolve);
    });
    let text = '';
    for await (const chunk of response.setEncoding('utf8') as AsyncIterable<string>) {
      text += chunk;
      if (text.length > MAX_ANSWER_BYTES) throw new ServiceError('unavailable', 'The answer is too long');
    }
    if (response.statusCode !== 200) {
      throw new ServiceError('unavailable', `The agent answered ${response.statusCode}`);
    }
    return AgentMetrics.parse(JSON.parse(text));
  } finally {
    socket.destroy();
  }
}

function toSample(answer: AgentMetrics, at: number): MetricSample {
  return {
    at,
    cpuCount: answer.cpu_count,
    cpuUsedPct: answer.cpu_used_pct,
    memUsed: answer.mem_used,
    memTotal: answer.mem_total,
    memCache: answer.mem_cache,
    diskUsed: answer.disk_used,
    diskTotal: answer.disk_total,
  };
}
