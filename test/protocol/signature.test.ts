import { fileSignature } from '../../protocol/signature';

const token = '0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0';
const request = { operation: 'read', path: 'hello.txt', username: 'user', expiration: undefined } as const;

describe('fileSignature', () => {
  it('gives what SDKs compute', () => {
    expect(fileSignature(request, token)).toBe('v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E');
  });

  it('depends on every field', () => {
    const variants = [
      request,
      { ...request, operation: 'write' as const },
      { ...request, path: 'hello.txt ' },
      { ...request, username: '' },
      { ...request, expiration: '1700000000' },
      { ...request, expiration: '' },
    ];
    const signatures = new Set([
      ...variants.map((each) => fileSignature(each, token)),
      fileSignature(request, 'x'),
    ]);
    expect(signatures.size).toBe(variants.length + 1);
  });
});
