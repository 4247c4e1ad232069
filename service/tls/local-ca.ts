import crypto, { X509Certificate } from 'node:crypto';
import type { KeyObject } from 'node:crypto';
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import type { Credentials } from './credentials';
import { makeCertificate } from './x509';

const DAY_MS = 86_400_000;
const AUTHORITY_DAYS = 3650;
const SERVER_DAYS = 90;
/** Renewed this long before the end, so that neither a long-running service nor a client's clock meets it. */
const AUTHORITY_RENEWAL_DAYS = 365;
const SERVER_RENEWAL_DAYS = 30;
/** Clocks of clients may be behind. */
const BACKDATED_MS = DAY_MS;
const SUBJECT = 'Cellbox local CA';

/**
 * A certificate authority of this service's own, for development: made on first use and kept in `dir`, which only this
 * user can read. It can sign for the service's names and no others, so its key is worth nothing elsewhere.
 */
export class LocalCa {
  /** What clients are told to trust. */
  readonly caFile: string;
  private readonly domain: string;

  /** `domain` without a port. */
  constructor(
    private readonly dir: string,
    domain: string,
    private readonly now: () => number = Date.now,
  ) {
    this.domain = domain;
    this.caFile = path.join(dir, 'ca.pem');
  }

  /** Certificate and key for the service: those at hand while they last and fit, else new ones. */
  read(): Credentials {
    fs.mkdirSync(this.dir, { recursive: true, mode: 0o700 });
    const authority = this.authority();
    const kept = this.load('server', authority.publicKey, SERVER_RENEWAL_DAYS, this.serverNames());
    const server = kept ?? this.make('server', SERVER_DAYS, authority.privateKey, authority.publicKey);
    return { cert: server.cert, key: server.key };
  }

  private authority(): KeyPair {
    const kept = this.load('ca', undefined, AUTHORITY_RENEWAL_DAYS, undefined);
    return kept ?? this.make('ca', AUTHORITY_DAYS);
  }

  /** Undefined when absent, damaged, for other names, of another authority, or near its end. */
  private load(
    file: 'ca' | 'server',
    signer: KeyObject | undefined,
    renewalDays: number,
    names: readonly string[] | undefined,
  ): KeyPair | undefined {
    try {
      const cert = fs.readFileSync(this.pathOf(file, 'pem'), 'utf8');
      const key = fs.readFileSync(this.pathOf(file, 'key'), 'utf8');
      const parsed = new X509Certificate(cert);
      const privateKey = crypto.createPrivateKey(key);
      const lasts = Date.parse(parsed.validTo) - this.now() > renewalDays * DAY_MS;
      const fits =
        names === undefined
          ? parsed.subject === this.authoritySubject()
          : names.every((name) => covers(parsed, name));
      const isOurs = parsed.checkPrivateKey(privateKey) && parsed.verify(signer ?? parsed.publicKey);
      return lasts && fits && isOurs ? { cert, key, privateKey, publicKey: parsed.publicKey } : undefined;
    } catch {
      return undefined; // absent or damaged: there is nothing in it that a new one would lack
    }
  }

  private make(
    file: 'ca' | 'server',
    days: number,
    issuerKey?: KeyObject,
    issuerPublicKey?: KeyObject,
  ): KeyPair {
    const { privateKey, publicKey } = crypto.generateKeyPairSync('ec', { namedCurve: 'P-256' });
    const isAuthority = file === 'ca';
    const cert = makeCertificate({
      subject: isAuthority ? this.commonName() : 'Cellbox',
      issuer: this.commonName(),
      publicKey,
      issuerKey: issuerKey ?? privateKey,
      issuerPublicKey: issuerPublicKey ?? publicKey,
      notBefore: new Date(this.now() - BACKDATED_MS),
      notAfter: new Date(this.now() + days * DAY_MS),
      use: isAuthority ? 'authority' : 'server',
      names: isAuthority ? this.permittedNames() : this.serverNames(),
    });
    const key = privateKey.export({ type: 'pkcs8', format: 'pem' }).toString();
    write(this.pathOf(file, 'key'), key, 0o600);
    write(this.pathOf(file, 'pem'), cert, 0o644);
    return { cert, key, privateKey, publicKey };
  }

  /** Names the domain, so that another domain gets an authority of its own. */
  private commonName(): string {
    return `${SUBJECT} (${this.domain})`.slice(0, 64);
  }

  private authoritySubject(): string {
    return `CN=${this.commonName()}`;
  }

  private permittedNames(): string[] {
    return [...new Set([this.domain, 'localhost', '127.0.0.1', '::1'])];
  }

  private serverNames(): string[] {
    const names = net.isIP(this.domain) ? [] : [`*.${this.domain}`];
    return [...new Set([this.domain, ...names, 'localhost', '127.0.0.1', '::1'])];
  }

  private pathOf(file: 'ca' | 'server', kind: 'pem' | 'key'): string {
    return path.join(this.dir, `${file}.${kind}`);
  }
}

interface KeyPair extends Credentials {
  cert: string;
  key: string;
  privateKey: KeyObject;
  publicKey: KeyObject;
}

/** Written aside and renamed, so that a crash leaves no half file. */
function write(file: string, text: string, mode: number): void {
  const fresh = `${file}.${process.pid}`;
  fs.writeFileSync(fresh, text, { mode });
  fs.renameSync(fresh, file);
}

function covers(certificate: X509Certificate, name: string): boolean {
  if (net.isIP(name)) return certificate.checkIP(name) !== undefined;
  return (certificate.subjectAltName ?? '').split(', ').includes(`DNS:${name}`);
}
