import crypto from 'node:crypto';
import type { KeyObject } from 'node:crypto';
import net from 'node:net';

/*
 * Writes the two kinds of certificate that the local CA needs, in DER by hand: Node parses X.509 but can't make it, and
 * the libraries that can bring a decorator run-time along for what is one nested list.
 */

export interface CertificateRequest {
  subject: string;
  issuer: string;
  publicKey: KeyObject;
  /** P-256. */
  issuerKey: KeyObject;
  issuerPublicKey: KeyObject;
  notBefore: Date;
  notAfter: Date;
  /** What it is good for: signing others, limited to `names`, or serving `names`. */
  use: 'authority' | 'server';
  /** Host names and IP addresses. An authority may sign for these and all below them. */
  names: readonly string[];
}

/** A signed certificate in PEM. */
export function makeCertificate(request: CertificateRequest): string {
  const signatureAlgorithm = sequence(oid('1.2.840.10045.4.3.2')); // ecdsa-with-SHA256
  const serial = crypto.randomBytes(16);
  serial[0] = ((serial[0] ?? 0) & 0x7f) | 0x40; // positive, and never shorter than it looks
  const body = sequence(
    tagged(0, integer(Buffer.from([2]))), // version 3
    integer(serial),
    signatureAlgorithm,
    name(request.issuer),
    sequence(time(request.notBefore), time(request.notAfter)),
    name(request.subject),
    spki(request.publicKey),
    tagged(3, sequence(...extensions(request))),
  );
  const signature = crypto.sign('sha256', body, request.issuerKey);
  const der = sequence(body, signatureAlgorithm, bitString(signature));
  const lines = der.toString('base64').replace(/.{64}/g, '$&\n').trimEnd();
  return `-----BEGIN CERTIFICATE-----\n${lines}\n-----END CERTIFICATE-----\n`;
}

function extensions(request: CertificateRequest): Buffer[] {
  const keyIds = [
    extension('2.5.29.14', false, element(0x04, keyId(request.publicKey))),
    extension('2.5.29.35', false, sequence(element(0x80, keyId(request.issuerPublicKey)))),
  ];
  if (request.use === 'authority') {
    const permitted = request.names.map((each) => sequence(constraint(each)));
    return [
      extension('2.5.29.19', true, sequence(boolean(true), integer(Buffer.from([0])))), // signs servers only
      extension('2.5.29.15', true, element(0x03, Buffer.from([1, 0b0000_0110]))), // keyCertSign, cRLSign
      extension('2.5.29.30', true, sequence(element(0xa0, ...permitted))),
      ...keyIds,
    ];
  }
  return [
    extension('2.5.29.19', true, sequence()),
    extension('2.5.29.15', true, element(0x03, Buffer.from([7, 0b1000_0000]))), // digitalSignature
    extension('2.5.29.37', false, sequence(oid('1.3.6.1.5.5.7.3.1'))), // serverAuth
    extension('2.5.29.17', false, sequence(...request.names.map(alternativeName))),
    ...keyIds,
  ];
}

function alternativeName(text: string): Buffer {
  return net.isIP(text) ? element(0x87, address(text)) : element(0x82, Buffer.from(text, 'ascii'));
}

function constraint(text: string): Buffer {
  if (!net.isIP(text)) return element(0x82, Buffer.from(text, 'ascii'));
  const bytes = address(text);
  return element(0x87, bytes, Buffer.alloc(bytes.length, 0xff)); // this one address
}

function address(text: string): Buffer {
  if (net.isIPv4(text)) return Buffer.from(text.split('.').map(Number));
  const [head = '', tail] = text.split('::');
  const groups = (part: string): number[] =>
    part === '' ? [] : part.split(':').map((group) => parseInt(group, 16));
  const before = groups(head);
  const after = groups(tail ?? '');
  const all = [...before, ...Array<number>(8 - before.length - after.length).fill(0), ...after];
  return Buffer.from(all.flatMap((group) => [group >> 8, group & 0xff]));
}

function extension(id: string, critical: boolean, value: Buffer): Buffer {
  return sequence(oid(id), ...(critical ? [boolean(true)] : []), element(0x04, value));
}

function name(commonName: string): Buffer {
  const attribute = sequence(oid('2.5.4.3'), element(0x0c, Buffer.from(commonName, 'utf8')));
  return sequence(element(0x31, attribute));
}

function time(date: Date): Buffer {
  const text = date.toISOString().replace(/[-:T]|\.\d+/g, ''); // 20260102030405Z
  const isLate = date.getUTCFullYear() >= 2050;
  return isLate ? element(0x18, Buffer.from(text)) : element(0x17, Buffer.from(text.slice(2)));
}

function spki(key: KeyObject): Buffer {
  return key.export({ type: 'spki', format: 'der' });
}

function keyId(key: KeyObject): Buffer {
  return crypto.createHash('sha256').update(spki(key)).digest().subarray(0, 20);
}

function element(tag: number, ...content: Buffer[]): Buffer {
  const body = Buffer.concat(content);
  const length: number[] = [];
  for (let rest = body.length; rest > 0; rest >>= 8) length.unshift(rest & 0xff);
  const head = body.length < 128 ? [body.length] : [0x80 | length.length, ...length];
  return Buffer.concat([Buffer.from([tag, ...head]), body]);
}

const sequence = (...content: Buffer[]): Buffer => element(0x30, ...content);
const tagged = (number: number, content: Buffer): Buffer => element(0xa0 | number, content);
const integer = (bytes: Buffer): Buffer => element(0x02, bytes);
const boolean = (value: boolean): Buffer => element(0x01, Buffer.from([value ? 0xff : 0]));
const bitString = (bytes: Buffer): Buffer => element(0x03, Buffer.from([0]), bytes);

function oid(dotted: string): Buffer {
  const [first = 0, second = 0, ...others] = dotted.split('.').map(Number);
  const bytes = [first * 40 + second];
  for (const number of others) {
    const digits = [number & 0x7f];
    for (let rest = number >>> 7; rest > 0; rest >>>= 7) digits.unshift((rest & 0x7f) | 0x80);
    bytes.push(...digits);
  }
  return element(0x06, Buffer.from(bytes));
}
