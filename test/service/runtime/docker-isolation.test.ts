import { isHostKernel, levelsOf } from '../../../service/runtime/docker-isolation';

const names = (engine: Parameters<typeof levelsOf>[0]) => levelsOf(engine).map(({ name }) => name);

describe('levelsOf()', () => {
  it('calls gVisor by its name, whichever of its two its runtime was registered under', () => {
    for (const runtime of ['runsc', 'gvisor']) {
      expect(levelsOf({ DefaultRuntime: 'runc', Runtimes: { runc: {}, [runtime]: {} } })).toEqual([
        { name: 'runc', ociRuntime: 'runc', isHostKernel: true },
        { name: 'gvisor', ociRuntime: runtime, isHostKernel: false },
      ]);
    }
  });

  it('keeps the two apart where both are registered', () => {
    const both = levelsOf({ DefaultRuntime: 'runc', Runtimes: { runc: {}, gvisor: {}, runsc: {} } });
    expect(both.filter(({ name }) => name === 'gvisor').map(({ ociRuntime }) => ociRuntime)).toContain(
      'runsc',
    );
  });

  it('begins with the engine’s default and has every other runtime once', () => {
    expect(names({ DefaultRuntime: 'kata', Runtimes: { runc: {}, kata: {}, crun: {} } })).toEqual([
      'kata',
      'crun',
      'runc',
    ]);
  });

  it('leaves out what older engines tell beside runc: it is the same', () => {
    const Runtimes = { 'io.containerd.runc.v2': {}, 'io.containerd.runtime.v1.linux': {}, runc: {} };
    expect(names({ DefaultRuntime: 'runc', Runtimes })).toEqual(['runc']);
  });

  it('has at least the engine’s default', () => {
    expect(names({})).toEqual(['runc']);
  });
});

describe('isHostKernel()', () => {
  it('trusts no name that it doesn’t know', () => {
    expect(['runc', 'crun', 'io.containerd.runc.v2'].map(isHostKernel)).toEqual([true, true, true]);
    expect(['runsc', 'kata', 'runc-kata', 'io.containerd.kata.v2'].map(isHostKernel)).toEqual([
      false,
      false,
      false,
      false,
    ]);
  });
});
