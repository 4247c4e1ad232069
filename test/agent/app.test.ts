import { Machine } from './agent-fixture';

const TOKEN = '0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0';

describe('the agent', () => {
  let machine: Machine;

  beforeEach(async () => {
    machine = await Machine.make();
    await machine.start('agent');
  });

  afterEach(() => machine.close());

  const init = (body: unknown) => machine.request('POST', '/init', { body: JSON.stringify(body) });
  const json = (answer: { body: Buffer }) => JSON.parse(answer.body.toString()) as unknown;

  it('answers /health with nothing, and keeps it out of caches', async () => {
    const answer = await machine.request('GET', '/health');
    expect(answer).toMatchObject({ status: 204, headers: { 'cache-control': 'no-store' } });
    expect(answer.body.length).toBe(0);
  });

  it('gives the environment of /init, replaced as a whole and never its own part', async () => {
    expect(await init({ envVars: { A: '1', B: '"\n$x', E2B_SANDBOX: 'no' } })).toMatchObject({
      status: 204,
      headers: { 'x-envd-version': '0.6.13' },
    });
    expect(json(await machine.request('GET', '/envs'))).toEqual({ A: '1', B: '"\n$x', E2B_SANDBOX: 'true' });
    await init({});
    expect(json(await machine.request('GET', '/envs'))).toMatchObject({ A: '1' });
    await init({ envVars: { C: '3' } });
    expect(json(await machine.request('GET', '/envs'))).toEqual({ C: '3', E2B_SANDBOX: 'true' });
    expect((await machine.request('POST', '/init')).status).toBe(204);
  });

  it('asks for the token once it has one, and lets nobody without it change it', async () => {
    expect((await init({ accessToken: TOKEN })).status).toBe(204);
    expect((await init({ accessToken: 'another' })).status).toBe(401);
    expect((await init({})).status).toBe(401);
    expect((await init({ accessToken: TOKEN, envVars: { A: '1' } })).status).toBe(204);
    for (const path of ['/envs', '/metrics', '/process.Process/List', '/nowhere']) {
      const answer = await machine.request(path.includes('.') ? 'POST' : 'GET', path);
      expect({ path, status: answer.status, body: json(answer) }).toEqual({
        path,
        status: 401,
        body: { code: 401, message: expect.any(String) as string },
      });
    }
    const wrong = { headers: { 'x-access-token': `${TOKEN}x` } };
    expect((await machine.request('GET', '/envs', wrong)).status).toBe(401);
    expect(
      json(await machine.request('GET', '/envs', { headers: { 'x-access-token': TOKEN } })),
    ).toMatchObject({
      A: '1',
    });
    expect((await machine.request('GET', '/health')).status).toBe(204);
  });

  it('applies calls of /init in the order of their timestamps', async () => {
    await init({ timestamp: '2026-01-01T00:00:02Z', envVars: { V: 'newer' } });
    expect((await init({ timestamp: '2026-01-01T00:00:01Z', envVars: { V: 'older' } })).status).toBe(204);
    expect(json(await machine.request('GET', '/envs'))).toMatchObject({ V: 'newer' });
    await init({ timestamp: '2026-01-01T00:00:02Z', envVars: { V: 'equal' } });
    expect(json(await machine.request('GET', '/envs'))).toMatchObject({ V: 'equal' });
    await init({ envVars: { V: 'untimed' } });
    expect(json(await machine.request('GET', '/envs'))).toMatchObject({ V: 'untimed' });
  });

  it.each([
    ['{"envVars":', 'not valid JSON'],
    ['[]', 'JSON object'],
    ['{"accessToken":""}', 'accessToken'],
    ['{"accessToken":"a\\\\b"}', 'accessToken'],
    ['{"envVars":{"A":1}}', 'envVars'],
    ['{"envVars":{"A=B":"1"}}', 'envVars'],
    ['{"envVars":{"A":"\\u0000"}}', 'envVars'],
    ['{"timestamp":"yesterday"}', 'timestamp'],
    ['{"volumeMounts":[{}]}', 'volumeMounts is not supported yet'],
    ['{"caBundle":"pem"}', 'caBundle is not supported yet'],
  ])('refuses the /init body %s', async (body, message) => {
    const answer = await machine.request('POST', '/init', { body });
    expect(answer.status).toBe(400);
    expect(json(answer)).toMatchObject({ code: 400, message: expect.stringContaining(message) as string });
  });

  it('refuses users that do not exist, on every route', async () => {
    const headers = { authorization: `Basic ${Buffer.from('nobody-here:').toString('base64')}` };
    const unary = await machine.request('POST', '/filesystem.Filesystem/Stat', { headers });
    expect(unary.status).toBe(401);
    expect(json(unary)).toMatchObject({ code: 'unauthenticated' });
    const stream = await machine.request('POST', '/process.Process/Start', {
      headers: { ...headers, 'content-type': 'application/connect+proto' },
    });
    expect(stream.status).toBe(200);
    expect(stream.body.subarray(5).toString()).toContain('unauthenticated');
    expect((await machine.request('GET', '/envs', { headers })).status).toBe(401);
    const user = { authorization: `Basic ${Buffer.from('user:').toString('base64')}` };
    expect((await machine.request('GET', '/envs', { headers: user })).status).toBe(200);
  });

  it.each([
    ['GET', '/nowhere', 404],
    ['GET', '/', 404],
    ['GET', '/files/', 404],
    ['GET', '/filesystem', 404],
    ['GET', '/constructor', 404],
    ['DELETE', '/files', 405],
    ['HEAD', '/files', 405],
    ['GET', '/init', 405],
  ])('answers %s %s with %s', async (method, path, status) => {
    expect((await machine.request(method, path)).status).toBe(status);
  });

  it('lets browsers in from anywhere, before any token', async () => {
    await init({ accessToken: TOKEN });
    const preflight = await machine.request('OPTIONS', '/process.Process/Start', {
      headers: {
        origin: 'https://app.example',
        'access-control-request-method': 'POST',
        'access-control-request-headers': 'authorization, x-metadata-author',
      },
    });
    expect(preflight).toMatchObject({
      status: 204,
      headers: {
        'access-control-allow-origin': '*',
        'access-control-allow-headers': 'authorization, x-metadata-author',
        'access-control-allow-methods': 'HEAD, GET, POST, PUT, PATCH, DELETE',
        'access-control-max-age': '7200',
      },
    });
    const refused = await machine.request('GET', '/envs', { headers: { origin: 'https://app.example' } });
    expect(refused).toMatchObject({ status: 401, headers: { 'access-control-allow-origin': '*' } });
  });

  it('serves several requests on one stream, and survives bytes that are no HTTP', async () => {
    const stream = await machine.server.dial(49983);
    let text = '';
    stream.on('data', (chunk: Buffer) => (text += chunk.toString()));
    stream.write(
      'GET /health HTTP/1.1\r\nhost: a\r\n\r\nGET /envs HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n',
    );
    await new Promise((resolve) => stream.once('end', resolve));
    expect(text.match(/HTTP\/1\.1 \d+/g)).toEqual(['HTTP/1.1 204', 'HTTP/1.1 200']);
    const garbage = await machine.server.dial(49983);
    garbage.write('\x00\xff\xff\r\n\r\n');
    await new Promise((resolve) => garbage.resume().once('end', resolve));
    expect((await machine.request('GET', '/health')).status).toBe(204);
  });
});
