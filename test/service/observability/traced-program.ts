/*
 * Run by tracing.test.ts as a process of its own, with the variables that an operator sets: the exporter loads parts of
 * itself in a way that Jest's loader doesn't know. Prints one line of JSON.
 */
import { createLogger } from '../../../service/log';
import { ServiceMetrics } from '../../../service/observability/metrics';
import { RequestObserver } from '../../../service/observability/request-observer';
import { inScope, traced } from '../../../service/observability/scope';
import { openTracing } from '../../../service/observability/tracing';
import type { Tracing } from '../../../service/observability/tracing';
import { ExecutionsHarness } from '../api/executions-harness';

/** Steps that succeed and fail. */
async function steps(tracing: Tracing): Promise<object> {
  const span = tracing.begin('request', {}, { a: 1 });
  const scope = { request: { id: 'r', sandboxId: undefined, isOver: false }, span };
  await inScope(scope, () =>
    traced('step', {}, () => traced('inner', {}, () => Promise.reject(new Error('no luck')))),
  ).catch(() => undefined); // what is looked at is the span
  span.end();
  return {};
}

/** A create and an execution of a client that traces, and one of a client that chose not to. */
async function requests(tracing: Tracing): Promise<object> {
  const [trace = '', parent = ''] = process.argv.slice(3);
  const metrics = new ServiceMetrics('1.2.3');
  const observer = new RequestObserver({ logger: createLogger('silent'), metrics, tracer: tracing });
  const harness = await ExecutionsHarness.open({}, { observer });
  const headers = { traceparent: `00-${trace}-${parent}-01`, tracestate: 'a=b' };
  const created = await harness.api.ask('POST', '/v2/sandboxes', { headers, body: { templateID: 'base' } });
  const ran = await harness.api.ask('POST', harness.path, { headers, body: { code: '1' } });
  await harness.api.ask('GET', '/v1/info', { headers: { traceparent: `00-${trace}-${parent}-00` } });
  await harness.close();
  metrics.close();
  return {
    sandboxId: (created.body as { sandboxID: string }).sandboxID,
    requestId: created.headers['x-request-id'],
    executionId: ran.headers['x-execution-id'],
    executedIn: harness.sandboxId,
  };
}

async function main(): Promise<void> {
  const tracing = await openTracing(process.env, { version: '1.2.3', logger: createLogger('info') });
  if (tracing === undefined) throw new Error('tracing is off');
  const result = await (process.argv[2] === 'requests' ? requests : steps)(tracing);
  const startedAt = performance.now();
  await tracing.close();
  await tracing.close();
  process.stdout.write(`${JSON.stringify({ ...result, closeMs: performance.now() - startedAt })}\n`);
  process.exit();
}

void main();
