import { parseTemplateReference } from '../../protocol/control-plane';
import { ServiceError } from '../errors';
import type { Resources } from '../runtime/runtime';
import { resourcesOf } from './sandbox';
import { boundsOf, excesses, Sizes } from './sizes';
import type { Figures, ResourceRequest, Size } from './sizes';

/** What is the same of a template in every installation. */
interface BuiltInTemplate {
  /** 20 characters of `[a-z0-9]`, the same in every installation and release. */
  readonly id: string;
  readonly alias: string;
  readonly buildId: string;
  readonly createdAt: Date;
}

/** Named recipe that a sandbox starts from. Both built-in ones use the service's one image. */
export interface Template extends BuiltInTemplate {
  /** What a sandbox has whose create asks for nothing else; machines kept ready have it. */
  readonly resources: Resources;
  /** Level of its machines, one of the runtime's; undefined takes the usual one. */
  readonly isolation?: string;
}

/** What a create comes down to. */
export interface ChosenTemplate {
  readonly template: Template;
  readonly resources: Resources;
}

/** What the operator says of one template; what is absent is as for all. */
export interface TemplateSettings {
  resources?: ResourceRequest;
  isolation?: string;
}

/** What the operator says of all: see `template-settings.ts`. */
export interface TemplatesSettings {
  sizes: ReadonlyMap<string, Size>;
  /** By alias. */
  templates: ReadonlyMap<string, TemplateSettings>;
  /** The most that one sandbox may have; undefined where the settings say nothing. */
  maximum: Figures;
}

/** Slug of the only team there is until teams can be made; the namespace of template names. */
export const DEFAULT_TEAM_SLUG = 'default';

const FIRST_RELEASE = new Date('2026-11-21T00:00:00.000Z');

/** In the order of the lists. `base` is what the plain SDK asks for, the other what the code interpreter's asks for. */
export const BUILT_IN_TEMPLATES: readonly BuiltInTemplate[] = [
  {
    id: 'cellboxbase0template',
    alias: 'base',
    buildId: '7d1f0d0e-5f0b-4c38-9d3c-0c6a5f3b1a01',
    createdAt: FIRST_RELEASE,
  },
  {
    id: 'cellboxcodeinterp001',
    alias: 'code-interpreter-v1',
    buildId: '7d1f0d0e-5f0b-4c38-9d3c-0c6a5f3b1a02',
    createdAt: FIRST_RELEASE,
  },
];

/** The templates of this service, and what a sandbox of each has. Fixed at start. */
export class Templates {
  readonly all: readonly Template[];
  readonly sizes: Sizes;
  /**
   * The most that a create can have: what settings and host allow, and where they have no bound, the most that a
   * template or a size has.
   */
  readonly maximum: Resources;

  /**
   * `defaults` are for templates of which nothing else is said.
   *
   * @throws ServiceError `invalid_argument` where the settings ask for what there is not, every mistake on a line
   */
  constructor(
    defaults: Resources,
    { sizes = new Map(), templates = new Map(), maximum = {} }: Partial<TemplatesSettings> = {},
  ) {
    const usual = resourcesOf(defaults);
    const bounds = boundsOf(maximum, usual);
    this.sizes = new Sizes(sizes, bounds);
    const mistakes: string[] = [];
    this.all = BUILT_IN_TEMPLATES.map((template) => {
      const { isolation, resources: asked = {} } = templates.get(template.alias) ?? {};
      try {
        const resources = this.sizes.apply(usual, asked);
        mistakes.push(...excesses(resources, bounds).map((text) => `templates.${template.alias}.${text}`));
        return { ...template, resources, ...(isolation !== undefined && { isolation }) };
      } catch (error) {
        if (!(error instanceof ServiceError)) throw error;
        mistakes.push(`templates.${template.alias}.${error.message}`);
        return { ...template, resources: usual };
      }
    });
    if (mistakes.length > 0) throw new ServiceError('invalid_argument', mistakes.join('\n'));
    const offered: Figures[] = [...this.all.map(({ resources }) => resources), ...this.sizes.all.values()];
    const maximumOf = (figure: keyof Resources) =>
      Number.isFinite(bounds[figure])
        ? bounds[figure]
        : Math.max(...offered.map((each) => each[figure] ?? 0));
    this.maximum = {
      cpuCount: maximumOf('cpuCount'),
      memoryMB: maximumOf('memoryMB'),
      diskSizeMB: maximumOf('diskSizeMB'),
      pids: maximumOf('pids'),
      openFiles: maximumOf('openFiles'),
    };
  }

  /**
   * The template of a reference `[namespace/]alias[:tag]` or of an id, or undefined. Built-in templates have no build
   * but the one that the tag `default` names.
   */
  find(reference: string): Template | undefined {
    const named = this.read(reference);
    return named?.size === undefined ? named?.template : undefined;
  }

  /**
   * The template of a create, and what its sandbox has. The reference may name a size: `[namespace/]alias[:tag]@size`.
   *
   * @throws ServiceError `not_found`; `invalid_argument` for an unknown size, a contradiction, or more than the maximum
   */
  choose(reference: string, asked: ResourceRequest = {}): ChosenTemplate {
    const named = this.read(reference);
    if (named === undefined) throw new ServiceError('not_found', `template '${reference}' not found`);
    const { template, size = asked.size } = named;
    if (asked.size !== undefined && asked.size !== size) {
      throw new ServiceError('invalid_argument', `size: is ${asked.size}, and ${size} behind the template`);
    }
    const resources = this.sizes.apply(template.resources, { ...asked, size });
    const [excess] = excesses(resources, this.maximum);
    if (excess === undefined) return { template, resources };
    throw new ServiceError('invalid_argument', excess, {
      remedy: 'Ask for less; whoever runs the service can allow more, with the settings CELLBOX_MAX_….',
    });
  }

  private read(reference: string): { template: Template; size: string | undefined } | undefined {
    const parsed = parseTemplateReference(reference);
    if (parsed === undefined || parsed.tag !== 'default') return undefined;
    if (parsed.namespace !== undefined && parsed.namespace !== DEFAULT_TEAM_SLUG) return undefined;
    const template = this.all.find((each) => each.alias === parsed.alias || each.id === parsed.alias);
    return template && { template, size: parsed.size };
  }
}
