import net from 'node:net';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import Dockerode from 'dockerode';
import {
  callEngine,
  engineDetail,
  engineStatus,
  freeze,
  pingEngine,
} from '../../../service/runtime/docker-engine';
import { ServiceError } from '../../../service/errors';

const answer = (statusCode: number) =>
  Promise.reject(
    Object.assign(new Error(`(HTTP code ${statusCode}) x - /secret/path`), {
      statusCode,
      json: { message: 'no  space\nin /secret/path' },
    }),
  );

describe('callEngine()', () => {
  it.each([
    [404, 'not_found'],
    [409, 'failed_precondition'],
    [500, 'unavailable'],
  ])('turns %d into %s without the engine’s own words', async (status, code) => {
    const error = await callEngine('create', answer(status)).catch((reason: unknown) => reason);
    expect(error).toMatchObject({ code });
    expect((error as Error).message).not.toContain('/secret');
    expect(engineStatus(error)).toBe(status);
    expect(engineDetail(error)).toBe('no space in /secret/path');
  });

  it('gives up at the deadline and leaves the call to its owner', async () => {
    let finish: (value: string) => void = () => undefined;
    const call = new Promise<string>((resolve) => (finish = resolve));
    await expect(callEngine('wait', call, 20)).rejects.toMatchObject({ code: 'unavailable' });
    finish('late');
    expect(await call).toBe('late');
  });

  it('passes on what is a ServiceError already', async () => {
    const error = new ServiceError('internal', 'x');
    await expect(callEngine('x', Promise.reject(error))).rejects.toBe(error);
  });
});

describe('freeze()', () => {
  const refusal = (message: string, statusCode = 500) =>
    Object.assign(new Error(message), { statusCode, json: { message } });
  const BUSY = refusal('Cannot pause container x: OCI runtime pause failed: unable to freeze: unknown');
  /** A container whose engine answers so, one after another, and then that it is frozen. */
  const container = (...refusals: Error[]) => {
    const pause = jest.fn(() => {
      const next = refusals.shift();
      return next === undefined ? Promise.resolve() : Promise.reject(next);
    });
    return { pause };
  };

  it('tries again when the engine caught a program in the middle of something', async () => {
    const busy = container(BUSY, BUSY);
    await freeze(busy);
    expect(busy.pause).toHaveBeenCalledTimes(3);
  });

  it('fails with the engine at its deadline', async () => {
    await expect(freeze(container(BUSY, BUSY), 0)).rejects.toMatchObject({
      code: 'unavailable',
      cause: BUSY,
    });
  });

  it.each([
    ['has ended', 'failed_precondition', refusal('Container x is not running', 409)],
    ['is gone', 'not_found', refusal('no such container', 404)],
    ['can’t be frozen at all', 'unavailable', refusal('OCI runtime pause failed: something else')],
  ])('does not try again for a container that %s', async (_what, code, answer) => {
    const broken = container(answer);
    await expect(freeze(broken)).rejects.toMatchObject({ code });
    expect(broken.pause).toHaveBeenCalledTimes(1);
  });
});

describe('pingEngine()', () => {
  it('says that nothing listens', async () => {
    const ping = await pingEngine(new Dockerode({ socketPath: '/nonexistent/engine.sock' }));
    expect(ping).toEqual({ ok: false, detail: expect.stringContaining('ENOENT') });
  });

  it('does not wait for an engine that accepts and never answers', async () => {
    const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'cbx-mute-'));
    const sockets: net.Socket[] = [];
    const server = net.createServer((socket) => void sockets.push(socket));
    const socketPath = path.join(directory, 'engine.sock');
    await new Promise<void>((resolve) => server.listen(socketPath, resolve));
    try {
      const ping = await pingEngine(new Dockerode({ socketPath }), 50);
      expect(ping).toEqual({ ok: false, detail: expect.stringContaining('in time') });
    } finally {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
      fs.rmSync(directory, { recursive: true });
    }
  });
});
