import crypto from 'node:crypto';

/** Where one machine's connections arrive at the proxy; no other machine's get there. */
export const SLOTS = 2_000;
/** Ports of the proxy. A slot's own is the first of a range plus its number. */
export const PROXY_PORTS = { names: 5_300, tls: 20_000, http: 30_000 } as const;
/**
 * The address that every name has for a machine with domain rules: nobody's, and routed like any other. The proxy
 * resolves names itself, by what a connection says it is for.
 */
export const EVERY_NAME = '198.18.0.1';
/** Where no allowed name may lead: this host and its kind, private networks, metadata, and what is no single host. */
export const NEVER_PROXIED = [
  '0.0.0.0/8',
  '10.0.0.0/8',
  '100.64.0.0/10',
  '127.0.0.0/8',
  '169.254.0.0/16',
  '172.16.0.0/12',
  '192.0.0.0/24',
  '192.168.0.0/16',
  '198.18.0.0/15',
  '224.0.0.0/3',
] as const;
/** Of one machine, HTTP and TLS together. Each takes two sockets, and two buffers while it is busy. */
export const MACHINE_CONNECTIONS = 256;
const MACHINE_CONNECTIONS_PER_10_S = 1_000;
const ALL_CONNECTIONS = 8_000;
/** Also the most that a request's headers may have, nearly. */
const BUFFER_BYTES = 32_768;
/** Beside the connections' own: each slot's two ports, and some for names. */
const OTHER_FILES = 2 * SLOTS + 500;
/** The proxy's own file system; in memory, and the only place that it can write. */
export const PROXY_DIR = '/run/proxy';

const EXACT = `${PROXY_DIR}/exact.lst`;
const UNDER = `${PROXY_DIR}/under.lst`;

/** Settings of HAProxy. `nameServers` are IPv4 addresses. */
export function proxyConfig(nameServers: readonly string[]): string {
  const servers = nameServers.map((address, index) => `  nameserver n${index} ${address}:53`);
  // The key of a list is a name and a slot, so that no name of one machine says anything about another. A name with
  // other characters than these never becomes part of a key, nor a question to a name server.
  const judge = (rule: string, refuse: string, first: number) => `
  ${rule} ${refuse} if !{ var(txn.name) -m reg ^[a-z0-9_]([a-z0-9._-]{0,251}[a-z0-9_-])?$ }
  ${rule} set-var-fmt(txn.key) %[var(txn.name)]:%[fc_dst_port,sub(${first})]
  ${rule} ${refuse} if !{ var(txn.key) -m str -f ${EXACT} } !{ var(txn.key) -m end -f ${UNDER} }
  ${rule} do-resolve(txn.address,servers,ipv4) var(txn.name)`;
  return `global
  log stdout format raw daemon warning
  maxconn "\${CONNECTIONS}"
  nbthread 2
  tune.bufsize ${BUFFER_BYTES}
  stats socket ${PROXY_DIR}/admin.sock mode 600 level admin
  stats timeout 10s

defaults
  log global
  option dontlognull
  retries 1
  timeout connect 10s
  timeout client 1h
  timeout server 1h
  timeout tunnel 1h
  timeout client-fin 5m
  timeout http-request 15s
  timeout http-keep-alive 60s
  # A machine that is gone, or that a change of rules has cut off, answers no more.
  option clitcpka
  clitcpka-idle 30s
  clitcpka-intvl 10s
  clitcpka-cnt 3
  option srvtcpka

resolvers servers
${servers.join('\n')}
  accepted_payload_size 4096
  resolve_retries 3
  timeout resolve 1s
  timeout retry 1s
  hold valid 10s
  hold nx 2s
  hold other 2s
  hold refused 2s
  hold timeout 2s

backend counters
  stick-table type integer size 4k expire 1h store conn_cur,conn_rate(10s)

frontend tls
  mode tcp
  bind :${PROXY_PORTS.tls}-${PROXY_PORTS.tls + SLOTS - 1}
${limit(PROXY_PORTS.tls)}
  tcp-request inspect-delay 5s
  tcp-request content reject if !{ req.ssl_hello_type 1 }
  tcp-request content set-var(txn.name) req.ssl_sni,lower,rtrim(.)${judge('tcp-request content', 'reject', PROXY_PORTS.tls)}
  tcp-request content reject if !{ var(txn.address) -m found }
  tcp-request content reject if { var(txn.address) -m ip ${NEVER_PROXIED.join(' ')} }
  tcp-request content set-dst var(txn.address)
  default_backend tls

backend tls
  mode tcp
  server named 0.0.0.0:443

frontend http
  mode http
  bind :${PROXY_PORTS.http}-${PROXY_PORTS.http + SLOTS - 1}
${limit(PROXY_PORTS.http)}
  # Every request is judged by its own host, and has a connection of its own.
  option http-server-close
  option disable-h2-upgrade
  http-request deny deny_status 400 if !{ req.fhdr_cnt(host) 1 } or !{ url_beg / } or METH_CONNECT
  # Any other upgrade would be requests that nobody judges (h2c).
  http-request del-header upgrade if !{ req.fhdr(upgrade) -i websocket }
  http-request set-var(txn.name) req.fhdr(host),host_only,lower,rtrim(.)${judge('http-request', deny(403, 'The network rules of this sandbox do not allow this host.'), PROXY_PORTS.http)}
  http-request ${deny(502, 'This host has no address.')} if !{ var(txn.address) -m found }
  http-request ${deny(403, 'The address of this host is none that a sandbox may reach.')} if { var(txn.address) -m ip ${NEVER_PROXIED.join(' ')} }
  http-request set-dst var(txn.address)
  default_backend http

backend http
  mode http
  http-reuse never
  server named 0.0.0.0:80
`;
}

/** Before anything is read: a machine over its limits is reset. */
function limit(first: number): string {
  return `  tcp-request connection track-sc0 dst_port,sub(${first}) table counters
  tcp-request connection reject if { sc0_conn_cur(counters) gt ${MACHINE_CONNECTIONS} }
  tcp-request connection reject if { sc0_conn_rate(counters) gt ${MACHINE_CONNECTIONS_PER_10_S} }`;
}

function deny(status: number, text: string): string {
  return `return status ${status} content-type text/plain string "${text}\\n"`;
}

/**
 * Settings of unbound: every name has the one address, no other record exists, and nobody is ever asked. So a name says
 * nothing to anyone outside.
 */
export function resolverConfig(): string {
  return `server:
  interface: 0.0.0.0@${PROXY_PORTS.names}
  port: ${PROXY_PORTS.names}
  do-ip6: no
  access-control: 0.0.0.0/0 allow
  # Of the names that unbound knows no answer for by itself, two may be some network's own.
  local-zone: "test." nodefault
  local-zone: "home.arpa." nodefault
  local-zone: "." redirect
  local-data: ". 5 IN A ${EVERY_NAME}"
  ip-ratelimit: 500
  incoming-num-tcp: 256
  num-threads: 1
  msg-cache-size: 1m
  rrset-cache-size: 1m
  module-config: "iterator"
  chroot: ""
  username: ""
  directory: "${PROXY_DIR}"
  pidfile: ""
  use-syslog: no
  logfile: ""
  verbosity: 0
remote-control:
  control-enable: no
`;
}

/** Program of the container, for bash; it ends with the first of the two. Engines differ in how many files they allow. */
export const RUN_PROXY = String.raw`
set -eu
cd ${PROXY_DIR}
files=$(ulimit -Hn)
[ "$files" != unlimited ] && [ "$files" -lt ${OTHER_FILES + 2 * ALL_CONNECTIONS} ] || files=${OTHER_FILES + 2 * ALL_CONNECTIONS}
ulimit -Sn "$files"
CONNECTIONS=$(((files - ${OTHER_FILES}) / 2))
export CONNECTIONS
[ "$CONNECTIONS" -ge ${MACHINE_CONNECTIONS} ] || { echo "the engine allows too few open files ($files)" >&2; exit 1; }
: > ${EXACT}
: > ${UNDER}
printenv PROXY_CONFIG > haproxy.cfg
printenv RESOLVER_CONFIG > unbound.conf
unbound -d -c unbound.conf &
haproxy -db -f haproxy.cfg &
wait -n
exit 1
`;

/**
 * Program that replaces both lists of the running proxy, each in one commit: lines of \`listLines\` on its standard
 * input, and one with a dot. Connections that stand are not asked again.
 */
export const SET_LISTS = String.raw`
set -eu
ask() { socat -t 10 - UNIX-CONNECT:${PROXY_DIR}/admin.sock; }
lines=$(while read -r line; do [ "$line" != . ] || break; printf '%s\n' "$line"; done)
tries=0
until [ -S ${PROXY_DIR}/admin.sock ] && [ -n "$(echo 'show version' | ask 2>/dev/null)" ]; do
  tries=$((tries + 1))
  [ "$tries" -lt 100 ] || { echo 'the proxy does not answer' >&2; exit 1; }
  sleep 0.1
done
version() { echo "prepare acl $1" | ask | sed -n 's/^New version created: *\([0-9][0-9]*\).*/\1/p'; }
exact=$(version ${EXACT})
under=$(version ${UNDER})
[ -n "$exact" ] && [ -n "$under" ] || { echo 'the proxy takes no lists' >&2; exit 1; }
said=$({
  echo prompt
  printf '%s\n' "$lines" | sed -n -e "s|^exact |add acl @$exact ${EXACT} |p" -e "s|^under |add acl @$under ${UNDER} |p"
  echo "commit acl @$exact ${EXACT}"
  echo "commit acl @$under ${UNDER}"
  echo quit
} | ask | tr -d '> \n\r')
[ -z "$said" ] || { echo "the proxy refuses lists: $said" >&2; exit 1; }
`;

/** Program that tells the keys of a running proxy's exact list, a line each. */
export const TELL_LISTS = `echo "show acl ${EXACT}" | socat -t 10 - UNIX-CONNECT:${PROXY_DIR}/admin.sock | awk '{ print $2 }'`;

/** What one machine may reach by name; lower case, `*.` before those that stand for all names below. */
export interface NamedRules {
  id: string;
  domains: readonly string[];
}

/** Of one machine with these domains. The proxy keeps it, so that slots outlive the service. */
function mark({ id, domains }: NamedRules): string {
  const hash = crypto.createHash('sha256').update([id, ...domains].join('\0'));
  return hash.digest('hex').slice(0, 24);
}

/** Slots by mark. */
export type Slots = ReadonlyMap<string, number>;

/**
 * Gives each machine a slot. The same domains keep theirs; others get one that was not in use before, nor is in
 * `retired`, so that connections by the old rules no longer arrive anywhere. When there is none left, they have none.
 */
export function assignSlots(
  machines: readonly NamedRules[],
  before: Slots,
  retired: Iterable<number> = [],
): Map<string, number> {
  const taken = new Set([...before.values(), ...retired]);
  const slots = new Map<string, number>();
  for (const each of machines.map(mark).sort()) {
    let slot = before.get(each);
    if (slot === undefined) {
      if (taken.size >= SLOTS) continue;
      // From the mark, so that a proxy made anew mostly gives the same.
      slot = Number.parseInt(each.slice(0, 8), 16) % SLOTS;
      while (taken.has(slot)) slot = (slot + 1) % SLOTS;
      taken.add(slot);
    }
    slots.set(each, slot);
  }
  return slots;
}

/** The slot of one machine. */
export function slotOf(machine: NamedRules, slots: Slots): number | undefined {
  return slots.get(mark(machine));
}

/** Lines for `SET_LISTS`. */
export function listLines(machines: readonly NamedRules[], slots: Slots): string {
  const lines: string[] = [];
  for (const machine of machines) {
    const slot = slotOf(machine, slots);
    if (slot === undefined) continue;
    lines.push(`exact =${mark(machine)}:${slot}`); // no name has an =
    for (const domain of machine.domains) {
      lines.push(domain.startsWith('*.') ? `under ${domain.slice(1)}:${slot}` : `exact ${domain}:${slot}`);
    }
  }
  return lines.map((line) => `${line}\n`).join('');
}

/** The slots that a running proxy holds, out of what `TELL_LISTS` printed. */
export function slotsHeld(keys: string): Map<string, number> {
  return new Map(
    [...keys.matchAll(/^=([0-9a-f]{24}):(\d+)$/gm)].map(([, each = '', slot]) => [each, Number(slot)]),
  );
}
