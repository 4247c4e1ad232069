import fs from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import { ServiceMetrics } from '../../../service/observability/metrics';
import { serveMetrics } from '../../../service/observability/metrics-endpoint';
import type { MetricsServer } from '../../../service/observability/metrics-endpoint';
import { observeRuntime } from '../../../service/observability/observed-runtime';
import { FakeEngine, FakeRuntime } from '../../fakes/fake-runtime';

const ACCOUNTING = {
  wall_ms: 20,
  queued_ms: 300,
  cpu_ms: 10,
  memory_peak_bytes: 100 * 1_048_576,
  output_bytes: 17,
  results: 1,
};

describe('ServiceMetrics', () => {
  let metrics: ServiceMetrics;

  beforeEach(() => (metrics = new ServiceMetrics('1.2.3')));
  afterEach(() => metrics.close());

  /** The value of one line of the page. */
  async function value(line: string): Promise<number | undefined> {
    const text = await metrics.registry.metrics();
    const found = text.split('\n').find((each) => each.startsWith(`${line} `));
    return found === undefined ? undefined : Number(found.slice(line.length + 1));
  }

  it('counts creates by how they ended, and times those that succeeded', async () => {
    metrics.createEnded({ result: 'ok', pooled: true, seconds: 0.02 });
    metrics.createEnded({ result: 'resource_exhausted', pooled: false, seconds: 5 });
    expect(await value('cellbox_sandbox_creates_total{result="ok",pooled="true"}')).toBe(1);
    expect(await value('cellbox_sandbox_creates_total{result="ok",pooled="false"}')).toBe(0);
    expect(await value('cellbox_sandbox_creates_total{result="resource_exhausted",pooled="false"}')).toBe(1);
    expect(await value('cellbox_sandbox_create_duration_seconds_count{pooled="true"}')).toBe(1);
    expect(await value('cellbox_sandbox_create_duration_seconds_count{pooled="false"}')).toBeUndefined();
  });

  it('tells what executions came to, in seconds and bytes', async () => {
    metrics.executionEnded('ok', ACCOUNTING);
    metrics.executionEnded('crashed', { ...ACCOUNTING, cpu_ms: null, memory_peak_bytes: null });
    expect(await value('cellbox_executions_total{termination="ok"}')).toBe(1);
    expect(await value('cellbox_executions_total{termination="crashed"}')).toBe(1);
    expect(await value('cellbox_executions_total{termination="oom"}')).toBe(0);
    expect(await value('cellbox_execution_queue_seconds_sum')).toBeCloseTo(0.6);
    expect(await value('cellbox_execution_wall_seconds_sum')).toBeCloseTo(0.04);
    expect(await value('cellbox_execution_cpu_seconds_count')).toBe(1);
    expect(await value('cellbox_execution_memory_peak_bytes_bucket{le="134217728"}')).toBe(1);
    expect(await value('cellbox_execution_output_bytes_total')).toBe(34);
  });

  it('tells states and pools as they are when it is asked', async () => {
    expect(await value('cellbox_sandboxes{state="running"}')).toBe(0);
    let running = 3;
    const pool = {
      template: 'base',
      ready: 2,
      starting: 1,
      target: 3,
      claimedTotal: 7,
      missesTotal: 4,
      lastErrorAt: undefined as number | undefined,
    };
    metrics.watch({
      sandboxes: () => ({ starting: 1, running, paused: 2, stopping: 0 }),
      pools: () => [pool],
    });
    expect(await value('cellbox_sandboxes{state="running"}')).toBe(3);
    running = 5;
    pool.claimedTotal = 8;
    expect(await value('cellbox_sandboxes{state="running"}')).toBe(5);
    expect(await value('cellbox_sandboxes{state="paused"}')).toBe(2);
    expect(await value('cellbox_pool_ready{template="base"}')).toBe(2);
    expect(await value('cellbox_pool_starting{template="base"}')).toBe(1);
    expect(await value('cellbox_pool_claims_total{template="base"}')).toBe(8);
    expect(await value('cellbox_pool_misses_total{template="base"}')).toBe(4);
    const error = 'cellbox_pool_last_error_timestamp_seconds{template="base"}';
    expect(await value(error)).toBeUndefined();
    pool.lastErrorAt = 1_700_000_000_500;
    expect(await value(error)).toBe(1_700_000_000.5);
  });

  it('makes no label of a status that a program in a sandbox made up', async () => {
    const ended = { isCommand: false, method: 'GET', route: undefined, seconds: 0.1 };
    for (const status of [200, 299, 999, 'aborted'] as const) {
      metrics.requestBegins('port', false);
      metrics.requestEnds({ ...ended, kind: 'port', status });
    }
    expect(await value('cellbox_requests_total{kind="port",status="200"}')).toBe(1);
    expect(await value('cellbox_requests_total{kind="port",status="other"}')).toBe(2);
    expect(await value('cellbox_requests_total{kind="port",status="aborted"}')).toBe(1);
    expect(await value('cellbox_requests_open{kind="port"}')).toBe(0);
  });

  it('tells the process', async () => {
    expect(await value('process_resident_memory_bytes')).toBeGreaterThan(1e7);
    const before = (await value('process_cpu_seconds_total')) ?? 0;
    expect(before).toBeGreaterThan(0);
    expect(await value('process_cpu_seconds_total')).toBeGreaterThanOrEqual(before);
    expect(await value('cellbox_build_info{version="1.2.3"}')).toBe(1);
  });

  it('notices an event loop that is held up', async () => {
    const heldUp = async () => {
      const all = (await value('cellbox_event_loop_delay_seconds_count')) ?? 0;
      const short = (await value('cellbox_event_loop_delay_seconds_bucket{le="0.1"}')) ?? 0;
      return all - short;
    };
    const until = performance.now() + 350;
    while (performance.now() < until);
    const deadline = performance.now() + 5_000;
    while ((await heldUp()) === 0 && performance.now() < deadline) {
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    expect(await heldUp()).toBeGreaterThan(0);
  });

  it('is described by docs/METRICS.md, each by name, kind and labels', async () => {
    const page = fs.readFileSync(path.join(__dirname, '../../../docs/METRICS.md'), 'utf8');
    const described = page
      .split('\n')
      .filter((line) => line.startsWith('| `'))
      .map((line) => {
        const [name, kind, labels] = line.split('|').slice(1, 4);
        const clean = (cell = '') => cell.trim().replaceAll('`', '');
        return [clean(name), clean(kind), clean(labels)];
      });
    const registered = (await metrics.registry.getMetricsAsJSON()).map(({ name, type }) => {
      const metric = metrics.registry.getSingleMetric(name) as unknown as { labelNames: string[] };
      return [name, String(type), metric.labelNames.join(', ')];
    });
    const byName = (a: string[], b: string[]) => (String(a[0]) < String(b[0]) ? -1 : 1);
    expect(described.sort(byName)).toEqual(registered.sort(byName));
  });

  describe('on an address of its own', () => {
    let server: MetricsServer;

    beforeEach(async () => (server = await serveMetrics(metrics.registry, '127.0.0.1:0')));
    afterEach(() => server.close());

    async function ask(
      where: string,
      method = 'GET',
    ): Promise<{ status: number; text: string; type: string }> {
      return new Promise((resolve, reject) => {
        const req = http.request(`http://${server.address}${where}`, { method, agent: false }, (res) => {
          let text = '';
          res.on('data', (chunk: Buffer) => (text += chunk.toString()));
          res.on('end', () =>
            resolve({ status: res.statusCode ?? 0, text, type: String(res.headers['content-type']) }),
          );
        });
        req.on('error', reject).end();
      });
    }

    it('serves them and nothing else', async () => {
      const { status, text, type } = await ask('/metrics');
      expect(status).toBe(200);
      expect(type).toMatch(/^text\/plain; version=0\.0\.4/);
      expect(text).toContain('# TYPE cellbox_sandboxes gauge');
      expect((await ask('/')).status).toBe(404);
      expect((await ask('/sandboxes')).status).toBe(404);
      expect((await ask('/metrics', 'POST')).status).toBe(405);
    });

    it('says what to do when the address is taken', async () => {
      await expect(serveMetrics(metrics.registry, server.address)).rejects.toMatchObject({
        code: 'failed_precondition',
        remedy: expect.stringContaining('CELLBOX_METRICS_ADDRESS'),
      });
      server.close(); // twice is harmless
    });
  });

  describe('of a runtime', () => {
    const spec = {
      id: 'i1',
      env: {},
      resources: { cpuCount: 1, memoryMB: 128, diskSizeMB: 128, pids: 64, openFiles: 256 },
      network: 'full',
      labels: {},
      deadlineAt: Date.now() + 60_000,
    } as const;

    it('counts what failed by operation and word, but not what was given up', async () => {
      const engine = new FakeEngine();
      const runtime = observeRuntime(new FakeRuntime(engine), metrics);
      engine.beforeStart = () => Promise.reject(new Error('no engine'));
      await expect(runtime.start(spec)).rejects.toThrow('no engine');
      const gone = new AbortController();
      gone.abort();
      await expect(runtime.start(spec, gone.signal)).rejects.toThrow();
      await expect(runtime.pause('unknown')).rejects.toMatchObject({ code: 'not_found' });
      expect(await value('cellbox_engine_errors_total{operation="start",code="internal"}')).toBe(1);
      expect(await value('cellbox_engine_errors_total{operation="pause",code="not_found"}')).toBe(1);
      engine.beforeStart = () => Promise.resolve();
      await runtime.start(spec);
      await runtime.stop(spec.id);
      expect(await value('cellbox_engine_operation_duration_seconds_count{operation="start"}')).toBe(1);
      expect(await value('cellbox_engine_operation_duration_seconds_count{operation="stop"}')).toBe(1);
      await runtime.close();
    });
  });
});
