import net from 'node:net';
import type { NetworkAccess } from '../runtime/runtime';

/** A sandbox's way out as the caller described it; told again by `getInfo` as it was given. */
export interface Egress {
  allowInternetAccess: boolean;
  /** Addresses, CIDR blocks and domains that stay reachable whatever `denyOut` says. */
  allowOut: readonly string[];
  denyOut: readonly string[];
}

/** Every IPv4 address. */
const EVERYTHING = '0.0.0.0/0';

/**
 * What a machine may reach by these settings. Allow beats deny; internet access that is off denies everything. IPv6 is
 * left out: no machine has it, so that what denies it holds already.
 */
export function accessOf({ allowInternetAccess, allowOut, denyOut }: Egress): NetworkAccess {
  const allow = blocksOf(allowOut);
  const deny = blocksOf(allowInternetAccess ? denyOut : [...denyOut, EVERYTHING]);
  if (deny.length === 0 || allow.includes(EVERYTHING)) return 'full';
  if (!deny.includes(EVERYTHING)) return { allowOut: allow, denyOut: deny };
  const allowDomains = domainsOf(allowOut);
  if (allowDomains.length > 0) return { allowOut: allow, denyOut: [EVERYTHING], allowDomains };
  return allow.length === 0 ? 'none' : { allowOut: allow, denyOut: [EVERYTHING] };
}

/** Each once, in one spelling and one order: the same domains are the same rules. */
function domainsOf(list: readonly string[]): string[] {
  return [...new Set(list.filter(isDomain).map((text) => text.toLowerCase()))].sort();
}

function blocksOf(list: readonly string[]): string[] {
  return [...new Set(list.flatMap((text) => ipv4Block(text) ?? []))];
}

/** An IPv4 address or CIDR block in its one form, `a.b.c.d/n` with no bit set below the prefix; undefined for others. */
export function ipv4Block(text: string): string | undefined {
  const match = /^([\d.]+)(?:\/(\d|[12]\d|3[0-2]))?$/.exec(text);
  const [, address = '', length = '32'] = match ?? [];
  if (!net.isIPv4(address)) return undefined;
  const value = address.split('.').reduce((sum, part) => sum * 256 + Number(part), 0);
  const size = 2 ** (32 - Number(length));
  const first = value - (value % size);
  const parts = [24, 16, 8, 0].map((shift) => Math.floor(first / 2 ** shift) % 256);
  return `${parts.join('.')}/${length}`;
}

/** Whether the text is an IPv6 address or CIDR block. */
export function isIpv6Block(text: string): boolean {
  const match = /^([^/%]+)(?:\/(\d{1,3}))?$/.exec(text);
  return match !== null && net.isIPv6(match[1] ?? '') && Number(match[2] ?? 0) <= 128;
}

/** Whether the text is a domain, or `*.` and one. */
export function isDomain(text: string): boolean {
  const labels = text.replace(/^\*\./, '').split('.');
  const last = labels[labels.length - 1] ?? '';
  return (
    text.length <= 253 &&
    labels.every((label) => /^[a-z\d](?:[a-z\d-]{0,61}[a-z\d])?$/i.test(label)) &&
    /[a-z]/i.test(last)
  );
}
