import type Dockerode from 'dockerode';
import { ServiceError } from '../errors';
import { callEngine, engineDetail, engineStatus } from './docker-engine';

/** Names of the one network that all sandboxes of a service share. */
export interface NetworkNames extends BridgeNames {
  /** Prefix of our chains in the host's filter and nat tables. */
  chain: string;
}

export interface BridgeNames {
  /** The engine's name for it. */
  network: string;
  /** The host's interface; at most 15 characters, as Linux wants. */
  bridge: string;
}

/** @param serviceId hex digits, see `createDockerRuntime` */
export function networkNames(serviceId: string): NetworkNames {
  const short = serviceId.slice(0, 10);
  return { network: `cellbox-${short}`, bridge: `cbx${short}`, chain: `CELLBOX-${short}` };
}

/** Of the network that only the proxy for domain rules is on: no machine can ever get the address that was the proxy's. */
export function proxyNetworkNames({ network, bridge }: NetworkNames): BridgeNames {
  return { network: `${network}-proxy`, bridge: `${bridge}p` };
}

/**
 * Shell program that sets the host's rules for traffic from the bridge; run as root with NET_ADMIN in the host's
 * network namespace. The variables BRIDGE, PROXY_BRIDGE, CHAIN and NEVER_PROXIED are given by its environment, the rules of
 * single machines (`policyLines`) on its standard input, NAME_SERVERS only where others than the host's are used, and
 * PROXY_NAME_SERVERS when it is known whom the proxy asks.
 *
 * - a machine's own rules come first: what they let pass meets all others
 * - every address of the host is refused (INPUT), link-local addresses with the cloud's metadata services too
 * - so is what reaches a service of the host by its port forwarding (ctstate DNAT), other sandboxes, other bridges
 * - so are private networks that only this host leads to (virtual machines, VPNs): all but those of its way out
 * - refused, not dropped: a program that tries learns it at once
 * - the host's own name servers stay reachable on port 53: some clouds keep theirs on a link-local address
 * - idempotent; each table changes in one commit, and our jumps are moved to the front again
 * - what a machine's domain rules send to the proxy is the only thing in the nat table; services without such rules never touch that
 * - the proxy answers machines, asks the name servers, and reaches ports 80 and 443 of public addresses: hostile bytes go
 *   through it, so its own network is closed otherwise
 * - DOCKER-USER comes before everything of the engine and outlives its restart; without it FORWARD is the place
 */
export const SET_RULES = String.raw`
set -eu
input=$(cat)
policies=$(printf '%s\n' "$input" | grep -v '^nat ' || true)
redirects=$(printf '%s\n' "$input" | sed -n 's/^nat //p')
works() { "$1" -w 5 -n -L "$2" >/dev/null 2>&1; }
ipt=iptables
if ! works iptables DOCKER-USER; then
  # Only then: the mere look creates the legacy tables on a host that has none.
  if works iptables-legacy DOCKER-USER || ! works iptables INPUT; then ipt=iptables-legacy; fi
fi
forward=FORWARD
if works "$ipt" DOCKER-USER; then forward=DOCKER-USER; fi
jump() { # command, chain, match, target: puts the jump first, also when it is already somewhere
  if $1 -w 5 -C "$2" $3 -j "$4" 2>/dev/null; then echo "-D $2 $3 -j $4"; fi
  echo "-I $2 1 $3 -j $4"
}
refuse() { # chain, match
  echo "-A $1 $2 -p tcp -j REJECT --reject-with tcp-reset"
  echo "-A $1 $2 -j REJECT"
}
resolvers=$(printenv NAME_SERVERS || true)
[ -n "$resolvers" ] || resolvers=$(awk '$1 == "nameserver" && $2 ~ /^[0-9.]+$/ && $2 !~ /^127\./ { print $2 }' /etc/resolv.conf)
servers=$(printenv PROXY_NAME_SERVERS || true)
[ -n "$servers" ] || servers=$resolvers
uplinks=$(awk '$2 == "00000000" && $8 == "00000000" { print $1 }' /proc/net/route)
dotted() { # an address as the kernel lists it: hexadecimal, last byte first
  printf '%d.%d.%d.%d' $(echo "$1" | sed 's/\(..\)\(..\)\(..\)\(..\)/0x\4 0x\3 0x\2 0x\1/')
}
private() { # networks of 10/8, 172.16/12, 192.168/16 and 100.64/10 behind interfaces that are no way out
  [ -n "$uplinks" ] || return 0
  while read -r interface network _ _ _ _ _ mask _; do
    case $interface in docker* | br-* | cbx*) continue ;; esac # refused by name below
    case " $(echo $uplinks) " in *" $interface "*) continue ;; esac
    case $network in ??????0A | ????1?AC | ????A8C0 | ????[4-7]?64) ;; *) continue ;; esac
    echo "-d $(dotted "$network")/$(dotted "$mask")"
  done < /proc/net/route
}
own() { "$ipt" -w 5 -t "$1" -S | sed -n "s/^-N \($CHAIN-P[0-9]*\)\$/\1/p"; } # table: chains of machines there
clear() { # table, new lines: what removes chains of machines that are not in these
  for chain in $(own "$1"); do
    case $2 in *":$chain "*) ;; *) echo "-F $chain"; echo "-X $chain" ;; esac
  done
}
# Once there has been a redirect, the proxy runs, and its rules stay.
proxied=
if [ -n "$redirects" ] || "$ipt" -w 5 -t nat -n -L "$CHAIN-NAT" >/dev/null 2>&1; then proxied=yes; fi
{
  echo '*filter'
  echo ":$CHAIN-IN - [0:0]"
  echo ":$CHAIN-FW - [0:0]"
  echo "-F $CHAIN-IN"
  echo "-F $CHAIN-FW"
  clear filter "$policies"
  # Before all others: else the proxy would never hear that a connection was cut.
  if [ -n "$proxied" ]; then echo "-A $CHAIN-FW -o $PROXY_BRIDGE -p tcp --tcp-flags RST RST -j ACCEPT"; fi
  printf '%s\n' "$policies"
  if [ -n "$proxied" ]; then refuse $CHAIN-FW "-o $PROXY_BRIDGE"; fi
  for chain in "$CHAIN-IN" "$CHAIN-FW"; do
    echo "-A $chain -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN"
    for resolver in $resolvers; do
      echo "-A $chain -d $resolver -p udp --dport 53 -j RETURN"
      echo "-A $chain -d $resolver -p tcp --dport 53 -j RETURN"
    done
  done
  for match in '' '-d 169.254.0.0/16' '-m conntrack --ctstate DNAT' "-o $BRIDGE" '-o docker+' '-o br-+' '-o cbx+'; do
    if [ -z "$match" ]; then chain=$CHAIN-IN; else chain=$CHAIN-FW; fi
    refuse $chain "$match"
  done
  private | while read -r match; do refuse $CHAIN-FW "$match"; done
  jump "$ipt" INPUT "-i $BRIDGE" "$CHAIN-IN"
  jump "$ipt" "$forward" "-i $BRIDGE" "$CHAIN-FW"
  if [ -n "$proxied" ]; then
    echo ":$CHAIN-XI - [0:0]"
    echo ":$CHAIN-XF - [0:0]"
    echo "-F $CHAIN-XI"
    echo "-F $CHAIN-XF"
    # Accepted here: the engine's own rules keep bridges apart.
    echo "-A $CHAIN-XF -o $BRIDGE -m conntrack --ctdir REPLY --ctstate ESTABLISHED,RELATED -j ACCEPT"
    for chain in "$CHAIN-XI" "$CHAIN-XF"; do
      for server in $servers; do
        echo "-A $chain -d $server -p udp --dport 53 -j RETURN"
        echo "-A $chain -d $server -p tcp --dport 53 -j RETURN"
      done
    done
    for network in $NEVER_PROXIED; do refuse $CHAIN-XF "-d $network"; done
    for match in '-m conntrack --ctstate DNAT' '-o docker+' '-o br-+' '-o cbx+'; do refuse $CHAIN-XF "$match"; done
    echo "-A $CHAIN-XF -p tcp -m multiport --dports 80,443 -j RETURN"
    refuse $CHAIN-XF ''
    refuse $CHAIN-XI ''
    jump "$ipt" INPUT "-i $PROXY_BRIDGE" "$CHAIN-XI"
    jump "$ipt" "$forward" "-i $PROXY_BRIDGE" "$CHAIN-XF"
  fi
  echo COMMIT
  if [ -n "$proxied" ]; then
    echo '*nat'
    echo ":$CHAIN-NAT - [0:0]"
    echo "-F $CHAIN-NAT"
    clear nat "$redirects"
    printf '%s\n' "$redirects"
    jump "$ipt -t nat" PREROUTING "-i $BRIDGE" "$CHAIN-NAT"
    # By their own addresses: all machines behind one would share its ports, and the proxy's limits.
    jump "$ipt -t nat" POSTROUTING "-o $PROXY_BRIDGE" ACCEPT
    echo COMMIT
  fi
} | "$ipt-restore" -w 5 --noflush
"$ipt" -w 5 -C INPUT -i "$BRIDGE" -j "$CHAIN-IN"
"$ipt" -w 5 -C "$forward" -i "$BRIDGE" -j "$CHAIN-FW"
# The network has no IPv6 at all; these only guard against a host that turns it on behind our back.
ip6=$(echo "$ipt" | sed s/^ip/ip6/)
if works "$ip6" INPUT; then
  {
    echo '*filter'
    echo ":$CHAIN-IN - [0:0]"
    echo "-F $CHAIN-IN"
    echo "-A $CHAIN-IN -j REJECT"
    jump "$ip6" INPUT "-i $BRIDGE" "$CHAIN-IN"
    jump "$ip6" FORWARD "-i $BRIDGE" "$CHAIN-IN"
    echo COMMIT
  } | "$ip6-restore" -w 5 --noflush
fi
# Without this, traffic between two ports of one bridge never meets the rules above.
nf=/proc/sys/net/bridge/bridge-nf-call-iptables
if [ ! -r "$nf" ] || [ "$(cat "$nf")" != 1 ]; then
  echo 'bridge-nf-call-iptables is off: sandboxes could reach each other' >&2; exit 1
fi
echo resolvers: $resolvers
`;

/** Takes back what SET_RULES did. Needs the same environment. Succeeds when there is nothing. */
export const CLEAR_RULES = String.raw`
for ipt in iptables ip6tables iptables-legacy ip6tables-legacy; do
  case $ipt in *legacy)
    # A look through the legacy command creates its tables; who has none, has nothing of ours in them.
    [ -s "/proc/net/$(echo "$ipt" | sed 's/tables-legacy/_tables_names/')" ] || continue ;;
  esac
  for from in INPUT FORWARD DOCKER-USER; do
    for to in "$CHAIN-IN" "$CHAIN-FW"; do
      while "$ipt" -w 5 -D "$from" -i "$BRIDGE" -j "$to" 2>/dev/null; do :; done
    done
  done
  for to in XI XF; do
    for from in INPUT FORWARD DOCKER-USER; do
      while "$ipt" -w 5 -D "$from" -i "$PROXY_BRIDGE" -j "$CHAIN-$to" 2>/dev/null; do :; done
    done
    "$ipt" -w 5 -F "$CHAIN-$to" 2>/dev/null && "$ipt" -w 5 -X "$CHAIN-$to" 2>/dev/null
  done
  # Only where there is something of ours: the mere look would make the table, else.
  if "$ipt" -w 5 -t nat -F "$CHAIN-NAT" 2>/dev/null; then
    while "$ipt" -w 5 -t nat -D PREROUTING -i "$BRIDGE" -j "$CHAIN-NAT" 2>/dev/null; do :; done
    while "$ipt" -w 5 -t nat -D POSTROUTING -o "$PROXY_BRIDGE" -j ACCEPT 2>/dev/null; do :; done
    for chain in "$CHAIN-NAT" $("$ipt" -w 5 -t nat -S | sed -n "s/^-N \($CHAIN-P[0-9]*\)\$/\1/p"); do
      "$ipt" -w 5 -t nat -F "$chain"; "$ipt" -w 5 -t nat -X "$chain"
    done
  fi
  # The first two refer to the others.
  for chain in "$CHAIN-IN" "$CHAIN-FW" $("$ipt" -w 5 -S 2>/dev/null | sed -n "s/^-N \($CHAIN-P[0-9]*\)\$/\1/p"); do
    "$ipt" -w 5 -F "$chain" 2>/dev/null && "$ipt" -w 5 -X "$chain" 2>/dev/null
  done
done
exit 0
`;

/** Makes the network, or finds it as an earlier process left it. */
export async function ensureNetwork(
  docker: Dockerode,
  names: BridgeNames,
  labels: Record<string, string>,
): Promise<void> {
  if (await networkExists(docker, names)) return;
  try {
    await callEngine(
      'create network',
      docker.createNetwork({
        Name: names.network,
        Driver: 'bridge',
        CheckDuplicate: true,
        EnableIPv6: false,
        Labels: labels,
        Options: {
          'com.docker.network.bridge.name': names.bridge,
          'com.docker.network.bridge.enable_icc': 'false',
        },
      }),
    );
  } catch (error) {
    if (engineStatus(error) === 409 && (await networkExists(docker, names))) return; // made by a process beside us
    throw new ServiceError(
      'failed_precondition',
      `The network of the sandboxes can't be made: ${engineDetail(error)}`,
      { cause: error, remedy: 'Remove networks that are no longer used (docker network prune).' },
    );
  }
}

/** Rejects when something else has the name: sandboxes must not land on a network whose rules we don't know. */
export async function networkExists(docker: Dockerode, names: BridgeNames): Promise<boolean> {
  try {
    const found = (await callEngine('inspect network', docker.getNetwork(names.network).inspect())) as {
      Driver?: string;
      EnableIPv6?: boolean;
      Options?: Record<string, string>;
    };
    const options = found.Options ?? {};
    if (
      found.Driver === 'bridge' &&
      found.EnableIPv6 !== true &&
      options['com.docker.network.bridge.name'] === names.bridge &&
      options['com.docker.network.bridge.enable_icc'] === 'false'
    ) {
      return true;
    }
    throw new ServiceError(
      'failed_precondition',
      `The engine's network ${names.network} is not the one that this service makes`,
      { remedy: `Remove it: docker network rm ${names.network}` },
    );
  } catch (error) {
    if (engineStatus(error) === 404) return false;
    throw error;
  }
}

/** There need not be any; the engine refuses while a machine on it runs. */
export async function removeNetwork(docker: Dockerode, { network }: BridgeNames): Promise<void> {
  try {
    await callEngine('remove network', docker.getNetwork(network).remove());
  } catch (error) {
    if (engineStatus(error) !== 404) throw error;
  }
}
