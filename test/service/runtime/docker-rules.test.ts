import { setTimeout as delay } from 'node:timers/promises';
import { createLogger } from '../../../service/log';
import { CLEAR_RULES, SET_RULES, networkNames } from '../../../service/runtime/docker-network';
import type { NamedRules } from '../../../service/runtime/docker-proxy-config';
import { HostRules } from '../../../service/runtime/docker-rules';

const names = networkNames('0123456789abcdef0123456789abcdef');
const policy = (last: number, ...domains: string[]) => ({
  mac: `0a:00:00:00:00:0${last}`,
  allowOut: [],
  denyOut: ['1.1.1.1/32'],
  domains,
});

/** A host that takes rules when it is let. */
class Host {
  /** Addresses with rules, by attempt. */
  readonly attempts: string[][] = [];
  /** Of attempts that wait. */
  readonly waiting: Array<(error?: Error) => void> = [];
  isPatient = false;
  last = '';
  lines = '';
  /** What the proxy was told, by attempt: names by machine. */
  readonly served: Array<Record<string, readonly string[]>> = [];
  isProxyDead = false;
  held = 0;
  readonly stop = new AbortController();

  readonly run = (script: string, input: string): Promise<void> => {
    this.last = script;
    this.lines = input;
    this.attempts.push([...input.matchAll(/-FW -m mac --mac-source (\S+)/g)].map(([, mac = '']) => mac));
    if (!this.isPatient) return Promise.resolve();
    return new Promise((resolve, reject) =>
      this.waiting.push((error) => (error === undefined ? resolve() : reject(error))),
    );
  };

  rules(policies: Iterable<readonly [string, ReturnType<typeof policy>]> = []): HostRules {
    const serve = (machines: readonly NamedRules[]) => {
      this.served.push(Object.fromEntries(machines.map(({ id, domains }) => [id, domains])));
      if (this.isProxyDead) return Promise.reject(new Error('no proxy'));
      const slotOf = (id: string) => (id === 'late' ? undefined : 1);
      return Promise.resolve({ address: '172.20.0.2', slotOf, held: () => void this.held++ });
    };
    const { signal } = this.stop;
    return new HostRules({ names, logger: createLogger('silent'), run: this.run, serve, signal, policies });
  }
}

/** Lets everything that is due happen. */
const turn = () => new Promise((resolve) => setImmediate(resolve));

describe('HostRules', () => {
  it('sets all rules whenever one changes, those found at its start included', async () => {
    const host = new Host();
    const rules = host.rules([['a', policy(1)]]);
    await rules.set('b', policy(2));
    expect([host.last, host.attempts]).toEqual([SET_RULES, [[policy(1).mac, policy(2).mac]]]);
    await rules.set('a', undefined);
    expect(host.attempts[1]).toEqual([policy(2).mac]);
  });

  it('does nothing for machines that have no rules and get none', async () => {
    const host = new Host();
    const rules = host.rules();
    await rules.set('a', undefined);
    rules.drop('b');
    await rules.settled();
    expect(host.attempts).toEqual([]);
  });

  it('puts changes that come while others are being set into one attempt, and resolves them with that', async () => {
    const host = new Host();
    host.isPatient = true;
    const rules = host.rules();
    const done: string[] = [];
    const first = rules.set('a', policy(1)).then(() => done.push('a'));
    await turn();
    const rest = [rules.set('b', policy(2)), rules.set('c', policy(3))].map((each, index) =>
      each.then(() => done.push(index === 0 ? 'b' : 'c')),
    );
    await turn();
    expect(host.attempts).toEqual([[policy(1).mac]]);
    host.waiting.shift()?.();
    await first;
    await turn();
    expect([done, host.attempts[1]]).toEqual([['a'], [1, 2, 3].map((each) => policy(each).mac)]);
    host.waiting.shift()?.();
    await Promise.all(rest);
    expect(host.attempts).toHaveLength(2);
  });

  it('goes back to the rules from before when new ones can’t be set, says so, and tries again at the next look', async () => {
    const host = new Host();
    host.isPatient = true;
    const rules = host.rules([['a', policy(1)]]);
    const setting = rules.set('a', policy(2));
    await turn();
    host.waiting.shift()?.(new Error('no such module'));
    await expect(setting).rejects.toMatchObject({ code: 'unavailable' });
    const look = rules.prove();
    await turn();
    expect(host.attempts[1]).toEqual([policy(1).mac]);
    host.waiting.shift()?.(new Error('still no such module'));
    await expect(look).rejects.toThrow("can't be set: still no such module");
    host.isPatient = false;
    await rules.prove();
    await rules.prove();
    expect(host.attempts).toHaveLength(3);
  });

  it('takes away the rules of a machine that is gone, and everything in the end', async () => {
    const host = new Host();
    const rules = host.rules([['a', policy(1)]]);
    rules.drop('a');
    rules.drop('a');
    await rules.clear();
    expect([host.attempts, host.last]).toEqual([[[], []], CLEAR_RULES]);
  });

  describe('with domains', () => {
    it('tells the proxy first, all of it, and the host where that is', async () => {
      const host = new Host();
      const rules = host.rules([['a', policy(1, 'a.example')]]);
      await rules.set('b', policy(2, 'b.example', '*.c.example'));
      await rules.set('c', policy(3));
      expect(host.served).toEqual([
        { a: ['a.example'], b: ['b.example', '*.c.example'] },
        { a: ['a.example'], b: ['b.example', '*.c.example'] },
      ]);
      expect(host.lines).toContain('--to-destination 172.20.0.2:20001');
      expect(host.held).toBe(2);
    });

    it('asks for no proxy when nobody has any', async () => {
      const host = new Host();
      const rules = host.rules();
      await rules.set('a', policy(1));
      expect([host.served, rules.needsProxy]).toEqual([[], false]);
    });

    it('refuses them while the proxy is dead, goes back to what was before, and keeps other changes', async () => {
      const host = new Host();
      host.isProxyDead = true;
      const rules = host.rules([['a', policy(1)]]);
      const [named, other] = await Promise.allSettled([
        rules.set('a', policy(1, 'a.example')),
        rules.set('b', policy(2)),
      ]);
      expect(named).toMatchObject({ status: 'rejected', reason: { code: 'unavailable' } });
      expect(other.status).toBe('fulfilled');
      await rules.settled();
      expect(rules.needsProxy).toBe(false);
      expect(host.lines).not.toContain('nat');
      await rules.prove();
      host.stop.abort();
    });

    it('refuses a machine that the proxy has no room for, and keeps those that it serves', async () => {
      const host = new Host();
      const rules = host.rules([['a', policy(1, 'a.example')]]);
      await expect(rules.set('late', policy(2, 'b.example'))).rejects.toMatchObject({
        code: 'resource_exhausted',
      });
      await rules.settled();
      expect(host.served[host.served.length - 1]).toEqual({ a: ['a.example'] });
      expect(host.lines).toContain('ACCEPT');
    });

    it('tries again until the proxy serves those that have some, who are closed meanwhile', async () => {
      const host = new Host();
      host.isProxyDead = true;
      const rules = host.rules([['a', policy(1, 'a.example')]]);
      await rules.assert();
      expect(host.lines).not.toContain('ACCEPT');
      await expect(rules.prove()).rejects.toThrow('no proxy');
      host.isProxyDead = false;
      await eventually(() => expect(host.lines).toContain('ACCEPT'));
      await rules.prove();
      host.stop.abort();
    });
  });
});

async function eventually(holds: () => void): Promise<void> {
  for (let tries = 0; ; tries++) {
    try {
      holds();
      return;
    } catch (error) {
      if (tries === 100) throw error;
      await delay(20);
    }
  }
}
