import { networkNames } from '../../../service/runtime/docker-network';
import { policyLines, policyOf } from '../../../service/runtime/docker-policy';

const names = networkNames('0123456789abcdef0123456789abcdef');
const mac = '0a:01:02:03:04:05';

describe('policyOf()', () => {
  it('needs no rules for a machine that may reach everything, and denies everything without a network', () => {
    expect(policyOf(mac, 'full')).toBeUndefined();
    expect(policyOf(mac, 'none')).toEqual({
      mac,
      allowOut: [],
      denyOut: ['0.0.0.0/0'],
      domains: [],
    });
    const rules = { allowOut: ['1.1.1.1/32'], denyOut: ['0.0.0.0/0'] };
    expect(policyOf(mac, rules)).toEqual({ mac, ...rules, domains: [] });
    const named = { ...rules, allowDomains: ['a.example'] };
    expect(policyOf(mac, named)).toEqual({ mac, ...rules, domains: ['a.example'] });
  });
});

describe('policyLines()', () => {
  it('is nothing without policies', () => {
    expect(policyLines(names, [])).toBe('');
  });

  it('judges every packet but replies: allowed ones go on, denied ones are refused by their protocol’s word', () => {
    const rules = { mac, allowOut: ['1.1.1.1/32', '10.0.0.0/8'], denyOut: ['0.0.0.0/0'], domains: [] };
    expect(policyLines(names, [['a', rules]]).split('\n')).toEqual([
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
    const many = Array.from({ length: 1_000 }, (_, index) => {
      const end = [index >> 8, index & 255].map((byte) => byte.toString(16).padStart(2, '0')).join(':');
      const policy = { mac: `0a:00:00:00:${end}`, allowOut: [], denyOut: ['1.1.1.1/32'], domains: [] };
      return [String(index), policy] as const;
    });
    const chains = policyLines(names, many)
      .split('\n')
      .filter((line) => line.startsWith(':'))
      .map((line) => line.slice(1).split(' ')[0] ?? '');
    expect(new Set(chains).size).toBe(1_000);
    expect(Math.max(...chains.map((chain) => chain.length))).toBeLessThanOrEqual(28);
  });

  describe('for a machine with domains', () => {
    const rules = { mac, allowOut: ['1.1.1.1/32'], denyOut: ['0.0.0.0/0'], domains: ['a.example'] };
    const proxy = {
      address: '172.20.0.2',
      slotOf: (id: string) => (id === 'a' ? 7 : undefined),
      held: () => undefined,
    };
    const own = 'CELLBOX-0123456789-P0';

    it('sends what tells a name to its own slot, past all that is allowed by address, and lets nothing else there', () => {
      const lines = policyLines(names, [['a', rules]], proxy).split('\n');
      expect(lines.filter((line) => line.startsWith('nat '))).toEqual([
        `nat :${own} - [0:0]`,
        `nat -F ${own}`,
        `nat -A ${own} -d 1.1.1.1/32 -j RETURN`,
        `nat -A ${own} -p tcp --dport 443 -j DNAT --to-destination 172.20.0.2:20007`,
        `nat -A ${own} -p tcp --dport 80 -j DNAT --to-destination 172.20.0.2:30007`,
        `nat -A ${own} -p udp --dport 53 -j DNAT --to-destination 172.20.0.2:5300`,
        `nat -A ${own} -p tcp --dport 53 -j DNAT --to-destination 172.20.0.2:5300`,
        `nat -A CELLBOX-0123456789-NAT -m mac --mac-source ${mac} -j ${own}`,
      ]);
      expect(lines.filter((line) => line.endsWith('-j ACCEPT'))).toEqual(
        ['tcp --dport 20007', 'tcp --dport 30007', 'udp --dport 5300', 'tcp --dport 5300'].map(
          (where) => `-A ${own} -d 172.20.0.2/32 -p ${where} -m conntrack --ctstate DNAT -j ACCEPT`,
        ),
      );
      const first = (text: string) => lines.findIndex((line) => line.includes(text));
      expect(first('-j ACCEPT')).toBeLessThan(first('-j REJECT'));
    });

    it('is closed without a proxy, or without a slot there', () => {
      for (const lines of [policyLines(names, [['a', rules]]), policyLines(names, [['b', rules]], proxy)]) {
        expect(lines).toContain('-d 0.0.0.0/0 -j REJECT');
        expect(lines).not.toMatch(/^nat |ACCEPT|172\.20/m);
      }
    });
  });
});
