import fs from 'node:fs';
import type { AddressInfo } from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { runTeamsCli } from '../../../service/teams/cli';
import { ADMIN_TOKEN, ApiHarness } from '../api/api-harness';

describe('teams on the command line', () => {
  let api: ApiHarness;
  let dataDir: string;
  let env: NodeJS.ProcessEnv;

  beforeEach(async () => {
    api = await ApiHarness.open();
    dataDir = fs.mkdtempSync(path.join(os.tmpdir(), 'cellbox-cli-'));
    const { port } = api.server.address() as AddressInfo;
    env = { CELLBOX_PORT: String(port), CELLBOX_DATA_DIR: dataDir, CELLBOX_ADMIN_TOKEN: ADMIN_TOKEN };
  });

  afterEach(async () => {
    await api.close();
    fs.rmSync(dataDir, { recursive: true });
  });

  /** What it prints, as cells. */
  const run = async (...argv: string[]): Promise<string[][]> => {
    const lines: string[] = [];
    await runTeamsCli(env, argv, (line) => lines.push(line));
    return lines.map((line) => line.split('\t'));
  };

  it('makes a team and a key that works, lists both, changes the limits, and revokes the key', async () => {
    const [[, , , id = ''] = []] = await run('teams', 'create', 'acme', '--max-sandboxes', '2');
    const [[key = ''] = []] = await run('keys', 'create', 'acme', 'ci');
    expect((await api.ask('GET', '/sandboxes', { key })).status).toBe(200);
    expect(await run('teams', 'list')).toContainEqual(['acme', '2', 'unlimited', id]);
    const limits = ['--max-sandboxes=default', '--creates-per-minute', '7'];
    expect(await run('teams', 'limit', id, ...limits)).toEqual([['acme', '5', '7', id]]);
    const [, [name, mask, , keyId = ''] = []] = await run('keys', 'list', 'acme');
    expect([name, mask]).toEqual(['ci', `${key.slice(0, 6)}…${key.slice(-4)}`]);
    expect(await run('keys', 'revoke', 'acme', keyId)).toEqual([]);
    expect((await api.ask('GET', '/sandboxes', { key })).status).toBe(401);
  });

  it('lists more than one page', async () => {
    for (let count = 0; count < 101; count++) {
      await api.teams.create(`team-${count}`, { maxSandboxes: null, createsPerMinute: null });
    }
    expect(await run('teams', 'list')).toHaveLength(1 + 102);
  });

  it('finds the token that the service made', async () => {
    delete env['CELLBOX_ADMIN_TOKEN'];
    await expect(run('teams', 'list')).rejects.toMatchObject({
      message: `There is no admin token in ${dataDir}`,
    });
    fs.writeFileSync(path.join(dataDir, 'admin-token'), `${'0'.repeat(40)}\n`);
    await expect(run('teams', 'list')).rejects.toThrow('The admin token is not valid');
  });

  it.each([
    [[], 'no such command'],
    [['teams', 'create'], 'no such command'],
    [['teams', 'create', 'x', '--max-sandboxes', 'many'], '--max-sandboxes: must be a number'],
    [['teams', 'list', '--nope'], '--nope'],
    [['teams', 'create', 'default'], 'There is a team "default"'],
    [['keys', 'list', '../x'], 'There is no team "../x"'],
  ])('tells what is wrong with %j', async (argv, message) => {
    await expect(run(...argv)).rejects.toThrow(message);
  });

  it('says that no service answers', async () => {
    await api.close();
    await expect(run('teams', 'list')).rejects.toMatchObject({
      message: expect.stringContaining('No service answers at http://127.0.0.1:'),
      remedy: expect.stringContaining('CELLBOX_PORT'),
    });
    api = await ApiHarness.open();
    env['CELLBOX_PORT'] = '0';
    await expect(run('teams', 'list')).rejects.toThrow('CELLBOX_PORT=0');
  });
});
