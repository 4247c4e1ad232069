import { eventually } from '../agent/agent-fixture';
import { describeWithJsSdks } from './js-sdks';
import type { Sandbox } from './js-sdks';

const MIB = 1024 * 1024;

/** The service waits for it only so long, and answers with none when the machine is slow. */
const firstSample = (box: Sandbox) =>
  eventually(async () => {
    const [first] = await box.getMetrics();
    expect(first).toBeDefined();
    return first!;
  });

describeWithJsSdks(
  'metrics',
  ({ sdk }) => {
    const { Sandbox, SandboxNotFoundError: NotFound } = sdk;
    it('has figures of a sandbox that was made this moment', async () => {
      const before = Date.now();
      const box = await Sandbox.create({ timeoutMs: 120_000 });
      const first = await firstSample(box);
      expect(first).toMatchObject({
        cpuCount: expect.any(Number) as number,
        cpuUsedPct: expect.any(Number) as number,
        memTotal: expect.any(Number) as number,
      });
      expect(first.memUsed).toBeGreaterThan(MIB);
      expect(first.memTotal).toBeGreaterThan(first.memUsed);
      expect(first.diskUsed).toBeGreaterThan(0);
      expect(first.diskTotal).toBeGreaterThanOrEqual(first.diskUsed);
      expect(first.timestamp.getTime()).toBeGreaterThanOrEqual(before);
      const byId = await Sandbox.getMetrics(box.sandboxId);
      expect(byId[0]).toEqual(first);

      await box.kill();
      await expect(Sandbox.getMetrics(box.sandboxId)).rejects.toBeInstanceOf(NotFound);
    });

    it('tells the times that were asked for, and nothing of before', async () => {
      const box = await Sandbox.create({ timeoutMs: 120_000 });
      const all = await eventually(async () => {
        const found = await box.getMetrics();
        // Two whole seconds: the SDKs ask in seconds.
        expect(found.at(-1)!.timestamp.getTime() - found[0]!.timestamp.getTime()).toBeGreaterThan(2_500);
        return found;
      });
      const times = all.map(({ timestamp }) => timestamp.getTime());
      expect(times).toEqual([...times].sort((one, other) => one - other));
      const middle = new Date(times[0]! + 1_500);
      const late = await box.getMetrics({ start: middle });
      expect(late.length).toBeGreaterThan(0);
      expect(late[0]!.timestamp.getTime()).toBeGreaterThanOrEqual(middle.getTime() - 1_000);
      expect(late[0]!.timestamp.getTime()).toBeGreaterThan(times[0]!);
      const early = await box.getMetrics({ end: middle });
      expect(early[0]!.timestamp.getTime()).toBe(times[0]);
      expect(early.at(-1)!.timestamp.getTime()).toBeLessThan(middle.getTime() + 1_500);
      const hourBefore = { start: new Date(times[0]! - 3_600_000), end: new Date(times[0]! - 60_000) };
      expect(await box.getMetrics(hourBefore)).toEqual([]);
      await box.kill();
    });

    it('shows a busy processor and filled memory', async () => {
      const box = await Sandbox.create({ timeoutMs: 120_000 });
      await box.runCode('1');
      const idle = await eventually(async () => {
        const last = (await box.getMetrics()).at(-1)!;
        expect(last.cpuUsedPct).toBeLessThan(8);
        return last;
      });
      const began = Date.now();
      const busy = await box.commands.run('while :; do :; done', { background: true, timeoutMs: 0 });
      const busiest = await eventually(async () => {
        const since = (await box.getMetrics()).filter(({ timestamp }) => timestamp.getTime() > began);
        const most = Math.max(...since.map(({ cpuUsedPct }) => cpuUsedPct));
        // 100 / cpuCount, less what others of this machine took of it.
        expect(most).toBeGreaterThan(10);
        return most;
      });
      expect(busiest).toBeLessThanOrEqual(100);
      await busy.kill();

      await box.runCode('data = bytearray(b"x" * 200_000_000)');
      await eventually(async () =>
        expect((await box.getMetrics()).at(-1)!.memUsed - idle.memUsed).toBeGreaterThan(180_000_000),
      );
      await box.runCode('del data');
      await eventually(async () =>
        expect((await box.getMetrics()).at(-1)!.memUsed - idle.memUsed).toBeLessThan(100_000_000),
      );
      await box.kill();
    });

    it('keeps the figures of a paused sandbox, and goes on when it is back', async () => {
      const box = await Sandbox.create({ timeoutMs: 120_000 });
      await firstSample(box);
      await box.pause();
      const kept = await box.getMetrics();
      expect(kept.length).toBeGreaterThan(0);
      // Another one that runs shows that time enough has passed.
      const other = await Sandbox.create({ timeoutMs: 120_000 });
      await eventually(async () => expect((await other.getMetrics()).length).toBeGreaterThan(3));
      await other.kill();
      expect(await box.getMetrics()).toEqual(kept);
      await box.connect({ timeoutMs: 120_000 });
      await eventually(async () => {
        const all = await box.getMetrics();
        expect(all.slice(0, kept.length)).toEqual(kept);
        expect(all.length).toBeGreaterThan(kept.length);
      });
      await box.kill();
    });
  },
  { CELLBOX_METRICS_INTERVAL_MS: '200' },
);
