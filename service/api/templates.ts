import type { RequestHandler } from 'express';
import { ENVD_VERSION, PAGE_LIMIT, parseTemplateReference } from '../../protocol/control-plane';
import type { TemplateAnswer } from '../../protocol/control-plane';
import { ServiceError } from '../errors';
import type { Resources } from '../runtime/runtime';
import { TEMPLATES, findTemplate } from '../sandboxes/templates';
import type { Template } from '../sandboxes/templates';
import { queryInteger, queryOf } from './input';

/** The handlers for reading templates. `resources` are those of every sandbox. */
export function templateHandlers(resources: Resources) {
  const list: RequestHandler = (_req, res) => {
    res.json(TEMPLATES.map((template) => tell(template, resources)));
  };

  const listPaged: RequestHandler = (req, res) => {
    const query = queryOf(req);
    const limit = queryInteger(query, 'limit', { min: 1, max: PAGE_LIMIT }) ?? PAGE_LIMIT;
    const from = queryInteger(query, 'nextToken', { min: 1, max: TEMPLATES.length }) ?? 0;
    if (from + limit < TEMPLATES.length) res.setHeader('X-Next-Token', String(from + limit));
    res.json(TEMPLATES.slice(from, from + limit).map((template) => tell(template, resources)));
  };

  const get: RequestHandler = (req, res) => {
    const template = known(String(req.params['templateID']));
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
          cpuCount: resources.cpuCount,
          memoryMB: resources.memoryMB,
          diskSizeMB: resources.diskSizeMB,
          envdVersion: ENVD_VERSION,
        },
      ],
    });
  };

  const getByAlias: RequestHandler = (req, res) => {
    const template = known(String(req.params['alias']));
    res.json({ templateID: template.id, public: true });
  };

  return { list, listPaged, get, getByAlias };
}

function known(reference: string): Template {
  if (parseTemplateReference(reference) === undefined) {
    throw new ServiceError('invalid_argument', `${JSON.stringify(reference)} is not the name of a template`);
  }
  const template = findTemplate(reference);
  if (template === undefined) throw new ServiceError('not_found', `template '${reference}' not found`);
  return template;
}

// How often a template was used is not counted yet: 0 and null are what "unknown" looks like here.
function tell(template: Template, resources: Resources): TemplateAnswer {
  const at = template.createdAt.toISOString();
  return {
    templateID: template.id,
    buildID: template.buildId,
    cpuCount: resources.cpuCount,
    memoryMB: resources.memoryMB,
    diskSizeMB: resources.diskSizeMB,
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
