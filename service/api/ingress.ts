import { AGENT_PORT, GATEWAY_PORT, INTERPRETER_PORT } from '../../protocol/routing';
import { ServiceError } from '../errors';
import { isHostMask } from '../sandboxes/ingress';
import type { Ingress } from '../sandboxes/ingress';

/** What requests say of the way in; fields that were left out are undefined. */
interface IngressFields {
  maskRequestHost?: string | undefined;
  httpsPorts?: readonly number[] | undefined;
}

const MAX_PORTS = 256;
/** Not the user's: nothing of theirs could speak TLS there. */
const OWN_PORTS = new Set([AGENT_PORT, INTERPRETER_PORT, GATEWAY_PORT]);

/**
 * The checked settings of a create; empty ones count as left out.
 *
 * @throws ServiceError `invalid_argument` naming the entry
 */
export function ingressOf({ maskRequestHost = '', httpsPorts = [] }: IngressFields): Ingress {
  if (maskRequestHost !== '' && !isHostMask(maskRequestHost)) {
    throw invalid(
      'maskRequestHost',
      `${JSON.stringify(maskRequestHost)} is neither a host name nor an address in ASCII, with or without a port`,
    );
  }
  if (httpsPorts.length > MAX_PORTS) throw invalid('httpsPorts', `has more than ${MAX_PORTS} entries`);
  for (const port of httpsPorts) {
    if (port < 1 || port > 65_535) throw invalid('httpsPorts', `${port} is not a port`);
    if (OWN_PORTS.has(port)) throw invalid('httpsPorts', `${port} is not for programs of yours`);
  }
  return {
    ...(maskRequestHost !== '' && { maskRequestHost }),
    ...(httpsPorts.length > 0 && { httpsPorts }),
  };
}

function invalid(field: string, what: string): ServiceError {
  return new ServiceError('invalid_argument', `network.${field}: ${what}`);
}
