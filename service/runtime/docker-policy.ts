import type { NetworkNames } from './docker-network';
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
}

/** What of a machine's access needs rules of its own; undefined: the bridge's rules are all. */
export function policyOf(mac: string, access: NetworkAccess): MachinePolicy | undefined {
  if (access === 'full') return undefined;
  if (access === 'none') return { mac, allowOut: [], denyOut: ['0.0.0.0/0'] };
  return { mac, allowOut: access.allowOut, denyOut: access.denyOut };
}

/**
 * Lines for `iptables-restore` between the declaration of the bridge's chains and their own rules, one chain a machine.
 * The last of them decide what comes first:
 *
 * - allow beats deny, and neither beats the bridge's rules: what is allowed goes on to those
 * - packets of connections that stand are judged, too, so that a change cuts them; replies to who connected from the
 *   host are not
 * - the same on the way to the host as beyond: a name server on the host is an address like any other
 */
export function policyLines({ chain }: NetworkNames, policies: Iterable<MachinePolicy>): string {
  const lines: string[] = [];
  let count = 0;
  for (const { mac, allowOut, denyOut } of policies) {
    const own = `${chain}-P${count++}`;
    lines.push(
      `:${own} - [0:0]`,
      `-F ${own}`,
      `-A ${own} -m conntrack --ctdir REPLY --ctstate ESTABLISHED,RELATED -j RETURN`,
      ...allowOut.map((block) => `-A ${own} -d ${block} -j RETURN`),
      ...denyOut.flatMap((block) => [
        `-A ${own} -d ${block} -p tcp -j REJECT --reject-with tcp-reset`,
        `-A ${own} -d ${block} -j REJECT`,
      ]),
      `-A ${chain}-IN -m mac --mac-source ${mac} -j ${own}`,
      `-A ${chain}-FW -m mac --mac-source ${mac} -j ${own}`,
    );
  }
  return lines.map((line) => `${line}\n`).join('');
}
