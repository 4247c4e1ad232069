import { TEMPLATES, findTemplate } from '../../../service/sandboxes/templates';

describe('findTemplate', () => {
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
  ])('finds %j', (reference, alias) => {
    expect(findTemplate(reference)?.alias).toBe(alias);
  });

  it('has ids of the form that clients expect', () => {
    for (const { id, buildId } of TEMPLATES) {
      expect(id).toMatch(/^[a-z0-9]{20}$/);
      expect(buildId).toMatch(/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
    }
  });
});
