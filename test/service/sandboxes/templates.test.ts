import { ServiceError } from '../../../service/errors';
import { Templates } from '../../../service/sandboxes/templates';
import { RESOURCES } from './sandboxes-options';

const BUILT_IN = new Templates(RESOURCES);
const MAXIMUM = { cpuCount: 8, memoryMB: 16_384 };

describe('a reference to a template', () => {
  it.each([
    ['base', 'base'],
    [' Base ', 'base'],
    ['base:default', 'base'],
    ['default/base', 'base'],
    ['code-interpreter-v1', 'code-interpreter-v1'],
    ['cellboxbase0template', 'base'],
    ['base:v2', undefined],
    ['other/base', undefined],
    ['nothing', undefined],
    ['', undefined],
    ['__proto__', undefined],
    ['base@1vcpu-2gb', undefined],
  ])('finds %j', (reference, alias) => {
    expect(BUILT_IN.find(reference)?.alias).toBe(alias);
  });

  it('has ids of the form that clients expect', () => {
    for (const { id, buildId } of BUILT_IN.all) {
      expect(id).toMatch(/^[a-z0-9]{20}$/);
      expect(buildId).toMatch(/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
    }
  });
});

describe('what a create comes down to', () => {
  const templates = new Templates(RESOURCES, {
    sizes: new Map([['tiny', { cpuCount: 1, memoryMB: 256, diskSizeMB: 512, pids: 64 }]]),
    templates: new Map([
      ['base', { resources: { size: 'tiny' } }],
      ['code-interpreter-v1', { resources: { memoryMB: 4096, pids: 2048 } }],
    ]),
    maximum: MAXIMUM,
  });
  const resourcesOf = (...asked: Parameters<Templates['choose']>) => templates.choose(...asked).resources;

  it('is what the template has, the rest being the usual', () => {
    expect(resourcesOf('base')).toEqual({
      ...RESOURCES,
      cpuCount: 1,
      memoryMB: 256,
      diskSizeMB: 512,
      pids: 64,
    });
    expect(resourcesOf('code-interpreter-v1')).toEqual({ ...RESOURCES, memoryMB: 4096, pids: 2048 });
  });

  it('is the size behind the reference, in every form of that', () => {
    for (const reference of [
      'base@2vcpu-4gb',
      ' Default/Base:default@Apps-S-2vcpu-4gb ',
      'cellboxbase0template@2vcpu-4gb',
    ])
      expect([reference, resourcesOf(reference)]).toEqual([
        reference,
        { ...RESOURCES, cpuCount: 2, memoryMB: 4096, diskSizeMB: 20_480, pids: 64 },
      ]);
  });

  it('is single figures on top of what the template has', () => {
    expect(resourcesOf('code-interpreter-v1', { cpuCount: 3, diskSizeMB: 1024 })).toEqual({
      ...RESOURCES,
      memoryMB: 4096,
      pids: 2048,
      cpuCount: 3,
      diskSizeMB: 1024,
    });
  });

  it('may be said twice, but not in two ways', () => {
    expect(resourcesOf('base@tiny', { size: 'tiny' }).memoryMB).toBe(256);
    expect(() => resourcesOf('base@tiny', { size: '1vcpu-2gb' })).toThrow(
      'size: is 1vcpu-2gb, and tiny behind the template',
    );
    expect(() => resourcesOf('base@tiny', { memoryMB: 512 })).toThrow(
      'size: can not be given together with memoryMB',
    );
  });

  it.each([
    [{ cpuCount: 9 }, 'cpuCount: at most 8 CPUs for one sandbox'],
    [{ memoryMB: 16_385 }, 'memoryMB: at most 16384 MiB of memory for one sandbox'],
    // The most of what is offered: 4vcpu-16gb has 80 GiB.
    [{ diskSizeMB: 81_921 }, 'diskSizeMB: at most 81920 MiB of disk for one sandbox'],
    [{ pids: 2049 }, 'pids: at most 2048 processes for one sandbox'],
    [{ openFiles: 16_385 }, 'openFiles: at most 16384 open files for one sandbox'],
  ])('is at most what the service allows: %j', (asked, message) => {
    expect(() => resourcesOf('base', asked)).toThrow(new ServiceError('invalid_argument', message));
  });

  it('is not found for a template that there is not, whatever its size', () => {
    for (const reference of ['nope', 'nope@tiny', 'base:v2@tiny', 'base@'])
      expect(() => resourcesOf(reference)).toThrow(
        new ServiceError('not_found', `template '${reference}' not found`),
      );
  });

  it('is refused at the start where a template can not have it, every mistake at once', () => {
    expect(
      () =>
        new Templates(RESOURCES, {
          maximum: MAXIMUM,
          templates: new Map([
            ['base', { resources: { size: 'gigantic' } }],
            ['code-interpreter-v1', { resources: { cpuCount: 9 } }],
          ]),
        }),
    ).toThrow(
      /^templates\.base\.size: "gigantic" is not known; there are .*\ntemplates\.code-interpreter-v1\.cpuCount: at most 8 CPUs/,
    );
  });
});
