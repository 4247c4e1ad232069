import { X509Certificate } from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import tls from 'node:tls';
import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import { findingsOn } from '../../../service/tls/credentials';
import { LocalCa } from '../../../service/tls/local-ca';

const DAY_MS = 86_400_000;
let dir: string;
beforeEach(() => {
  dir = fs.mkdtempSync(path.join(os.tmpdir(), 'cellbox-ca-'));
});
afterEach(() => fs.rmSync(dir, { recursive: true, force: true }));

const inDir = () => path.join(dir, 'tls');
const read = (file: string) => fs.readFileSync(path.join(inDir(), file), 'utf8');

/** The subject that a client sees under a name, or why it refuses. */
async function shakeHands(authority: LocalCa, servername: string): Promise<string> {
  const server = tls.createServer(authority.read());
  server.on('tlsClientError', () => {}); // the client says why
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const client = tls.connect({
    host: '127.0.0.1',
    port,
    servername,
    ca: fs.readFileSync(authority.caFile),
  });
  try {
    await once(client, 'secureConnect');
    return 'trusted';
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    return code === undefined || code === 'UNSPECIFIED' ? message : code;
  } finally {
    client.destroy();
    server.close();
  }
}

describe('LocalCa', () => {
  it('makes a certificate that clients trust for its names and no others', async () => {
    const authority = new LocalCa(inDir(), 'box.example');
    expect(await shakeHands(authority, 'box.example')).toBe('trusted');
    expect(await shakeHands(authority, '49983-iabc.box.example')).toBe('trusted');
    expect(await shakeHands(authority, 'localhost')).toBe('trusted');
    expect(await shakeHands(authority, 'other.example')).toBe('ERR_TLS_CERT_ALTNAME_INVALID');
    const parsed = new X509Certificate(authority.read().cert);
    expect(['127.0.0.1', '::1', '10.0.0.1'].map((ip) => parsed.checkIP(ip) !== undefined)).toEqual([
      true,
      true,
      false,
    ]);
    expect([parsed.ca, new X509Certificate(read('ca.pem')).ca]).toEqual([false, true]);
    expect(findingsOn(authority.read().cert, 'box.example', Date.now())).toEqual([]);
  });

  it('can sign for its own names only, whoever gets hold of its key', async () => {
    const authority = new LocalCa(inDir(), 'box.example');
    authority.read();
    // The same authority, made to sign for a name that is not its own.
    const thief = new (class extends LocalCa {})(inDir(), 'box.example');
    Object.assign(thief, { serverNames: () => ['bank.example'] });
    fs.rmSync(path.join(inDir(), 'server.pem'));
    expect(await shakeHands(thief, 'bank.example')).toBe('permitted subtree violation');
  });

  it('keeps what it has made, for this user only', () => {
    const first = new LocalCa(inDir(), 'box.example').read();
    expect(new LocalCa(inDir(), 'box.example').read()).toEqual(first);
    const modes = ['ca.key', 'server.key', '.'].map(
      (file) => fs.statSync(path.join(inDir(), file)).mode & 0o777,
    );
    expect(modes).toEqual([0o600, 0o600, 0o700]);
  });

  it('renews its certificate a month before the end, under the same authority', () => {
    const authority = read.bind(undefined, 'ca.pem');
    const first = new LocalCa(inDir(), 'box.example').read();
    const before = authority();
    const at = (days: number) => new LocalCa(inDir(), 'box.example', () => Date.now() + days * DAY_MS).read();
    expect(at(59).cert).toBe(first.cert);
    const renewed = at(61);
    expect(renewed.cert).not.toBe(first.cert);
    expect(authority()).toBe(before);
    expect(Date.parse(new X509Certificate(renewed.cert).validTo)).toBeGreaterThan(Date.now() + 150 * DAY_MS);
  });

  it('renews its authority a year before the end', () => {
    new LocalCa(inDir(), 'box.example').read();
    const before = read('ca.pem');
    const later = new LocalCa(inDir(), 'box.example', () => Date.now() + 9.5 * 365 * DAY_MS).read();
    expect(read('ca.pem')).not.toBe(before);
    expect(new X509Certificate(later.cert).verify(new X509Certificate(read('ca.pem')).publicKey)).toBe(true);
  });

  it.each([
    ['another domain', () => undefined, 'other.example'],
    ['a damaged key', () => fs.writeFileSync(path.join(inDir(), 'ca.key'), 'x'), 'box.example'],
    ['a missing file', () => fs.rmSync(path.join(inDir(), 'ca.pem')), 'box.example'],
  ])('starts anew with %s', async (_, change, domain) => {
    new LocalCa(inDir(), 'box.example').read();
    change();
    expect(await shakeHands(new LocalCa(inDir(), domain), `api.${domain}`)).toBe('trusted');
  });
});
