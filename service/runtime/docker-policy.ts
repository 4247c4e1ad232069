import type { NetworkNames } from './docker-network';
import { PROXY_PORTS } from './docker-proxy-config';
import type { NetworkAccess } from './runtime';

/** The rules of one machine on the bridge, which is known there by its address. */
export interface MachinePolicy {
  /**
   * Of its interface. Not the IP address: that one is known only when the machine runs, and the next machine may get it.
   * Without NET_ADMIN and NET_RAW a machine can neither change it nor send under another one.
   */
  mac: string;
  allowOut: readonly string[];
  denyOut: readonly string[];
  /** Names that it may reach through the proxy; none when empty. */
  domains: readonly string[];
}

/** Where the proxy is, and what of it belongs to each machine. */
export interface ProxyTarget {
  /** Its IPv4 address. */
  address: string;
  /** Of a machine with domains; undefined for all others. */
  slotOf(id: string): number | undefined;
  /** To be called when the host's rules are by these slots: those from before are free then. */
  held(): void;
}

/** What of a machine's access needs rules of its own; undefined: the bridge's rules are all. */
export function policyOf(mac: string, access: NetworkAccess): MachinePolicy | undefined {
  if (access === 'full') return undefined;
  if (access === 'none') return { mac, allowOut: [], denyOut: ['0.0.0.0/0'], domains: [] };
  return { mac, allowOut: access.allowOut, denyOut: access.denyOut, domains: access.allowDomains ?? [] };
}

/**
 * Lines for `SET_RULES`, by which each machine has one chain before the bridge's own rules. The last lines of a machine
 * decide what comes first:
 *
 * - allow beats deny, and neither beats the bridge's rules: what is allowed goes on to those
 * - packets of connections that stand are judged, too, so that a change cuts them; replies to who connected from the
 *   host are not
 * - the same on the way to the host as beyond: a name server on the host is an address like any other
 * - with domains, what is not allowed by address goes to the machine's own slot of the proxy, where it is for a port that
 *   tells a name; without a proxy nothing does
 */
export function policyLines(
  { chain }: NetworkNames,
  policies: Iterable<readonly [string, MachinePolicy]>,
  proxy?: ProxyTarget,
): string {
  const lines: string[] = [];
  let count = 0;
  for (const [id, { mac, allowOut, denyOut }] of policies) {
    const own = `${chain}-P${count++}`;
    const slot = proxy?.slotOf(id);
    const ways = proxy === undefined || slot === undefined ? [] : waysToProxy(slot);
    lines.push(
      `:${own} - [0:0]`,
      `-F ${own}`,
      `-A ${own} -m conntrack --ctdir REPLY --ctstate ESTABLISHED,RELATED -j RETURN`,
      // Accepted, not passed on: to all other machines the proxy is a stranger on another bridge.
      ...ways.map(
        ({ protocol, to }) =>
          `-A ${own} -d ${proxy?.address}/32 -p ${protocol} --dport ${to} -m conntrack --ctstate DNAT -j ACCEPT`,
      ),
      ...allowOut.map((block) => `-A ${own} -d ${block} -j RETURN`),
      ...denyOut.flatMap((block) => [
        `-A ${own} -d ${block} -p tcp -j REJECT --reject-with tcp-reset`,
        `-A ${own} -d ${block} -j REJECT`,
      ]),
      `-A ${chain}-IN -m mac --mac-source ${mac} -j ${own}`,
      `-A ${chain}-FW -m mac --mac-source ${mac} -j ${own}`,
    );
    if (ways.length === 0) continue;
    const redirects = [
      `:${own} - [0:0]`,
      `-F ${own}`,
      ...allowOut.map((block) => `-A ${own} -d ${block} -j RETURN`),
      ...ways.map(
        ({ protocol, port, to }) =>
          `-A ${own} -p ${protocol} --dport ${port} -j DNAT --to-destination ${proxy?.address}:${to}`,
      ),
      `-A ${chain}-NAT -m mac --mac-source ${mac} -j ${own}`,
    ];
    lines.push(...redirects.map((line) => `nat ${line}`));
  }
  return lines.map((line) => `${line}\n`).join('');
}

function waysToProxy(slot: number): Array<{ protocol: 'tcp' | 'udp'; port: number; to: number }> {
  return [
    { protocol: 'tcp', port: 443, to: PROXY_PORTS.tls + slot },
    { protocol: 'tcp', port: 80, to: PROXY_PORTS.http + slot },
    { protocol: 'udp', port: 53, to: PROXY_PORTS.names },
    { protocol: 'tcp', port: 53, to: PROXY_PORTS.names },
  ];
}
