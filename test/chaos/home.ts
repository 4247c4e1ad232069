import { Sandbox } from '@e2b/code-interpreter';
import { sandboxIsThere } from './executions';
import type { CauseKind } from './faults';
import { Files } from './files';
import { api, interpreter, lastFailures } from './http';
import { now } from './log';
import { random } from './random';
import { Variables } from './variables';
import { until } from './world';
import type { LiveSandbox, World } from './world';

export const SANDBOX_SECONDS = 3_600;
/** Faults that may keep a context from being made, restarted or removed. */
export const CONTEXT_FAULTS: readonly CauseKind[] = [
  'service',
  'machine',
  'agent',
  'gateway',
  'kernel',
  'oom',
  'restart',
];
const SDK_DEADLINE_MS = 120_000;
/** What everything of one sandbox carries, and nothing else does. */
const TAG = /own\d+s\d+r[0-9a-f]{6}x/g;

/** The sandbox that a client has, one at a time: how it comes and goes, and which failures of it are excused. */
export class Home {
  live: LiveSandbox | undefined;
  sandbox: Sandbox | undefined;
  owner = '';
  files: Files | undefined;
  readonly variables = new Map<string, Variables>();
  private sandboxCount = 0;
  private readonly tags;

  constructor(
    private readonly world: World,
    seed: number,
    private readonly number: number,
  ) {
    this.tags = random(seed, `tags of ${number}`);
  }

  /** The sandbox, made anew where the last one is gone; undefined when that did not work for a good reason. */
  async ready(): Promise<LiveSandbox | undefined> {
    const { world } = this;
    if (this.live !== undefined) {
      if (!this.live.doomed && this.live.contexts.size > 0) return this.live;
      if (this.live.doomed) await this.expectGone(this.live);
      else await this.learnContexts(this.live);
      // It is there, and without a context: its client may have removed the last one.
      if (this.live?.contexts.size === 0) await this.createContext(this.live);
      if (this.live !== undefined) return this.live.contexts.size > 0 ? this.live : undefined;
    }
    const from = now();
    const number = ++this.sandboxCount;
    const digits = this.tags.between(0, 0xffffff).toString(16).padStart(6, '0');
    this.owner = `own${this.number}s${number}r${digits}x`;
    try {
      const sandbox = await Sandbox.create({
        ...this.connection(),
        timeoutMs: SANDBOX_SECONDS * 1000,
        envs: { CHAOS_OWNER: this.owner },
        metadata: { chaos: this.owner },
      });
      this.sandbox = sandbox;
      this.live = { id: sandbox.sandboxId, owner: this.owner, contexts: new Map(), doomed: false };
      world.everKnown.add(sandbox.sandboxId);
      world.sandboxes.set(sandbox.sandboxId, this.live);
      this.files = new Files(sandbox, this.owner, world.log);
      world.log.count('sandboxes made');
      await this.learnContexts(this.live);
      return this.live;
    } catch (error) {
      this.excuse(undefined, ['service'], from, 'a create succeeds', error);
      return undefined;
    }
  }

  private connection(): { apiKey: string; apiUrl: string; sandboxUrl: string; requestTimeoutMs: number } {
    const { apiKey, url } = this.world.service;
    return { apiKey, apiUrl: url, sandboxUrl: url, requestTimeoutMs: SDK_DEADLINE_MS };
  }

  /** Which contexts there are; those that this client made are lost only with their kernels' record. */
  private async learnContexts(live: LiveSandbox): Promise<void> {
    const from = now();
    try {
      const response = await interpreter(this.world, live.id, 'GET', '/contexts');
      if (response.status !== 200) throw new Error(`${response.status} ${await response.text()}`);
      const listed = (await response.json()) as Array<{ id: string; language: string }>;
      const python = listed.filter(({ language }) => language === 'python');
      for (const id of live.contexts.keys())
        if (!python.some((context) => context.id === id)) live.contexts.delete(id);
      for (const { id } of python) if (!live.contexts.has(id)) this.addContext(live, id);
    } catch (error) {
      this.excuse(live, ['service', 'machine', 'agent'], from, 'contexts are listed', error);
    }
  }

  private addContext(live: LiveSandbox, id: string): void {
    live.contexts.set(id, { pid: undefined });
    // One that is found again, after a list that failed, has what it had.
    if (!this.variables.has(id)) this.variables.set(id, new Variables(this.world.log, live.id, id));
  }

  /** A second context, or the first where there is none. */
  async createContext(live: LiveSandbox): Promise<void> {
    if (live.contexts.size >= 2) return;
    await this.tolerant(live, CONTEXT_FAULTS, 'create a context', async () => {
      const response = await interpreter(this.world, live.id, 'POST', '/contexts', { language: 'python' });
      if (response.status !== 200) throw new Error(`${response.status} ${await response.text()}`);
      this.addContext(live, ((await response.json()) as { id: string }).id);
    });
  }

  /** Does something that some faults may make fail, and nothing else. */
  async tolerant(
    live: LiveSandbox,
    kinds: readonly CauseKind[],
    what: string,
    work: () => Promise<unknown> | undefined,
  ): Promise<void> {
    const from = now();
    try {
      await work();
    } catch (error) {
      this.excuse(live, kinds, from, `${what} succeeds`, error);
      await this.world.service.whenUp();
      if (live.doomed || !(await sandboxIsThere(this.world, live.id))) await this.expectGone(live);
    }
  }

  private excuse(
    live: LiveSandbox | undefined,
    kinds: readonly CauseKind[],
    from: number,
    invariant: string,
    error: unknown,
  ): void {
    const touching = this.world.log.touching(live === undefined ? {} : { sandboxId: live.id }, from);
    if (touching.some(({ kind }) => kinds.includes(kind))) {
      this.world.log.count('requests that failed for a fault');
      return;
    }
    this.world.log.fail(
      invariant,
      `${live?.id ?? 'no sandbox'} (${this.owner}): ${describe(error)}`,
      lastFailures(),
    );
  }

  failUnlessGone(live: LiveSandbox, invariant: string, text: string): void {
    const touching = this.world.log.touching({ sandboxId: live.id }, now() - 1_000);
    if (live.doomed || touching.some(({ kind }) => ['machine', 'service', 'gateway', 'agent'].includes(kind)))
      return;
    this.world.log.fail(invariant, text);
  }

  /** The sandbox answers 404: that must have a cause. */
  async expectGone(live: LiveSandbox): Promise<void> {
    const there = await until(60_000, async () =>
      (await sandboxIsThere(this.world, live.id)) ? undefined : 'gone',
    );
    const causes = this.world.log.faults.filter(
      ({ kind, sandboxId, missed }) =>
        !missed && sandboxId === live.id && (kind === 'machine' || kind === 'kill-sandbox'),
    );
    if (causes.length === 0)
      this.world.log.fail('sandboxes go only for a cause', `${live.id} (${live.owner}) is gone`);
    else if (there === undefined)
      this.world.log.fail('sandboxes that died are gone', `${live.id} is still listed`);
    this.forget(live);
  }

  private forget(live: LiveSandbox): void {
    live.doomed = true;
    this.world.sandboxes.delete(live.id);
    if (this.live === live) this.live = undefined;
    this.variables.clear();
    live.contexts.clear();
  }

  async drop(): Promise<void> {
    const { live, world } = this;
    if (live === undefined) return;
    const fault = world.log.begin('kill-sandbox', { sandboxId: live.id });
    live.doomed = true;
    const ended = await until(60_000, async () => {
      await world.service.whenUp();
      const response = await api(world, 'DELETE', `/sandboxes/${live.id}`).catch(() => undefined); // killed meanwhile
      await response?.body?.cancel();
      return response?.status === 204 || response?.status === 404 ? true : undefined;
    });
    fault.doneAt = now();
    if (ended === undefined) world.log.fail('a kill succeeds', `${live.id} could not be killed for a minute`);
    this.forget(live);
  }

  /** Nothing of anybody else in it, nor of a sandbox that this client had before. */
  scan(text: string): void {
    this.world.log.count('outputs searched for other tenants');
    for (const [tag] of text.matchAll(TAG))
      if (tag !== this.owner) this.world.log.fail('no data of other tenants', `${this.owner} sees ${tag}`);
  }
}

export function describe(error: unknown): string {
  const parts: string[] = [];
  for (let at = error; at instanceof Error && parts.length < 5; at = at.cause)
    parts.push(`${at.name}: ${at.message}${'code' in at ? ` (${String(at.code)})` : ''}`);
  return parts.length > 0 ? parts.join(' ← ') : String(error);
}
