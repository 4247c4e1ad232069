import { parseTemplateReference } from '../../protocol/control-plane';

/** Named recipe that a sandbox starts from. Both built-in ones use the service's one image and its resources. */
export interface Template {
  /** 20 characters of `[a-z0-9]`, the same in every installation and release. */
  readonly id: string;
  readonly alias: string;
  readonly buildId: string;
  readonly createdAt: Date;
  /** Level of its machines, one of the runtime's; undefined takes the usual one. */
  readonly isolation?: string;
}

/** Slug of the only team there is until teams can be made; the namespace of template names. */
export const DEFAULT_TEAM_SLUG = 'default';

const FIRST_RELEASE = new Date('2026-11-21T00:00:00.000Z');

/** In the order of the lists. `base` is what the plain SDK asks for, the other what the code interpreter's asks for. */
export const TEMPLATES: readonly Template[] = [
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

/**
 * The template of a reference `[namespace/]alias[:tag]` or of an id, or undefined. Built-in templates have no build
 * but the one that the tag `default` names.
 */
export function findTemplate(reference: string): Template | undefined {
  const parsed = parseTemplateReference(reference);
  if (parsed === undefined || parsed.tag !== 'default') return undefined;
  if (parsed.namespace !== undefined && parsed.namespace !== DEFAULT_TEAM_SLUG) return undefined;
  return TEMPLATES.find((each) => each.alias === parsed.alias || each.id === parsed.alias);
}
