import { BUILT_IN_SIZES, boundsOf, SIZE_NAME, Sizes } from '../../../service/sandboxes/sizes';
import type { ResourceRequest, Size } from '../../../service/sandboxes/sizes';
import { RESOURCES } from './sandboxes-options';

const PLENTY = { cpuCount: 64, memoryMB: 262_144, diskSizeMB: 1_048_576, pids: 100_000, openFiles: 100_000 };

const sizes = (own: Record<string, Size> = {}, bounds = PLENTY) =>
  new Sizes(new Map(Object.entries(own)), bounds);

describe('sizes', () => {
  it('are spelt so that a reference to a template can name them', () => {
    for (const name of BUILT_IN_SIZES.keys()) expect(name).toMatch(SIZE_NAME);
    expect([...BUILT_IN_SIZES.keys()]).toContain('1vcpu-0.5gb');
  });

  it('hold what their name says', () => {
    for (const [name, { cpuCount, memoryMB }] of BUILT_IN_SIZES)
      expect(name).toBe(`${cpuCount}vcpu-${memoryMB / 1024}gb`);
  });

  it.each([
    '2vcpu-4gb',
    ' 2VCPU-4GB ',
    'apps-s-2vcpu-4gb',
    'apps-d-2vcpu-4gb',
    's-2vcpu-4gb',
    'd-2vcpu-4gb',
    'apps-s-2vcpu-4gb-fixed',
  ])('are found as %j', (size) => {
    expect(sizes().apply(RESOURCES, { size })).toEqual({
      cpuCount: 2,
      memoryMB: 4096,
      diskSizeMB: 20_480,
      pids: RESOURCES.pids,
      openFiles: RESOURCES.openFiles,
    });
  });

  it.each(['', 'apps-s-', 'apps-s-apps-s-2vcpu-4gb', 'x-2vcpu-4gb', '2vcpu', '__proto__', 'constructor'])(
    'are not found as %j, and are listed instead',
    (size) => {
      expect(() =>
        sizes({ small: { cpuCount: 1, memoryMB: 256, diskSizeMB: 512 } }).apply(RESOURCES, { size }),
      ).toThrow(`size: ${JSON.stringify(size)} is not known; there are small, 1vcpu-0.5gb, 1vcpu-1gb`);
    },
  );

  it('replace built-in ones of the same name, by every spelling', () => {
    const own = sizes({ '1vcpu-2gb': { cpuCount: 1, memoryMB: 2000, diskSizeMB: 99_000, pids: 50 } });
    expect([...own.all.keys()].filter((name) => name === '1vcpu-2gb')).toHaveLength(1);
    expect(own.apply(RESOURCES, { size: 'apps-s-1vcpu-2gb' })).toEqual({
      ...RESOURCES,
      cpuCount: 1,
      memoryMB: 2000,
      diskSizeMB: 99_000,
      pids: 50,
    });
  });

  it('may be named as clouds name them', () => {
    const own = sizes({ 'apps-s-1vcpu-2gb': { cpuCount: 1, memoryMB: 1000, diskSizeMB: 4000 } });
    expect(own.apply(RESOURCES, { size: 'apps-s-1vcpu-2gb' }).memoryMB).toBe(1000);
    expect(own.apply(RESOURCES, { size: '1vcpu-2gb' }).memoryMB).toBe(2048);
  });

  it('are not offered where they are more than a sandbox may have', () => {
    const few = sizes({}, { ...PLENTY, cpuCount: 2, memoryMB: 4096 });
    expect([...few.all.keys()]).toEqual([
      '1vcpu-0.5gb',
      '1vcpu-1gb',
      '1vcpu-2gb',
      '1vcpu-4gb',
      '2vcpu-2gb',
      '2vcpu-4gb',
    ]);
    expect(() => few.apply(RESOURCES, { size: 'apps-s-4vcpu-8gb' })).toThrow(
      'size: "apps-s-4vcpu-8gb" is more than a sandbox may have here; there are 1vcpu-0.5gb',
    );
  });

  it('of the operator above the bounds are refused, every figure by name', () => {
    const huge = { cpuCount: 65, memoryMB: 1024, diskSizeMB: 1024, pids: 200_000 };
    expect(() => sizes({ huge })).toThrow(
      'sizes.huge.cpuCount: at most 64 CPUs for one sandbox\nsizes.huge.pids: at most 100000 processes for one sandbox',
    );
  });

  it.each<[ResourceRequest, string]>([
    [{ size: '1vcpu-2gb', cpuCount: 1 }, 'cpuCount'],
    [{ size: '1vcpu-2gb', memoryMB: 4096, diskSizeMB: 1024 }, 'memoryMB, diskSizeMB'],
  ])('let nothing of their own beside them: %j', (asked, names) => {
    expect(() => sizes().apply(RESOURCES, asked)).toThrow(`size: can not be given together with ${names}`);
  });

  it('let processes and open files beside them', () => {
    expect(sizes().apply(RESOURCES, { size: '1vcpu-2gb', pids: 40, openFiles: 99 })).toMatchObject({
      memoryMB: 2048,
      pids: 40,
      openFiles: 99,
    });
  });
});

describe('boundsOf', () => {
  it('takes the settings, and lets the usual be whatever the host has', () => {
    const usual = { ...RESOURCES, cpuCount: 999, memoryMB: 99_999_999 };
    expect(boundsOf({ pids: 2000 }, usual)).toEqual({
      cpuCount: 999,
      memoryMB: 99_999_999,
      diskSizeMB: Infinity,
      pids: 2000,
      openFiles: Infinity,
    });
  });

  it('ends at what the host has of CPUs and memory', () => {
    const { cpuCount, memoryMB } = boundsOf({}, { ...RESOURCES, cpuCount: 1, memoryMB: 128 });
    expect(cpuCount).toBeGreaterThanOrEqual(1);
    expect(cpuCount).toBeLessThan(10_000);
    expect(memoryMB).toBeGreaterThan(128);
    expect(Number.isInteger(memoryMB)).toBe(true);
  });
});
