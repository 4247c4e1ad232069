import { Code } from '@connectrpc/connect';
import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { parseGroups, systemUsers } from '../../../kernel-image/agent/users';
import { failing, Following, ProcessMachine } from './process-fixture';

const asRoot = process.getuid?.() === 0 ? describe : describe.skip;
const as = (user: string) => ({
  headers: { authorization: `Basic ${Buffer.from(`${user}:`).toString('base64')}` },
});

asRoot('users, where the agent is root', () => {
  let box: ProcessMachine;

  beforeAll(async () => {
    box = await ProcessMachine.make();
    // Only root may pass the directory that mkdtemp makes.
    await fs.chmod(box.machine.directory, 0o755);
    await box.machine.start('agent', { CELLBOX_SINGLE_USER: '0', CELLBOX_USER: 'nobody' });
  });

  afterAll(() => box.close());

  it('get their own ids, groups, name and home, and the pipes', async () => {
    const line = 'id -u; id -g; id -G; echo "$USER $LOGNAME $HOME"; echo open > /dev/stderr; umask';
    const told = await box.sh(line, { process: { cwd: '/' } });
    const { gid, home } = systemUsers('/etc/passwd', '/etc/group').find('nobody');
    expect(told.stdout).toBe(`65534\n${gid}\n${gid}\nnobody nobody ${home}\n0022\n`);
    expect(told.stderr).toBe('open\n');
  });

  it('are whoever the caller names', async () => {
    expect((await box.sh('id -un; pwd', {}, as('root'))).stdout).toBe('root\n/root\n');
  });

  it('own their terminal', async () => {
    const process = { cmd: '/bin/sh', args: ['-c', 'id -u; echo hi > $(tty)'], cwd: '/' };
    const shell = new Following(box.client.start({ process, pty: {} }));
    expect((await shell.toEnd()).pty).toBe('65534\r\nhi\r\n');
  });

  it('have no powers left', async () => {
    const told = await box.sh('grep CapEff /proc/self/status; cat /etc/shadow', { process: { cwd: '/' } });
    expect(told.stdout).toMatch(/CapEff:\s+0{16}\n/);
    expect(told.stderr).toContain('ermission denied');
  });

  it('start only where they may go', async () => {
    const closed = path.join(box.machine.directory, 'closed');
    await fs.mkdir(path.join(closed, 'open'), { recursive: true });
    await fs.chmod(closed, 0o700);
    for (const cwd of [closed, path.join(closed, 'open')]) {
      const error = await failing(box.sh('true', { process: { cwd } }));
      expect(error.code).toBe(Code.InvalidArgument);
      expect(error.message).toBe(`cwd '${cwd}' can't be entered by user 'nobody'`);
      expect((await box.sh('pwd', { process: { cwd } }, as('root'))).stdout).toBe(`${cwd}\n`);
    }
    await fs.chown(closed, 65_534, 0);
    expect((await box.sh('pwd', { process: { cwd: closed } })).stdout).toBe(`${closed}\n`);
  });

  it('without a home need a directory', async () => {
    const error = await failing(box.sh('true'));
    expect(error.code).toBe(Code.InvalidArgument);
    expect(error.message).toContain('/nonexistent');
  });

  it('that do not exist are unauthenticated, whatever is asked', async () => {
    expect((await failing(box.sh('true', {}, as('who')))).code).toBe(Code.Unauthenticated);
    expect((await failing(box.client.list({}, as('who')))).code).toBe(Code.Unauthenticated);
  });
});

describe('groups of a user', () => {
  const GROUPS = 'root:x:0:\nuser:x:1000:\ndocker:x:998:other,user\nlast:x:42:user\nbroken:x:x:user\n\n';

  it('are those that name it', () => {
    expect(parseGroups(GROUPS).get('user')).toEqual([998, 42]);
    expect(parseGroups(GROUPS).get('use')).toBeUndefined();
  });

  it('begin with its own, and are only that without a file', async () => {
    const directory = await fs.mkdtemp(path.join(os.tmpdir(), 'groups-'));
    const file = path.join(directory, 'group');
    await fs.writeFile(file, GROUPS);
    const user = { name: 'user', uid: 1000, gid: 42, home: '/home/user' };
    expect(systemUsers('/etc/passwd', file).groups(user)).toEqual([42, 998]);
    expect(systemUsers('/etc/passwd', '/no/such/file').groups(user)).toEqual([42]);
    await fs.rm(directory, { recursive: true });
  });
});
