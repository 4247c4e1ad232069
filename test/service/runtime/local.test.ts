import { socketPathFor } from '../../../service/runtime/local';
import { describeCaveats } from '../../../service/runtime/local-host';
import type { HostLayout } from '../../../service/runtime/local-bubblewrap';

describe('socketPathFor()', () => {
  it("lies in the instance's directory where the address has room for it", () => {
    expect(socketPathFor('/home/ann/.cellbox', 'abc', '/run/user/1')).toBe(
      '/home/ann/.cellbox/local/abc/tunnel/service.sock',
    );
  });

  it('falls back to a short directory of this user and this data directory, counted in bytes', () => {
    const long = `/${'ü'.repeat(45)}`;
    const short = socketPathFor(long, 'abc', '/run/user/1');
    expect(short).toMatch(/^\/run\/user\/1\/cellbox-\d+-[0-9a-f]{8}\/abc\/service\.sock$/);
    expect(socketPathFor(`${long}x`, 'abc', '/run/user/1')).not.toBe(short);
  });
});

describe('describeCaveats()', () => {
  const layout: HostLayout = {
    bubblewrap: 'bwrap',
    identity: 'own-uid',
    disableUserns: true,
    readOnly: [],
    links: [],
    hidden: [],
  };
  const all = { version: 1 as const, directories: { memory: '/m', pids: '/p', cpu: '/c', freezer: '/f' } };

  it('says loudly, and first, that nothing is isolated without bubblewrap, and why', () => {
    const [first] = describeCaveats({ usable: false, reason: 'it is switched off', remedy: '' }, all);
    expect(first).toMatch(/^NO ISOLATION: .*because it is switched off/);
  });

  it('names the limits that nothing enforces', () => {
    expect(describeCaveats({ usable: true, layout }, undefined).join('\n')).toMatch(
      /memory, process count, CPU/,
    );
    expect(describeCaveats({ usable: true, layout }, all).join('\n')).not.toMatch(/control group/);
  });
});
