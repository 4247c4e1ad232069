import { PassThrough } from 'node:stream';
import { createLogger } from '../../service/log';
import { ServiceMetrics } from '../../service/observability/metrics';
import { RequestObserver } from '../../service/observability/request-observer';
import { inScope, noteSandbox } from '../../service/observability/scope';
import { ADMIN_TOKEN, KEY } from './api/api-harness';
import { ExecutionsHarness } from './api/executions-harness';

let text = '';
const logger = () => {
  text = '';
  const sink = new PassThrough().on('data', (chunk: Buffer) => (text += chunk.toString()));
  return createLogger('trace', sink);
};
const parsed = (): Array<Record<string, unknown>> =>
  text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as Record<string, unknown>);

describe('createLogger', () => {
  it('says what a line is for, once', () => {
    const log = logger();
    const child = log.child({ sandboxId: 'ichild' });
    log.info('outside');
    inScope({ request: { id: 'r1', sandboxId: undefined, isOver: false }, span: undefined }, () => {
      log.info('before it is known');
      noteSandbox('ione');
      log.info('then');
      log.info({ sandboxId: 'iother' }, 'about another');
      child.info('of a child');
    });
    expect(parsed().map(({ msg, requestId, sandboxId }) => [msg, requestId, sandboxId])).toEqual([
      ['outside', undefined, undefined],
      ['before it is known', 'r1', undefined],
      ['then', 'r1', 'ione'],
      ['about another', 'r1', 'iother'],
      ['of a child', 'r1', 'ichild'],
    ]);
    for (const line of text.trim().split('\n')) {
      expect((line.match(/"sandboxId"/g) ?? []).length).toBeLessThanOrEqual(1);
    }
  });

  it('leaves out secrets wherever they ride in', () => {
    const log = logger();
    log.info({ accessToken: 's3cret', sandbox: { trafficToken: 's3cret', envdAccessToken: 's3cret' } }, 'a');
    log.info({ req: { headers: { 'x-api-key': 's3cret', authorization: 's3cret', cookie: 's3cret' } } }, 'b');
    log.info({ headers: { 'x-admin-token': 's3cret', 'x-access-token': 's3cret' }, password: 's3cret' }, 'c');
    log.warn({ err: Object.assign(new Error('no'), { token: 's3cret' }) }, 'd');
    expect(parsed().map(({ msg }) => msg)).toEqual(['a', 'b', 'c', 'd']);
    expect(text).not.toContain('s3cret');
  });

  it('tells errors in full under either name', () => {
    const log = logger();
    log.error({ error: new Error('first') }, 'a');
    log.error({ err: new Error('second', { cause: new Error('third') }) }, 'b');
    expect(parsed()).toMatchObject(
      [{ error: { message: 'first' } }, { err: { message: /second/ } }].map((line) => {
        const [name = '', { message }] = Object.entries(line)[0] as [string, { message: string | RegExp }];
        return { [name]: { message: message instanceof RegExp ? expect.stringMatching(message) : message } };
      }),
    );
    expect(text).toContain('third');
  });

  it('never has a key, token or signature of the requests that it follows', async () => {
    const log = logger();
    const metrics = new ServiceMetrics('1');
    const observer = new RequestObserver({ logger: log, metrics });
    const harness = await ExecutionsHarness.open({}, { observer, logger: log, metrics });
    const { api } = harness;
    try {
      const { body } = await api.ask('POST', '/v2/sandboxes', {
        body: {
          templateID: 'base',
          network: { allowPublicTraffic: false },
          envVars: { PASSWORD: 'hunter2' },
        },
      });
      const tokens = body as { envdAccessToken: string; trafficAccessToken: string; sandboxID: string };
      const wrong = { 'x-api-key': `${KEY}0` };
      await api.ask('GET', '/v2/sandboxes', { headers: wrong, key: null });
      await api.ask('GET', '/metrics', { key: null, headers: { 'x-admin-token': ADMIN_TOKEN } });
      await api.ask('GET', '/metrics', { key: null, headers: { 'x-admin-token': `${ADMIN_TOKEN}0` } });
      await api.ask('POST', '/sandboxes', {
        body: '{"templateID": "base", "envVars": {"PASSWORD": "hunter2"',
      });
      await api.ask('POST', '/v2/sandboxes', { body: { templateID: 'base', envVars: { 'A=': 'hunter2' } } });
      await harness.run({ code: 'print("hunter2")', env_vars: { PASSWORD: 'hunter2' } });
      await api.ask('GET', '/files?signature=v1_hunter2&username=user');
      api.engine.beforeStart = (spec) => Promise.reject(Object.assign(new Error('no engine'), { ...spec }));
      await api.ask('POST', '/v2/sandboxes', {
        body: { templateID: 'base', envVars: { PASSWORD: 'hunter2' } },
      });
      expect(parsed().length).toBeGreaterThan(8);
      expect(parsed().some(({ sandboxId }) => sandboxId === tokens.sandboxID)).toBe(true);
      const { accessToken } = api.engine.machine(tokens.sandboxID);
      for (const secret of [
        KEY,
        ADMIN_TOKEN,
        tokens.envdAccessToken,
        tokens.trafficAccessToken,
        accessToken,
        'hunter2',
      ]) {
        expect(typeof secret).toBe('string');
        expect(text).not.toContain(String(secret));
      }
    } finally {
      await harness.close();
      metrics.close();
    }
  });
});
