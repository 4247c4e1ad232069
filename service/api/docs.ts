import type { RequestHandler } from 'express';
import { goneOperation, laterOperation, openApiDocument } from '../../protocol/openapi';
import type { OpenApiDocument } from '../../protocol/openapi';
import type { HttpMethod } from '../../protocol/openapi-operation';
import { renderDocs } from './docs-page';

export interface DocsOptions {
  /** Release of the service. */
  version: string;
  /** What the contract has and this service doesn't, with paths as Express writes them. */
  later: ReadonlyArray<readonly [method: HttpMethod, path: string, feature: string]>;
  /** What it had once. */
  gone: ReadonlyArray<readonly [method: HttpMethod, path: string]>;
}

/** `GET /docs` and `GET /docs/openapi.json`. Both are made at the first request and are the same for everyone. */
export function docsHandlers({ version, later, gone }: DocsOptions): {
  page: RequestHandler;
  openapi: RequestHandler;
} {
  let made: { document: OpenApiDocument; html: string } | undefined;
  const make = () => {
    const more = later.map(([method, path, feature]) => laterOperation(method, openApiPath(path), feature));
    more.push(...gone.map(([method, path]) => goneOperation(method, openApiPath(path))));
    const document = openApiDocument(version, more);
    return { document, html: renderDocs(document) };
  };
  const page: RequestHandler = (_req, res) => {
    made ??= make();
    // Nothing on the page runs or is fetched, whatever a description says.
    res.setHeader('content-security-policy', "default-src 'none'; style-src 'unsafe-inline'");
    res.type('html').send(made.html);
  };
  const openapi: RequestHandler = (_req, res) => {
    made ??= make();
    res.json(made.document);
  };
  return { page, openapi };
}

/** `/a/:b` as OpenAPI writes it, `/a/{b}`. */
export function openApiPath(path: string): string {
  return path.replace(/:(\w+)/g, '{$1}');
}
