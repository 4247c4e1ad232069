import type http from 'node:http';
import path from 'node:path';
import type { Config } from '../config';
import type { Logger } from '../log';
import { CertificateFiles, findingsOn, LiveCredentials } from './credentials';
import { TlsFront } from './front';
import { LocalCa } from './local-ca';

/** TLS as it runs; `close` ends its connections. */
export interface Tls {
  /** Lines for the user at start. */
  advice: string[];
  close(): void;
}

/**
 * The domain where none was given. With the local authority it has two labels: no client accepts a certificate for
 * `*.localhost`, as wildcards directly under the root are refused.
 */
export function defaultDomain(config: Pick<Config, 'tls'>, port: number): string {
  return config.tls === 'dev' ? `cellbox.localhost:${port}` : `localhost:${port}`;
}

/**
 * Puts TLS on the server's port when the settings ask for it.
 *
 * @throws ServiceError when the operator's certificate is no good.
 */
export function openTls(options: {
  server: http.Server;
  config: Pick<Config, 'tls' | 'tlsCert' | 'tlsKey' | 'dataDir'>;
  /** May carry a port. */
  domain: string;
  logger: Logger;
}): Tls | undefined {
  const { server, config, domain, logger } = options;
  const name = domain.replace(/:\d+$/, '');
  const authority = config.tls === 'dev' ? new LocalCa(path.join(config.dataDir, 'tls'), name) : undefined;
  const files =
    config.tlsCert !== undefined && config.tlsKey !== undefined
      ? new CertificateFiles(config.tlsCert, config.tlsKey)
      : undefined;
  const source = authority ?? files;
  if (source === undefined) return undefined;

  const credentials = new LiveCredentials({
    source,
    onChange: (fresh) => front.setCredentials(fresh),
    logger,
  });
  const front = new TlsFront({ server, credentials: credentials.current, logger });
  for (const finding of findingsOn(credentials.current.cert, name, Date.now())) logger.warn(finding);
  return {
    advice: adviceOn(domain, authority?.caFile),
    close: () => {
      credentials.close();
      front.close();
    },
  };
}

function adviceOn(domain: string, caFile: string | undefined): string[] {
  const trust =
    caFile === undefined
      ? []
      : [
          `  export NODE_EXTRA_CA_CERTS=${caFile}   # JavaScript`,
          `  export SSL_CERT_FILE=${caFile}   # Python and most others`,
        ];
  return [
    '',
    `Over TLS: https://api.${domain}, sandboxes at https://<port>-<id>.${domain}. Instead of the two URLs:`,
    '',
    `  export E2B_DOMAIN=${domain}   # names under it must resolve to this machine`,
    ...trust,
  ];
}
