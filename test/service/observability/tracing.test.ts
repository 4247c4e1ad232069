import { execFile } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';
import { build } from 'esbuild';
import { createLogger } from '../../../service/log';
import { openTracing, parseTraceparent } from '../../../service/observability/tracing';
import { cleanEnv, ROOT } from '../../started-service';
import { OtlpReceiver } from './otlp-receiver';

const TRACE = '0af7651916cd43dd8448eb211c80319c';
const PARENT = 'b7ad6b7169203331';

describe('parseTraceparent', () => {
  it.each([
    [`00-${TRACE}-${PARENT}-01`, 1],
    [`00-${TRACE}-${PARENT}-00`, 0],
    [`01-${TRACE}-${PARENT}-03-what-comes-later`, 1],
  ])('takes %s', (traceparent, traceFlags) => {
    expect(parseTraceparent({ traceparent })).toEqual({
      traceId: TRACE,
      spanId: PARENT,
      traceFlags,
      isRemote: true,
    });
  });

  it.each([
    [''],
    ['00'],
    [`ff-${TRACE}-${PARENT}-01`],
    [`00-${TRACE}-${PARENT}-01-more`],
    [`00-${'0'.repeat(32)}-${PARENT}-01`],
    [`00-${TRACE}-${'0'.repeat(16)}-01`],
    [`00-${TRACE.toUpperCase()}-${PARENT}-01`],
    [`00-${TRACE}-${PARENT}`],
  ])('leaves %j', (traceparent) => {
    expect(parseTraceparent({ traceparent })).toBeUndefined();
  });
});

describe('openTracing', () => {
  it.each([
    [{}],
    [{ OTEL_EXPORTER_OTLP_ENDPOINT: '' }],
    [{ OTEL_EXPORTER_OTLP_ENDPOINT: 'http://127.0.0.1:1', OTEL_SDK_DISABLED: 'true' }],
  ])('is off with %j', async (env) => {
    expect(await openTracing(env, { version: '1', logger: createLogger('silent') })).toBeUndefined();
  });

  describe('in a process of its own', () => {
    let directory: string;
    let receiver: OtlpReceiver;

    beforeAll(async () => {
      directory = mkdtempSync(path.join(os.tmpdir(), 'cbx-traced-'));
      await build({
        entryPoints: [path.join(__dirname, 'traced-program.ts')],
        outfile: path.join(directory, 'program.js'),
        bundle: true,
        platform: 'node',
        format: 'cjs',
        packages: 'external',
        supported: { 'dynamic-import': false }, // `require` finds packages from elsewhere, too
        // The harness of the API builds a few expectations as it is loaded.
        banner: { js: "globalThis.expect = require('expect').expect;" },
        logLevel: 'error',
      });
    });
    afterAll(() => rmSync(directory, { recursive: true, force: true }));
    beforeEach(async () => (receiver = await OtlpReceiver.open()));
    afterEach(() => receiver.close());

    async function run(
      args: string[],
      endpoint = receiver.url,
    ): Promise<{ told: Record<string, unknown>; log: string }> {
      const { stdout, stderr } = await promisify(execFile)(
        process.execPath,
        [path.join(directory, 'program.js'), ...args],
        {
          env: cleanEnv({
            NODE_PATH: path.join(ROOT, 'node_modules'),
            OTEL_EXPORTER_OTLP_ENDPOINT: endpoint,
            NO_PROXY: '127.0.0.1',
          }),
          timeout: 25_000,
        },
      );
      return { told: JSON.parse(stdout) as Record<string, unknown>, log: stderr };
    }

    it('sends what is left when it is closed', async () => {
      const { log } = await run(['steps']);
      expect(log).toBe('');
      expect([...receiver.paths]).toEqual(['POST /v1/traces application/json']);
      expect(receiver.resources[0]).toMatchObject({ 'service.name': 'cellbox', 'service.version': '1.2.3' });
      expect(receiver.lineage(receiver.named('inner'))).toEqual(['inner', 'step', 'request']);
      expect(receiver.named('inner').isError).toBe(true);
      expect(receiver.named('step').isError).toBe(true);
      expect(receiver.named('request')).toMatchObject({ isError: false, attributes: { a: 1 } });
    });

    it('does not wait for a collector that never answers', async () => {
      receiver.isStuck = true;
      const { told, log } = await run(['steps']);
      expect(told['closeMs']).toBeGreaterThan(2_500);
      expect(told['closeMs']).toBeLessThan(8_000);
      expect(log).toContain('the last spans were not taken in time');
    });

    it('says that a collector is away, once', async () => {
      const server = net.createServer();
      await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
      const { port } = server.address() as net.AddressInfo;
      await new Promise((resolve) => server.close(resolve));
      const { log } = await run(['steps'], `http://127.0.0.1:${port}`);
      expect(log.trim().split('\n')).toHaveLength(1);
      expect(JSON.parse(log)).toMatchObject({ from: 'opentelemetry' });
    });

    it('traces a create to its start and an execution to its kernel, in the trace of the client', async () => {
      const { told } = await run(['requests', TRACE, PARENT]);
      const mine = receiver.spans.filter(({ traceId }) => traceId === TRACE);
      const roots = mine.filter(({ parentSpanId }) => parentSpanId === PARENT);
      // The third one's client had it not sampled, which is for us to respect.
      expect(
        roots.map(({ attributes }) => [attributes['http.route'], attributes['http.response.status_code']]),
      ).toEqual([
        ['/v2/sandboxes', 201],
        ['/v1/sandboxes/:sandboxID/executions', 200],
      ]);
      expect(roots[0]?.attributes).toMatchObject({
        'http.request.method': 'POST',
        'cellbox.sandbox.id': told['sandboxId'],
        'cellbox.request.id': told['requestId'],
      });
      const request = 'POST control_plane';
      const lineages = mine.map((span) => receiver.lineage(span));
      expect(lineages).toContainEqual(['sandbox.create', request]);
      expect(lineages).toContainEqual(['execution', request]);
      expect(lineages).toContainEqual(['execution.queued', 'execution', request]);
      expect(lineages).toContainEqual(['execution.running', 'execution', request]);
      expect(lineages).toContainEqual(['gateway.start_kernel', 'kernel.start', request]);
      const execution = receiver.named('execution');
      expect(execution.attributes).toMatchObject({
        'cellbox.sandbox.id': told['executedIn'],
        'cellbox.execution.termination': 'ok',
        'cellbox.execution.id': told['executionId'],
      });
      const [queued, running] = [receiver.named('execution.queued'), receiver.named('execution.running')];
      expect(running.attributes['cellbox.kernel.id']).toEqual(expect.any(String));
      // A span begins in whole milliseconds, and its end is as long after that as it took.
      const slack = 2_000_000n;
      expect(queued.end <= running.start + slack && running.end <= execution.end + slack).toBe(true);
    });
  });
});
