import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { api, watchFailures } from './http';
import { inject } from './injector';
import { Log, now } from './log';
import { leftovers, listDirectory } from './machine';
import { CLIENTS } from './plan';
import { writeReport } from './report';
import { ChaosService } from './service';
import { Tenant } from './tenant';
import { pause, until, within, World } from './world';

/*
 * `npm run chaos`: clients that use the service as its users do, and an injector that breaks it meanwhile. The seed
 * decides what everyone does; what comes of it is held against the injector's own log. See docs/CHAOS.md.
 */

const HELP = `Usage: npm run chaos -- [--minutes <n>] [--seed <n>] [--runtime local|docker] [--out <directory>]

  --minutes    how long clients and injector are at work (default 2)
  --seed       decides what they do (default 1)
  --runtime    where the sandboxes run (default local)
  --out        where the report goes (default chaos-results)`;

const MEMORY_MB = 512;
/** Between the first steps of two clients. */
const STAGGER_MS = 1_500;
/** Of the service, whatever happens. */
const MAX_RESIDENT_BYTES = 400 * 1_048_576;
const WATCH_EVERY_MS = 2_000;
const ORPHANS_DEADLINE_MS = 60_000;
/** Clients may be in the middle of something that waits for a kernel or a service. */
const FINISH_DEADLINE_MS = 420_000;
const MAX_VIOLATIONS = 25;

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      minutes: { type: 'string', default: '2' },
      seed: { type: 'string', default: '1' },
      runtime: { type: 'string', default: 'local' },
      out: { type: 'string', default: 'chaos-results' },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) {
    console.log(HELP);
    return;
  }
  const minutes = Number(values.minutes);
  const seed = Number(values.seed);
  const { runtime } = values;
  if (!(minutes > 0)) throw new Error(`--minutes ${values.minutes}: must be a number`);
  if (!Number.isSafeInteger(seed)) throw new Error(`--seed ${values.seed}: must be a whole number`);
  if (runtime !== 'local' && runtime !== 'docker')
    throw new Error(`--runtime ${runtime}: must be local or docker`);

  console.error('starting the service');
  const service = await ChaosService.start(runtime, MEMORY_MB);
  let left: string[] = [];
  const log = new Log(seed);
  const world = new World(log, service, runtime, MEMORY_MB, now() + minutes * 60_000);
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => (world.stopping = true));
  watchFailures(log.began);
  service.onCrash = (what) => {
    log.fail('the service lives', what);
    world.stopping = true;
  };
  const cpu = cpuMeter();
  let busy = 0;
  try {
    console.error(`${CLIENTS} clients for ${minutes} minutes, seed ${seed}, ${runtime} runtime`);
    const tenants = Array.from({ length: CLIENTS }, (_, number) => new Tenant(world, seed, number));
    const watching = watch(world);
    const work = Promise.all([
      inject(world, seed),
      ...tenants.map(async (tenant, index) => {
        await pause(index * STAGGER_MS);
        await tenant.follow();
      }),
    ]);
    await within(minutes * 60_000 + FINISH_DEADLINE_MS, 'the end of clients and injector', work);
    busy = cpu();
    await checkNothingRuns(world);
    for (const tenant of tenants) await tenant.close();
    world.stopping = true;
    await watching;
    await endUnclaimed(world);
    await expectNoOrphans(world, 'sandboxes that were killed leave nothing');
  } catch (error) {
    log.fail('every wait has an end', String(error));
  } finally {
    world.stopping = true;
    const code = await service.stop().catch((error: unknown) => String(error));
    if (code !== 0 && code !== null) log.fail('the service stops', `it ended with ${code}`);
    left = await rest(world);
    if (left.length > 0) log.fail('nothing is left behind', left.join('\n'));
    if (log.violations.length > 0) console.error(`service:\n${service.output.slice(-8_000)}`);
    service.remove();
  }
  const worked = Number(((Math.min(now(), world.endsAt) - log.began) / 60_000).toFixed(1)); // less when it was ended
  const facts = {
    seed,
    minutes: worked,
    runtime,
    busy,
    residentBytes: service.residentBytes,
    leftovers: left,
  };
  const { file, text } = writeReport(path.resolve(values.out), log, facts);
  console.log(text);
  console.log(`Written to ${path.relative(process.cwd(), file)}.md and .json`);
  if (log.violations.length > 0) process.exitCode = 1;
}

/** Until the run is over: the service's memory, and that killed sandboxes are gone from the host in time. */
async function watch(world: World): Promise<void> {
  const goneSince = new Map<string, number>();
  const told = new Set<string>();
  let tooLarge = false;
  while (!world.stopping) {
    await pause(WATCH_EVERY_MS);
    const resident = world.service.sampleMemory();
    if (resident !== undefined && resident > MAX_RESIDENT_BYTES && !tooLarge) {
      tooLarge = true;
      world.log.fail('the memory of the service is bounded', `${Math.round(resident / 1_048_576)} MiB`);
    }
    for (const id of world.everKnown)
      if (!world.sandboxes.has(id) && !goneSince.has(id)) goneSince.set(id, now());
    // A service that is down for a while ends them later.
    const lastRestart = world.log.faults.findLast(({ kind }) => kind === 'service');
    const due = [...goneSince].filter(
      ([id, since]) =>
        !told.has(id) &&
        now() - Math.max(since, lastRestart?.overAt ?? lastRestart?.at ?? 0) > ORPHANS_DEADLINE_MS,
    );
    if (due.length > 0) {
      const found = await leftovers(world.runtime, world.service.dataDir, due.map(([id]) => id)); // prettier-ignore
      for (const [id] of due) told.add(id);
      if (found.length > 0) world.log.fail('nothing is left behind', found.join('\n'));
    }
    if (world.log.violations.length > MAX_VIOLATIONS) world.stopping = true;
  }
}

/** Every execution that anybody can still ask for has ended. */
async function checkNothingRuns(world: World): Promise<void> {
  await world.service.whenUp();
  for (const { id } of world.sandboxes.values()) {
    const response = await api(world, 'GET', `/v1/sandboxes/${id}/executions`);
    const { items = [] } = (await response.json()) as {
      items?: Array<{ execution_id: string; state: string }>;
    };
    for (const item of items)
      if (item.state !== 'ended')
        world.log.fail('every execution ends', `${item.execution_id} of ${id} is ${item.state}`);
  }
}

/** Sandboxes whose create was never answered, since the service was killed: nobody has their id. */
async function endUnclaimed(world: World): Promise<void> {
  await world.service.whenUp();
  const response = await api(world, 'GET', '/v2/sandboxes');
  const listed = (await response.json()) as Array<{ sandboxID: string; metadata?: { chaos?: string } }>;
  for (const { sandboxID } of listed) {
    if (world.everKnown.has(sandboxID)) world.log.fail('killed sandboxes are gone', `${sandboxID} is listed`);
    else world.log.count('sandboxes whose create was not answered');
    world.everKnown.add(sandboxID);
    await api(world, 'DELETE', `/sandboxes/${sandboxID}`);
  }
}

async function expectNoOrphans(world: World, invariant: string): Promise<void> {
  let found: string[] = [];
  await until(ORPHANS_DEADLINE_MS, async () => {
    found = await leftovers(world.runtime, world.service.dataDir, world.everKnown);
    return found.length === 0 ? true : undefined;
  });
  if (found.length > 0) world.log.fail(invariant, found.join('\n'));
}

/** What is there when the service has ended with all its sandboxes, those of its pool included. */
async function rest({ runtime, service, everKnown }: World): Promise<string[]> {
  const { dataDir } = service;
  const ids = new Set(everKnown);
  for (const name of listDirectory(path.join(dataDir, 'local'))) ids.add(name);
  const found = await leftovers(runtime, dataDir, ids);
  const directories = ['local', 'executions'].flatMap((name) =>
    listDirectory(path.join(dataDir, name)).map((below) => `directory ${name}/${below}`),
  );
  return [...new Set([...found, ...directories])];
}

/** How busy all processors were since the call, 0 to 1. */
function cpuMeter(): () => number {
  const times = (): { idle: number; all: number } => {
    let idle = 0;
    let all = 0;
    for (const cpu of os.cpus()) {
      idle += cpu.times.idle;
      all += cpu.times.idle + cpu.times.user + cpu.times.sys + cpu.times.nice + cpu.times.irq;
    }
    return { idle, all };
  };
  const first = times();
  return () => {
    const last = times();
    return 1 - (last.idle - first.idle) / Math.max(1, last.all - first.all);
  };
}

main().then(
  // The SDK keeps idle connections open; nothing of ours is left.
  () => process.exit(process.exitCode ?? 0),
  (error: unknown) => {
    console.error(error instanceof Error ? error.message : error);
    process.exit(1);
  },
);
