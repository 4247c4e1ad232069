import { Fixture } from './interpreter-fixture';

let fixture: Fixture;
beforeEach(async () => {
  fixture = await Fixture.start({
    maxBodyBytes: 1024,
    remedyFor: (language) => (language === 'r' ? 'R comes with the full image' : undefined),
  });
});
afterEach(() => fixture.close());

const MISSING = { type: 'missing', loc: ['body'], msg: 'Field required', input: null };
const KERNEL_MISSING = { message: "The 'cobol' kernel is not available.", short_message: 'cobol not found' };

describe('a request that can not be understood', () => {
  it.each([
    ['no body', '', { detail: [MISSING] }],
    ['null', 'null', { detail: [MISSING] }],
    [
      'no code',
      '{"language":"r"}',
      { detail: [{ ...MISSING, loc: ['body', 'code'], input: { language: 'r' } }] },
    ],
    [
      'code that is an object',
      '{"code":{"a":1}}',
      {
        detail: [
          {
            type: 'string_type',
            loc: ['body', 'code'],
            msg: 'Input should be a valid string',
            input: { a: 1 },
          },
        ],
      },
    ],
    [
      'a number for a variable',
      '{"code":"","env_vars":{"a":1}}',
      {
        detail: [
          {
            type: 'string_type',
            loc: ['body', 'env_vars', 'a'],
            msg: 'Input should be a valid string',
            input: 1,
          },
        ],
      },
    ],
    [
      'variables as a list',
      '{"code":"","env_vars":[]}',
      {
        detail: [
          {
            type: 'dict_type',
            loc: ['body', 'env_vars'],
            msg: 'Input should be a valid dictionary',
            input: [],
          },
        ],
      },
    ],
    [
      'a list',
      '[]',
      {
        detail: [
          {
            type: 'model_attributes_type',
            loc: ['body'],
            msg: 'Input should be a valid dictionary or object to extract fields from',
            input: [],
          },
        ],
      },
    ],
  ])('%s is answered with 422', async (_name, body, answer) => {
    const { status, headers, text } = await fixture.request('POST', '/execute', body);
    expect(status).toBe(422);
    expect(headers['content-type']).toBe('application/json');
    expect(JSON.parse(text)).toEqual(answer);
  });

  it.each([
    ['broken JSON', Buffer.from('{"code":')],
    ['invalid UTF-8', Buffer.from([0x22, 0xff, 0x22])],
  ])('%s is answered with 422', async (_name, body) => {
    const { status, text } = await fixture.request('POST', '/execute', body);
    expect(status).toBe(422);
    expect(JSON.parse(text)).toMatchObject({ detail: [{ type: 'json_invalid', loc: ['body', 0] }] });
  });

  it('a body too large is answered with 413', async () => {
    const answer = await fixture.request('POST', '/execute', { code: 'x'.repeat(2000) });
    expect(answer).toMatchObject({ status: 413, text: 'The request body is larger than 1024 bytes' });
  });

  it.each([
    [{ context_id: 'c', language: 'python' }, 400, 'Only one of context_id or language can be provided'],
    [{ context_id: 'nope' }, 404, 'Context nope not found'],
    [
      { env_vars: { 'A=B': '' } },
      400,
      `"A=B" can't name an environment variable: empty, or has '=' or NUL in it`,
    ],
    [{ env_vars: { A: '\0' } }, 400, 'The value of environment variable A has a NUL character in it'],
    [{ env_vars: { A: '\udc00' } }, 400, 'env_vars is not valid Unicode: it has a lone surrogate'],
  ])('%j is answered with a text', async (fields, status, text) => {
    const answer = await fixture.request('POST', '/execute', { code: '', ...fields });
    expect(answer).toMatchObject({ status, text });
    expect(answer.headers['content-type']).toBe('text/plain; charset=utf-8');
  });

  it('empty strings for context and language count as absent', async () => {
    expect(
      (await fixture.request('POST', '/execute', { code: '1+1', context_id: '', language: '' })).status,
    ).toBe(200);
  });
});

describe('a language that is not there', () => {
  beforeEach(() => {
    fixture.gateway.refuse = (body) =>
      body.name === 'python3' ? undefined : { status: 404, body: KERNEL_MISSING };
  });
  const text = `Failed to create context: ${JSON.stringify(KERNEL_MISSING)}`;

  it('is a 500 with the words of the gateway, to execute and to create a context', async () => {
    const executed = await fixture.request('POST', '/execute', { code: 'x', language: ' COBOL ' });
    expect(executed).toMatchObject({ status: 500, text });
    const created = await fixture.request('POST', '/contexts', { language: 'cobol' });
    expect(created).toMatchObject({ status: 500, text });
  });

  it('comes with the remedy where there is one', async () => {
    const { text: body } = await fixture.request('POST', '/contexts', { language: 'r' });
    expect(JSON.parse(body.slice('Failed to create context: '.length))).toEqual({
      ...KERNEL_MISSING,
      remedy: 'R comes with the full image',
    });
  });

  it('is not listed afterwards, but JavaScript still is', async () => {
    await fixture.request('POST', '/execute', { code: 'x', language: 'cobol' });
    expect((await fixture.request('POST', '/execute', { code: 'x', language: 'js' })).status).toBe(500);
    const contexts = (await fixture.json('GET', '/contexts')) as Array<{ language: string }>;
    expect(contexts.map((context) => context.language)).toEqual(['python', 'javascript']);
  });
});

describe('what surrounds the API', () => {
  it.each([
    ['GET', '/nope', 404, { detail: 'Not Found' }, undefined],
    ['HEAD', '/health', 405, undefined, 'GET'],
    ['GET', '/execute', 405, { detail: 'Method Not Allowed' }, 'POST'],
    ['PUT', '/contexts', 405, { detail: 'Method Not Allowed' }, 'GET, POST'],
    ['GET', '/contexts/x', 405, { detail: 'Method Not Allowed' }, 'DELETE'],
    ['OPTIONS', '/execute', 405, { detail: 'Method Not Allowed' }, 'POST'],
    ['GET', '/contexts/x/y', 404, { detail: 'Not Found' }, undefined],
  ])('%s %s is answered with %d', async (method, path, status, body, allow) => {
    const answer = await fixture.request(method, path);
    expect(answer.status).toBe(status);
    expect(answer.headers.allow).toBe(allow);
    if (body !== undefined) expect(JSON.parse(answer.text)).toEqual(body);
  });

  it('leads from a path with a slash at its end to the one without', async () => {
    const { status, headers } = await fixture.request('GET', '/contexts/');
    expect([status, headers.location]).toEqual([307, '/contexts']);
  });

  it('ignores query parameters', async () => {
    expect((await fixture.request('GET', '/contexts?source=x')).status).toBe(200);
  });

  it('answers preflights of any origin and lets any origin read', async () => {
    const preflight = await fixture.request('OPTIONS', '/execute', undefined, {
      origin: 'https://a.example',
      'access-control-request-method': 'POST',
      'access-control-request-headers': 'e2b-sandbox-id',
    });
    expect(preflight).toMatchObject({
      status: 200,
      text: 'OK',
      headers: {
        'access-control-allow-origin': '*',
        'access-control-allow-headers': 'e2b-sandbox-id',
        'access-control-allow-methods': 'DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT',
      },
    });
    const { headers } = await fixture.request('GET', '/contexts', undefined, { origin: 'https://a.example' });
    expect(headers['access-control-allow-origin']).toBe('*');
  });

  it('says it is healthy, as a JSON string, when the default kernel answers', async () => {
    const { status, text } = await fixture.request('GET', '/health');
    expect([status, text]).toEqual([200, '"OK"']);
  });

  it('is healthy again, with new kernels, after the gateway was killed', async () => {
    await fixture.request('GET', '/health');
    fixture.gateway.crash();
    expect((await fixture.request('GET', '/health')).status).toBe(200);
    expect((await fixture.request('POST', '/execute', { code: '1+1' })).text).toContain('"text":"2"');
  });

  it('is not healthy while no kernel can be had', async () => {
    fixture.gateway.gate = new Promise(() => undefined);
    expect(await fixture.request('GET', '/health')).toMatchObject({
      status: 504,
      text: 'The default kernel is not ready yet',
    });
  }, 15_000);
});
