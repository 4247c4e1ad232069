import { eventually } from '../agent/agent-fixture';
import { describeOnRuntimes } from '../describe-on-runtimes';

interface Entry {
  timestamp: string;
  level: string;
  message: string;
  fields: Record<string, string>;
}

describeOnRuntimes('logs on $runtime', {}, ({ client }) => {
  const entries = async (id: string): Promise<Entry[]> => {
    const answer = await client.api('GET', `/sandboxes/${id}/logs`);
    expect(answer.status).toBe(200);
    return ((await answer.json()) as { logEntries: Entry[] }).logEntries;
  };

  it('tell what the programs of a sandbox said, while it lives and after', async () => {
    const before = Date.now();
    const id = await client.create();
    const gateway = await eventually(async () => {
      const found = (await entries(id)).find((each) => each.fields['logger'] === 'gateway');
      expect(found?.message).toMatch(/^(listening on|takes connections at) /);
      return found;
    });
    expect(Date.parse(gateway?.timestamp ?? '')).toBeGreaterThanOrEqual(before);
    await client.run(id, 'import os, signal; os.kill(os.getpid(), signal.SIGKILL)');
    await client.kill(id);
    await eventually(async () => {
      const all = await entries(id);
      expect(all).toContainEqual(gateway);
      expect(all.find((each) => each.fields['logger'] === 'kernel')).toMatchObject({
        level: 'warn',
        message: 'A kernel was killed by SIGKILL',
        fields: { language: 'python' },
      });
      expect(all.filter((each) => each.fields['logger'] === 'service').map(({ message }) => message)).toEqual(
        ['The sandbox was created', 'The sandbox ended'],
      );
    });
  }, 60_000);
});
