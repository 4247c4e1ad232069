import type { Request, RequestHandler, Response } from 'express';
import { PoolSizeRequest } from '../../protocol/native';
import type { PoolInfo } from '../../protocol/native';
import { ServiceError } from '../errors';
import type { PoolStatus } from '../sandboxes/pool';
import type { Pools } from '../sandboxes/pools';
import { DEFAULT_TEAM_ID } from '../sandboxes/store-teams';
import type { Template, Templates } from '../sandboxes/templates';
import { teamOf } from './auth';
import { parseBody } from './input';

/**
 * `GET /v1/pools` and `PUT /v1/pools/{template}`. A size set here holds until the service ends. Pools are the whole
 * service's: the default team, whose key the operator has, is the only one that sees and changes them.
 */
export function poolHandlers(
  pools: Pools | undefined,
  templates: Templates,
): { list: RequestHandler; resize: RequestHandler } {
  const list: RequestHandler = (_req, res) => {
    demandOperator(res);
    const items = (pools?.list() ?? []).map((each) => toInfo(each.template, each));
    res.json({ items, next_token: null });
  };

  const resize: RequestHandler = (req, res) => {
    demandOperator(res);
    const template = templateOf(req, templates);
    const { min, target, max } = parseBody(PoolSizeRequest, req.body);
    if (pools === undefined) throw new ServiceError('unimplemented', 'This service keeps no sandboxes ready');
    const status = pools.setSize(template, { min, target, max: max ?? target });
    res.json(toInfo(template, status));
  };

  return { list, resize };
}

function demandOperator(res: Response): void {
  if (teamOf(res) === DEFAULT_TEAM_ID) return;
  throw new ServiceError('permission_denied', 'Pools are for the default team only', {
    remedy: "Use the service's own API key.",
  });
}

function templateOf(req: Request, templates: Templates): Template {
  const name = String(req.params['template']);
  const template = templates.find(name);
  if (template === undefined) throw new ServiceError('not_found', `template '${name}' not found`);
  return template;
}

function toInfo(template: Template, status: PoolStatus): PoolInfo {
  return {
    template: template.alias,
    template_id: template.id,
    min: status.min,
    target: status.target,
    max: status.max,
    ready: status.ready,
    starting: status.starting,
    claimed_total: status.claimedTotal,
    misses_total: status.missesTotal,
    last_error: status.lastError ?? null,
  };
}
