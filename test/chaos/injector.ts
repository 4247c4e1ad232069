import { api } from './http';
import type { Fault } from './faults';
import { now } from './log';
import { gatewayStarts, kernelOf, kill, ofRole, processesOf } from './machine';
import { faultPlan } from './plan';
import type { FaultKind, FaultPlan } from './plan';
import { pause, until } from './world';
import type { LiveSandbox, Running, World } from './world';

/** How long it waits for a cell to be running that can be hit; then it takes an idle context. */
const VICTIM_WAIT_MS = 4_000;
const BACK_DEADLINE_MS = 60_000;
const SIGNALS = ['SIGKILL', 'SIGKILL', 'SIGSEGV', 'SIGABRT'] as const;
/** No new faults in the last part: what was done must have its consequences before the end. */
const QUIET_END_MS = 8_000;

/** Breaks one thing after the other as the plan says, until the run is over. Each fault is in the log before it is done. */
export async function inject(world: World, seed: number): Promise<void> {
  const plans = faultPlan(seed);
  while (!world.stopping) {
    const plan = plans.next().value;
    await sleepUnlessOver(world, plan.afterMs);
    if (now() > world.endsAt - QUIET_END_MS || world.stopping) return;
    const results = await Promise.allSettled(plan.kinds.map((kind) => injectOne(world, kind, plan)));
    for (const result of results) {
      if (result.status === 'rejected') world.log.fail('the injector works', String(result.reason));
    }
  }
}

async function sleepUnlessOver(world: World, ms: number): Promise<void> {
  const over = now() + ms;
  while (now() < over && !world.stopping) await pause(Math.min(200, ms));
}

async function injectOne(world: World, kind: FaultKind, plan: FaultPlan): Promise<void> {
  world.log.count(`fault ${kind}`);
  if (kind === 'service') return killService(world);
  const found = await until(VICTIM_WAIT_MS, () => victim(world, plan));
  const running = found ?? undefined;
  const sandbox = world.sandboxes.get(running?.sandboxId ?? '') ?? anySandbox(world, plan);
  if (sandbox === undefined || sandbox.doomed) {
    world.log.count('faults without a target');
    return;
  }
  switch (kind) {
    case 'kernel':
      return killKernel(world, sandbox, running, plan);
    case 'gateway':
    case 'agent':
      return killPart(world, sandbox, kind);
    case 'machine':
      return killMachine(world, sandbox, plan);
    case 'interrupt':
    case 'restart':
      return askContext(world, sandbox, running, kind, plan);
    case 'cancel':
      return cancel(world, running);
  }
}

/** A cell that has told its mark; undefined: wait on. */
function victim(world: World, { pick }: FaultPlan): Running | undefined {
  const candidates = [...world.running].filter(
    ({ mark, sandboxId }) => mark !== undefined && world.sandboxes.get(sandboxId)?.doomed === false,
  );
  // Those whose end leaves no doubt come first.
  candidates.sort((a, b) => b.cell.lastsMs + b.cell.timeoutMs - a.cell.lastsMs - a.cell.timeoutMs);
  return candidates[Math.floor(pick * Math.min(3, candidates.length))];
}

function anySandbox(world: World, { pick }: FaultPlan): LiveSandbox | undefined {
  const all = [...world.sandboxes.values()].filter(({ doomed }) => !doomed);
  return all[Math.floor(pick * all.length)];
}

function anyContext(sandbox: LiveSandbox, { pick }: FaultPlan): string | undefined {
  const ids = [...sandbox.contexts.keys()];
  return ids[Math.floor(pick * ids.length)];
}

async function killKernel(
  world: World,
  sandbox: LiveSandbox,
  running: Running | undefined,
  plan: FaultPlan,
): Promise<void> {
  const contextId = running?.contextId ?? anyContext(sandbox, plan);
  const inner = running?.mark?.pid ?? sandbox.contexts.get(contextId ?? '')?.pid;
  if (contextId === undefined || inner === undefined) return;
  const signal = SIGNALS[Math.floor(plan.variant * SIGNALS.length)] ?? 'SIGKILL';
  const target = await find(world, sandbox, (processes) => kernelOf(processes, inner));
  const fault = world.log.begin('kernel', { sandboxId: sandbox.id, contextId, pid: inner }, signal);
  finish(fault, target !== undefined && kill(target, signal));
}

async function killPart(world: World, sandbox: LiveSandbox, kind: 'gateway' | 'agent'): Promise<void> {
  const { runtime, service } = world;
  const starts = await gatewayStarts(runtime, service.dataDir, sandbox.id);
  const target = await find(world, sandbox, (processes) => ofRole(processes, kind));
  const fault = world.log.begin(kind, { sandboxId: sandbox.id });
  finish(fault, target !== undefined && kill(target, 'SIGKILL'));
  if (fault.missed) return;
  await until(BACK_DEADLINE_MS, async () => {
    if (sandbox.doomed) return true;
    if (kind === 'gateway')
      return (await gatewayStarts(runtime, service.dataDir, sandbox.id)) > starts ? true : undefined;
    const successor = await find(world, sandbox, (processes) => ofRole(processes, kind));
    if (successor === undefined || successor === target) return undefined;
    const headers = { 'e2b-sandbox-id': sandbox.id, 'e2b-sandbox-port': '49983' };
    const response = await api(world, 'GET', '/health', undefined, { headers, deadlineMs: 20_000 }).catch(
      () => undefined, // the service may be the next that is being killed
    );
    await response?.body?.cancel();
    return response !== undefined && response.status < 500 ? true : undefined;
  });
  fault.overAt = now();
}

async function find(
  world: World,
  sandbox: LiveSandbox,
  pick: (processes: Awaited<ReturnType<typeof processesOf>>) => { pid: number } | undefined,
): Promise<number | undefined> {
  return pick(await processesOf(world.runtime, world.service.dataDir, sandbox.id))?.pid;
}

/** The whole sandbox, by one of the processes that hold it together. */
async function killMachine(world: World, sandbox: LiveSandbox, { variant }: FaultPlan): Promise<void> {
  const processes = await processesOf(world.runtime, world.service.dataDir, sandbox.id);
  const supervisor = ofRole(processes, 'supervisor');
  const targets = [processes[0], supervisor, processes.find(({ pid }) => pid === supervisor?.parent)];
  const target = targets[Math.floor(variant * targets.length)] ?? processes[0];
  sandbox.doomed = true;
  const detail = `pid ${target?.pid}: ${target?.command.slice(0, 30)}`;
  const fault = world.log.begin('machine', { sandboxId: sandbox.id }, detail);
  finish(fault, target !== undefined && kill(target.pid, 'SIGKILL'));
  if (fault.missed) {
    sandbox.doomed = false;
    return;
  }
  const told = await until(BACK_DEADLINE_MS, async () => {
    const response = await api(world, 'GET', `/sandboxes/${sandbox.id}`).catch(() => undefined); // it may be down, too
    await response?.body?.cancel();
    return response?.status === 404 ? true : undefined;
  });
  fault.overAt = now();
  if (told === undefined)
    world.log.fail('a sandbox that died is told as gone', `${sandbox.id} is listed for a minute after it`);
}

async function askContext(
  world: World,
  sandbox: LiveSandbox,
  running: Running | undefined,
  kind: 'interrupt' | 'restart',
  plan: FaultPlan,
): Promise<void> {
  const contextId = running?.contextId ?? anyContext(sandbox, plan);
  if (contextId === undefined) return;
  const fault = world.log.begin(kind, { sandboxId: sandbox.id, contextId });
  try {
    const response =
      kind === 'interrupt'
        ? await api(world, 'POST', `/v1/sandboxes/${sandbox.id}/contexts/${contextId}/interrupt`)
        : await api(world, 'POST', `/contexts/${contextId}/restart`, undefined, {
            headers: { 'e2b-sandbox-id': sandbox.id, 'e2b-sandbox-port': '49999' },
          });
    settle(world, fault, response.status, await response.text());
  } catch (error) {
    unanswered(world, fault, error);
  }
}

async function cancel(world: World, running: Running | undefined): Promise<void> {
  if (running?.executionId === undefined) return;
  const { sandboxId, contextId, executionId } = running;
  const fault = world.log.begin('cancel', { sandboxId, contextId, executionId });
  try {
    const response = await api(world, 'POST', `/v1/sandboxes/${sandboxId}/executions/${executionId}/cancel`);
    settle(world, fault, response.status, await response.text());
  } catch (error) {
    unanswered(world, fault, error);
  }
}

async function killService(world: World): Promise<void> {
  let fault: Fault | undefined;
  // Two at once come one after the other.
  await world.service.killAndRestart({
    onKill: () => (fault = world.log.begin('service', {}, `pid ${world.service.pid}`)),
    onKilled: () => fault && (fault.doneAt = now()),
  });
  if (fault !== undefined) fault.overAt = now();
}

function finish(fault: Fault, done: boolean): void {
  fault.doneAt = now();
  fault.missed = !done;
}

/** An answer of the API to something that the injector asked for. */
function settle(world: World, fault: Fault, status: number, text: string): void {
  fault.doneAt = now();
  if (status < 300) return;
  // Too late (it has ended, or the whole sandbox has), or in the middle of another fault: then it may have been done.
  fault.missed = status === 404 || status === 409;
  fault.detail += ` answered ${status}`;
  const excused =
    fault.missed ||
    world.log
      .touching({ sandboxId: fault.sandboxId ?? '' }, fault.at)
      .some((each) => each !== fault && !['interrupt', 'cancel'].includes(each.kind));
  if (!excused) world.log.fail('asked-for faults are carried out', `${fault.kind}: ${status} ${text}`);
  else if (!fault.missed) {
    fault.overAt = fault.doneAt;
    fault.doneAt = undefined; // it may have been done: it can be felt, and proves nothing
  }
}

/** Whether it was done nobody knows. */
function unanswered(world: World, fault: Fault, error: unknown): void {
  fault.overAt = now();
  fault.detail += ` unanswered: ${String(error).slice(0, 80)}`;
  const others = world.log.touching({ sandboxId: fault.sandboxId ?? '' }, fault.at);
  if (!others.some((each) => ['service', 'machine', 'kill-sandbox', 'pause-sandbox'].includes(each.kind)))
    world.log.fail('every request is answered', `${fault.kind}: ${String(error)}`);
}
