import { X509Certificate } from 'node:crypto';
import fs from 'node:fs';
import tls from 'node:tls';
import { ServiceError } from '../errors';
import type { Logger } from '../log';

/** A server certificate with its chain, and its key; both PEM. */
export interface Credentials {
  cert: string;
  key: string;
}

/** Where credentials come from; asked again and again, so that renewed ones are found. */
export interface CredentialSource {
  /** Throws when there are none to be had. */
  read(): Credentials;
}

/** The operator's own certificate, in two files that may be replaced while the service runs. */
export class CertificateFiles implements CredentialSource {
  constructor(
    private readonly certFile: string,
    private readonly keyFile: string,
  ) {}

  read(): Credentials {
    return {
      cert: readPem('CELLBOX_TLS_CERT', this.certFile),
      key: readPem('CELLBOX_TLS_KEY', this.keyFile),
    };
  }
}

function readPem(setting: string, file: string): string {
  try {
    return fs.readFileSync(file, 'utf8');
  } catch (cause) {
    throw new ServiceError('failed_precondition', `${setting}: ${file} can't be read`, { cause });
  }
}

const CHECK_MS = 10_000;

/**
 * The credentials in use. Asks the source every ten seconds (files reached through symbolic links, as certificates
 * often are, tell no watcher) and reports what is new and fits together; what does not is logged once and passed over.
 */
export class LiveCredentials {
  private inUse: Credentials;
  private refused: Credentials | undefined;
  private readonly timer: NodeJS.Timeout;

  /** @throws ServiceError when the first ones are no good. */
  constructor(
    private readonly options: {
      source: CredentialSource;
      onChange: (credentials: Credentials) => void;
      logger: Logger;
      checkMs?: number;
    },
  ) {
    this.inUse = options.source.read();
    check(this.inUse);
    this.timer = setInterval(() => this.refresh(), options.checkMs ?? CHECK_MS);
    this.timer.unref();
  }

  get current(): Credentials {
    return this.inUse;
  }

  close(): void {
    clearInterval(this.timer);
  }

  private refresh(): void {
    const { source, onChange, logger } = this.options;
    let found: Credentials | undefined;
    try {
      found = source.read();
      if (same(found, this.inUse) || same(found, this.refused)) return;
      check(found);
      onChange(found);
      this.inUse = found;
      this.refused = undefined;
      logger.info('the TLS certificate was replaced');
    } catch (error) {
      // One file may be written before the other: this heals by itself, or the operator reads the log.
      if (this.refused === undefined || found !== undefined)
        logger.error({ err: error }, 'the new TLS certificate is no good; the old one stays in use');
      this.refused = found ?? { cert: '', key: '' };
    }
  }
}

function same(one: Credentials, other: Credentials | undefined): boolean {
  return one.cert === other?.cert && one.key === other.key;
}

function check(credentials: Credentials): void {
  try {
    tls.createSecureContext(credentials); // refuses what is no PEM and a key that is another certificate's
  } catch (cause) {
    throw new ServiceError(
      'failed_precondition',
      `The TLS certificate can't be used: ${cause instanceof Error ? cause.message : String(cause)}`,
      {
        cause,
        remedy: 'Give PEM files of a certificate (with its chain) and of its own key, without a passphrase.',
      },
    );
  }
}

/** Says what clients will find wrong with a certificate: names it lacks, and its end. Empty when all is well. */
export function findingsOn(cert: string, domain: string, now: number): string[] {
  const parsed = new X509Certificate(cert);
  const findings: string[] = [];
  for (const host of [`api.${domain}`, `49983-sandbox.${domain}`]) {
    if (parsed.checkHost(host) === undefined) findings.push(`the TLS certificate is not valid for ${host}`);
  }
  if (Date.parse(parsed.validTo) < now) findings.push(`the TLS certificate ended on ${parsed.validTo}`);
  return findings;
}
