import path from 'node:path';
import { loadConfig } from '../service/config';
import type { Config } from '../service/config';
import { prepareImage } from '../service/prepare';
import { preparePython } from '../service/runtime/local-python';
import { measureBurst } from './burst';
import { startBareChain } from './bare-chain';
import { startCellbox } from './cellbox';
import type { Cellbox } from './cellbox';
import { measureComputer } from './computer';
import { measureCreates } from './creates';
import { startDockerRival } from './docker-rival';
import type { Section } from './figures';
import { guard } from './guard-run';
import { measureLoad } from './load';
import { dockerFloor, localFloor } from './machine-floor';
import { measureMemory } from './memory';
import { GROUPS, HELP, readOptions } from './options';
import type { Group, Options } from './options';
import { measureOutputs } from './outputs';
import { startBareFiles } from './bare-files';
import { startRawZeroMq } from './raw-zeromq';
import { report } from './report';
import { measureRestart } from './restart';
import { connectRival } from './rival';
import { measureScenario, scenariosSection } from './rounds';
import type { Measured } from './rounds';
import { SETUP, scenarios } from './scenarios';
import type { ServiceOptions } from './service';
import { startStockGateway } from './stock-gateway';
import { startSdkAlone } from './sdk-alone';
import { Subjects } from './subjects';

/*
 * `npm run bench`: the same code through Cellbox, a stock kernel gateway and bare ZeroMQ, on the same machine in the
 * same minutes. Rounds are interleaved, so that a busy moment of the machine hits all of them alike.
 */

/** dist/bench.js lies one below the root. */
const ROOT = path.join(__dirname, '..');
/** A first start may build an image. */
const START_SECONDS = 1800;
const RESTART_SANDBOXES = 20;

async function main(): Promise<void> {
  const options = readOptions(process.argv.slice(2));
  if (options.help) {
    console.log(HELP);
    return;
  }
  const config = loadConfig(process.env, []);
  const pythonDir = config.pythonDir ?? config.dataDir;
  const python = options.python ?? (await localPython(pythonDir));
  const service = { root: ROOT, runtime: options.runtime, pythonDir, startSeconds: START_SECONDS };
  const subjects = new Subjects();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.once(signal, () => void subjects.close().then(() => process.exit(130)));
  }
  try {
    if (options.guard) {
      process.exitCode = (await guard(subjects, service, python)) ? 0 : 1;
      return;
    }
    const sections = await measureAll(options, { config, python, service, subjects });
    await report(sections, subjects.list, { ...options, root: ROOT, python });
  } finally {
    await subjects.close();
  }
}

async function localPython(dataDir: string): Promise<string> {
  const { python } = await preparePython({
    dataDir,
    kernelImageDir: path.join(ROOT, 'kernel-image'),
    onProgress: (text) => console.error(text),
  });
  return python;
}

interface Means {
  config: Config;
  python: string;
  service: ServiceOptions;
  subjects: Subjects;
}

async function measureAll(options: Options, means: Means): Promise<Section[]> {
  const { config, python, service, subjects } = means;
  const { quick, runtime, isChosen } = options;
  const sections: Section[] = [];
  // Found once: who edits the kernel package while this runs shall not have it built between two rows.
  let prepared: Promise<string> | undefined;
  const image = async (): Promise<string | undefined> =>
    runtime === 'docker' ? (prepared ??= prepareImage(config, (line) => console.error(line))) : undefined;

  // These two start services of their own, and nothing else may run beside them.
  if (isChosen('memory')) {
    say('memory');
    const memory = await measureMemory(service, { python, image: await image() });
    if (memory === undefined) console.error('memory of processes can not be read here: left out');
    else sections.push(memory);
  }
  if (isChosen('restart')) {
    say('restart');
    sections.push(await measureRestart(service, Math.min(RESTART_SANDBOXES, options.sandboxes)));
  }
  const chosen = scenarios(quick).filter(({ name }) => isChosen(name));
  const others = GROUPS.filter((name) => !['memory', 'restart'].includes(name) && isChosen(name));
  if (chosen.length === 0 && others.length === 0) return sections;

  const cellbox = await subjects.start('Cellbox', () => startCellbox(service));
  if (chosen.length > 0) {
    for (const nodelay of [false, true])
      await subjects.start('a stock gateway', () => startStockGateway({ root: ROOT, python, nodelay }));
  }
  if (chosen.length > 0 || isChosen('outputs'))
    await subjects.start('raw ZeroMQ', () => startRawZeroMq(ROOT, python));
  if (chosen.length > 0) {
    await subjects.start('the bare chain', () => startBareChain(ROOT, python));
    await subjects.start('the SDK alone', startSdkAlone);
  }
  if (options.rival !== undefined) {
    const { rival } = options;
    await subjects.start('the rival', () => connectRival(rival));
  }
  if (chosen.length > 0) {
    for (const subject of subjects.list) await subject.run(SETUP);
    const measured: Measured[] = [];
    for (const scenario of chosen) {
      say(`${scenario.name}: ${scenario.warmup} + ${scenario.rounds} rounds`);
      measured.push(await measureScenario(scenario, subjects.list));
    }
    sections.unshift(scenariosSection(measured, subjects.list));
  }
  for (const group of others) {
    say(group);
    sections.push(await measureGroup(group, cellbox, options, means, image));
  }
  return sections;
}

async function measureGroup(
  group: Group,
  cellbox: Cellbox,
  { quick, sandboxes, seconds, runtime }: Options,
  { config, python, subjects }: Means,
  image: () => Promise<string | undefined>,
): Promise<Section> {
  switch (group) {
    case 'computer':
      return measureWithRivals(cellbox, await image(), quick);
    case 'create': {
      const floor = runtime === 'docker' ? await dockerFloor(config) : await localFloor(python);
      try {
        return await measureCreates(cellbox.service, floor, { quick, image: await image() });
      } finally {
        await floor.close();
      }
    }
    case 'outputs':
      return measureOutputs(cellbox.service, subjects.find('raw ZeroMQ'), quick);
    case 'load':
      return measureLoad(cellbox.service, { sandboxes, seconds });
    case 'burst':
      return measureBurst(cellbox.service, { creates: sandboxes, pool: Math.ceil(sandboxes / 5) });
    default:
      throw new Error(`${group} has no service beside others`);
  }
}

/** `image`: where the engine's own command is a rival. */
async function measureWithRivals(
  cellbox: Cellbox,
  image: string | undefined,
  quick: boolean,
): Promise<Section> {
  const bare = await startBareFiles();
  try {
    const rival = image === undefined ? undefined : await startDockerRival(image);
    try {
      return await measureComputer(cellbox, bare, rival, quick);
    } finally {
      await rival?.close();
    }
  } finally {
    await bare.close();
  }
}

function say(what: string): void {
  console.error(`measuring ${what}`);
}

main().then(
  // The SDK and the gateway's client keep idle connections open; nothing of ours is left.
  () => process.exit(process.exitCode ?? 0),
  (error: unknown) => {
    console.error(error instanceof Error ? error.message : error);
    process.exit(1);
  },
);
