import { sendBadRequest } from './bad-requests';
import { makeCell } from './cells';
import type { Cell } from './cells';
import { check, findByCode, runNative, tell } from './executions';
import type { Asked, Outcome } from './executions';
import { CONTEXT_FAULTS, describe, Home, SANDBOX_SECONDS } from './home';
import { api, interpreter } from './http';
import { now } from './log';
import { clientPlan } from './plan';
import type { CellPlan, Step } from './plan';
import { runBySdk } from './sdk-run';
import { DeadlineError, pause, until, within } from './world';
import type { LiveSandbox, Running, World } from './world';

const STEP_DEADLINE_MS = 400_000;

/** One client with one sandbox at a time, and what it knows to be true of it. */
export class Tenant {
  private readonly home: Home;
  private cellCount = 0;

  constructor(
    private readonly world: World,
    private readonly seed: number,
    private readonly number: number,
  ) {
    this.home = new Home(world, seed, number);
  }

  /** Follows its plan until the run is over. Never rejects. */
  async follow(): Promise<void> {
    const { world } = this;
    for (const { step, pauseMs } of clientPlan(this.seed, this.number)) {
      if (now() > world.endsAt || world.stopping) return;
      try {
        await within(STEP_DEADLINE_MS, `client ${this.number}: ${JSON.stringify(step)}`, this.take(step));
      } catch (error) {
        const invariant =
          error instanceof DeadlineError ? 'every wait has an end' : 'clients get no surprises';
        world.log.fail(invariant, `client ${this.number} at ${JSON.stringify(step)}: ${describe(error)}`);
        for (const running of world.running)
          if (running.sandboxId === this.home.live?.id) world.running.delete(running);
        await this.home.drop();
      }
      await pause(pauseMs);
    }
  }

  /** Ends its sandbox. */
  async close(): Promise<void> {
    await this.home.drop();
  }

  private async take(step: Step): Promise<void> {
    const { world } = this;
    await world.service.whenUp();
    const live = await this.home.ready();
    if (live === undefined) return;
    world.log.count(`step ${step.step}`);
    switch (step.step) {
      case 'run':
        await this.run(live, this.contextAt(live, step.context), step.cell, step.via, step.cutAfter);
        return;
      case 'queue': {
        const contextId = this.contextAt(live, step.context);
        await this.runQueue(live, contextId, step.cells);
        return;
      }
      case 'leave':
        return this.leave(live, this.contextAt(live, step.context), step.afterMs);
      case 'cancel-ended':
        return this.cancelEnded(live, this.contextAt(live, step.context));
      case 'file':
        return this.home.tolerant(live, ['agent', 'machine', 'service'], step.step, () =>
          this.home.files?.take(step),
        );
      case 'command':
        return this.home.tolerant(live, ['agent', 'machine', 'service', 'oom'], step.step, () =>
          this.home.files?.command(step),
        );
      case 'look-around':
        return this.home.tolerant(live, ['agent', 'machine', 'service', 'oom'], step.step, async () => {
          this.home.scan((await this.home.files?.lookAround()) ?? '');
        });
      case 'context':
        return this.changeContext(live, step.action);
      case 'pause':
        return this.pauseAndResume(live);
      case 'recycle':
        return this.home.drop();
      case 'bad':
        return this.home.tolerant(live, ['service', 'machine', 'agent', 'gateway'], step.step, async () => {
          const wrong = await sendBadRequest(world, live.id, step.number);
          if (wrong !== undefined) this.home.failUnlessGone(live, 'bad requests get a clear answer', wrong);
        });
    }
  }

  private contextAt(live: LiveSandbox, index: number): string {
    const ids = [...live.contexts.keys()];
    return ids[index % ids.length] ?? '';
  }

  private ask(live: LiveSandbox, contextId: string, plan: CellPlan, isPlain = false): Asked {
    const id = `c${this.number}n${++this.cellCount}`;
    const cell = makeCell(plan, id, this.home.owner, this.world.memoryMb);
    const running: Running = { sandboxId: live.id, contextId, executionId: undefined, cell, mark: undefined };
    return { running, sentAt: now(), owner: this.home.owner, isPlain };
  }

  private async run(
    live: LiveSandbox,
    contextId: string,
    plan: CellPlan,
    via: 'sdk' | 'attached' | 'detached',
    cutAfter: number,
  ): Promise<void> {
    const bySdk =
      via === 'sdk' && plan.does !== 'sleep' && plan.does !== 'stubborn' && this.home.sandbox !== undefined;
    const asked = this.ask(live, contextId, plan, bySdk);
    const outcome = await this.watch(asked, () =>
      bySdk && this.home.sandbox !== undefined
        ? runBySdk(this.world, asked, this.home.sandbox)
        : runNative(this.world, asked, via === 'detached', cutAfter),
    );
    await this.settle(live, asked, outcome);
  }

  /** Several at once in one context: they run in their order. */
  private async runQueue(live: LiveSandbox, contextId: string, plans: readonly CellPlan[]): Promise<void> {
    const outcomes: Array<Promise<Outcome>> = [];
    const all: Asked[] = [];
    for (const plan of plans) {
      const asked = this.ask(live, contextId, plan);
      all.push(asked);
      outcomes.push(this.watch(asked, () => runNative(this.world, asked, true, 0)));
      // Sent in this order also where connections differ: the next one when this one has its number, or will have none.
      await until(10_000, () => (asked.running.executionId !== undefined ? true : undefined), 20);
    }
    // All of them, also when one rejects: none may be left behind in the background.
    const settled = await Promise.allSettled(outcomes);
    const ended: Array<{ asked: Asked; outcome: Outcome }> = [];
    for (const [index, result] of settled.entries()) {
      const asked = all[index];
      if (result.status === 'rejected') throw result.reason;
      if (asked !== undefined) ended.push({ asked, outcome: result.value });
    }
    // As they ran: one whose request met a service that was being killed may have come behind later ones. One that has
    // told no mark, as a crash takes what was on its way, stays behind the one before it.
    let last = 0;
    const inOrder = ended.map((each) => ({ ...each, ranAt: (last = each.asked.running.mark?.t ?? last) }));
    for (const { asked, outcome } of inOrder.sort((a, b) => a.ranAt - b.ranAt))
      await this.settle(live, asked, outcome);
  }

  private async watch(asked: Asked, work: () => Promise<Outcome>): Promise<Outcome> {
    const { running } = asked;
    const { world } = this;
    world.running.add(running);
    // Memory that runs out may take others of the sandbox with it.
    const oom =
      running.cell.plan.does === 'oom' ? world.log.begin('oom', { sandboxId: running.sandboxId }) : undefined;
    try {
      return await work();
    } finally {
      world.running.delete(running);
      if (oom !== undefined) oom.doneAt = now();
    }
  }

  /** Everything that must be true when an execution has ended. */
  private async settle(live: LiveSandbox, asked: Asked, outcome: Outcome): Promise<void> {
    const { cell, mark, contextId } = asked.running;
    if (mark !== undefined) live.contexts.set(contextId, { pid: mark.pid });
    await check(this.world, asked, outcome);
    this.home.scan(tell(outcome.events).join('\n'));
    const wrong = this.home.variables.get(contextId)?.take(cell, mark, outcome);
    if (wrong !== undefined)
      this.world.log.fail(
        'variables are there or their loss is told',
        `${cell.id} of ${live.id}: ${wrong}`,
        tell(outcome.events),
      );
    if (outcome.end === 'gone') await this.home.expectGone(live);
    // The list tells whether the context is still there.
    else if (outcome.end === 'refused') live.contexts.clear();
  }

  /** A client of E2B's API that hangs up while its cell runs. */
  private async leave(live: LiveSandbox, contextId: string, afterMs: number): Promise<void> {
    const asked = this.ask(live, contextId, { does: 'lines', lines: 600, everyMs: 100 }, true);
    const cell: Cell = { ...asked.running.cell, nominal: 'client_gone', lastsMs: 0 };
    asked.running.cell = cell;
    const leaving = AbortSignal.timeout(afterMs);
    const outcome = await this.watch(asked, async () => {
      try {
        const response = await interpreter(this.world, live.id, 'POST', '/execute', { code: cell.code, context_id: contextId }, leaving); // prettier-ignore
        await response.text();
      } catch {
        // it has hung up, which is the point
      }
      // Not there: it left before it was heard.
      return (await findByCode(this.world, asked)) ?? this.unheard();
    });
    if (outcome.end === 'unheard') this.home.variables.get(contextId)?.suppose(cell);
    else await this.settle(live, asked, outcome);
  }

  private unheard(): Outcome {
    return { end: 'unheard', ending: undefined, stdout: '', events: [], detail: '' };
  }

  private async cancelEnded(live: LiveSandbox, contextId: string): Promise<void> {
    const asked = this.ask(live, contextId, { does: 'lines', lines: 1, everyMs: 0 });
    const outcome = await this.watch(asked, () => runNative(this.world, asked, true, 0));
    await this.settle(live, asked, outcome);
    const { executionId } = asked.running;
    if (outcome.end !== 'ok' || executionId === undefined) return;
    await this.home.tolerant(live, ['service', 'machine'], 'cancel-ended', async () => {
      const response = await api(
        this.world,
        'POST',
        `/v1/sandboxes/${live.id}/executions/${executionId}/cancel`,
      );
      const text = await response.text();
      if (response.status !== 409)
        this.home.failUnlessGone(
          live,
          'bad requests get a clear answer',
          `cancel after the end: ${response.status} ${text}`,
        );
    });
  }

  private async changeContext(
    live: LiveSandbox,
    action: 'create' | 'restart' | 'remove' | 'remove-busy',
  ): Promise<void> {
    if (action === 'create' || live.contexts.size < 2) return this.home.createContext(live);
    const contextId = this.contextAt(live, 1);
    const kind = action === 'restart' ? 'restart' : 'remove-context';
    const busy =
      action === 'remove-busy'
        ? this.run(live, contextId, { does: 'lines', lines: 40, everyMs: 100 }, 'detached', 0)
        : undefined;
    busy?.catch(() => undefined); // awaited below
    if (busy !== undefined) await until(3_000, () => ([...this.world.running].some(({ mark, sandboxId }) => mark !== undefined && sandboxId === live.id) ? true : undefined)); // prettier-ignore
    const fault = this.world.log.begin(kind, { sandboxId: live.id, contextId });
    try {
      await this.home.tolerant(live, CONTEXT_FAULTS, `${action} a context`, async () => {
        const path = `/contexts/${contextId}`;
        const response =
          kind === 'restart'
            ? await interpreter(this.world, live.id, 'POST', `${path}/restart`)
            : await interpreter(this.world, live.id, 'DELETE', path);
        const text = await response.text();
        if (response.status >= 300) throw new Error(`${response.status} ${text}`);
        fault.doneAt = now();
      });
    } finally {
      fault.overAt = now();
    }
    await busy;
    if (kind === 'remove-context') live.contexts.delete(contextId);
  }

  private async pauseAndResume(live: LiveSandbox): Promise<void> {
    const fault = this.world.log.begin('pause-sandbox', { sandboxId: live.id });
    try {
      await this.home.tolerant(live, ['service', 'machine', 'agent'], 'pause', async () => {
        const paused = await api(this.world, 'POST', `/sandboxes/${live.id}/pause`);
        if (paused.status !== 204) throw new Error(`pause: ${paused.status} ${await paused.text()}`);
        fault.doneAt = now();
      });
      // Also when nobody knows whether it was paused: it does no harm.
      await this.home.tolerant(live, ['service', 'machine', 'agent'], 'resume', async () => {
        const body = { timeout: SANDBOX_SECONDS };
        for (let attempt = 0; ; attempt++) {
          const resumed = await api(this.world, 'POST', `/sandboxes/${live.id}/connect`, body);
          const text = await resumed.text();
          if (resumed.status < 300) break;
          if (attempt === 3) throw new Error(`resume: ${resumed.status} ${text}`);
          await this.world.service.whenUp();
          if (resumed.status === 404) throw new Error(`resume: 404 ${text}`);
        }
      });
    } finally {
      fault.overAt = now();
    }
  }
}
