import { bubblewrapArguments, chooseUid, planLayout } from '../../../service/runtime/local-bubblewrap';
import type { HostLayout } from '../../../service/runtime/local-bubblewrap';

const layout: HostLayout = {
  bubblewrap: '/usr/bin/bwrap',
  identity: 'own-uid',
  disableUserns: true,
  readOnly: ['/usr', '/root/.pyenv/versions/3.12', '/usr/data/python-1'],
  links: [['/bin', 'usr/bin']],
  hidden: ['/usr/data'],
};
const mounts = {
  workspace: '/d/workspace',
  temporary: '/d/tmp',
  environment: '/d/venv',
  etc: '/d/etc',
  tunnel: '/d/tunnel',
  network: 'full' as const,
  uid: 61200,
};

/** Where in the list these words stand one after the other; -1 when nowhere. */
function at(args: string[], ...words: string[]): number {
  return args.findIndex((_, index) => words.every((word, offset) => args[index + offset] === word));
}

describe('bubblewrapArguments()', () => {
  it('makes the directories above each mount enterable for everybody, before the mount', () => {
    const args = bubblewrapArguments(layout, mounts);
    const made = ['/root', '/root/.pyenv', '/root/.pyenv/versions'].map((directory) =>
      at(args, '--perms', '0755', '--dir', directory),
    );
    const mounted = at(args, '--ro-bind', '/root/.pyenv/versions/3.12');
    expect(made.every((index) => index >= 0 && index < mounted)).toBe(true);
    expect([...made].sort((one, other) => one - other)).toEqual(made);
  });

  it('hides the data directory below a system directory and shows again only what is needed of it', () => {
    const args = bubblewrapArguments(layout, mounts);
    const [shown, hidden, again] = [
      at(args, '--ro-bind', '/usr', '/usr'),
      at(args, '--tmpfs', '/usr/data'),
      at(args, '--ro-bind', '/usr/data/python-1', '/usr/data/python-1'),
    ];
    expect(shown).toBeGreaterThan(0);
    expect(hidden).toBeGreaterThan(shown);
    expect(again).toBeGreaterThan(hidden);
    expect(at(args, '--dir', '/usr/data')).toBe(-1);
  });

  it('gives up root for the uid of the sandbox, last of all, with no capability left', () => {
    const args = bubblewrapArguments(layout, mounts);
    expect(args.slice(args.indexOf('--'))).toEqual(
      '-- setpriv --reuid 61200 --regid 61200 --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs --'.split(
        ' ',
      ),
    );
    expect(args).not.toContain('--unshare-user');
  });

  it('never starts as root for want of a uid', () => {
    expect(() => bubblewrapArguments(layout, { ...mounts, uid: undefined })).toThrow();
  });

  it('uses a user namespace when the service is not root', () => {
    const args = bubblewrapArguments({ ...layout, identity: 'user-namespace' }, mounts);
    expect(at(args, '--unshare-user', '--uid', '1000', '--gid', '1000', '--disable-userns')).toBeGreaterThan(
      -1,
    );
    expect(args.at(-1)).toBe('--');
    expect(args).not.toContain('setpriv');
  });

  it('takes the network away only when asked', () => {
    expect(bubblewrapArguments(layout, mounts)).not.toContain('--unshare-net');
    expect(bubblewrapArguments(layout, { ...mounts, network: 'none' })).toContain('--unshare-net');
  });

  it('never ties the sandbox to the life of the service', () => {
    expect(bubblewrapArguments(layout, mounts)).not.toContain('--die-with-parent');
  });

  it('shows the control groups of the sandbox read-only, where it has any', () => {
    const group = '/sys/fs/cgroup/memory/cellbox-a1';
    expect(at(bubblewrapArguments(layout, mounts), '--ro-bind-try')).toBe(-1);
    const args = bubblewrapArguments(layout, { ...mounts, cgroups: [group] });
    expect(at(args, '--ro-bind-try', group, group)).toBeGreaterThan(-1);
  });

  it('mounts the tunnel read-only', () => {
    expect(at(bubblewrapArguments(layout, mounts), '--ro-bind', '/d/tunnel', '/run/cellbox')).toBeGreaterThan(
      0,
    );
  });
});

describe('planLayout()', () => {
  const base = { bubblewrap: 'bwrap', identity: 'user-namespace' as const, disableUserns: true };

  it('refuses to show a directory that holds what must stay hidden', () => {
    const plan = planLayout({ ...base, needed: [__dirname], secret: [`${__dirname}/state`] });
    expect(plan).toEqual({ reason: expect.stringContaining(__dirname) });
  });

  it('shows nothing of /etc that could hold a secret', () => {
    const plan = planLayout({ ...base, needed: [], secret: [] });
    if ('reason' in plan) throw new Error(plan.reason);
    for (const file of ['/etc', '/etc/shadow', '/etc/ssl', '/etc/ssl/private', '/etc/ssh', '/etc/sudoers'])
      expect(plan.readOnly).not.toContain(file);
  });

  it('shows what is needed, and hides a secret directory below a system one', () => {
    const plan = planLayout({ ...base, needed: [__dirname], secret: ['/usr/share'] });
    expect(plan).toMatchObject({ readOnly: expect.arrayContaining([__dirname]), hidden: ['/usr/share'] });
  });
});

describe('chooseUid()', () => {
  it('gives the same sandbox the same uid, and steps over those in use', () => {
    const first = chooseUid('abc', new Set());
    expect(chooseUid('abc', new Set())).toBe(first);
    expect(chooseUid('abc', new Set([first]))).not.toBe(first);
    expect(first).toBeGreaterThanOrEqual(61184);
    expect(first).toBeLessThanOrEqual(65519);
  });
});
