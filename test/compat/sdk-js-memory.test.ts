import { describeWithJsSdks } from './js-sdks';
import type { Sandbox } from './js-sdks';

const MEMORY_MB = 512;
/** Takes four times what there is. */
const GREEDY = `python3 -c 'print(len(b"x" * ${4 * MEMORY_MB * 1_048_576}))'`;
const TOLD = `: out of memory \\(peak \\d+ MiB of ${MEMORY_MB} MiB\\)$`;

describeWithJsSdks(
  'memory that runs out',
  ({ sdk }) => {
    let sandbox: Sandbox;

    beforeAll(async () => {
      sandbox = await sdk.Sandbox.create({ timeoutMs: 600_000 });
    }, 180_000);

    afterAll(async () => {
      await sandbox?.kill();
    });

    const failure = (command: string) => sandbox.commands.run(command).catch((thrown: unknown) => thrown);

    it('is told by the error of the command that was killed, and its neighbour goes on', async () => {
      const neighbour = await sandbox.commands.run('read line; echo got $line', {
        background: true,
        stdin: true,
      });
      const error = await failure(GREEDY);
      expect(error).toBeInstanceOf(sdk.CommandExitError);
      const text = expect.stringMatching(`^signal: killed${TOLD}`) as string;
      expect(error).toMatchObject({ exitCode: -1, error: text, message: text, stdout: '' });
      await sandbox.commands.sendStdin(neighbour.pid, 'it\n');
      const { exitCode, stdout, error: none } = await neighbour.wait();
      expect({ exitCode, stdout, none }).toEqual({ exitCode: 0, stdout: 'got it\n', none: undefined });
    }, 60_000);

    it('is told by the error of a script in which a program was killed', async () => {
      expect(await failure(`${GREEDY}; exit $?`)).toMatchObject({
        exitCode: 137,
        error: expect.stringMatching(`^exit status 137${TOLD}`) as string,
      });
    }, 60_000);

    it('is told by the error of a terminal', async () => {
      const terminal = await sandbox.pty.create({ cols: 80, rows: 24, onData: () => {} });
      await sandbox.pty.sendInput(terminal.pid, Buffer.from(`${GREEDY}; exit $?\n`));
      await expect(terminal.wait()).rejects.toMatchObject({
        exitCode: 137,
        error: expect.stringMatching(`^exit status 137${TOLD}`) as string,
      });
    }, 60_000);

    it('is not told of a command that somebody kills afterwards', async () => {
      expect(await failure('kill -KILL $$')).toMatchObject({ exitCode: -1, error: 'signal: killed' });
    });
  },
  { CELLBOX_MEMORY_MB: String(MEMORY_MB), CELLBOX_POOL_SIZE: '0' },
);
