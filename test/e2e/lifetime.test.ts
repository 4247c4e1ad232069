import { describeOnRuntimes } from '../describe-on-runtimes';

/** What E2B's API has beside what its clients call. */
describeOnRuntimes("a sandbox's life on $runtime", {}, ({ client }) => {
  const secondsLeft = async (id: string): Promise<number> => {
    const { endAt } = (await (await client.api('GET', `/sandboxes/${id}`)).json()) as { endAt: string };
    return (Date.parse(endAt) - Date.now()) / 1000;
  };
  const about = (seconds: number) => expect.closeTo(seconds, -1) as number; // within 5 s

  it('is prolonged by a refresh, and never shortened', async () => {
    const id = await client.create({ timeout: 60 });
    expect(await secondsLeft(id)).toEqual(about(60));
    for (const [body, left] of [
      [{ duration: 600 }, 600],
      [{ duration: 30 }, 600],
      [undefined, 600],
      [{ duration: 3600 }, 3600],
    ] as const) {
      expect((await client.api('POST', `/sandboxes/${id}/refreshes`, body)).status).toBe(204);
      expect(await secondsLeft(id)).toEqual(about(left));
    }
    expect(await client.text(id, '40 + 2')).toBe('42');
    await client.kill(id);
    expect((await client.api('POST', `/sandboxes/${id}/refreshes`)).status).toBe(404);
  }, 60_000);

  it('goes on after the resume that is no longer used, by old and new lists alike', async () => {
    const id = await client.create();
    await client.stdout(id, 'kept = 41');
    const ids = async (path: string) =>
      ((await (await client.api('GET', path)).json()) as Array<{ sandboxID: string }>).map(
        (each) => each.sandboxID,
      );
    expect((await client.api('POST', `/sandboxes/${id}/pause`)).status).toBe(204);
    expect([await ids('/sandboxes'), await ids('/v2/sandboxes?state=paused')]).toEqual([[], [id]]);
    const resumed = await client.api('POST', `/sandboxes/${id}/resume`, { timeout: 100 });
    expect([resumed.status, await resumed.json()]).toEqual([201, expect.objectContaining({ sandboxID: id })]);
    expect(await secondsLeft(id)).toEqual(about(100));
    expect((await client.api('POST', `/sandboxes/${id}/resume`, { timeout: 100 })).status).toBe(409);
    expect([await ids('/sandboxes'), await ids('/v2/sandboxes?state=paused')]).toEqual([[id], []]);
    expect(await client.text(id, 'kept + 1')).toBe('42');
    await client.kill(id);
  }, 60_000);
});
