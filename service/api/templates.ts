import type { RequestHandler } from 'express';
import { ENVD_VERSION, PAGE_LIMIT, parseTemplateReference } from '../../protocol/control-plane';
import type { TemplateAnswer } from '../../protocol/control-plane';
import { ServiceError } from '../errors';
import type { Template, Templates } from '../sandboxes/templates';
import { queryInteger, queryOf } from './input';

/** The handlers for reading templates. */
export function templateHandlers(templates: Templates) {
  const { all } = templates;

  const list: RequestHandler = (_req, res) => {
    res.json(all.map(tell));
  };

  const listPaged: RequestHandler = (req, res) => {
    const query = queryOf(req);
    const limit = queryInteger(query, 'limit', { min: 1, max: PAGE_LIMIT }) ?? PAGE_LIMIT;
    const from = queryInteger(query, 'nextToken', { min: 1, max: all.length }) ?? 0;
    if (from + limit < all.length) res.setHeader('X-Next-Token', String(from + limit));
    res.json(all.slice(from, from + limit).map(tell));
  };

  const get: RequestHandler = (req, res) => {
    const template = known(templates, String(req.params['templateID']));
    const at = template.createdAt.toISOString();
    res.json({
      templateID: template.id,
      public: true,
      aliases: [template.alias],
      names: [template.alias],
      createdAt: at,
      updatedAt: at,
      lastSpawnedAt: null,
      spawnCount: 0,
      builds: [
        {
          buildID: template.buildId,
          status: 'ready',
          createdAt: at,
          updatedAt: at,
          finishedAt: at,
          ...sizeOf(template),
          envdVersion: ENVD_VERSION,
        },
      ],
    });
  };

  const getByAlias: RequestHandler = (req, res) => {
    const template = known(templates, String(req.params['alias']));
    res.json({ templateID: template.id, public: true });
  };

  return { list, listPaged, get, getByAlias };
}

function known(templates: Templates, reference: string): Template {
  if (parseTemplateReference(reference) === undefined) {
    throw new ServiceError('invalid_argument', `${JSON.stringify(reference)} is not the name of a template`);
  }
  const template = templates.find(reference);
  if (template === undefined) throw new ServiceError('not_found', `template '${reference}' not found`);
  return template;
}

// How often a template was used is not counted yet: 0 and null are what "unknown" looks like here.
function tell(template: Template): TemplateAnswer {
  const at = template.createdAt.toISOString();
  return {
    templateID: template.id,
    buildID: template.buildId,
    ...sizeOf(template),
    public: true,
    aliases: [template.alias],
    names: [template.alias],
    createdAt: at,
    updatedAt: at,
    createdBy: null,
    lastSpawnedAt: null,
    spawnCount: 0,
    buildCount: 1,
    envdVersion: ENVD_VERSION,
    buildStatus: 'ready',
  };
}

function sizeOf({ resources }: Template): Pick<TemplateAnswer, 'cpuCount' | 'memoryMB' | 'diskSizeMB'> {
  const { cpuCount, memoryMB, diskSizeMB } = resources;
  return { cpuCount, memoryMB, diskSizeMB };
}
