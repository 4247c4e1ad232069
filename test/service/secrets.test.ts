import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { hashKey, openSecrets, sameSecret } from '../../service/secrets';

describe('openSecrets', () => {
  let dir: string;
  beforeEach(() => {
    dir = fs.mkdtempSync(path.join(os.tmpdir(), 'cellbox-secrets-'));
  });
  afterEach(() => fs.rmSync(dir, { recursive: true }));

  it('makes a secret that only its owner can read', () => {
    openSecrets(dir);
    expect(fs.statSync(path.join(dir, 'secret')).mode & 0o777).toBe(0o600);
    expect(fs.readdirSync(dir)).toEqual(['secret']);
  });

  it('closes a file that was readable by others', () => {
    openSecrets(dir);
    fs.chmodSync(path.join(dir, 'secret'), 0o644);
    openSecrets(dir);
    expect(fs.statSync(path.join(dir, 'secret')).mode & 0o777).toBe(0o600);
  });

  it('derives the same tokens after a restart, and others for other uses, ids and services', () => {
    const secrets = openSecrets(dir);
    const token = secrets.derive('agent', 'i1');
    expect(token).toMatch(/^[0-9a-f]{64}$/);
    expect(openSecrets(dir).derive('agent', 'i1')).toBe(token);
    const other = fs.mkdtempSync(path.join(os.tmpdir(), 'cellbox-secrets-'));
    const others = [
      secrets.derive('traffic', 'i1'),
      secrets.derive('agent', 'i2'),
      openSecrets(other).derive('agent', 'i1'),
    ];
    fs.rmSync(other, { recursive: true });
    expect(new Set([token, ...others]).size).toBe(4);
  });

  it('refuses a damaged file and leaves it alone', () => {
    fs.writeFileSync(path.join(dir, 'secret'), 'short');
    expect(() => openSecrets(dir)).toThrow(/is damaged/);
    expect(fs.readFileSync(path.join(dir, 'secret'), 'utf8')).toBe('short');
  });
});

describe('sameSecret', () => {
  it.each([
    ['a', 'a', true],
    ['', '', true],
    ['a', 'b', false],
    ['a', 'aa', false],
    ['ä', 'a', false],
  ])('compares %j and %j', (one, two, same) => {
    expect(sameSecret(one, two)).toBe(same);
  });
});

it('keeps of a key only what it can be recognised by', () => {
  expect(hashKey('e2b_00')).toMatch(/^[0-9a-f]{64}$/);
  expect(hashKey('e2b_00')).not.toBe(hashKey('e2b_01'));
});
