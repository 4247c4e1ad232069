import { describeWithJsSdks } from './js-sdks';
import type { Sandbox } from './js-sdks';

/** Test addresses that nothing is sent to: each attempt must be refused on this host. */
const DENIED = '203.0.113.9';
const ALLOWED = '198.51.100.9';

/** Prints `open`, or the name of the error; `ETIMEDOUT` after two seconds. */
const probe = (host: string) => `
import errno, socket
s = socket.socket(); s.settimeout(2)
try:
    s.connect(('${host}', 80)); print('open')
except TimeoutError:
    print('ETIMEDOUT')
except OSError as error:
    print(errno.errorcode.get(error.errno, str(error)))
`;
const attempt = async (sandbox: Sandbox, host: string) =>
  (await sandbox.runCode(probe(host))).logs.stdout.join('').trim();

describeWithJsSdks('network rules', ({ sdk, runtime }) => {
  if (runtime === 'local') {
    it('are refused by name, and what a sandbox has already is taken', async () => {
      const denying = { network: { denyOut: [DENIED] } };
      await expect(sdk.Sandbox.create(denying)).rejects.toThrow('docker runtime');
      const sandbox = await sdk.Sandbox.create();
      await expect(sandbox.updateNetwork({ denyOut: [DENIED] })).rejects.toThrow('docker runtime');
      await expect(sandbox.updateNetwork({ allowInternetAccess: false })).rejects.toThrow('local runtime');
      await sandbox.updateNetwork({ allowInternetAccess: true });
      await sandbox.kill();
    }, 60_000);
    return;
  }

  it('hold from the create on, are told by getInfo, and stay over a pause', async () => {
    const network = {
      allowOut: [ALLOWED],
      denyOut: ({ allTraffic }: { allTraffic: string }) => [allTraffic],
    };
    const sandbox = await sdk.Sandbox.create({ network });
    expect(await attempt(sandbox, DENIED)).toBe('ECONNREFUSED');
    const told = { allowOut: [ALLOWED], denyOut: ['0.0.0.0/0'], allowPublicTraffic: true };
    expect((await sandbox.getInfo()).network).toEqual(told);
    await sandbox.pause();
    const again = await sdk.Sandbox.connect(sandbox.sandboxId);
    expect(await attempt(again, DENIED)).toBe('ECONNREFUSED');
    expect((await sdk.Sandbox.getInfo(sandbox.sandboxId)).network).toEqual(told);
    await sandbox.kill();
  }, 120_000);

  it('are replaced while the sandbox runs', async () => {
    const sandbox = await sdk.Sandbox.create();
    await sandbox.updateNetwork({ denyOut: [DENIED] });
    expect(await attempt(sandbox, DENIED)).toBe('ECONNREFUSED');
    expect(await sandbox.getInfo()).toMatchObject({
      allowInternetAccess: true,
      network: { denyOut: [DENIED] },
    });
    await sdk.Sandbox.updateNetwork(sandbox.sandboxId, { allowInternetAccess: false });
    expect(await attempt(sandbox, ALLOWED)).toBe('ECONNREFUSED');
    const closed = await sandbox.getInfo();
    expect(closed).toMatchObject({ allowInternetAccess: false, network: { allowPublicTraffic: true } });
    expect(closed.network?.denyOut ?? []).toEqual([]);
    await sandbox.kill();
  }, 120_000);

  it('are replaced while the sandbox is paused', async () => {
    const [frozen, halted, closed] = await Promise.all([
      sdk.Sandbox.create(),
      sdk.Sandbox.create(),
      sdk.Sandbox.create({ allowInternetAccess: false }),
    ]);
    await frozen.pause();
    for (const { sandboxId } of [halted, closed])
      await sdk.Sandbox.pause(sandboxId, { keepMemory: false } as object);
    for (const { sandboxId } of [frozen, halted])
      await sdk.Sandbox.updateNetwork(sandboxId, { denyOut: [DENIED] });
    await sdk.Sandbox.updateNetwork(closed.sandboxId, { allowInternetAccess: false, allowOut: [ALLOWED] });
    for (const sandbox of [frozen, halted, closed]) {
      await sandbox.connect();
      expect(await attempt(sandbox, DENIED)).toBe('ECONNREFUSED');
      // It stays over another start.
      await sdk.Sandbox.pause(sandbox.sandboxId, { keepMemory: false } as object);
      await sandbox.connect();
      expect(await attempt(sandbox, DENIED)).toBe('ECONNREFUSED');
      await sandbox.kill();
    }
  }, 240_000);

  it('let a sandbox that began without internet access out as far as they say', async () => {
    const sandbox = await sdk.Sandbox.create({ allowInternetAccess: false });
    await sandbox.runCode('x = 41');
    expect(await attempt(sandbox, DENIED)).toBe('ENETUNREACH');
    await sandbox.updateNetwork({ allowInternetAccess: false, allowOut: [ALLOWED] });
    expect(await attempt(sandbox, DENIED)).toBe('ECONNREFUSED');
    expect((await sandbox.runCode('x + 1')).text).toBe('42');
    await sandbox.kill();
  }, 120_000);

  it('take domains, at the create and later, and refuse other names', async () => {
    // Of names that are not on the list nobody is asked, so nothing leaves this host.
    const ask = async (sandbox: Sandbox, name: string) => {
      const code = `import urllib.request as r
try:
    print(r.urlopen('http://${name}/', timeout=10).status)
except Exception as error:
    print(error)`;
      return (await sandbox.runCode(code)).logs.stdout.join('').trim();
    };
    const network = { allowOut: ['allowed.example', '*.below.example'], denyOut: ['0.0.0.0/0'] };
    const sandbox = await sdk.Sandbox.create({ network });
    expect((await sandbox.getInfo()).network).toEqual({ ...network, allowPublicTraffic: true });
    expect(await ask(sandbox, 'other.example')).toBe('HTTP Error 403: Forbidden');
    await sandbox.updateNetwork({ allowOut: ['later.example'], denyOut: ['0.0.0.0/0'] });
    expect(await ask(sandbox, 'allowed.example')).toBe('HTTP Error 403: Forbidden');
    await sandbox.updateNetwork({ denyOut: ['0.0.0.0/0'] });
    expect(await ask(sandbox, 'allowed.example')).toContain('name resolution');
    await sandbox.kill();
    await expect(sdk.Sandbox.create({ network: { allowOut: ['allowed.example'] } })).rejects.toThrow(
      'a domain needs 0.0.0.0/0 in denyOut',
    );
  }, 180_000);

  it('with headers or a proxy are refused by name', async () => {
    const sandbox = await sdk.Sandbox.create();
    for (const [update, message] of [
      [{ rules: { 'a.example': [{ transform: { headers: { a: 'b' } } }] } }, 'rules is not implemented yet'],
      [{ egressProxy: { address: 'a.example:1080' } }, 'egressProxy is not implemented yet'],
      [{ allowOut: ['a.example'] }, 'a domain needs 0.0.0.0/0 in denyOut'],
      [{ denyOut: ['1.2.3.4/40'] }, 'denyOut'],
    ] as const)
      await expect(sandbox.updateNetwork(update as object)).rejects.toThrow(message);
    await sandbox.kill();
    await expect(sandbox.updateNetwork({})).rejects.toThrow(sdk.SandboxNotFoundError);
  }, 120_000);
});
