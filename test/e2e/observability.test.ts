import fs from 'node:fs';
import path from 'node:path';
import { OtlpReceiver } from '../service/observability/otlp-receiver';
import { startService } from '../started-service';
import type { StartedService } from '../started-service';

/** The service as an operator starts it, with everything that watches it switched on. */
describe('a service that is watched', () => {
  let receiver: OtlpReceiver;
  let service: StartedService;
  let sandboxId: string;
  let requestId: string | null;

  beforeAll(async () => {
    receiver = await OtlpReceiver.open();
    service = await startService({
      runtime: 'local',
      env: {
        CELLBOX_METRICS_ADDRESS: '127.0.0.1:0',
        CELLBOX_LOG_LEVEL: 'debug',
        OTEL_EXPORTER_OTLP_ENDPOINT: receiver.url,
      },
    });
    const created = await fetch(`${service.url}/v2/sandboxes`, {
      method: 'POST',
      headers: {
        'x-api-key': service.apiKey,
      },
      body: JSON.stringify({ templateID: 'code-interpreter-v1', timeout: 120 }),
    });
    requestId = created.headers.get('x-request-id');
    sandboxId = ((await created.json()) as { sandboxID: string }).sandboxID;
    const ran = await fetch(`${service.url}/execute`, {
      method: 'POST',
      headers: {
        'content-type': 'application/json',
        'e2b-sandbox-id': sandboxId,
        'e2b-sandbox-port': '49999',
      },
      body: JSON.stringify({ code: 'print(6 * 7)' }),
    });
    expect(await ran.text()).toContain('42');
  }, 120_000);

  afterAll(async () => {
    await service?.stop();
    await receiver.close();
  });

  const lines = (): Array<Record<string, unknown>> =>
    service
      .output()
      .split('\n')
      .filter((line) => line.startsWith('{"level"'))
      .map((line) => JSON.parse(line) as Record<string, unknown>);

  it('tells its metrics on both addresses, on its own port with the token only', async () => {
    const { address } = lines().find(({ msg }) => msg === 'metrics are served') ?? {};
    const open = await (await fetch(`http://${String(address)}/metrics`)).text();
    expect(open).toContain('cellbox_sandboxes{state="running"} 1');
    expect(open).toMatch(/^cellbox_sandbox_creates_total\{result="ok",pooled="false"\} [1-9]/m);
    expect(open).toMatch(/^cellbox_executions_total\{termination="ok"\} [1-9]/m);
    expect(open).toMatch(/^cellbox_engine_operation_duration_seconds_count\{operation="start"\} [1-9]/m);
    expect(open).not.toContain(sandboxId);
    expect((await fetch(`${service.url}/metrics`)).status).toBe(401);
    const file = path.join(service.dataDir, 'admin-token');
    expect(fs.statSync(file).mode & 0o777).toBe(0o600);
    const token = fs.readFileSync(file, 'utf8').trim();
    const own = await fetch(`${service.url}/metrics`, { headers: { 'x-admin-token': token } });
    expect(own.status).toBe(200);
    expect(await own.text()).toContain('cellbox_sandboxes{state="running"} 1');
    expect(service.output()).not.toContain(token);
  });

  it('logs a create with the ids of its request and its sandbox', () => {
    const started = lines().find(
      (line) => line['msg'] === 'sandbox started' && line['sandboxId'] === sandboxId,
    );
    expect(started).toMatchObject({ requestId });
    expect(
      lines().find(({ msg, requestId: id }) => msg === 'request ended' && id === requestId),
    ).toMatchObject({
      sandboxId,
      route: '/v2/sandboxes',
      status: 201,
    });
  });

  it('describes itself to whoever asks', async () => {
    const page = await fetch(`${service.url}/docs`);
    expect([page.status, page.headers.get('content-type')]).toEqual([200, 'text/html; charset=utf-8']);
    const document = (await (await fetch(`${service.url}/docs/openapi.json`)).json()) as { openapi: string };
    expect(document.openapi).toBe('3.1.0');
  });

  it('sends its traces, the last ones when it stops: from the request to the machine, the agent and the kernel', async () => {
    expect(await service.signal('SIGINT')).toBe(0);
    const request = receiver.spans.find(({ attributes }) => attributes['cellbox.request.id'] === requestId);
    const mine = receiver.spans.filter(({ traceId }) => traceId === request?.traceId);
    const lineages = mine.map((span) => receiver.lineage(span).join(' < '));
    const root = 'POST control_plane';
    expect(lineages).toContain(`agent.connect < runtime.start < sandbox.create < ${root}`);
    expect(lineages).toContain(`gateway.start_kernel < kernel.start < sandbox.create < ${root}`);
    const execution = receiver.spans.find(
      ({ name, attributes }) => name === 'execution' && attributes['cellbox.sandbox.id'] === sandboxId,
    );
    if (execution === undefined) throw new Error('the execution was not traced');
    expect(receiver.lineage(execution)).toEqual(['execution', 'POST interpreter']);
    const steps = receiver.spans.filter(({ parentSpanId }) => parentSpanId === execution.spanId);
    expect(steps.map(({ name }) => name).sort()).toEqual(['execution.queued', 'execution.running']);
  }, 60_000);
});
