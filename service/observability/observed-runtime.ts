import { ServiceError } from '../errors';
import type { Runtime } from '../runtime/runtime';
import type { ServiceMetrics } from './metrics';
import { traced } from './scope';
import type { Attributes } from './scope';

/** The same runtime, whose operations are timed, counted when they fail, and steps of their request's trace. */
export function observeRuntime(runtime: Runtime, metrics: ServiceMetrics): Runtime {
  async function observed<Result>(
    operation: string,
    id: string | undefined,
    work: () => Promise<Result>,
    signal?: AbortSignal,
  ): Promise<Result> {
    const startedAt = performance.now();
    try {
      const attributes: Attributes = id === undefined ? {} : { 'cellbox.sandbox.id': id };
      const result = await traced(`runtime.${operation}`, attributes, work);
      metrics.engineSucceeded(operation, (performance.now() - startedAt) / 1000);
      return result;
    } catch (error) {
      if (!wasGivenUp(signal)) metrics.engineFailed(operation, ServiceError.from(error).code);
      throw error;
    }
  }
  return {
    name: runtime.name,
    get caveats() {
      return runtime.caveats;
    },
    limitsDisk: runtime.limitsDisk,
    whyNoNetworkRules: runtime.whyNoNetworkRules,
    get isolationLevels() {
      return runtime.isolationLevels;
    },
    // Its failures are an answer, and told by `/health`.
    check: () => runtime.check(),
    start: (spec, signal) => observed('start', spec.id, () => runtime.start(spec, signal), signal),
    list: () => observed('list', undefined, () => runtime.list()),
    adopt: (id, signal) => observed('adopt', id, () => runtime.adopt(id, signal), signal),
    pause: (id) => observed('pause', id, () => runtime.pause(id)),
    resume: (id) => observed('resume', id, () => runtime.resume(id)),
    halt: (id) => observed('halt', id, () => runtime.halt(id)),
    boot: (spec, signal) => observed('boot', spec.id, () => runtime.boot(spec, signal), signal),
    stop: (id) => observed('stop', id, () => runtime.stop(id)),
    prepareNetwork: (access) => runtime.prepareNetwork(access),
    setNetwork: (id, access) => observed('network', id, () => runtime.setNetwork(id, access)),
    stats: (id) => observed('stats', id, () => runtime.stats(id)),
    diskUsage: (id) => observed('disk', id, () => runtime.diskUsage(id)),
    output: (id) => observed('output', id, () => runtime.output(id)),
    close: () => runtime.close(),
  };
}

/** The caller did not want it any more; a deadline that passed is a failure. */
function wasGivenUp(signal: AbortSignal | undefined): boolean {
  if (signal?.aborted !== true) return false;
  return !(signal.reason instanceof Error && signal.reason.name === 'TimeoutError');
}
