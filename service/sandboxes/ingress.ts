import net from 'node:net';

/** How requests reach the programs of a sandbox on ports of their own. Settled by the create; told again as given. */
export interface Ingress {
  /** The host that programs are told instead of the one that was asked for; `${PORT}` in it stands for the port. */
  readonly maskRequestHost?: string;
  /** Ports whose programs speak TLS. */
  readonly httpsPorts?: readonly number[];
}

const LABEL = /^[a-z\d_](?:[a-z\d_-]{0,61}[a-z\d_])?$/i;
const PLACEHOLDER = '${PORT}';

/** The mask as the program on that port sees it. */
export function maskedHost(mask: string, port: number): string {
  return mask.replaceAll(PLACEHOLDER, String(port));
}

/**
 * Whether a mask is a `Host` for every port: a name or address in ASCII, with a port behind it or without. Nothing else
 * may pass, as it is written into every request as it is.
 */
export function isHostMask(mask: string): boolean {
  const host = maskedHost(mask, 65_535); // the longest, and the largest number
  const [, name = '', port = '80'] = /^(\[[^\]]*\]|[^:[\]]*)(?::(\d{1,5}))?$/.exec(host) ?? [];
  if (Number(port) < 1 || Number(port) > 65_535) return false;
  if (name.startsWith('[')) return net.isIPv6(name.slice(1, -1)) && !name.includes('%');
  return name.length <= 253 && name.split('.').every((label) => LABEL.test(label));
}
