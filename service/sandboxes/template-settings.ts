import fs from 'node:fs';
import { z } from 'zod';
import { MIN_RESOURCES } from '../../protocol/control-plane';
import type { Config } from '../config';
import { ServiceError } from '../errors';
import { ISOLATION_NAME } from '../runtime/runtime';
import type { Resources } from '../runtime/runtime';
import { SIZE_NAME } from './sizes';
import { BUILT_IN_TEMPLATES, Templates } from './templates';
import type { TemplateSettings, TemplatesSettings } from './templates';

const figure = (name: keyof typeof MIN_RESOURCES) => z.int().min(MIN_RESOURCES[name]).max(1_000_000_000);

const Figures = {
  cpuCount: figure('cpuCount'),
  memoryMB: figure('memoryMB'),
  diskSizeMB: figure('diskSizeMB'),
};
const Counts = { pids: figure('pids').optional(), openFiles: figure('openFiles').optional() };

type TemplatesConfig = Resources &
  Pick<Config, 'templates' | 'maxCpuCount' | 'maxMemoryMB' | 'maxDiskSizeMB' | 'maxPids' | 'maxOpenFiles'>;

/** The file that `CELLBOX_TEMPLATES` names. */
const TemplatesFile = z.strictObject({
  sizes: z
    .record(
      z.string().regex(SIZE_NAME, 'must be of a-z, 0-9, _, . and -'),
      z.strictObject({ ...Figures, ...Counts }),
    )
    .default({}),
  templates: z
    .record(
      z.string(),
      z.strictObject({
        isolation: z.string().regex(ISOLATION_NAME, 'is no name of an isolation level').optional(),
        size: z.string().optional(),
        cpuCount: Figures.cpuCount.optional(),
        memoryMB: Figures.memoryMB.optional(),
        diskSizeMB: Figures.diskSizeMB.optional(),
        ...Counts,
      }),
    )
    .default({}),
});

/**
 * The templates of the service, by the operator's file; without one they all have the defaults.
 *
 * @throws ServiceError `invalid_argument` that names the file and every mistake in it, one a line
 */
export function openTemplates(config: TemplatesConfig): Templates {
  const maximum = {
    cpuCount: config.maxCpuCount,
    memoryMB: config.maxMemoryMB,
    diskSizeMB: config.maxDiskSizeMB,
    pids: config.maxPids,
    openFiles: config.maxOpenFiles,
  };
  const { templates: file } = config;
  if (file === undefined) return new Templates(config, { maximum });
  const settings = { ...readTemplateSettings(file), maximum };
  try {
    return new Templates(config, settings);
  } catch (error) {
    throw error instanceof ServiceError ? invalid(file, error.message.split('\n')) : error;
  }
}

function readTemplateSettings(file: string): Omit<TemplatesSettings, 'maximum'> {
  const parsed = TemplatesFile.safeParse(readJson(file));
  if (!parsed.success) {
    throw invalid(
      file,
      parsed.error.issues.map(
        (issue) => `${issue.path.map(String).join('.') || 'the file'}: ${issue.message}`,
      ),
    );
  }
  const sizes = new Map(Object.entries(parsed.data.sizes));
  const templates = new Map<string, TemplateSettings>();
  const mistakes: string[] = [];
  for (const [name, { isolation, ...resources }] of Object.entries(parsed.data.templates)) {
    const template = BUILT_IN_TEMPLATES.find((each) => each.alias === name || each.id === name);
    if (template === undefined) {
      const known = BUILT_IN_TEMPLATES.map(({ alias }) => alias).join(', ');
      mistakes.push(`templates.${name}: there is no such template; there are ${known}`);
    } else if (templates.has(template.alias)) {
      mistakes.push(`templates.${name}: is said twice, by alias and by id`);
    } else {
      templates.set(template.alias, { resources, ...(isolation !== undefined && { isolation }) });
    }
  }
  if (mistakes.length > 0) throw invalid(file, mistakes);
  return { sizes, templates };
}

function readJson(file: string): unknown {
  let text: string;
  try {
    text = fs.readFileSync(file, 'utf8');
  } catch (error) {
    throw invalid(file, [(error as Error).message]);
  }
  try {
    return JSON.parse(text) as unknown;
  } catch (error) {
    throw invalid(file, [`is not JSON: ${(error as Error).message}`]);
  }
}

function invalid(file: string, mistakes: readonly string[]): ServiceError {
  return new ServiceError(
    'invalid_argument',
    `CELLBOX_TEMPLATES=${file} is not valid:\n${mistakes.map((line) => `  ${line}`).join('\n')}`,
  );
}
