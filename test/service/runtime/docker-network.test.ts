import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import {
  CLEAR_RULES,
  SET_RULES,
  networkNames,
  proxyNetworkNames,
} from '../../../service/runtime/docker-network';

describe('networkNames()', () => {
  const names = networkNames('0123456789abcdef0123456789abcdef');

  it('stays within what Linux and iptables allow', () => {
    expect(names).toEqual({
      network: 'cellbox-0123456789',
      bridge: 'cbx0123456789',
      chain: 'CELLBOX-0123456789',
    });
    expect(names.bridge.length).toBeLessThanOrEqual(15);
    expect(`${names.chain}-FW`.length).toBeLessThanOrEqual(28);
    const proxy = proxyNetworkNames(names);
    expect(proxy).toEqual({ network: 'cellbox-0123456789-proxy', bridge: 'cbx0123456789p' });
    expect(proxy.bridge.length).toBeLessThanOrEqual(15);
  });
});

/** Runs a program with an iptables that says yes to everything, but that there have been redirects, and prints what it is given. */
function dryRun(script: string, iptables: string, input = '', routes = '/dev/null'): string {
  const stubs = `
iptables() { case "$*" in *'-t nat -n -L'*) return 1 ;; esac; ${iptables}; }
ip6tables() { iptables "$@"; }
awk() { case "$*" in *resolv.conf) echo 10.0.0.53 ;; *) command awk "$@" ;; esac; }
`;
  // Only POSIX names can be functions, so the programs with a dash become others.
  const program = script
    .replaceAll('/proc/net/route', routes)
    .replaceAll('"$ipt-restore" -w 5 --noflush', 'cat')
    .replaceAll('"$ip6-restore" -w 5 --noflush', 'sed s/^/6/');
  return execFileSync('/bin/sh', ['-c', stubs + program.slice(0, program.indexOf('# Without this'))], {
    env: {
      PATH: process.env['PATH'],
      BRIDGE: 'cbx1',
      PROXY_BRIDGE: 'cbx1p',
      CHAIN: 'CELLBOX-1',
      NEVER_PROXIED: '10.0.0.0/8 127.0.0.0/8',
    },
    encoding: 'utf8',
    input,
  });
}

describe('SET_RULES', () => {
  it('refuses the host, link-local addresses, forwarded ports and other bridges, in this order after replies', () => {
    const lines = dryRun(SET_RULES, 'true').split('\n');
    expect(lines[0]).toBe('*filter');
    expect(lines.filter((line) => /^-A CELLBOX-1-IN/.test(line))).toEqual([
      '-A CELLBOX-1-IN -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN',
      '-A CELLBOX-1-IN -d 10.0.0.53 -p udp --dport 53 -j RETURN',
      '-A CELLBOX-1-IN -d 10.0.0.53 -p tcp --dport 53 -j RETURN',
      '-A CELLBOX-1-IN  -p tcp -j REJECT --reject-with tcp-reset',
      '-A CELLBOX-1-IN  -j REJECT',
    ]);
    const forward = lines.filter((line) => /^-A CELLBOX-1-FW/.test(line));
    for (const match of [
      '-d 169.254.0.0/16',
      '--ctstate DNAT',
      '-o cbx1',
      '-o docker+',
      '-o br-+',
      '-o cbx+',
    ])
      expect(forward.filter((line) => line.includes(match) && line.includes('REJECT'))).toHaveLength(2);
    expect(lines).toContain('COMMIT');
  });

  it('puts the rules of single machines before its own, in the chains that both are in', () => {
    const own =
      ':CELLBOX-1-P0 - [0:0]\n-A CELLBOX-1-FW -m mac --mac-source 0a:00:00:00:00:01 -j CELLBOX-1-P0';
    const lines = dryRun(SET_RULES, 'true', `${own}\n`).split('\n');
    const at = lines.indexOf(':CELLBOX-1-P0 - [0:0]');
    expect(at).toBeGreaterThan(lines.indexOf('-F CELLBOX-1-FW'));
    expect(lines.findIndex((line) => line.startsWith('-A CELLBOX-1-FW'))).toBe(at + 1);
  });

  it('never touches the nat table, nor speaks of a proxy, for machines without domains', () => {
    const lines = dryRun(SET_RULES, 'true', ':CELLBOX-1-P0 - [0:0]\n');
    expect(lines).not.toMatch(/nat|cbx1p|-X[IF]/);
  });

  it('redirects in the nat table what has domains, and closes the proxy’s own network around it', () => {
    const input =
      'nat :CELLBOX-1-P0 - [0:0]\nnat -A CELLBOX-1-NAT -m mac --mac-source 0a:00:00:00:00:01 -j CELLBOX-1-P0\n';
    const [filter = '', nat = ''] = dryRun(SET_RULES, 'true', input).split('*nat\n');
    expect(nat.split('\n').slice(0, 5)).toEqual([
      ':CELLBOX-1-NAT - [0:0]',
      '-F CELLBOX-1-NAT',
      ':CELLBOX-1-P0 - [0:0]',
      '-A CELLBOX-1-NAT -m mac --mac-source 0a:00:00:00:00:01 -j CELLBOX-1-P0',
      '-D PREROUTING -i cbx1 -j CELLBOX-1-NAT',
    ]);
    expect(nat).toContain('-I POSTROUTING 1 -o cbx1p -j ACCEPT\nCOMMIT');
    expect(filter).not.toContain('--mac-source');
    const forward = filter.split('\n').filter((line) => line.startsWith('-A CELLBOX-1-XF'));
    expect(forward[0]).toBe(
      '-A CELLBOX-1-XF -o cbx1 -m conntrack --ctdir REPLY --ctstate ESTABLISHED,RELATED -j ACCEPT',
    );
    const way = forward.indexOf('-A CELLBOX-1-XF -p tcp -m multiport --dports 80,443 -j RETURN');
    for (const match of [
      '-d 10.0.0.0/8',
      '-d 127.0.0.0/8',
      '--ctstate DNAT',
      '-o cbx+',
      '-o docker+',
      '-o br-+',
    ]) {
      const at = forward.findIndex((line) => line.includes(match) && line.endsWith('-j REJECT'));
      expect([match, at > 0 && at < way]).toEqual([match, true]);
    }
    expect(forward.slice(way + 1)).toEqual([
      '-A CELLBOX-1-XF  -p tcp -j REJECT --reject-with tcp-reset',
      '-A CELLBOX-1-XF  -j REJECT',
    ]);
    // Of machines: only what was accepted before gets there.
    expect(filter).toContain('-A CELLBOX-1-FW -o cbx1p -j REJECT');
  });

  it('removes chains of machines that are gone, and of no other service', () => {
    const known = [
      '-P INPUT ACCEPT',
      '-N CELLBOX-1-IN',
      '-N CELLBOX-1-P0',
      '-N CELLBOX-1-P1',
      '-N CELLBOX-2-P1',
    ];
    const list = `if [ "$*" = '-w 5 -t filter -S' ]; then printf '%s\\n' ${known.map((line) => `'${line}'`).join(' ')}; fi`;
    const lines = dryRun(SET_RULES, list, ':CELLBOX-1-P0 - [0:0]\n').split('\n');
    expect(lines.filter((line) => line.startsWith('-X'))).toEqual(['-X CELLBOX-1-P1']);
    expect(lines.indexOf('-F CELLBOX-1-P1')).toBe(lines.indexOf('-X CELLBOX-1-P1') - 1);
  });

  it('refuses private networks behind interfaces that are not the way out, once each, whatever they are called', () => {
    const routes = path.join(fs.mkdtempSync(path.join(os.tmpdir(), 'cbx-routes-')), 'route');
    const line = (name: string, to: string, mask: string) =>
      `${name}\t${to}\t00000000\t0001\t0\t0\t0\t${mask}\t0\t0\t0`;
    const table = [
      'Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT',
      line('eth0', '00000000', '00000000'),
      line('eth0', '0001A8C0', '00FFFFFF'), // 192.168.1.0/24: the LAN of the way out
      line('virbr0', '007AA8C0', '00FFFFFF'), // 192.168.122.0/24
      line('wg0', '0000080A', '0000FFFF'), // 10.8.0.0/16
      line('lxd', '000014AC', '0000FFFF'), // 172.20.0.0/16
      line('ts0', '00004064', '0000C0FF'), // 100.64.0.0/10
      line('pub0', '007100CB', '00FFFFFF'), // 203.0.113.0/24: not private
      line('pub1', '000020AC', '0000FFFF'), // 172.32.0.0/16: nor this
      line('docker0', '000011AC', '0000FFFF'), // refused by name
    ];
    fs.writeFileSync(routes, `${table.join('\n')}\n`);
    try {
      const lines = dryRun(SET_RULES, 'true', '', routes).split('\n');
      const refused = lines.flatMap((rule) => /-FW -d (\S+\/255\S+) -j REJECT/.exec(rule)?.[1] ?? []);
      expect(refused).toEqual([
        '192.168.122.0/255.255.255.0',
        '10.8.0.0/255.255.0.0',
        '172.20.0.0/255.255.0.0',
        '100.64.0.0/255.192.0.0',
      ]);
    } finally {
      fs.rmSync(path.dirname(routes), { recursive: true });
    }
  });

  it('moves its jumps to the front in the same commit when they are there already', () => {
    const lines = dryRun(SET_RULES, 'true').split('\n');
    expect(lines.indexOf('-D INPUT -i cbx1 -j CELLBOX-1-IN')).toBe(
      lines.indexOf('-I INPUT 1 -i cbx1 -j CELLBOX-1-IN') - 1,
    );
    expect(lines).toContain('-I DOCKER-USER 1 -i cbx1 -j CELLBOX-1-FW');
  });

  it('uses FORWARD on a host whose engine has no chain for users', () => {
    const script = 'case "$*" in *DOCKER-USER*) return 1;; esac';
    expect(dryRun(SET_RULES, script)).toContain('-I FORWARD 1 -i cbx1 -j CELLBOX-1-FW');
  });

  it('fails when the rules did not take', () => {
    // Nothing is there before, and nothing afterwards.
    expect(() => dryRun(SET_RULES, 'case "$*" in *-C*) return 1;; esac')).toThrow();
  });
});

describe('CLEAR_RULES', () => {
  it('is a program that the shell understands', () => {
    execFileSync('/bin/sh', ['-n', '-c', CLEAR_RULES]);
  });
});
