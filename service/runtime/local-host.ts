import { existsSync } from 'node:fs';
import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { ServiceError } from '../errors';
import type { Logger } from '../log';
import { probeBubblewrap } from './local-bubblewrap';
import type { BubblewrapProbe, HostLayout } from './local-bubblewrap';
import { probeCgroups, unenforcedLimits } from './local-cgroup';
import type { CgroupHost } from './local-cgroup';
import { readPythonFacts } from './local-python';
import type { PythonFacts } from './local-python';

/** What this host has for local sandboxes. */
export interface LocalHost {
  facts: PythonFacts;
  /** Undefined when there is no bubblewrap to be used. */
  layout: HostLayout | undefined;
  /** Undefined when no control group can be made. */
  cgroups: CgroupHost | undefined;
  /** One sentence for each thing that is not isolated or not limited. */
  caveats: readonly string[];
}

export interface LocalHostOptions {
  dataDir: string;
  /** As `preparePython` gave it. */
  python: string;
  /** Where `agent.js` and `supervisor.js` are. */
  agentDir: string;
  bubblewrap: 'auto' | 'off' | 'require';
  logger: Logger;
}

/** Rejects with a remedy when something is missing that can't be done without. */
export async function readLocalHost(options: LocalHostOptions): Promise<LocalHost> {
  const { dataDir, agentDir, logger } = options;
  for (const name of ['supervisor.js', 'agent.js']) {
    if (!existsSync(path.join(agentDir, name)))
      throw new ServiceError(
        'failed_precondition',
        `${path.join(agentDir, name)} is missing: run npm run build`,
      );
  }
  const facts = await readPythonFacts(options.python);
  await fs.mkdir(dataDir, { recursive: true, mode: 0o700 });
  const [bubblewrap, cgroups] = await Promise.all([tryBubblewrap(options, facts), probeCgroups()]);
  if (!bubblewrap.usable && options.bubblewrap === 'require') {
    throw new ServiceError(
      'failed_precondition',
      `CELLBOX_BUBBLEWRAP=require, but ${bubblewrap.reason}: ${bubblewrap.remedy}`,
    );
  }
  const caveats = describeCaveats(bubblewrap, cgroups);
  if (!bubblewrap.usable) logger.warn({ remedy: bubblewrap.remedy }, caveats[0]);
  return { facts, layout: bubblewrap.usable ? bubblewrap.layout : undefined, cgroups, caveats };
}

async function tryBubblewrap(options: LocalHostOptions, facts: PythonFacts): Promise<BubblewrapProbe> {
  if (options.bubblewrap === 'off')
    return {
      usable: false,
      reason: 'it is switched off (CELLBOX_BUBBLEWRAP=off)',
      remedy: 'set CELLBOX_BUBBLEWRAP=auto',
    };
  const home = await homeDirectory();
  const dataDir = await fs.realpath(options.dataDir);
  const secret = [...new Set([dataDir, ...(home === undefined ? [] : [home])])];
  const supervisor = path.join(options.agentDir, 'supervisor.js');
  return probeBubblewrap({
    needed: [facts.basePrefix, facts.prefix, process.execPath, options.agentDir],
    secret,
    program: [
      '/bin/sh',
      '-c',
      `for file in "$1" "$2" "$3"; do
        test -r "$file" || { echo "the user of sandboxes may not read $file" >&2; exit 1; }
      done
      "$1" -c "import encodings" && "$2" --version || exit 1
      test ! -e "$4/local" || { echo "$4 can be seen" >&2; exit 1; }`,
      'sh',
      ...[facts.python, process.execPath, supervisor, dataDir],
    ],
  });
}

/** The home of the service's user, where there is one to hide. */
async function homeDirectory(): Promise<string | undefined> {
  try {
    const home = await fs.realpath(os.homedir());
    return home === '/' ? undefined : home;
  } catch {
    return undefined; // a user without an account or without the directory
  }
}

/** One sentence for each thing that is not isolated or not limited. Pure. */
export function describeCaveats(bubblewrap: BubblewrapProbe, cgroups: CgroupHost | undefined): string[] {
  const caveats: string[] = [];
  if (!bubblewrap.usable) {
    caveats.push(
      `NO ISOLATION: sandboxes run as this user on this host, with its files, processes and network, because ${bubblewrap.reason}; run only code that you trust`,
      'Sandboxes without a network are refused',
    );
  } else {
    caveats.push(
      'Sandboxes share the host kernel without a system call filter, and the host network unless it is none: programs in them reach what listens on the loopback of this host',
    );
  }
  const limits = unenforcedLimits(cgroups);
  if (limits.length > 0)
    caveats.push(`Not limited here, because no control group can be written: ${limits.join(', ')}`);
  caveats.push(
    'Disk limits are soft: no file can be larger than the limit; all of them together are measured, and a sandbox that has twice its disk is ended',
  );
  return caveats;
}
