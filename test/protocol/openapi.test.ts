import { openApiDocument } from '../../protocol/openapi';
import { compile } from '../json-schema';

const document = openApiDocument('1.2.3');
const operations = Object.entries(document.paths).flatMap(([path, methods]) =>
  Object.entries(methods).map(([method, operation]) => ({ path, method, operation })),
);

describe('openApiDocument', () => {
  it('says what it is', () => {
    expect(document).toMatchObject({ openapi: '3.1.0', info: { title: 'Cellbox', version: '1.2.3' } });
  });

  it('names every parameter of a path, each operation once, and what a failure looks like', () => {
    const ids = operations.map(({ operation }) => operation.operationId);
    expect(new Set(ids).size).toBe(ids.length);
    for (const { path, operation } of operations) {
      const named = (operation.parameters ?? []).filter((each) => each.in === 'path').map(({ name }) => name);
      expect(named).toEqual([...path.matchAll(/\{(\w+)\}/g)].map((match) => match[1]));
      const { $ref } = operation.responses['500']?.content?.['application/json']?.schema ?? {};
      expect($ref).toBe(`#/components/schemas/${path.startsWith('/v1/') ? 'NativeError' : 'Error'}`);
    }
  });

  it('refers to nothing that is not in it', () => {
    const references = [...JSON.stringify(document).matchAll(/"\$ref":"([^"]+)"/g)].map(
      (match) => match[1] ?? '',
    );
    const known = Object.keys(document.components.schemas).map((name) => `#/components/schemas/${name}`);
    expect(references.length).toBeGreaterThan(100);
    expect(references.filter((reference) => !known.includes(reference))).toEqual([]);
  });

  it('asks for a key everywhere but where it says so', () => {
    const open = operations
      .filter(({ operation }) => operation.security.length === 0)
      .map(({ path }) => path);
    expect(open).toEqual(['/health', '/docs', '/docs/openapi.json']);
    const admin = operations.filter(({ operation }) => operation.security.some((each) => 'admin' in each));
    expect(admin.every(({ path }) => path === '/metrics' || path.startsWith('/v1/admin/'))).toBe(true);
    expect(admin.length).toBeGreaterThan(1);
  });

  it('describes requests as they may be sent and answers as they are', () => {
    const request = compile(document, { $ref: '#/components/schemas/NewSandboxV2' });
    expect(request({ templateID: 'base', timeout: null, metadata: { a: 'b' }, unknown: 1 })).toEqual([]);
    expect(request({ timeout: 5 })).not.toEqual([]);
    expect(request({ templateID: 'base', timeout: 'soon' })).not.toEqual([]);
    const execution = compile(document, { $ref: '#/components/schemas/NewExecution' });
    expect(execution({ code: '1', mistake: true })).not.toEqual([]);
    const event = compile(document, { $ref: '#/components/schemas/ExecutionEvent' });
    expect(event({ type: 'stdout', text: 'a', timestamp: 't', seq: 0 })).toEqual([]);
    expect(event({ type: 'keepalive' })).toEqual([]);
    expect(event({ type: 'stdout', text: 'a', timestamp: 't' })).not.toEqual([]);
    const answer = compile(document, { $ref: '#/components/schemas/Error' });
    expect(answer({ code: 404, message: 'no', surprise: 1 })).not.toEqual([]);
  });
});
