import fc from 'fast-check';
import { accessOf, ipv4Block, isDomain, isIpv6Block } from '../../../service/sandboxes/network';
import type { Egress } from '../../../service/sandboxes/network';

const egress = (overrides: Partial<Egress>): Egress => ({
  allowInternetAccess: true,
  allowOut: [],
  denyOut: [],
  ...overrides,
});

describe('ipv4Block()', () => {
  it.each([
    ['1.2.3.4', '1.2.3.4/32'],
    ['0.0.0.0/0', '0.0.0.0/0'],
    ['255.255.255.255/1', '128.0.0.0/1'],
    ['10.1.2.3/8', '10.0.0.0/8'],
    ['203.0.113.77/28', '203.0.113.64/28'],
  ])('reads %s as %s', (text, block) => {
    expect(ipv4Block(text)).toBe(block);
    expect(ipv4Block(block)).toBe(block);
  });

  it.each([
    '',
    '1.2.3',
    '1.2.3.4/',
    '1.2.3.4/33',
    '1.2.3.4/-1',
    '1.2.3.4/08',
    '1.2.3.4/8/8',
    '01.2.3.4',
    '256.1.1.1',
    ' 1.2.3.4',
    '1.2.3.4\n',
    '0x7f.1',
    '::1',
    'a.example',
    '1.2.3.4 -j ACCEPT',
  ])('makes nothing of %j', (text) => {
    expect(ipv4Block(text)).toBeUndefined();
  });
});

describe('isIpv6Block()', () => {
  it.each(['::', '::/0', 'fe80::1', '2001:db8::/32', '::ffff:1.2.3.4'])('knows %s', (text) => {
    expect(isIpv6Block(text)).toBe(true);
  });

  it.each(['1.2.3.4', '::/129', 'fe80::1%eth0', ':::', '::1/', ''])('makes nothing of %j', (text) => {
    expect(isIpv6Block(text)).toBe(false);
  });
});

describe('isDomain()', () => {
  it.each(['a.example', '*.a.example', 'localhost', 'xn--4ca.example', 'A.Example'])('knows %s', (text) => {
    expect(isDomain(text)).toBe(true);
  });

  it.each(['', '*', '*.', 'a..b', '-a.example', 'a.example.', '1.2.3.999', 'a b', 'a.*.b', 'x'.repeat(64)])(
    'makes nothing of %j',
    (text) => {
      expect(isDomain(text)).toBe(false);
    },
  );
});

describe('accessOf()', () => {
  it.each<[string, Partial<Egress>, unknown]>([
    ['full without settings', {}, 'full'],
    ['full when all that is denied is IPv6, which no machine has', { denyOut: ['::/0'] }, 'full'],
    ['full when everything is allowed', { allowOut: ['0.0.0.0/0'], denyOut: ['0.0.0.0/0'] }, 'full'],
    ['full when only something is allowed, for nothing is denied', { allowOut: ['1.1.1.1'] }, 'full'],
    ['none with internet access off', { allowInternetAccess: false }, 'none'],
    ['none when everything is denied', { denyOut: ['1.1.1.1', '0.0.0.0/0'] }, 'none'],
    [
      'what is allowed with internet access off',
      { allowInternetAccess: false, allowOut: ['1.1.1.1'], denyOut: ['2.2.2.2'] },
      { allowOut: ['1.1.1.1/32'], denyOut: ['0.0.0.0/0'] },
    ],
    [
      'both lists, each entry once',
      { allowOut: ['10.1.2.3/8', '10.0.0.0/8'], denyOut: ['1.1.1.1', '1.1.1.1/32'] },
      { allowOut: ['10.0.0.0/8'], denyOut: ['1.1.1.1/32'] },
    ],
    [
      'domains beside addresses, in one spelling and order, each once',
      { allowOut: ['b.example', '*.A.example', '1.1.1.1', 'B.EXAMPLE'], denyOut: ['0.0.0.0/0', '2.2.2.2'] },
      { allowOut: ['1.1.1.1/32'], denyOut: ['0.0.0.0/0'], allowDomains: ['*.a.example', 'b.example'] },
    ],
    [
      'domains alone with internet access off',
      { allowInternetAccess: false, allowOut: ['b.example'] },
      { allowOut: [], denyOut: ['0.0.0.0/0'], allowDomains: ['b.example'] },
    ],
    [
      'full when everything is allowed beside domains',
      { allowOut: ['b.example', '0.0.0.0/0'], denyOut: ['0.0.0.0/0'] },
      'full',
    ],
  ])('is %s', (_claim, settings, access) => {
    expect(accessOf(egress(settings))).toEqual(access);
  });

  // Few different bits, so that blocks meet addresses often.
  const address = fc
    .tuple(
      fc.constantFrom(10, 203),
      fc.constantFrom(0, 128),
      fc.constantFrom(0, 1),
      fc.constantFrom(1, 2, 130),
    )
    .map((parts) => parts.join('.'));
  const block = fc
    .tuple(address, fc.constantFrom('', '/0', '/1', '/7', '/8', '/9', '/16', '/25', '/31', '/32'))
    .map((parts) => parts.join(''));
  const list = fc.array(block, { maxLength: 4 });

  it('lets through exactly what is allowed or not denied', () => {
    fc.assert(
      fc.property(address, list, list, fc.boolean(), (to, allowOut, denyOut, allowInternetAccess) => {
        const access = accessOf({ allowInternetAccess, allowOut, denyOut });
        const isDenied = !allowInternetAccess || denyOut.some((each) => covers(each, to));
        const expected = allowOut.some((each) => covers(each, to)) || !isDenied;
        const rules = typeof access === 'string' ? undefined : access;
        const isOpen =
          access === 'full' ||
          (rules !== undefined &&
            (rules.allowOut.some((each) => covers(each, to)) ||
              !rules.denyOut.some((each) => covers(each, to))));
        expect(isOpen).toBe(expected);
      }),
    );
  });
});

/** By bits as text: another way than the one under test. */
function covers(block: string, address: string): boolean {
  const [start = '', length = '32'] = block.split('/');
  const bits = (text: string) =>
    text
      .split('.')
      .map((part) => Number(part).toString(2).padStart(8, '0'))
      .join('')
      .slice(0, Number(length));
  return bits(start) === bits(address);
}
