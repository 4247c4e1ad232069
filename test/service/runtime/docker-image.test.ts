import fs from 'node:fs';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import os from 'node:os';
import path from 'node:path';
import zlib from 'node:zlib';
import Dockerode from 'dockerode';
import { BuildLog, contextFiles, contextHash, ensureImage } from '../../../service/runtime/docker-image';

let root: string;

beforeEach(() => {
  root = fs.mkdtempSync(path.join(os.tmpdir(), 'cbx-image-test-'));
  const write = (name: string, text: string) => {
    fs.mkdirSync(path.dirname(path.join(root, name)), { recursive: true });
    fs.writeFileSync(path.join(root, name), text);
  };
  write('Dockerfile.kernel', 'FROM scratch\n');
  write('kernel-image/requirements-slim.txt', 'numpy\n');
  write('kernel-image/agent/main.ts', 'source');
  write('kernel-image/python/cellbox_kernel/a.py', 'a');
  write('kernel-image/python/cellbox_kernel/__pycache__/a.pyc', 'junk');
  write('kernel-image/python/tests/test_a.py', 'test');
  write('dist/agent/agent.js', 'agent');
  write('dist/main.js', 'service');
});

afterEach(() => fs.rmSync(root, { recursive: true, force: true }));

describe('contextFiles()', () => {
  it('takes what the Dockerfile copies and nothing else, in one order', async () => {
    expect((await contextFiles(root)).map(({ name }) => name)).toEqual([
      'Dockerfile.kernel',
      'dist/agent/agent.js',
      'kernel-image/python/cellbox_kernel/a.py',
      'kernel-image/requirements-slim.txt',
    ]);
  });

  it('says what is missing and how to get it', async () => {
    fs.rmSync(path.join(root, 'dist'), { recursive: true });
    await expect(contextFiles(root)).rejects.toMatchObject({
      code: 'failed_precondition',
      message: expect.stringContaining('dist/agent'),
      remedy: expect.stringContaining('npm run build'),
    });
  });
});

describe('contextHash()', () => {
  it('changes with content, name, mode and every other input, and with nothing else', () => {
    const file = (name: string, text: string, isExecutable = false) => ({
      name,
      content: Buffer.from(text),
      isExecutable,
    });
    const base = contextHash([file('a', 'b')], ['debian', '']);
    expect(base).toMatch(/^[0-9a-f]{12}$/);
    expect(contextHash([file('a', 'b')], ['debian', ''])).toBe(base);
    const others = [
      contextHash([file('a', 'c')], ['debian', '']),
      contextHash([file('ab', '')], ['debian', '']),
      contextHash([file('a', 'b', true)], ['debian', '']),
      contextHash([file('a', 'b')], ['debian:13', '']),
      contextHash([file('a', 'b')], ['debian', 'ca']),
      contextHash([file('a', 'b')], ['debi', 'an']),
    ];
    expect(new Set([base, ...others]).size).toBe(others.length + 1);
  });
});

describe('BuildLog', () => {
  it('reports steps once, keeps the last lines of the current one, and names the failure', () => {
    const log = new BuildLog();
    expect(log.add({ stream: 'Step 1/2 : FROM scratch\n' })).toBe('Step 1/2 : FROM scratch');
    expect(log.add({ stream: 'old\n' })).toBeUndefined();
    expect(log.add({ stream: 'Step 2/2 : RUN apt-get update\n' })).toBe('Step 2/2 : RUN apt-get update');
    for (let line = 1; line <= 30; line++) log.add({ stream: `line ${line}\n` });
    expect(log.heartbeat()).toBe('Step 2/2, 0 s: line 30');
    log.add({ errorDetail: { message: 'returned a non-zero code: 100' } });
    const text = log.explain();
    expect(text).toMatch(/^Step 2\/2 : RUN apt-get update\nline 11\n/);
    expect(text).toMatch(/line 30\nreturned a non-zero code: 100$/);
    expect(text).not.toContain('old');
  });
});

/** An engine that knows the images it was told, and answers a build with a script. */
class ScriptedEngine {
  readonly images = new Set<string>();
  readonly builds: Array<{ query: URLSearchParams; context: string }> = [];
  script: (tag: string) => object[] = (tag) => {
    this.images.add(tag);
    return [{ stream: 'Step 1/1 : FROM scratch\n' }, { stream: `Successfully tagged ${tag}\n` }];
  };
  private readonly server = http.createServer((req, res) => {
    const url = new URL(req.url ?? '/', 'http://engine');
    const chunks: Buffer[] = [];
    req.on('data', (chunk: Buffer) => chunks.push(chunk));
    req.on('end', () => {
      const image = /^\/images\/(.+)\/json$/.exec(url.pathname)?.[1];
      if (image !== undefined) {
        res.statusCode = this.images.has(decodeURIComponent(image)) ? 200 : 404;
        res.end(JSON.stringify({ message: 'No such image', Id: 'sha256:1' }));
      } else if (url.pathname === '/build') {
        const body = Buffer.concat(chunks);
        const context = (body[0] === 0x1f ? zlib.gunzipSync(body) : body).toString('latin1');
        this.builds.push({ query: url.searchParams, context });
        for (const line of this.script(url.searchParams.get('t') ?? ''))
          res.write(`${JSON.stringify(line)}\r\n`);
        res.end();
      } else {
        res.writeHead(500).end('{"message":"unexpected"}');
      }
    });
  });

  async start(): Promise<Dockerode> {
    await new Promise<void>((resolve) => this.server.listen(0, '127.0.0.1', resolve));
    return new Dockerode({
      host: '127.0.0.1',
      port: (this.server.address() as AddressInfo).port,
      protocol: 'http',
    });
  }

  async close(): Promise<void> {
    this.server.closeAllConnections();
    await new Promise((resolve) => this.server.close(resolve));
  }
}

describe('ensureImage()', () => {
  let engine: ScriptedEngine;
  let docker: Dockerode;
  const common = () => ({
    docker,
    root,
    flavor: 'slim' as const,
    baseImage: 'debian:x',
    buildNetwork: 'host',
  });

  beforeEach(async () => {
    engine = new ScriptedEngine();
    docker = await engine.start();
  });
  afterEach(() => engine.close());

  it('builds once with the settings, and reuses the image until a file changes', async () => {
    const progress: string[] = [];
    const ca = path.join(root, 'corporate.pem');
    fs.writeFileSync(ca, '-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n');
    const options = {
      ...common(),
      extraCa: ca,
      buildArgs: { PIP_INDEX_URL: 'http://index', APT_MIRROR: undefined, NPM_REGISTRY: '' },
      onProgress: (line: string) => void progress.push(line),
    };
    const tag = await ensureImage(options);
    expect(tag).toMatch(/^cellbox\/kernel:slim-[0-9a-f]{12}$/);
    expect(await ensureImage(options)).toBe(tag);
    expect(engine.builds).toHaveLength(1);
    const { query, context } = engine.builds[0] ?? { query: new URLSearchParams(), context: '' };
    expect(Object.fromEntries(query)).toMatchObject({
      t: tag,
      target: 'slim',
      dockerfile: 'Dockerfile.kernel',
      networkmode: 'host',
    });
    const args = JSON.parse(query.get('buildargs') ?? '{}') as Record<string, string>;
    expect(args).toMatchObject({ BASE_IMAGE: 'debian:x', PIP_INDEX_URL: 'http://index' });
    expect(args).not.toHaveProperty('NPM_REGISTRY');
    expect(context).toContain('extra-ca.crt');
    expect(context).toContain('BEGIN CERTIFICATE');
    expect(context).not.toContain('dist/main.js');
    expect(progress.join('\n')).toMatch(/Building the kernel image[\s\S]*Step 1\/1[\s\S]*Built/);

    fs.appendFileSync(path.join(root, 'dist/agent/agent.js'), '// changed');
    expect(await ensureImage(options)).not.toBe(tag);
    expect(engine.builds).toHaveLength(2);
  });

  it('names the failing step, its last lines and a remedy', async () => {
    engine.script = () => [
      { stream: 'Step 3/9 : RUN pip install x\n' },
      { stream: 'could not resolve\n' },
      { errorDetail: { message: 'returned a non-zero code: 1' }, error: 'returned a non-zero code: 1' },
    ];
    await expect(ensureImage(common())).rejects.toMatchObject({
      code: 'failed_precondition',
      message:
        "The kernel image can't be built.\nStep 3/9 : RUN pip install x\ncould not resolve\nreturned a non-zero code: 1",
      remedy: expect.stringContaining('CELLBOX_BUILD_NETWORK'),
    });
  });

  it('tells a base image that can’t be had, and how to give one', async () => {
    engine.script = () => [
      { stream: 'Step 1/9 : FROM debian:x\n' },
      { errorDetail: { message: 'pull access denied for debian' } },
    ];
    await expect(ensureImage(common())).rejects.toMatchObject({
      remedy: expect.stringContaining('CELLBOX_BASE_IMAGE'),
    });
  });

  it('does not take a build that ended without an image for a success', async () => {
    engine.script = () => [{ stream: 'Step 1/9 : FROM debian:x\n' }];
    await expect(ensureImage(common())).rejects.toMatchObject({ code: 'unavailable' });
  });

  it('uses the operator’s image as it is, and never builds in its place', async () => {
    engine.images.add('mine:1');
    expect(await ensureImage({ ...common(), image: 'mine:1' })).toBe('mine:1');
    await expect(ensureImage({ ...common(), image: 'mine:2' })).rejects.toMatchObject({
      code: 'failed_precondition',
      message: expect.stringContaining('mine:2'),
      remedy: expect.stringContaining('docker pull mine:2'),
    });
    expect(engine.builds).toEqual([]);
  });

  it('refuses certificates that are none before it builds', async () => {
    const ca = path.join(root, 'not.pem');
    fs.writeFileSync(ca, 'hello');
    await expect(ensureImage({ ...common(), extraCa: ca })).rejects.toMatchObject({
      code: 'failed_precondition',
      message: expect.stringContaining('no PEM certificate'),
    });
    await expect(ensureImage({ ...common(), extraCa: `${ca}.gone` })).rejects.toMatchObject({
      code: 'failed_precondition',
    });
    expect(engine.builds).toEqual([]);
  });
});
