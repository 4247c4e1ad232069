import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import fs from 'node:fs/promises';
import net from 'node:net';
import path from 'node:path';
import { AGENT_PORT, GATEWAY_PORT, INTERPRETER_PORT } from '../../protocol/routing';
import { parseEndpoint, TunnelClient } from '../../kernel-image/agent/tunnel';
import { freePort } from '../../bench/child';
import { eventually, Machine, quickest, readAll, TUNNEL_TOKEN } from './agent-fixture';

describe('the tunnel, both ends', () => {
  let machine: Machine;
  let target: net.Server;
  let port: number;
  let serve: (stream: net.Socket) => void;

  beforeEach(async () => {
    machine = await Machine.make();
    target = net.createServer({ allowHalfOpen: true }, (stream) => {
      stream.on('error', () => {}); // tests break connections on purpose
      serve(stream);
    });
    await new Promise<void>((done) => target.listen(0, '127.0.0.1', done));
    port = (target.address() as net.AddressInfo).port;
    serve = (stream) => stream.pipe(stream);
  });

  afterEach(async () => {
    await machine.close();
    target.close();
  });

  it('carries 50 MB each way intact', async () => {
    await machine.start('agent');
    const stream = await machine.server.dial(port);
    const block = randomBytes(1024 * 1024);
    const [sent, received] = [createHash('sha256'), createHash('sha256')];
    let length = 0;
    const reading = (async () => {
      for await (const chunk of stream) {
        received.update(chunk as Buffer);
        length += (chunk as Buffer).length;
      }
    })();
    for (let i = 0; i < 50; i++) {
      block.writeUInt32BE(i);
      sent.update(block);
      // The stream owns what it was given until it is written.
      if (!stream.write(Buffer.from(block))) await once(stream, 'drain');
    }
    stream.end();
    await reading;
    expect(length).toBe(50 * block.length);
    expect(received.digest('hex')).toBe(sent.digest('hex'));
  });

  it('keeps half-closes in both directions', async () => {
    await machine.start('agent');
    serve = (stream) => {
      let got = '';
      stream.on('data', (chunk: Buffer) => (got += chunk.toString()));
      stream.on('end', () => stream.end(`got ${got}`));
    };
    const asking = await machine.server.dial(port);
    asking.end('question');
    expect((await readAll(asking)).toString()).toBe('got question');
    const late = new Promise<string>((resolve) => {
      serve = (stream) => {
        stream.end('first');
        stream.on('data', (chunk: Buffer) => resolve(chunk.toString()));
      };
    });
    const answering = await machine.server.dial(port);
    await once(answering.resume(), 'end');
    answering.end('after your end');
    expect(await late).toBe('after your end');
  });

  it('stops reading from a port when the client stops reading', async () => {
    await machine.start('agent');
    let written = 0;
    serve = (stream) => {
      const block = Buffer.alloc(256 * 1024);
      const fill = () => {
        while (written < 512 * 1024 * 1024) {
          written += block.length;
          if (!stream.write(block)) return void stream.once('drain', fill);
        }
      };
      fill();
    };
    const stream = await machine.server.dial(port);
    let before = -1;
    await eventually(async () => {
      const now = written;
      const settled = now === before;
      before = now;
      if (!settled) {
        await new Promise((resolve) => setTimeout(resolve, 200));
        throw new Error('still filling');
      }
    });
    expect(written).toBeGreaterThan(0);
    expect(written).toBeLessThan(64 * 1024 * 1024);
    stream.destroy();
  });

  it('serves 100 dials at once, each with its own stream', async () => {
    await machine.start('agent');
    const answers = await Promise.all(
      Array.from({ length: 100 }, async (_, i) => {
        const stream = await machine.server.dial(port);
        stream.end(`dial ${i}`);
        return (await readAll(stream)).toString();
      }),
    );
    expect(answers).toEqual(Array.from({ length: 100 }, (_, i) => `dial ${i}`));
  });

  it('tells a closed port, and a gateway that is not up yet, as not_found', async () => {
    await machine.start('agent', { CELLBOX_GATEWAY_PORT: '0' });
    await new Promise<void>((done) => target.close(() => done()));
    await expect(machine.server.dial(port)).rejects.toMatchObject({ code: 'not_found' });
    await expect(machine.server.dial(GATEWAY_PORT)).rejects.toMatchObject({ code: 'not_found' });
  });

  it('reaches servers that listen on IPv6 loopback only', async () => {
    await machine.start('agent');
    const six = net.createServer((stream) => stream.end('six'));
    // Not just any: a program beside us may listen on the same port of IPv4, which comes first.
    six.listen(await freePort(), '::1');
    try {
      await once(six, 'listening');
    } catch {
      // A host without IPv6 has nothing to reach.
      console.warn('skipped: no IPv6 loopback');
      return;
    }
    const stream = await machine.server.dial((six.address() as net.AddressInfo).port);
    expect((await readAll(stream)).toString()).toBe('six');
    six.close();
  });

  it('reaches the gateway wherever it really listens', async () => {
    serve = (stream) => stream.end('gateway');
    await machine.start('agent', { CELLBOX_GATEWAY_PORT: String(port) });
    const stream = await machine.server.dial(GATEWAY_PORT);
    expect((await readAll(stream)).toString()).toBe('gateway');
  });

  it('breaks the streams of a port whose server breaks them, and of a client that leaves', async () => {
    await machine.start('agent');
    serve = (stream) => stream.once('data', () => stream.resetAndDestroy());
    const broken = await machine.server.dial(port);
    broken.write('x');
    await once(broken.resume(), 'end');
    const left = new Promise<void>((resolve) => {
      serve = (stream) => stream.resume().once('end', () => resolve());
    });
    const leaving = await machine.server.dial(port);
    leaving.destroy();
    await left;
  });

  it('is back within a second after the service was away, with streams inside untouched', async () => {
    await machine.start('agent');
    const outage = async () => {
      await machine.server.close();
      // A whole outage: the agent tries in vain, ten times.
      await new Promise<void>((seen) => {
        let tries = 0;
        const nobody = net.createServer((stream) => {
          stream.on('error', () => {}); // its greeting is of no interest here
          stream.destroy();
          if (++tries === 10) nobody.close(() => seen());
        });
        nobody.listen(machine.socketPath);
      });
      const startedAt = performance.now();
      await machine.restartService();
      await machine.server.firstConnection(AbortSignal.timeout(30_000));
      const tookMs = performance.now() - startedAt;
      const stream = await machine.server.dial(port);
      stream.end('again');
      expect((await readAll(stream)).toString()).toBe('again');
      return tookMs;
    };
    expect(await quickest(1_000, outage)).toBeLessThan(1_000);
  });

  it('works over TCP as over a Unix socket', async () => {
    const relay = net.createServer({ allowHalfOpen: true }, (stream) => {
      const onward = net.connect({ path: machine.socketPath, allowHalfOpen: true });
      stream.on('error', () => onward.destroy());
      onward.on('error', () => stream.destroy());
      stream.pipe(onward).pipe(stream);
    });
    await new Promise<void>((done) => relay.listen(0, '127.0.0.1', done));
    const relayPort = (relay.address() as net.AddressInfo).port;
    await machine.start('agent', { CELLBOX_TUNNEL: `tcp:127.0.0.1:${relayPort}` });
    const stream = await machine.server.dial(port);
    stream.end('over TCP');
    expect((await readAll(stream)).toString()).toBe('over TCP');
    expect(await machine.request('GET', '/health')).toMatchObject({ status: 204 });
    relay.close();
  });

  it('never connects to a path that the sandbox may have planted, not even without an agent', async () => {
    const agent = await machine.start('agent');
    agent.kill('SIGKILL');
    await once(agent, 'exit');
    let reached = 0;
    const host = net.createServer(() => (reached += 1));
    const hostPath = path.join(machine.directory, 'host.sock');
    await new Promise<void>((done) => host.listen(hostPath, done));
    await fs.unlink(machine.socketPath);
    await fs.symlink(hostPath, machine.socketPath);
    const signal = AbortSignal.timeout(300);
    await expect(machine.server.dial(AGENT_PORT, { signal })).rejects.toMatchObject({ name: 'TimeoutError' });
    await machine.server.close();
    expect(reached).toBe(0);
    expect((await fs.lstat(hostPath)).isSocket()).toBe(true);
    host.close();
  });
});

describe('TunnelClient', () => {
  let machine: Machine;
  let client: TunnelClient;

  beforeEach(async () => {
    machine = await Machine.make();
    client = new TunnelClient({
      endpoint: { path: machine.socketPath },
      token: TUNNEL_TOKEN,
      target: (port) => ({ port }),
      onDeadline: () => {},
      onContact: () => {},
    });
  });

  afterEach(async () => {
    client.close();
    await machine.close();
  });

  /** A program inside that calls a local port, with what the agent does with it. */
  async function callFromInside(): Promise<net.Socket> {
    const listener = net.createServer({ allowHalfOpen: true }, (stream) => {
      void client.call(INTERPRETER_PORT, stream);
      listener.close();
    });
    await new Promise<void>((done) => listener.listen(0, '127.0.0.1', done));
    return net.connect({ port: (listener.address() as net.AddressInfo).port, allowHalfOpen: true });
  }

  it('brings a call from inside to the service', async () => {
    machine.onInbound = (id, port, stream) => {
      stream.on('data', (chunk: Buffer) => stream.write(`${id}:${port} ${chunk.toString()}`));
      stream.on('end', () => stream.end());
    };
    const caller = await callFromInside();
    caller.end('hello');
    expect((await readAll(caller)).toString()).toBe('box1:49999 hello');
  });

  it('breaks a call that no service answers', async () => {
    await machine.server.close();
    const caller = await callFromInside();
    await expect(readAll(caller)).rejects.toMatchObject({ code: 'ECONNRESET' });
  });

  it.each([
    ['unix:/run/x.sock', { path: '/run/x.sock' }],
    ['tcp:10.0.0.1:80', { host: '10.0.0.1', port: 80 }],
    ['tcp:[::1]:80', { host: '::1', port: 80 }],
    ['unix:relative', undefined],
    ['tcp:host', undefined],
    ['', undefined],
  ])('reads the endpoint %j', (text, endpoint) => {
    expect(parseEndpoint(text)).toEqual(endpoint);
  });
});
