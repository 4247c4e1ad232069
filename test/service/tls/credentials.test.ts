import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { createLogger } from '../../../service/log';
import { CertificateFiles, findingsOn, LiveCredentials } from '../../../service/tls/credentials';
import type { Credentials } from '../../../service/tls/credentials';
import { LocalCa } from '../../../service/tls/local-ca';

let dir: string;
let live: LiveCredentials | undefined;
beforeEach(() => {
  dir = fs.mkdtempSync(path.join(os.tmpdir(), 'cellbox-certs-'));
});
afterEach(() => {
  live?.close();
  fs.rmSync(dir, { recursive: true, force: true });
});

const certFile = () => path.join(dir, 'cert.pem');
const keyFile = () => path.join(dir, 'key.pem');
const fresh = (name: string) => new LocalCa(path.join(dir, name), 'box.example').read();

function put({ cert, key }: Credentials): void {
  fs.writeFileSync(certFile(), cert);
  fs.writeFileSync(keyFile(), key);
}

describe('LiveCredentials', () => {
  it('reports replaced files, also after a moment in which they did not fit together', async () => {
    const [one, two] = [fresh('one'), fresh('two')];
    put(one);
    const changed = new Promise<Credentials>((resolve) => {
      live = new LiveCredentials({
        source: new CertificateFiles(certFile(), keyFile()),
        onChange: resolve,
        logger: createLogger('silent'),
        checkMs: 5,
      });
    });
    expect(live?.current).toEqual(one);
    fs.writeFileSync(certFile(), two.cert);
    await new Promise((resolve) => setTimeout(resolve, 30)); // several checks see the half-done change
    expect(live?.current).toEqual(one);
    fs.writeFileSync(keyFile(), two.key);
    expect(await changed).toEqual(two);
    expect(live?.current).toEqual(two);
  });

  it.each<[string, () => void, RegExp]>([
    ['a missing file', () => fs.rmSync(keyFile()), /^CELLBOX_TLS_KEY: .* can't be read$/],
    ['no PEM', () => fs.writeFileSync(certFile(), 'x'), /^The TLS certificate can't be used: /],
    ['a key of another', () => fs.writeFileSync(keyFile(), fresh('two').key), /key values mismatch/],
  ])('refuses %s at start', (_, change, message) => {
    put(fresh('one'));
    change();
    const open = () =>
      new LiveCredentials({
        source: new CertificateFiles(certFile(), keyFile()),
        onChange: () => {},
        logger: createLogger('silent'),
      });
    expect(open).toThrow(message);
  });
});

describe('findingsOn', () => {
  it('names the hosts that a certificate lacks, and its end', () => {
    const { cert } = fresh('one');
    expect(findingsOn(cert, 'other.example', Date.now() + 400 * 86_400_000)).toEqual([
      'the TLS certificate is not valid for api.other.example',
      'the TLS certificate is not valid for 49983-sandbox.other.example',
      expect.stringMatching(/^the TLS certificate ended on /),
    ]);
  });
});
