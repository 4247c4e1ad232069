import { ServiceError } from '../errors';
import type { Egress } from '../sandboxes/network';
import { ipv4Block, isDomain, isIpv6Block } from '../sandboxes/network';

/** What requests say of the way out; fields that were left out are undefined. */
interface EgressFields {
  allowOut?: readonly string[] | undefined;
  denyOut?: readonly string[] | undefined;
  allowInternetAccess?: boolean | undefined;
}

/** Of each list. Every packet of the sandbox passes them one by one. */
const MAX_ENTRIES = 256;

/**
 * The checked settings of a request. `prefix` is where the lists are in its body.
 *
 * @throws ServiceError `invalid_argument` naming the entry
 */
export function egressOf(fields: EgressFields, prefix: '' | 'network.'): Egress {
  const { allowOut = [], denyOut = [], allowInternetAccess = true } = fields;
  for (const [name, list] of [
    ['allowOut', allowOut],
    ['denyOut', denyOut],
  ] as const) {
    if (list.length > MAX_ENTRIES) throw invalid(prefix + name, `has more than ${MAX_ENTRIES} entries`);
  }
  for (const entry of denyOut) {
    if (ipv4Block(entry) === undefined && !isIpv6Block(entry)) {
      throw invalid(`${prefix}denyOut`, `${JSON.stringify(entry)} is neither an IP address nor a CIDR block`);
    }
  }
  const domains = allowOut.filter((entry) => ipv4Block(entry) === undefined);
  for (const entry of domains) {
    if (isIpv6Block(entry)) {
      throw invalid(`${prefix}allowOut`, `${JSON.stringify(entry)}: sandboxes have no IPv6`);
    }
    if (!isDomain(entry)) {
      throw invalid(
        `${prefix}allowOut`,
        `${JSON.stringify(entry)} is neither an IP address, a CIDR block nor a domain`,
      );
    }
  }
  if (domains.length > 0) {
    const isClosed = !allowInternetAccess || denyOut.some((entry) => ipv4Block(entry) === '0.0.0.0/0');
    if (!isClosed) throw invalid(`${prefix}allowOut`, 'a domain needs 0.0.0.0/0 in denyOut');
  }
  return { allowInternetAccess, allowOut, denyOut };
}

function invalid(field: string, what: string): ServiceError {
  return new ServiceError('invalid_argument', `${field}: ${what}`);
}
