import type { JsonSchema, OpenApiDocument, OpenApiOperation } from '../../protocol/openapi';

const STYLE = `
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; background: #fff; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #d0d7de; }
details { border: 1px solid #d0d7de; border-radius: 6px; margin: .4rem 0; padding: .4rem .8rem; }
summary { cursor: pointer; } code, pre { font: 13px/1.45 ui-monospace, monospace; }
pre { background: #f6f8fa; padding: .6rem; overflow-x: auto; border-radius: 6px; }
.method { display: inline-block; min-width: 4.2rem; font-weight: 700; text-transform: uppercase; }
.muted { color: #59636e; } table { border-collapse: collapse; } td { padding: .15rem .8rem .15rem 0; vertical-align: top; }
@media (prefers-color-scheme: dark) {
  body { background: #0d1117; color: #e6edf3; } pre { background: #161b22; } details, h2 { border-color: #30363d; }
  .muted { color: #9198a1; } a { color: #58a6ff; }
}`;

/** The document as one page that needs nothing else: no script, no font, no other server. */
export function renderDocs(document: OpenApiDocument): string {
  const { info, tags, paths, components } = document;
  const operations = Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ path, method, operation })),
  );
  const sections = tags.map(({ name }) => {
    const own = operations.filter(({ operation }) => operation.tags.includes(name));
    return `<h2>${escape(name)}</h2>\n${own.map((each) => renderOperation(each)).join('\n')}`;
  });
  const schemas = Object.entries(components.schemas).map(
    ([name, schema]) =>
      `<details id="schema-${escape(name)}"><summary><code>${escape(name)}</code></summary>${renderSchema(schema)}</details>`,
  );
  return `<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>${escape(info.title)} API</title><style>${STYLE}</style></head>
<body>
<h1>${escape(info.title)} API <span class="muted">${escape(info.version)}</span></h1>
<p>${escape(info.description)} The same as <a href="/docs/openapi.json">OpenAPI 3.1</a>.</p>
${sections.join('\n')}
<h2>Schemas</h2>
${schemas.join('\n')}
</body>
</html>
`;
}

function renderOperation({
  path,
  method,
  operation,
}: {
  path: string;
  method: string;
  operation: OpenApiOperation;
}): string {
  const { summary, description, parameters = [], requestBody, responses, security } = operation;
  const header = { key: 'X-API-Key', admin: 'X-Admin-Token' }[Object.keys(security[0] ?? {})[0] ?? ''];
  const rows = [
    ...(header === undefined ? [] : [[`<code>${header}</code>`, 'header, required', '']]),
    ...parameters.map((each) => [
      `<code>${escape(each.name)}</code>`,
      `${each.in}${each.required ? ', required' : ''}`,
      escape(each.description ?? ''),
    ]),
  ];
  const body = Object.entries(requestBody?.content ?? {}).map(
    ([type, { schema }]) =>
      `<p>Body, ${escape(type)}${requestBody?.required === true ? '' : ', optional'}:</p>${renderSchema(schema)}`,
  );
  const answers = Object.entries(responses).map(
    ([status, { description: text, headers = {}, content = {} }]) => {
      const shapes = Object.entries(content).map(([type, { schema }]) => `${escape(type)} ${inline(schema)}`);
      const told = Object.keys(headers).map((name) => `<code>${escape(name)}</code>`);
      return [status, escape(text), [...shapes, ...told].join(', ')];
    },
  );
  return `<details id="${escape(operation.operationId)}">
<summary><span class="method">${escape(method)}</span> <code>${escape(path)}</code> <span class="muted">${escape(summary)}</span></summary>
${description === undefined ? '' : `<p>${escape(description)}</p>`}${table(rows)}${body.join('')}<p>Answers:</p>${table(answers)}</details>`;
}

function table(rows: string[][]): string {
  if (rows.length === 0) return '';
  const cells = rows.map((row) => `<tr>${row.map((cell) => `<td>${cell}</td>`).join('')}</tr>`);
  return `<table>${cells.join('')}</table>`;
}

function renderSchema(schema: JsonSchema): string {
  const reference = inline(schema);
  return reference !== '' ? `<p>${reference}</p>` : `<pre>${escape(JSON.stringify(schema, null, 2))}</pre>`;
}

/** A link where the schema is a named one or a list of them. */
function inline(schema: JsonSchema): string {
  const { $ref, type, items } = schema;
  if (typeof $ref === 'string') {
    const name = $ref.replace(/^.*\//, '');
    return `<a href="#schema-${escape(name)}">${escape(name)}</a>`;
  }
  if (type === 'array' && typeof items === 'object' && items !== null) {
    const each = inline(items as JsonSchema);
    return each === '' ? '' : `list of ${each}`;
  }
  return '';
}

function escape(text: string): string {
  const entities: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' };
  return text.replace(/[&<>"]/g, (character) => entities[character] ?? character);
}
