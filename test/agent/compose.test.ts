import fs from 'node:fs/promises';
import path from 'node:path';
import { Machine } from './agent-fixture';

describe('POST /files/compose', () => {
  let machine: Machine;

  beforeEach(async () => {
    machine = await Machine.make();
    await machine.start('agent');
    for (const [name, text] of [
      ['a', 'first '],
      ['b', 'second '],
      ['c', 'third'],
    ] as const) {
      await fs.writeFile(onDisk(name), text);
    }
  });

  afterEach(() => machine.close());

  const onDisk = (name: string) => path.join(machine.home, name);
  const compose = async (body: unknown, headers: Record<string, string> = {}) => {
    const answer = await machine.request('POST', '/files/compose', {
      headers: { 'content-type': 'application/json', ...headers },
      body: typeof body === 'string' ? body : JSON.stringify(body),
    });
    return { status: answer.status, body: JSON.parse(answer.body.toString()) as unknown };
  };

  it('makes one file of several, in order, and removes them', async () => {
    await fs.mkdir(onDisk('to'));
    await fs.writeFile(onDisk('to/whole'), 'old');
    const order = {
      source_paths: ['b', '/home/user/a', '~/c', 'a'],
      destination: 'to/whole',
      username: 'user',
    };
    expect(await compose(order)).toEqual({
      status: 200,
      body: { path: '/home/user/to/whole', name: 'whole', type: 'file' },
    });
    expect(await fs.readFile(onDisk('to/whole'), 'utf8')).toBe('second first thirdfirst ');
    expect(await fs.readdir(machine.home)).toEqual(['to']);
    expect(await fs.readdir(onDisk('to'))).toEqual(['whole']);
  });

  it('makes the directories of a destination that has none', async () => {
    expect((await compose({ source_paths: ['a'], destination: 'new/dir/x' })).status).toBe(200);
    expect(await fs.readFile(onDisk('new/dir/x'), 'utf8')).toBe('first ');
  });

  it.each([
    ['no JSON', '{', 400],
    ['no object', '[]', 400],
    ['no sources', { source_paths: [], destination: 'x' }, 400],
    ['sources that are no paths', { source_paths: ['a', 1], destination: 'x' }, 400],
    ['no destination', { source_paths: ['a'] }, 400],
    ['a path that means nothing', { source_paths: ['~root/a'], destination: 'x' }, 400],
    ['a source that is the destination', { source_paths: ['b', 'a'], destination: '/home/user/./a' }, 400],
    ['a link to the destination', { source_paths: ['link-to-a'], destination: 'a' }, 400],
    ['a directory as a source', { source_paths: ['a', 'dir'], destination: 'x' }, 400],
    ['a directory as the destination', { source_paths: ['a'], destination: 'dir' }, 400],
    ['a missing source', { source_paths: ['a', 'missing'], destination: 'b' }, 404],
    ['an unknown user', { source_paths: ['a'], destination: 'x', username: 'nobody-here' }, 401],
    ['a file where a directory must be', { source_paths: ['a'], destination: 'b/x' }, 500],
  ])('refuses %s and changes nothing', async (_what, body, status) => {
    await fs.mkdir(onDisk('dir'));
    await fs.symlink('a', onDisk('link-to-a'));
    const before = await fs.readdir(machine.home);
    const answer = await compose(body);
    expect(answer).toEqual({ status, body: { code: status, message: expect.stringMatching(/./) as string } });
    expect(await fs.readdir(machine.home)).toEqual(before);
    expect(await fs.readFile(onDisk('a'), 'utf8')).toBe('first ');
    expect(await fs.readFile(onDisk('b'), 'utf8')).toBe('second ');
  });

  it('asks for the token', async () => {
    await machine.request('POST', '/init', { body: JSON.stringify({ accessToken: 'secret' }) });
    const order = { source_paths: ['a'], destination: 'x' };
    expect((await compose(order)).status).toBe(401);
    expect((await compose(order, { 'x-access-token': 'secret' })).status).toBe(200);
  });
});
