import fc from 'fast-check';
import {
  NEVER_PROXIED,
  SLOTS,
  assignSlots,
  listLines,
  proxyConfig,
  resolverConfig,
  slotOf,
  slotsHeld,
} from '../../../service/runtime/docker-proxy-config';
import type { NamedRules } from '../../../service/runtime/docker-proxy-config';
import { ipv4Block } from '../../../service/sandboxes/network';

const a = { id: 'a', domains: ['a.example', '*.b.example'] };
const b = { id: 'b', domains: ['a.example', '*.b.example'] };

describe('assignSlots()', () => {
  const machines = fc.uniqueArray(
    fc.record({
      id: fc.constantFrom(...'abcdefgh'),
      domains: fc.subarray(['a.example', 'b.example', '*.c.example'], { minLength: 1 }),
    }),
    { selector: ({ id }) => id },
  );

  it('gives each machine its own, keeps it while its domains stay, and never one that was another’s just before', () => {
    fc.assert(
      fc.property(fc.array(machines, { maxLength: 6 }), (steps) => {
        let before = new Map<string, number>();
        let was: readonly NamedRules[] = [];
        for (const step of steps) {
          const slots = assignSlots(step, before);
          const given = step.map((machine) => slotOf(machine, slots));
          expect(new Set(given).size).toBe(step.length);
          for (const machine of step) {
            const slot = slotOf(machine, slots) ?? -1;
            expect(slot >= 0 && slot < SLOTS).toBe(true);
            const same = was.some(
              ({ id, domains }) => id === machine.id && domains.join() === machine.domains.join(),
            );
            if (same) expect(slot).toBe(slotOf(machine, before));
            else expect([...before.values()]).not.toContain(slot);
          }
          before = slots;
          was = step;
        }
      }),
    );
  });

  it('gives the same to a service that begins anew', () => {
    expect([...assignSlots([a, b], new Map())].sort()).toEqual([...assignSlots([b, a], new Map())].sort());
  });

  it('gives none that the host’s rules may still lead to, and none at all when there is no other', () => {
    const all = Array.from({ length: SLOTS }, (_, slot) => slot);
    expect([...assignSlots([a], new Map(), all.slice(0, -1)).values()]).toEqual([SLOTS - 1]);
    expect(assignSlots([a], new Map(), all)).toEqual(new Map());
    const before = assignSlots([a], new Map());
    expect(assignSlots([a, b], before, all)).toEqual(before);
  });
});

describe('listLines()', () => {
  const slots = assignSlots([a, b], new Map());

  it('keeps the names of one machine from those of another', () => {
    const [one, other] = [slotOf(a, slots), slotOf(b, slots)];
    expect(one).not.toBe(other);
    expect(listLines([a, b], slots).replace(/=\w+/g, '=mark').split('\n')).toEqual([
      `exact =mark:${one}`,
      `exact a.example:${one}`,
      `under .b.example:${one}`,
      `exact =mark:${other}`,
      `exact a.example:${other}`,
      `under .b.example:${other}`,
      '',
    ]);
  });

  it('is all that a later service needs to know who has which slot', () => {
    const keys = listLines([a, b], slots).replace(/^(exact|under) /gm, '');
    expect(slotsHeld(keys)).toEqual(slots);
    expect(slotsHeld('a.example:1\n=abc:2\n\n')).toEqual(new Map());
  });
});

describe('proxyConfig()', () => {
  it('asks the name servers that it is given', () => {
    const lines = proxyConfig(['192.0.2.1', '192.0.2.2']).split('\n');
    expect(lines.filter((line) => /^ {2}nameserver/.test(line))).toEqual([
      '  nameserver n0 192.0.2.1:53',
      '  nameserver n1 192.0.2.2:53',
    ]);
  });

  it('judges the address of every connection, with blocks that mean what they say', () => {
    for (const block of NEVER_PROXIED) expect(ipv4Block(block)).toBe(block);
    const config = proxyConfig(['192.0.2.1']);
    expect(config.split(NEVER_PROXIED.join(' '))).toHaveLength(3);
    for (const rule of ['tcp-request content', 'http-request']) {
      const at = (text: string) => config.indexOf(`${rule} ${text}`);
      expect(at('do-resolve')).toBeGreaterThan(at('set-var-fmt(txn.key)'));
      expect(at('set-dst')).toBeGreaterThan(at('do-resolve'));
    }
  });
});

describe('resolverConfig()', () => {
  it('has one address for every name, and nobody to ask', () => {
    const config = resolverConfig();
    expect(config).toContain('local-zone: "." redirect');
    expect(config).not.toMatch(/forward|stub|root-hints/);
  });
});
