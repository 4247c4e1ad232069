import fc from 'fast-check';
import { originForm, parseTarget, reservedAgentPath } from '../../protocol/routing';
import type { Target } from '../../protocol/routing';

const controlPlane: Target = { type: 'control-plane' };
const sandbox = (sandboxId: string, port: number): Target => ({ type: 'sandbox', sandboxId, port });
const invalid = (message: string): Target => ({ type: 'invalid', message });

function target(
  headers: Record<string, string>,
  { url = '/', method = 'GET', domain = 'localhost:3210' } = {},
) {
  return parseTarget({ method, url, headers }, domain);
}

describe('parseTarget', () => {
  const both = { 'e2b-sandbox-id': 'iabc1', 'e2b-sandbox-port': '49999' };

  it.each<[string, Record<string, string>, Target]>([
    ['an IPv4 literal', { host: '127.0.0.1:3210' }, sandbox('iabc1', 49999)],
    ['an IPv6 literal', { host: '[::1]:3210' }, sandbox('iabc1', 49999)],
    ['localhost', { host: 'localhost' }, sandbox('iabc1', 49999)],
    ['sandbox.<anything>', { host: 'sandbox.box.example' }, sandbox('iabc1', 49999)],
    ['sandbox.<domain>', { host: 'sandbox.localhost:3210' }, sandbox('iabc1', 49999)],
    ['a name of the host', { host: 'gw.internal:8443' }, sandbox('iabc1', 49999)],
    ['a dashed name outside the domain', { host: '80-x.other.example' }, sandbox('iabc1', 49999)],
    ['no host at all', {}, sandbox('iabc1', 49999)],
    ['a sandbox host, which wins', { host: '3000-iother.localhost:3210' }, sandbox('iother', 3000)],
    ['an invalid sandbox host, which wins', { host: 'x-iother.localhost' }, invalid('Invalid sandbox port')],
  ])('routes by headers on %s', (_, headers, expected) => {
    expect(target({ ...both, ...headers })).toEqual(expected);
  });

  it.each<[string, Record<string, string>, Target]>([
    ['id alone', { 'e2b-sandbox-id': 'iabc1' }, invalid('missing header')],
    ['port alone', { 'e2b-sandbox-port': '80' }, invalid('missing header')],
    ['port alone, malformed', { 'e2b-sandbox-port': '' }, invalid('missing header')],
    ['upper-case id', { ...both, 'e2b-sandbox-id': 'IABC' }, invalid('Invalid sandbox ID')],
    ['empty id', { ...both, 'e2b-sandbox-id': '' }, invalid('Invalid sandbox ID')],
    ['path in id', { ...both, 'e2b-sandbox-id': '../x' }, invalid('Invalid sandbox ID')],
    ['header sent twice', { ...both, 'e2b-sandbox-id': 'a, b' }, invalid('Invalid sandbox ID')],
    ['word as port', { ...both, 'e2b-sandbox-port': 'http' }, invalid('Invalid sandbox port')],
    ['port 0', { ...both, 'e2b-sandbox-port': '0' }, invalid('Invalid sandbox port')],
    ['port 65536', { ...both, 'e2b-sandbox-port': '65536' }, invalid('Invalid sandbox port')],
    ['negative port', { ...both, 'e2b-sandbox-port': '-1' }, invalid('Invalid sandbox port')],
    ['hex port', { ...both, 'e2b-sandbox-port': '0x50' }, invalid('Invalid sandbox port')],
    ['port with blank', { ...both, 'e2b-sandbox-port': '80 ' }, invalid('Invalid sandbox port')],
    ['port 65535', { ...both, 'e2b-sandbox-port': '65535' }, sandbox('iabc1', 65535)],
  ])('judges routing headers: %s', (_, headers, expected) => {
    expect(target({ host: '127.0.0.1:3210', ...headers })).toEqual(expected);
  });

  it.each<[string, string, string, Target]>([
    ['49983-iabc1.localhost:3210', 'localhost:3210', 'same port', sandbox('iabc1', 49983)],
    ['49983-iabc1.localhost', 'localhost:3210', 'port dropped by a proxy', sandbox('iabc1', 49983)],
    ['49983-IABC1.LocalHost:3210', 'localhost:3210', 'letter case', sandbox('iabc1', 49983)],
    ['49983-iabc1.localhost.', 'localhost:3210', 'root dot', sandbox('iabc1', 49983)],
    ['80-iabc1-6532622b.box.example', 'box.example', 'ignored suffix', sandbox('iabc1', 80)],
    ['80-iabc1.eu.box.example', 'box.example', 'deeper label', sandbox('iabc1', 80)],
    ['80-iabc1.box.example', 'localhost:3210', 'foreign domain', controlPlane],
    ['80-iabc1.notlocalhost', 'localhost:3210', 'look-alike domain', controlPlane],
    ['localhost:3210', 'localhost:3210', 'the domain itself', controlPlane],
    ['sandbox.localhost', 'localhost:3210', 'name without a dash', controlPlane],
    ['80-.localhost', 'localhost', 'no id', invalid('Invalid sandbox ID')],
    ['-iabc1.localhost', 'localhost', 'no port', invalid('Invalid sandbox port')],
    ['abc-iabc1.localhost', 'localhost', 'word as port', invalid('Invalid sandbox port')],
    ['99999-iabc1.localhost', 'localhost', 'port too high', invalid('Invalid sandbox port')],
    ['80-i_b.localhost', 'localhost', 'underscore in id', invalid('Invalid sandbox ID')],
  ])('reads host %s under %s (%s)', (host, domain, _, expected) => {
    expect(target({ host }, { domain })).toEqual(expected);
  });

  it.each<[string, string, string, Record<string, string>, Target]>([
    [
      'a download',
      'GET',
      '/files?path=%2Fa%20b&username=user&signature=v1_a%2Bb%2F&signature_expiration=17',
      {},
      {
        type: 'signed-file',
        query: { operation: 'read', path: '/a b', username: 'user', signature: 'v1_a+b/', expiration: '17' },
      },
    ],
    [
      'an upload without user, path and expiry',
      'POST',
      '/files?signature=v1_x',
      {},
      {
        type: 'signed-file',
        query: { operation: 'write', path: '', username: '', signature: 'v1_x', expiration: undefined },
      },
    ],
    [
      'the preflight of an upload',
      'OPTIONS',
      '/files?signature=v1_x',
      { 'access-control-request-method': 'POST' },
      {
        type: 'signed-file',
        query: { operation: 'write', path: '', username: '', signature: 'v1_x', expiration: undefined },
      },
    ],
    ['a request with a key', 'GET', '/files?signature=v1_x', { 'x-api-key': 'e2b_1' }, controlPlane],
    ['a request without a signature', 'GET', '/files?path=x', {}, controlPlane],
    ['a path that only begins alike', 'GET', '/filesystem?signature=v1_x', {}, controlPlane],
  ])('recognises %s', (_, method, url, headers, expected) => {
    expect(target({ host: '127.0.0.1', ...headers }, { method, url })).toEqual(expected);
  });

  it('never throws, and gives only well-formed ids and ports', () => {
    fc.assert(
      fc.property(fc.string(), fc.string(), fc.string(), fc.string(), (host, id, port, url) => {
        for (const name of [host, `${host}.localhost`]) {
          const found = target({ host: name, 'e2b-sandbox-id': id, 'e2b-sandbox-port': port }, { url });
          if (found.type !== 'sandbox') continue;
          expect(found.sandboxId).toMatch(/^[a-z0-9]+$/);
          expect(found.port).toBeGreaterThanOrEqual(1);
          expect(found.port).toBeLessThanOrEqual(65_535);
        }
      }),
    );
  });
});

describe('originForm', () => {
  it.each([
    ['/a?b=http://c/d', '/a?b=http://c/d'],
    ['http://host:1/a/../b?c', '/a/../b?c'],
    ['http://host', '/'],
    ['http://host?x', '/?x'],
    ['*', '*'],
    ['//host/path', '//host/path'],
  ])('turns %s into %s', (url, expected) => {
    expect(originForm(url)).toBe(expected);
  });
});

describe('reservedAgentPath', () => {
  it.each([
    ['/init', '/init'],
    ['/init?x=1', '/init'],
    ['//init', '/init'],
    ['/./init', '/init'],
    ['/a/../init/', '/init'],
    ['/%69nit', '/init'],
    ['/%2569nit', '/init'],
    ['/%zz%2f..%2finit', '/init'],
    ['/%2e%2e/init', '/init'],
    ['/INIT', '/init'],
    ['\\init', '/init'],
    ['http://anything/init', '/init'],
    ['/freeze', '/freeze'],
    ['/unfreeze', '/unfreeze'],
    ['/fsfreeze', '/fsfreeze'],
    ['/fsthaw', '/fsthaw'],
    ['/collapse', '/collapse'],
    ['/upgrade', '/upgrade'],
    ['/initial', undefined],
    ['/files?path=/init', undefined],
    ['/files/init', undefined],
    ['/health', undefined],
    ['*', undefined],
  ])('reads %s as %s', (url, expected) => {
    expect(reservedAgentPath(url)).toBe(expected);
  });
});
