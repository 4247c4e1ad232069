import crypto from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import type Dockerode from 'dockerode';
import { demultiplex, runHelper } from '../../service/runtime/docker-helper';

/** The answer of the world's name server to every question that has no `ip-a-b-c-d` in it, which it would be, else. */
export const RESOLVED = '192.0.2.77';

/**
 * TCP echo on 8000, UDP echo on 8001 and 443, a name server on UDP 53 that knows every name, HTTP on 80 and TLS on 443
 * that tell whom they take themselves for, with a WebSocket's handshake and an echo behind it; prints `up`, each
 * question, and each connection to the last two.
 */
const WORLD = `
const net = require('net');
const http = require('http');
const tls = require('tls');
const fs = require('fs');
require('child_process').execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1',
  '-nodes', '-subj', '/CN=world', '-days', '2', '-keyout', '/tmp/key.pem', '-out', '/tmp/cert.pem'], { stdio: 'ignore' });
const web = http.createServer((req, res) => {
  req.resume().on('end', () => res.end('http ' + req.headers.host + ' ' + (req.headers.upgrade ?? '') + ' at ' + req.socket.localAddress));
});
web.on('upgrade', (req, socket) => {
  socket.write('HTTP/1.1 101 Switching Protocols\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\nSec-WebSocket-Accept: '
    + require('crypto').createHash('sha1').update(req.headers['sec-websocket-key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11').digest('base64') + '\\r\\n\\r\\n');
  socket.on('error', () => {}).pipe(socket);
});
web.on('connection', () => console.log('reached http'));
web.listen(80, '0.0.0.0');
tls.createServer({ key: fs.readFileSync('/tmp/key.pem'), cert: fs.readFileSync('/tmp/cert.pem') }, (s) => {
  s.on('error', () => {});
  s.write('tls ' + s.servername + ' at ' + s.localAddress + '\\n');
  s.pipe(s);
}).on('connection', () => console.log('reached tls')).on('tlsClientError', () => {}).listen(443, '0.0.0.0');
const dgram = require('dgram');
net.createServer((s) => s.on('error', () => {}).pipe(s)).listen(8000, '0.0.0.0');
for (const port of [8001, 443]) {
  const udp = dgram.createSocket('udp4');
  udp.on('message', (data, from) => udp.send(data, from.port, from.address));
  udp.bind(port);
}
const dns = dgram.createSocket('udp4');
dns.on('message', (query, from) => {
  const labels = [];
  let at = 12;
  for (; query[at] !== 0; at += query[at] + 1) labels.push(query.toString('latin1', at + 1, at + 1 + query[at]));
  const question = query.subarray(12, at + 5);
  const isA = query.readUInt16BE(at + 1) === 1;
  console.log('asked ' + labels.join('.'));
  const [, told = '${RESOLVED}'] = /ip-(\\d+-\\d+-\\d+-\\d+)/.exec(labels.join('.')) ?? [];
  const head = Buffer.from([query[0], query[1], 0x81, 0x80, 0, 1, 0, isA ? 1 : 0, 0, 0, 0, 0]);
  const answer = Buffer.from([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, ...told.split(/[.-]/).map(Number)]);
  dns.send(Buffer.concat(isA ? [head, question, answer] : [head, question]), from.port, from.address);
});
dns.bind(53, () => console.log('up'));
`;

/** A name that the world resolves to an address. */
export function nameOf(address: string, prefix = 'www'): string {
  return `${prefix}.ip-${address.replaceAll('.', '-')}.example`;
}

/**
 * Two machines on a network of test addresses that play the internet: nothing beyond this host is ever asked. What
 * comes from one bridge is let on to them as if they were behind the host's way out.
 */
export class OutsideWorld {
  private constructor(
    private readonly docker: Dockerode,
    private readonly image: string,
    private readonly network: Dockerode.Network,
    private readonly bridge: string,
    private readonly machines: Dockerode.Container[],
    /** Their addresses. */
    readonly first: string,
    readonly second: string,
  ) {}

  static async open(docker: Dockerode, image: string): Promise<OutsideWorld> {
    // One of 30 in two ranges for documentation: several runs may share the engine.
    const block = crypto.randomInt(30);
    const start = `${block < 15 ? '203.0.113' : '198.51.100'}.`;
    const base = (block % 15) * 16;
    const bridge = `wld${crypto.randomBytes(4).toString('hex')}`;
    const network = await docker.createNetwork({
      Name: bridge,
      Driver: 'bridge',
      IPAM: { Driver: 'default', Config: [{ Subnet: `${start}${base}/28` }] },
      Options: {
        'com.docker.network.bridge.name': bridge,
        // Newer engines refuse what was not published, else.
        'com.docker.network.bridge.gateway_mode_ipv4': 'nat-unprotected',
      },
    });
    const world = new OutsideWorld(
      docker,
      image,
      network,
      bridge,
      [],
      start + (base + 5),
      start + (base + 6),
    );
    try {
      for (const address of [world.first, world.second]) await world.add(address);
    } catch (error) {
      await world.close();
      throw error;
    }
    return world;
  }

  private async add(address: string): Promise<void> {
    const container = await this.docker.createContainer({
      Image: this.image,
      Entrypoint: ['node', '-e', WORLD],
      User: '0:0',
      HostConfig: { NetworkMode: this.bridge },
      NetworkingConfig: { EndpointsConfig: { [this.bridge]: { IPAMConfig: { IPv4Address: address } } } },
    });
    this.machines.push(container);
    await container.start();
    for (let tries = 0; !(await this.log(container)).includes('up\n'); tries++) {
      if (tries > 100) throw new Error(`the world is not up: ${await this.log(container)}`);
      await delay(100); // its log tells nobody that it has grown
    }
  }

  /** Makes the world reachable from a bridge, as far as that one's own rules let it. */
  async connect(from: string): Promise<void> {
    // Behind the bridge's own jump, but before the last rule of older engines, which ends the chain.
    const script = `
add() {
  if iptables -w 5 -S DOCKER-USER | tail -n 1 | grep -q -e '-j RETURN$'; then
    iptables -w 5 -I DOCKER-USER "$(iptables -w 5 -S DOCKER-USER | grep -c '^-A')" "$@"
  else
    iptables -w 5 -A DOCKER-USER "$@"
  fi
}
add -i ${from} -o ${this.bridge} -j ACCEPT
add -i ${this.bridge} -o ${from} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT`;
    await this.helper(script);
  }

  /** Names that its name servers were asked for. */
  async questions(): Promise<string[]> {
    const logs = await Promise.all(this.machines.map((machine) => this.log(machine)));
    return [...logs.join('').matchAll(/^asked (.*)$/gm)].map(([, name = '']) => name);
  }

  /** How many connections for HTTP and TLS there were to each of its machines. */
  async reached(): Promise<number[]> {
    const logs = await Promise.all(this.machines.map((machine) => this.log(machine)));
    return logs.map((log) => log.match(/^reached /gm)?.length ?? 0);
  }

  async close(): Promise<void> {
    for (const machine of this.machines) await machine.remove({ force: true, v: true });
    await this.network.remove();
    // Whatever names our bridge in the chain for users.
    const list = `iptables -w 5 -S DOCKER-USER | grep -e '${this.bridge}' | sed 's/^-A/-D/'`;
    await this.helper(`${list} | while read -r rule; do iptables -w 5 $rule; done`);
  }

  private async helper(script: string): Promise<void> {
    await runHelper(this.docker, { image: this.image, serviceId: 'tests', script });
  }

  private async log(machine: Dockerode.Container): Promise<string> {
    return demultiplex(await machine.logs({ stdout: true, stderr: true, follow: false }));
  }
}
