import type Dockerode from 'dockerode';
import { ServiceError } from '../errors';
import { callEngine, engineDetail, engineStatus } from './docker-engine';

/** Names of the one network that all sandboxes of a service share. */
export interface NetworkNames {
  /** The engine's name for it. */
  network: string;
  /** The host's interface; at most 15 characters, as Linux wants. */
  bridge: string;
  /** Prefix of our chains in the host's filter table. */
  chain: string;
}

/** @param serviceId hex digits, see `createDockerRuntime` */
export function networkNames(serviceId: string): NetworkNames {
  const short = serviceId.slice(0, 10);
  return { network: `cellbox-${short}`, bridge: `cbx${short}`, chain: `CELLBOX-${short}` };
}

/**
 * Shell program that sets the host's rules for traffic from the bridge; run as root with NET_ADMIN in the host's
 * network namespace. The variables BRIDGE and CHAIN are given by its environment, the rules of single machines
 * (`policyLines`) on its standard input, NAME_SERVERS only where others than the host's are used.
 *
 * - a machine's own rules come first: what they let pass meets all others
 * - every address of the host is refused (INPUT), link-local addresses with the cloud's metadata services too
 * - so is what reaches a service of the host by its port forwarding (ctstate DNAT), other sandboxes, other bridges
 * - so are private networks that only this host leads to (virtual machines, VPNs): all but those of its way out
 * - refused, not dropped: a program that tries learns it at once
 * - the host's own name servers stay reachable on port 53: some clouds keep theirs on a link-local address
 * - idempotent; each table changes in one commit, and our jumps are moved to the front again
 * - DOCKER-USER comes before everything of the engine and outlives its restart; without it FORWARD is the place
 */
export const SET_RULES = String.raw`
set -eu
policies=$(cat)
works() { "$1" -w 5 -n -L "$2" >/dev/null 2>&1; }
ipt=iptables
if ! works iptables DOCKER-USER; then
  # Only then: the mere look creates the legacy tables on a host that has none.
  if works iptables-legacy DOCKER-USER || ! works iptables INPUT; then ipt=iptables-legacy; fi
fi
forward=FORWARD
if works "$ipt" DOCKER-USER; then forward=DOCKER-USER; fi
jump() { # command, chain, target: puts the jump first, also when it is already somewhere
  if "$1" -w 5 -C "$2" -i "$BRIDGE" -j "$3" 2>/dev/null; then echo "-D $2 -i $BRIDGE -j $3"; fi
  echo "-I $2 1 -i $BRIDGE -j $3"
}
resolvers=$(printenv NAME_SERVERS || true)
[ -n "$resolvers" ] || resolvers=$(awk '$1 == "nameserver" && $2 ~ /^[0-9.]+$/ && $2 !~ /^127\./ { print $2 }' /etc/resolv.conf)
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
stale=$("$ipt" -w 5 -S | sed -n "s/^-N \($CHAIN-P[0-9]*\)\$/\1/p")
{
  echo '*filter'
  echo ":$CHAIN-IN - [0:0]"
  echo ":$CHAIN-FW - [0:0]"
  echo "-F $CHAIN-IN"
  echo "-F $CHAIN-FW"
  for chain in $stale; do
    case $policies in *":$chain "*) ;; *) echo "-F $chain"; echo "-X $chain" ;; esac
  done
  printf '%s\n' "$policies"
  for chain in "$CHAIN-IN" "$CHAIN-FW"; do
    echo "-A $chain -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN"
    for resolver in $resolvers; do
      echo "-A $chain -d $resolver -p udp --dport 53 -j RETURN"
      echo "-A $chain -d $resolver -p tcp --dport 53 -j RETURN"
    done
  done
  for match in '' '-d 169.254.0.0/16' '-m conntrack --ctstate DNAT' "-o $BRIDGE" '-o docker+' '-o br-+' '-o cbx+'; do
    if [ -z "$match" ]; then chain=$CHAIN-IN; else chain=$CHAIN-FW; fi
    echo "-A $chain $match -p tcp -j REJECT --reject-with tcp-reset"
    echo "-A $chain $match -j REJECT"
  done
  private | while read -r match; do
    echo "-A $CHAIN-FW $match -p tcp -j REJECT --reject-with tcp-reset"
    echo "-A $CHAIN-FW $match -j REJECT"
  done
  jump "$ipt" INPUT "$CHAIN-IN"
  jump "$ipt" "$forward" "$CHAIN-FW"
  echo COMMIT
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
    jump "$ip6" INPUT "$CHAIN-IN"
    jump "$ip6" FORWARD "$CHAIN-IN"
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
  names: NetworkNames,
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
export async function networkExists(docker: Dockerode, names: NetworkNames): Promise<boolean> {
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
