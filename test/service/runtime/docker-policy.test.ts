import { networkNames } from '../../../service/runtime/docker-network';
import { policyLines, policyOf } from '../../../service/runtime/docker-policy';

const names = networkNames('0123456789abcdef0123456789abcdef');
const mac = '0a:01:02:03:04:05';

describe('policyOf()', () => {
  it('needs no rules for a machine that may reach everything, and denies everything without a network', () => {
    expect(policyOf(mac, 'full')).toBeUndefined();
    expect(policyOf(mac, 'none')).toEqual({ mac, allowOut: [], denyOut: ['0.0.0.0/0'] });
    const rules = { allowOut: ['1.1.1.1/32'], denyOut: ['0.0.0.0/0'] };
    expect(policyOf(mac, rules)).toEqual({ mac, ...rules });
  });
});

describe('policyLines()', () => {
  it('is nothing without policies', () => {
    expect(policyLines(names, [])).toBe('');
  });

  it('judges every packet but replies: allowed ones go on, denied ones are refused by their protocol’s word', () => {
    const rules = { mac, allowOut: ['1.1.1.1/32', '10.0.0.0/8'], denyOut: ['0.0.0.0/0'] };
    expect(policyLines(names, [rules]).split('\n')).toEqual([
      ':CELLBOX-0123456789-P0 - [0:0]',
      '-F CELLBOX-0123456789-P0',
      '-A CELLBOX-0123456789-P0 -m conntrack --ctdir REPLY --ctstate ESTABLISHED,RELATED -j RETURN',
      '-A CELLBOX-0123456789-P0 -d 1.1.1.1/32 -j RETURN',
      '-A CELLBOX-0123456789-P0 -d 10.0.0.0/8 -j RETURN',
      '-A CELLBOX-0123456789-P0 -d 0.0.0.0/0 -p tcp -j REJECT --reject-with tcp-reset',
      '-A CELLBOX-0123456789-P0 -d 0.0.0.0/0 -j REJECT',
      `-A CELLBOX-0123456789-IN -m mac --mac-source ${mac} -j CELLBOX-0123456789-P0`,
      `-A CELLBOX-0123456789-FW -m mac --mac-source ${mac} -j CELLBOX-0123456789-P0`,
      '',
    ]);
  });

  it('gives each machine a chain of its own, of a name that iptables takes', () => {
    const many = Array.from({ length: 1_000 }, (_, index) => ({
      mac: `0a:00:00:00:${[index >> 8, index & 255].map((byte) => byte.toString(16).padStart(2, '0')).join(':')}`,
      allowOut: [],
      denyOut: ['1.1.1.1/32'],
    }));
    const chains = policyLines(names, many)
      .split('\n')
      .filter((line) => line.startsWith(':'))
      .map((line) => line.slice(1).split(' ')[0] ?? '');
    expect(new Set(chains).size).toBe(1_000);
    expect(Math.max(...chains.map((chain) => chain.length))).toBeLessThanOrEqual(28);
  });
});
