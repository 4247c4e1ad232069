import type { SandboxMetric } from '../../protocol/control-plane';

/** What a sandbox had and used at one moment. */
export interface MetricSample extends Omit<SandboxMetric, 'timestamp' | 'timestampUnix'> {
  /** Milliseconds since the epoch, by the service's clock. */
  at: number;
}

const FIELDS = [
  'at',
  'cpuCount',
  'cpuUsedPct',
  'memUsed',
  'memTotal',
  'memCache',
  'diskUsed',
  'diskTotal',
] as const satisfies ReadonlyArray<keyof MetricSample>;

/** An hour at the usual interval. */
const RECENT_SAMPLES = 720;
const OLD_SPACING_MS = 60_000;
const OLDEST_MS = 24 * 3_600_000;
const OLD_SAMPLES = OLDEST_MS / OLD_SPACING_MS;

/**
 * The samples of one sandbox: the newest 720 all of them, older ones one a minute, for 24 hours. Takes 46 kB, and another
 * 92 kB once there are old ones; no more however long the sandbox lives.
 */
export class MetricHistory {
  private readonly recent = new Ring(RECENT_SAMPLES);
  private old: Ring | undefined;

  get last(): MetricSample | undefined {
    return this.recent.at(this.recent.length - 1);
  }

  add(sample: MetricSample): void {
    const leaving = this.recent.add(sample);
    if (leaving === undefined) return;
    this.old ??= new Ring(OLD_SAMPLES);
    const before = this.old.at(this.old.length - 1);
    if (before === undefined || leaving.at - before.at >= OLD_SPACING_MS) this.old.add(leaving);
  }

  /** In order, those from `start` to `end` (milliseconds since the epoch, both inclusive), none older than 24 hours. */
  between(start: number, end: number): MetricSample[] {
    const oldest = Math.max(start, (this.last?.at ?? 0) - OLDEST_MS);
    const all = [...(this.old?.all() ?? []), ...this.recent.all()];
    return all.filter(({ at }) => at >= oldest && at <= end);
  }
}

/** The newest `capacity` samples, as numbers side by side. */
class Ring {
  private readonly numbers: Float64Array;
  private first = 0;
  length = 0;

  constructor(private readonly capacity: number) {
    this.numbers = new Float64Array(capacity * FIELDS.length);
  }

  /** Gives what had to leave for it. */
  add(sample: MetricSample): MetricSample | undefined {
    const leaving = this.length === this.capacity ? this.at(0) : undefined;
    const slot = (this.first + this.length) % this.capacity;
    FIELDS.forEach((name, index) => (this.numbers[slot * FIELDS.length + index] = sample[name]));
    if (leaving === undefined) this.length++;
    else this.first = (this.first + 1) % this.capacity;
    return leaving;
  }

  /** Counted from the oldest. */
  at(index: number): MetricSample | undefined {
    if (index < 0 || index >= this.length) return undefined;
    const offset = ((this.first + index) % this.capacity) * FIELDS.length;
    const entries = FIELDS.map((name, field) => [name, this.numbers[offset + field]]);
    return Object.fromEntries(entries) as MetricSample; // every field is a number of the array
  }

  all(): MetricSample[] {
    return Array.from({ length: this.length }, (_, index) => this.at(index)).filter(
      (sample) => sample !== undefined,
    );
  }
}
