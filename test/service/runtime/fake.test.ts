import { FakeEngine, FakeRuntime } from '../../fakes/fake-runtime';
import { runRuntimeSuite } from '../../suites/runtime-suite';

runRuntimeSuite(
  'fake',
  () => {
    const engine = new FakeEngine();
    let runtime = new FakeRuntime(engine);
    return Promise.resolve({
      get runtime() {
        return runtime;
      },
      restart: async () => {
        await runtime.close();
        runtime = new FakeRuntime(engine);
        return runtime;
      },
      leftovers: () => Promise.resolve([...engine.machines.keys()].map((id) => `machine ${id}`)),
      killFromOutside: (id: string) => {
        engine.kill(id);
        return Promise.resolve();
      },
      close: async () => {
        for (const id of engine.machines.keys()) await runtime.stop(id);
        await runtime.close();
      },
    });
  },
  { lacks: ['gateway', 'run', 'loopback', 'deadman'] },
);
